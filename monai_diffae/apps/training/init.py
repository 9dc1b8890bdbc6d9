"""The command ``init``: make a new bundle from a shipped or trained one."""

from pathlib import Path

from monai_diffae.apps.command import command
from monai_diffae.apps.commands import command_line
from monai_diffae.apps.result import Result
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.layout import MODEL, MODELS, overlay


@command
def init(out: Path, *, bundle: str | Path = "diffae_2d", first_stage: Path | None = None) -> Result:
    """Make a new bundle: a shipped one, to train or with weights to use at once, or a copy of a trained one.

    The folder gets the bundle's configurations, its documentation and licence, and in ``configs/overlays`` the
    configuration overlays that can be used with it. ``chest_xray``, ``hippocampus`` and ``lung_nodules`` have trained
    weights; their ``docs/README.md`` says what the weights can do and what they must not be used for. ``train``
    fine-tunes the weights of a bundle that has them: shipped, copied or pulled.

    Args:
        out: New folder for the bundle.
        bundle: Name of a shipped bundle: ``diffae_2d``, ``diffae_3d`` or ``autoencoder_kl_3d`` without weights,
            ``chest_xray``, ``hippocampus`` or ``lung_nodules`` with weights; or a trained bundle, or the file of its
            model.
        first_stage: Autoencoder on whose latents the new ``diffae_3d`` works: a bundle of MONAI's model zoo, a file of
            weights of MONAI's ``AutoencoderKL`` or ``AutoencoderKlMaisi`` beside the JSON file that defines its
            network, or a trained ``autoencoder_kl_3d``.

    Returns:
        The folder.

    Raises:
        ConfigError: there is no such bundle or first stage, it is not trained, or ``out`` is not empty or cannot be a
            folder.
        MachineError: the folder cannot be written.
    """
    folder = init_bundle(out, bundle, first_stage)
    is_trained = (folder / MODELS / MODEL).is_file()
    words = overlay(folder, "words.json")
    better = {"overlays": [words]} if words.is_file() else {}
    options = {"out": "results"} if is_trained else {"minutes": 10, **better}
    line = command_line("embed" if is_trained else "train", {"bundle": folder, "cohort": "scans.csv", **options})
    return Result(folder, next=[f"next: {line}  # your scans.csv or folder"])
