"""The words of this package: texts in a configuration that say nothing about its author or the data."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from monai.networks.schedulers.scheduler import NoiseSchedules
from monai.utils import enums

from monai_diffae.bundle.config_values import is_formula
from monai_diffae.bundle.folders import shipped
from monai_diffae.bundle.known_code import known_code
from monai_diffae.bundle.private_values import PRIVATE_KEYS, SEPARATOR
from monai_diffae.bundle.sent_files import SENT_FILES
from monai_diffae.data.slices import Axis
from monai_diffae.diffusion.names import DecoderName, InversionName, SolverName, SpacingName
from monai_diffae.diffusion.schedule import RECTIFIED_FLOW, LossWeighting, Prediction, TimestepSampling
from monai_diffae.engines.precision import Precision
from monai_diffae.inferers.autoencoding import ReconstructionMode
from monai_diffae.networks.presets import PRESETS
from monai_diffae.policies import Colour, Doubtful, OnBadScan, Uneven
from monai_diffae.transforms.intensity import Method

_CHOICES = (
    Axis, Colour, DecoderName, Doubtful, InversionName, LossWeighting, Method, OnBadScan, Precision, Prediction,
    ReconstructionMode, SolverName, SpacingName, TimestepSampling, Uneven,
)  # fmt: skip
_WRITTEN_BY_COMMANDS = (
    "axcodes", "labels", "RAS",  # of earlier bundles
    "", "_meta_", "data_fingerprint", "started_from", "autoencoder_sha256", "sha256", "prefix", "levels", "constant",
    # provenance.json
    "source", "official phizaz/diffae checkpoint", "file_sha256", "weights", "ema_model", "model", "bare",
    "monai_diffae", "monai", "torch",
    # networks.json
    "networks", "made_from", "format", "onnx", "pt2", "ts", "inputs", "output", "dtype", "bytes", "config",
    "size_is_free", "largest_difference", "images", "batch", "height", "width", "x", "y", "x_t", "timesteps", "latent",
    "alpha", "sigma", "axes", "slice_axes", "left to right", "right to left", "top to bottom", "as in the file",
    "posterior to anterior", "anterior to posterior", "inferior to superior", "superior to inferior",
    "alpha[t] * x0 + sigma[t] * eps", "(x_t - alpha[t] * x0) / sigma[t]", "(x_t - sigma[t] * prediction) / alpha[t]",
    "x_t - sigma[t] * prediction", "alpha[t] * x_t - sigma[t] * prediction",
)  # fmt: skip
_NO_PLACES = ("", "???", ".")
_PUBLIC_CLASS = re.compile(r"(ignite|monai|monai_diffae|torch)(\.[A-Za-z_]\w*)+", re.ASCII)
_MULTIPLE = re.compile(r"\d+\*\w+")  # such as "16*height"
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,3}([.+]?(a|b|rc|dev|post|cpu|cu)\d*)*")
_VERSIONS = ("monai_diffae", "monai", "torch")
_CHECKSUMS = ("sha256", "autoencoder_sha256", "file_sha256", "data_fingerprint", "started_from", "model", "config")


def is_known_key(key: str) -> bool:
    """Whether each part of a key, such as ``network_def#unet``, is a key or word of this package.

    Example:
        >>> is_known_key("network_def#unet"), is_known_key("case_of_mrs_doe")
        (True, False)
    """
    return all(part in known_words() or part.isdecimal() for part in SEPARATOR.split(key.removeprefix("+")))


def is_known_text(text: str, key: str) -> bool:
    """Whether the value of a key is a word of this package, an expression of it, a reference, or a checksum.

    Example:
        >>> is_known_text("@network_def#unet", "network"), is_known_text("scans/doe.csv", "dataset_dir")
        (True, False)
    """
    if key in PRIVATE_KEYS and not is_formula(text):
        return text in _NO_PLACES
    if text in known_words():
        return True
    if text.startswith("$"):
        return known_code().has_expression(text)
    if text.startswith("@"):
        return all(not part or is_known_key(part) for part in SEPARATOR.split(text[1:]))
    if key == "_target_" and _PUBLIC_CLASS.fullmatch(text):
        return True
    if _MULTIPLE.fullmatch(text):
        return text.partition("*")[2] in known_words()
    if _CHECKSUM.fullmatch(text):
        return key in _CHECKSUMS
    return key in _VERSIONS and bool(_VERSION.fullmatch(text))


@functools.cache
def known_words() -> frozenset[str]:
    """All keys and texts of the shipped configurations, the choices of their keys, and what commands write."""
    words = {Path(file.name).name for file in SENT_FILES.values() if file.kind == "network"}
    words |= {*_WRITTEN_BY_COMMANDS, *PRESETS, *NoiseSchedules.components, RECTIFIED_FLOW, *known_code().targets}
    words.update(str(choice) for literal in _CHOICES for choice in get_args(literal))
    words.update(str(word) for choices in vars(enums).values() if _is_enumeration(choices) for word in choices)
    for path in [*shipped("bundles").glob("*/configs/*.json"), *shipped("overlays").glob("*.json")]:
        words.update(_words(json.loads(path.read_text(encoding="utf-8"))))
    return frozenset(words)


def _is_enumeration(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, enums.StrEnum)


def _words(value: Any) -> Iterator[str]:
    """Every text in a configuration, and every part of its keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from SEPARATOR.split(key.removeprefix("+"))
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, str):
        yield value
