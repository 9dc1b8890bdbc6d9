"""The names of the files in a bundle folder."""

from pathlib import Path

from monai_diffae.errors import ConfigError
from monai_diffae.policies import PathLike

_PACKAGE = Path(__file__).parents[1]

CONFIGS, MODELS, PICTURES = "configs", "models", "pictures"

TRAIN = "train.json"
METADATA = "metadata.json"  # MONAI's description of a bundle
MODEL_CARD = "docs/README.md"
DATA_LICENSE = "docs/data_license.txt"
MULTI_GPU = "multi_gpu_"  # prefix of the file in ``CONFIGS`` that is laid over a training configuration
NETWORKS = "networks.json"  # describes the networks that ``export`` wrote beside it

MODEL = "model.safetensors"  # the averaged weights and their description: all that this package reads
MONAI_MODEL = "model.pt"  # the same weights as a flat state dict, for MONAI's own tools; never read
METRICS = "metrics.json"  # the metrics of the last validation, such as ``z_sem_usage``
FIRST_STAGE_MODEL = "first_stage_model.safetensors"  # of ``init``; a training copies its first stage into ``MODEL``
CHECKPOINT = "checkpoint.pt"  # everything that a training needs to resume
ANOMALY = "anomaly.safetensors"  # the residuals of held-out cases, with which anomaly maps and scores are calibrated
WIDE = "wide.safetensors"  # principal components of the features before the encoder's last layer
PROVENANCE = "provenance.json"  # from which official checkpoint the weights are

LATENT_PREFIX, FAST_PREFIX = "latent_", "fast_"  # prefixes of the files of a latent DDIM and of a fast decoder
LATENT_MODEL, FAST_MODEL = f"{LATENT_PREFIX}{MODEL}", f"{FAST_PREFIX}{MODEL}"

MODEL_FILES = (MODEL, LATENT_MODEL, FAST_MODEL, WIDE, ANOMALY, METRICS, PROVENANCE)
"""The files in ``models`` that are copied with a model; the one for MONAI's tools is written again."""


def overlay(bundle: Path, file: str) -> Path:
    """A configuration overlay in the folder of a bundle."""
    return bundle / CONFIGS / "overlays" / file


def shipped(kind: str) -> Path:
    """The folder of the shipped ``bundles`` or ``overlays``: in the installed package, or beside it in a checkout."""
    in_wheel = _PACKAGE / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / {"overlays": "configs"}.get(kind, kind)


def models_folder(bundle: PathLike) -> Path:
    """The folder with the model files of a bundle, which is a folder, or the file of a model itself."""
    path = Path(bundle)
    return path.parent if path.suffix == Path(MODEL).suffix else path / MODELS


def model_file(bundle: PathLike) -> Path:
    """The file of a bundle's model, which exists; a bundle is a folder, or the file itself."""
    root = Path(bundle)
    is_file = root.suffix == Path(MODEL).suffix
    path = root if is_file else root / MODELS / MODEL
    if path.is_file():
        return path
    if is_file:
        raise ConfigError(f"{root.name}: there is no such file; give a trained bundle, or the file of its model").at(
            root
        )
    other = "choose a trained one" if root.is_dir() else "check the path: there is no such folder"
    if (root / "model" / MODELS / MODEL).is_file():  # a folder of start
        other = f"choose {root.name}/model"
    error = ConfigError(f"{root.resolve().name}: there is no {MODELS}/{MODEL}; train the bundle first, or {other}")
    raise error if root.is_dir() else error.at(root)
