"""The command ``info``: what a trained bundle is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult

if TYPE_CHECKING:
    from torch import nn

_DECODING = ("steps", "invert_steps", "solver", "inversion", "spacing")
_PROPERTIES = (
    "spatial_dims", "in_channels", "image_size", "spacing_mm", "image_keys", "intensity", "model_range", "slice_axis",
)  # fmt: skip


@dataclass(frozen=True)
class InfoResult(CommandResult):
    """The result of :func:`info`.

    Attributes:
        summary: properties of the model by name, such as ``image_size``, ``parameters``, ``steps`` and ``sha256``.
        description: the whole description in the file of the model.
        own_code: what the model would build that can do more than compute; nothing of it was run.
    """

    summary: dict[str, Any]
    description: dict[str, Any]
    own_code: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """One line per property, and the classes that are not known to compute only."""
        yield from (f"{name}: {value}" for name, value in self.summary.items())
        yield from (f"own code: {target}" for target in self.own_code or ("none",))
        if "parameters" not in self.summary:
            yield "nothing was run; if you trust the author of this code, add --trust"

    def figures(self) -> dict[str, Any]:
        """The properties, and the description."""
        return {**self.summary, "own_code": list(self.own_code), "description": self.description}


@command
def info(bundle: Path) -> InfoResult:
    """Show what a trained model is: its images, size, decoding settings, training data, figures and checksum.

    All of it stands in the file of the model, ``models/model.safetensors``; ``--json`` shows the whole description.

    Args:
        bundle: Folder of a trained bundle, or the file of its model.

    Returns:
        The properties.

    Raises:
        ConfigError: the bundle is not trained.
        ScanError: the file is damaged.

    Example:
        >>> info("my_model")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: my_model: there is no models/model.safetensors; train the bundle first, ...
    """
    from monai_diffae.bundle.code import is_trusting
    from monai_diffae.bundle.layout import model_file
    from monai_diffae.bundle.loading import inferer_settings, load_bundle, load_first_stage
    from monai_diffae.bundle.model_file import checksum, read_description, unknown_targets

    description = read_description(model_file(bundle))
    code = tuple(unknown_targets(description))
    about = {"kind": description["kind"], **{key: description[key] for key in _PROPERTIES if key in description}}
    told = {**description.get("data", {}), **description.get("figures", {}), **description.get("recipe", {})}
    about |= {name: value for name, value in told.items() if not isinstance(value, dict)}
    if not code or is_trusting():
        network: nn.Module
        settings: dict[str, Any]
        if description["kind"] == "first_stage":
            network, settings = load_first_stage(bundle), {}
        else:
            trained = load_bundle(bundle, "cpu")
            network, settings = trained.network, inferer_settings(trained.inferer)
            about["z_channels"] = trained.z_channels
        about["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        about |= {name: settings[name] for name in _DECODING if name in settings}
    return InfoResult({**about, "sha256": checksum(bundle)}, description, code)
