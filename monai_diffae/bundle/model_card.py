"""The model card of a bundle, ``docs/README.md`` and the figures in ``metadata.json``: it is about certain weights."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from monai_diffae.bundle.json_files import read_values
from monai_diffae.bundle.layout import CONFIGS, METADATA, MODEL_CARD
from monai_diffae.data.atomic import write_atomic, write_json
from monai_diffae.errors import DiffAEError, one_line

logger = logging.getLogger(__name__)

FIGURES = "eval_metrics"
NOTE = (
    "> **This page is about earlier weights.** A training has replaced them. Figures, data and training below are "
    "those of the earlier weights: describe the new ones before you share them."
)

UNTRAINED = "The bundle has no weights"
TRAINED = "The weights in this folder are not described here: describe the trained model before you share it."
"""What a card says instead of :data:`UNTRAINED` and the rest of its sentence, once there are weights."""

_UNTRAINED_SENTENCE = re.compile(f"{UNTRAINED}[^.]*\\.")


def mark_replaced_weights(bundle: str | os.PathLike[str]) -> None:
    """Let a bundle's model card say that it is not about the weights that were just written.

    A card of earlier weights is marked, and their figures are removed from ``metadata.json``. A card that says that
    there are no weights says that they are not described. If a file cannot be read or written, a warning is logged.

    Args:
        bundle: the bundle, whose weights were replaced.

    Example:
        >>> mark_replaced_weights("no_such_bundle")
    """
    metadata, card = Path(bundle) / CONFIGS / METADATA, Path(bundle) / MODEL_CARD
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else NOTE
        if UNTRAINED in text:
            text = _UNTRAINED_SENTENCE.sub(TRAINED, text)
            write_atomic(card, lambda path: path.write_text(text, encoding="utf-8"))
        content = read_values(metadata)
        if not content.get(FIGURES):
            return
        if NOTE not in text:
            heading, _, rest = text.partition("\n")
            write_atomic(card, lambda path: path.write_text(f"{heading}\n\n{NOTE}\n{rest}", encoding="utf-8"))
        write_json(metadata, {**content, FIGURES: {}})
        logger.info("the model card in %s is marked as that of the earlier weights", MODEL_CARD)
    except (DiffAEError, OSError, UnicodeDecodeError) as error:
        logger.warning("the model card still describes the earlier weights (%s); change it yourself", one_line(error))
