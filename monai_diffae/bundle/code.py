"""Configurations: how they are read, and what they may call.

MONAI turns a configuration into Python calls: ``_target_`` names what is called, texts that begin with ``$`` are
evaluated, and ``%file.json`` inserts another file. A model file may name only what computes, and a training only what
shipped ones contain; anything else runs only within :func:`trusting`.
"""

import difflib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai_diffae.bundle.layout import CONFIGS, shipped
from monai_diffae.errors import ConfigError, UnsafeInputError, quoted

TRUST = "MONAI_DIFFAE_TRUST"
"""The environment variable of :func:`trusting`, so that processes that a command starts trust as it does."""

_LAYERS = (
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "Flatten",
    "GELU",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "ReLU",
    "Sequential",
    "SiLU",
    "Tanh",
    "Threshold",
)
_TRANSFORMS = (
    "AdjustContrastd",
    "BorderPadd",
    "CenterSpatialCropd",
    "Compose",
    "CopyItemsd",
    "CropForegroundd",
    "DivisiblePadd",
    "EnsureChannelFirstd",
    "EnsureTyped",
    "Flipd",
    "GaussianSharpend",
    "GaussianSmoothd",
    "HistogramNormalized",
    "LoadImaged",
    "MedianSmoothd",
    "NormalizeIntensityd",
    "Orientationd",
    "Resized",
    "ResizeWithPadOrCropd",
    "Rotate90d",
    "ScaleIntensityRangePercentilesd",
    "ScaleIntensityRanged",
    "ScaleIntensityd",
    "Spacingd",
    "SpatialCropd",
    "SpatialPadd",
    "ThresholdIntensityd",
    "Zoomd",
)
_AUGMENTATIONS = (
    "Rand2DElasticd",
    "Rand3DElasticd",
    "RandAdjustContrastd",
    "RandAffined",
    "RandAxisFlipd",
    "RandBiasFieldd",
    "RandCoarseDropoutd",
    "RandCoarseShuffled",
    "RandFlipd",
    "RandGaussianNoised",
    "RandGaussianSharpend",
    "RandGaussianSmoothd",
    "RandGibbsNoised",
    "RandHistogramShiftd",
    "RandRicianNoised",
    "RandRotate90d",
    "RandRotated",
    "RandScaleIntensityd",
    "RandShiftIntensityd",
    "RandSimulateLowResolutiond",
    "RandSpatialCropd",
    "RandStdShiftIntensityd",
    "RandZoomd",
)
_OURS = (
    "diffusion.DiffusionSchedule",
    "inferers.DiffusionAutoencoderInferer",
    "inferers.LatentInferer",
    *(
        f"networks.{name}"
        for name in (
            "AnchoredEncoder",
            "DenoisingUNet",
            "DiffusionAutoencoder",
            "EncoderAdapter",
            "FirstStage",
            "LatentMLP",
            "PatchWords",
            "PlanarAdapter",
            "PooledVoxels",
            "SemanticEncoder",
            "preset",
        )
    ),
    *(
        f"transforms.{name}"
        for name in ("ReadScand", "SmoothForSpacingd", "ToModelRanged", "ToRASd", "ToRegiond", "ToSpacingd")
    ),
)
AUTOENCODERS = {
    "AutoencoderKL": "monai.networks.nets.AutoencoderKL",
    "AutoencoderKlMaisi": "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
}
"""The autoencoders that a first stage can have, by the names of their classes."""

_NETWORKS = (
    "AutoencoderKL",
    "DenseNet",
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    "DenseNet264",
    "DiffusionModelUNet",
    "EfficientNetBN",
    "SENet154",
    "SEResNet50",
    "SEResNet101",
    "SEResNet152",
    "SEResNext50",
    "SEResNext101",
    "ViT",
    *(f"resnet{layers}" for layers in (10, 18, 34, 50, 101, 152, 200)),
)
_SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "RFlowScheduler")
MODEL_TARGETS = frozenset(
    {
        *(name for short in _NETWORKS for name in (short, f"monai.networks.nets.{short}")),
        AUTOENCODERS["AutoencoderKlMaisi"],
        "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
        *(name for short in _SCHEDULERS for name in (short, f"monai.networks.schedulers.{short}")),
        *(f"torch.nn.{name}" for name in _LAYERS),
        *(name for short in _TRANSFORMS for name in (short, f"monai.transforms.{short}")),
        *(f"monai_diffae.{name}" for name in _OURS),
    }
)
"""What a model file may build: none of these writes a file, reads others than the scan, or calls what a text names.

That holds with the values of :data:`_SAFE_VALUES`.
"""

