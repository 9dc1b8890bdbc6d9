"""The files of a trained bundle that are sent to others: a list of what is sent, not of what stays behind."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from monai_diffae.bundle import layout

Kind = Literal["document", "metadata", "configuration", "record", "weights", "network"]
"""How a file is sent:

- ``document``: as its author wrote it.
- ``metadata``: MONAI's description of the bundle, as its author wrote it, without paths.
- ``configuration``: by the rule of :mod:`~monai_diffae.bundle.sent_values`.
- ``record``: by the same rule; nothing takes the place of what is removed.
- ``weights``: if they fit the configuration, and the file holds nothing else.
- ``network``: a network that ``export`` wrote beside the weights, if its record says that it has these weights.
"""


@dataclass(frozen=True)
class SentFile:
    """A file that is sent if the bundle has it.

    Attributes:
        name: relative to the bundle.
        kind: how it is sent.
        like: of a configuration: the shipped configuration whose values take the place of removed ones.
    """

    name: str
    kind: Kind
    like: str = ""


def _model_files(prefix: str, like: str) -> tuple[SentFile, ...]:
    return (
        SentFile(f"{layout.MODELS}/{prefix}{layout.MODEL}", "weights"),
        SentFile(f"{layout.MODELS}/{prefix}{layout.SAFE_MODEL}", "weights"),
        SentFile(f"{layout.MODELS}/{prefix}{layout.CONFIG}", "configuration" if like else "record", like),
    )


_FILES = (
    SentFile("LICENSE", "document"),
    SentFile(layout.MODEL_CARD, "document"),
    SentFile("docs/data_license.txt", "document"),
    SentFile(f"{layout.CONFIGS}/{layout.METADATA}", "metadata"),
    *_model_files("", layout.TRAIN),
    *_model_files(layout.FIRST_STAGE_PREFIX, layout.TRAIN),
    *_model_files(layout.LATENT_PREFIX, layout.TRAIN_LATENT),
    *_model_files(layout.FAST_PREFIX, ""),
    *(SentFile(f"{layout.MODELS}/{name}", "record") for name in (layout.METRICS, layout.PROVENANCE, layout.NETWORKS)),
    *(
        SentFile(f"{layout.MODELS}/{network}.{format}", "network")
        for network in ("encoder", "denoiser", "first_stage_encoder", "first_stage_decoder")
        for format in ("pt2", "onnx", "ts")
    ),
    *(
        SentFile(f"{layout.CONFIGS}/{name}", "configuration", name)
        for name in (
            layout.TRAIN, layout.TRAIN_LATENT, layout.DISTILL, layout.INFERENCE, layout.EVALUATE,
            f"{layout.MULTI_GPU}{layout.TRAIN}", f"{layout.MULTI_GPU}{layout.TRAIN_LATENT}",
        )
    ),
)  # fmt: skip

SENT_FILES = {file.name: file for file in _FILES}
"""The files by their names. Configurations that are exactly those of this package are sent, too."""

# lower case only, so that no two names are the same file on another system
_CONFIG = re.compile(rf"{layout.CONFIGS}/(overlays/)?[a-z0-9_]{{1,60}}\.json")


def may_be_in_a_sent_bundle(name: str) -> bool:
    """Whether a file can be one of a bundle that was sent, by its name relative to the bundle.

    Example:
        >>> [may_be_in_a_sent_bundle(name) for name in ("models/model.pt", "configs/embed.json", "run.py", "../a.json")]
        [True, True, False, False]
    """
    return name in SENT_FILES or _CONFIG.fullmatch(name) is not None
