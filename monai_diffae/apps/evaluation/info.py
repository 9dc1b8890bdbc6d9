"""The command ``info``: what a trained bundle is, and what for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.command import command
from monai_diffae.apps.result import Result
from monai_diffae.bundle.code import is_trusting
from monai_diffae.bundle.folders import read_uses
from monai_diffae.bundle.layout import MODEL_CARD, model_file
from monai_diffae.bundle.model_file import checksum, count_weights, read_description, unknown_targets
from monai_diffae.diffusion import DecodingSettings

_DECODING = ("steps", "invert_steps", "solver", "inversion", "spacing")
_PROPERTIES = (
    "spatial_dims",
    "in_channels",
    "image_size",
    "spacing_mm",
    "image_keys",
    "intensity",
    "model_range",
    "slice_axis",
)


@command
def info(bundle: Path) -> Result:
    """Show what a trained model is for, and what it is: its images, size, decoding, training, figures and checksum.

    Organ, modality, training data and uses are read from the section Intended Use of the model card
    ``docs/README.md``, all else from the model's file; ``--json`` shows the whole description.

    Args:
        bundle: Folder of a trained bundle, or the file of its model.

    Returns:
        ``organ``, ``modality``, ``training_data``, ``intended_use`` and ``unintended_use`` (None: the card does not say
        it); ``field_of_view``; properties such as ``image_size``, ``spacing_mm``, ``parameters``, ``steps`` and
        ``sha256``; ``own_code``, what the model would build that can do more than compute, which was not run; and
        ``description``, all of its file.

    Raises:
        ConfigError: the bundle is not trained.
        ScanError: the file is damaged.
    """
    description = read_description(model_file(bundle))
    code = tuple(unknown_targets(description))
    uses = read_uses(bundle)
    properties = {key: description[key] for key in _PROPERTIES if key in description}
    summary = {**uses, "field_of_view": _field_of_view(**properties), "kind": description["kind"], **properties}
    told = {**description.get("data", {}), **description.get("figures", {}), **description.get("recipe", {})}
    summary |= {name: value for name, value in told.items() if not isinstance(value, dict)}
    if not code or is_trusting():
        summary["parameters"] = count_weights(model_file(bundle))
        if description["kind"] == "autoencoder":
            summary |= {"z_channels": description["z_channels"], **_decoding(**description)}
    summary["sha256"] = checksum(bundle)
    nested = [name for name in summary if "#" in name]  # of the recipe
    lines = {name: value for name, value in summary.items() if name not in nested and (name not in uses or value)}
    notes = [f"{name}: {_text(value)}" for name, value in lines.items()]
    if nested:
        changed = ", ".join(dict.fromkeys(name.partition("#")[0] for name in nested))
        notes.append(f"differs from the shipped recipe: {changed}; --json shows how")
    if unsaid := [name.replace("_", " ") for name, text in uses.items() if text is None]:
        point = f"- **{unsaid[0].capitalize()}**: ..."
        notes.append(f"{MODEL_CARD} does not say this model's {', '.join(unsaid)}; add lines such as: {point}")
    notes += [f"own code: {target}" for target in code or ("none",)]
    if "parameters" not in summary:
        notes.append("nothing was run; if you trust the author of this code, add --trust")
    return Result(None, {**summary, "own_code": list(code), "description": description}, notes)


def _field_of_view(image_size: Sequence[int] = (), spacing_mm: Sequence[float] | None = None, **_: Any) -> str:
    """What a model sees of a scan: a 3D one a region of fixed size, a 2D one the whole image."""
    if not spacing_mm:
        return f"the whole image, resized to {' x '.join(map(str, image_size))} pixels"
    sizes = (size * side for size, side in zip(image_size, spacing_mm, strict=True))
    field, voxel = (" x ".join(f"{side:.4g}" for side in sides) for sides in (sizes, spacing_mm))
    return f"{field} mm, in voxels of {voxel} mm"


def _decoding(inferer: Mapping[str, Any], diffusion: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
    """The settings of a description's inferer, with what stands for None in them."""
    values = {name: inferer.get(name, getattr(DecodingSettings, name)) for name in _DECODING}
    spacing = (diffusion or {}).get("spacing", "logsnr")
    standing_for = {"invert_steps": values["steps"], "spacing": spacing}
    return {name: standing_for[name] if value is None else value for name, value in values.items()}


def _text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