_READERS_OF_MONAI = ("ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader")
# Arguments that can run code, read a file or download one, or trust a model, and the values with which they do not.
_SAFE_VALUES: dict[str, tuple[Any, ...]] = {
    "_mode_": (),
    "_debug_": (),
    "reader": (None, *_READERS_OF_MONAI),
    **dict.fromkeys(("pretrained", "allow_pickle", "trust"), (None, False)),
}

_MORE_IN_TRAININGS = (
    *(  # of earlier versions
        f"monai_diffae.{name}"
        for name in (
            "apps.evaluation.calibrate_trained",
            "bundle.check_image_size",
            "bundle.check_monai_weights",
            "handlers.log_bundle",
        )
    ),
    *(
        name
        for module, short in (
            ("data", "CacheDataset"),
            ("data", "DataLoader"),
            ("data", "ThreadDataLoader"),
            ("handlers", "StatsHandler"),
        )
        for name in (short, f"monai.{module}.{short}")
    ),
    *(name for short in _AUGMENTATIONS for name in (short, f"monai.transforms.{short}")),
    *(
        f"torch.{name}"
        for name in (
            "nn.L1Loss",
            "nn.MSELoss",
            "nn.SmoothL1Loss",
            "optim.Adam",
            "optim.AdamW",
            "optim.RAdam",
            "optim.SGD",
        )
    ),
)
_SHIPPED = (
    "train.json",
    "train_latent.json",
    "distill.json",
    "multi_gpu_train.json",
    "multi_gpu_train_latent.json",
    "latent_paper.json",
    "federated.json",
)
# Expressions that no shipped configuration has: those of earlier versions, and one that a training writes.
_ALLOWED = Path(__file__).with_name("allowed_expressions.json")
# The user's own places that are only read, and the arguments that get them.
_PLACES = {"dataset_dir", "embeddings", "first_stage_bundle", "patient_pattern"}
_READERS = {*_PLACES, "bundle", "cohort"}
# A slash or backslash in plain text; in an expression an absolute path in quotes, unless it is appended to something.
_PATH = re.compile(r"(?![$@%]).*[/\\]|\$(.*[^+\s])?\s*['\"]([A-Za-z]:)?[/\\]", re.DOTALL)


@contextmanager
def trusting() -> Iterator[None]:
    """Build what any model file or configuration names while this is active; ``--trust`` of the command line is this.

    Example:
        >>> with trusting():  # doctest: +SKIP
        ...     trained = monai_diffae.load_bundle("my_model")
    """
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before


def is_trusting() -> bool:
    """Whether this is called within :func:`trusting`."""
    return os.environ.get(TRUST) == "1"


def refuse_code(found: list[str], name: str) -> None:
    """Raise an error about the first of the parts that run code, unless they are trusted."""
    if found and not is_trusting():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsafeInputError(
            f"{name} is not trusted to use {found[0]}{more}; nothing was run. Add --trust to run it, if you trust its "
            "author"
        )


def check_code(config: Mapping[str, Any], name: str, *, places: bool = True) -> None:
    """Refuse a training's configuration with code that no shipped one contains, and with paths if ``places``."""
    refuse_code(list(_code(config, "", places)), name)


def looks_like_path(text: str) -> bool:
    """Whether a text of a configuration may name a place on a disk or server."""
    return text.startswith("~") or bool(_PATH.match(text))


def _code(value: Any, id: str, places: bool) -> Iterator[str]:
    """Code in a part of a configuration, and places if they are asked for."""
    if isinstance(value, Mapping):
        for key, item in with_defaults(value).items():
            yield from _code_of_item(str(key), item, f"{id}#{key}" if id else str(key), places)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _code(item, f"{id}#{number}", places)
    elif isinstance(value, str):
        if value.startswith("$"):
            if value.replace("#", "::") not in _shipped_code()[1]:
                yield f"the expression {quoted(value)} at {quoted(id)}"
        elif value.startswith("%") and re.search(r"\.(json|ya?ml)", value, re.IGNORECASE):
            yield f"the file {quoted(value)} at {quoted(id)}"
        elif places and (looks_like_path(value) or _refers_to_place(value)):
            yield f"the place {quoted(value)} at {quoted(id)}"


def _refers_to_place(text: str) -> bool:
    return text.startswith(("@", "%")) and not {*_READERS, "_meta_"}.isdisjoint(re.split("[@%#:]", text))


def _code_of_item(key: str, item: Any, id: str, places: bool) -> Iterator[str]:
    name = re.split("#|::", key)[-1].removeprefix("+")
    if name == "_target_":
        known = _shipped_code()[0]
        if not (isinstance(item, str) and item in known):
            near = difflib.get_close_matches(str(item), known, 1, 0.9)  # a typing error
            yield f"the target {quoted(str(item))} at {quoted(id)}{f' (or is it {near[0]}?)' if near else ''}"
    elif not is_safe(name, item):
        hint = ' (set "pretrained": false)' if name == "pretrained" else ""  # perhaps the default
        yield f"the argument {quoted(str(item))} at {quoted(id)}{hint}"
    else:
        is_text = isinstance(item, str) and not re.match(r"[/\\]{2}", item)
        is_read = is_text and name in (_READERS if item.startswith("@") else _PLACES)
        yield from _code(item, id, places and not is_read and id != "_meta_" and name != "_desc_")


def is_safe(name: str, value: Any) -> bool:
    """Whether an argument with this value runs no code, and reads no file."""
    return name not in _SAFE_VALUES or value in _SAFE_VALUES[name]


def with_defaults(component: Mapping[str, Any]) -> Mapping[str, Any]:
    """A component with its default of ``pretrained``, if this is not False."""
    is_pretrained = str(component.get("_target_")).endswith("EfficientNetBN")
    return {"pretrained": True, **component} if is_pretrained else component


@functools.cache
def _shipped_code() -> tuple[frozenset[str], frozenset[str]]:
    """The targets and expressions of all shipped trainings and overlays, and the lists of this file."""
    files = [file for name in _SHIPPED for file in shipped("bundles").glob(f"*/{CONFIGS}/**/{name}")]
    targets, expressions = {*MODEL_TARGETS, *_MORE_IN_TRAININGS}, set(json.loads(_ALLOWED.read_text()))
    for file in [*files, *shipped("overlays").glob("*.json")]:
        config = json.loads(file.read_text(encoding="utf-8"))
        targets |= {part["_target_"] for _, part in components(config)}
        targets |= {value for key, value in config.items() if key.endswith("#_target_")}
        expressions |= {text.replace("#", "::") for text in strings(config) if text.startswith("$")}
    return frozenset(targets), frozenset(expressions)


# -- parts and reading -------------------------------------------------------------------------------------------------


def parts(value: Any, id: str = "") -> Iterator[tuple[str, Any]]:
    """A part of a configuration, with its id, and all parts of it."""
    yield id, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from parts(item, f"{id}#{key}" if id else str(key))


def components(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The components in a part of a configuration, with their ids."""
    return ((id, part) for id, part in parts(value) if isinstance(part, dict) and "_target_" in part)


def strings(value: Any) -> Iterator[str]:
    """Every text in a part of a configuration, without the keys."""
    return (part for _, part in parts(value) if isinstance(part, str))


def no_such_key(key: str, what: str, file: str) -> str:
    """The message about an id that a configuration does not have."""
    return f"{key}: {what} has no such key; see {file} for those it has"


def read_values(file: Path, advice: str = "copy the bundle again") -> dict[str, Any]:
    """Read a JSON file with keys and values, none if there is no such file; ``advice`` ends an error's message."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the bundle can be the file of a model
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"{file.name}: cannot be read; {advice}")
    return content
