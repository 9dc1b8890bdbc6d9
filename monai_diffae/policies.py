"""Types that all rooms share. This module is light: importing it does not load torch.

The options of commands, the keys of configurations and the functions that read scans take their choices from here, such
as what to do with scans and labels that are not as expected.
"""

import os
from typing import Any, Literal, get_args

from monai_diffae.errors import ConfigError, quoted

PathLike = str | os.PathLike[str]
"""A path, as text or as an object."""

Range = tuple[float, float]
"""The lowest and the highest value, such as black and white."""

OnBadScan = Literal["skip", "stop"]
"""What a training does with scans that cannot be used: skip and list them, or stop."""

Colour = Literal["refuse", "grey", "rgb"]
"""What to do with colour images: refuse them, convert them to grey, or bring all images to three channels."""

Uneven = Literal["resample", "refuse"]
"""What to do with DICOM series whose slices are unevenly spaced: resample them by their positions, or refuse them."""

OtherGrids = Literal["resample", "refuse"]
"""What to do with sequences and masks on another grid than the first sequence: resample them to it, or refuse them."""

Region = Literal["whole", "box", "masked"]
"""What a model sees of a scan: all, the box around its mask, or the scan with background outside its mask."""

Doubtful = Literal["warn", "refuse"]
"""What to do with all other doubts, such as about left and right: log a warning, or refuse the scan."""

Ids = Literal["names", "hashed"]
"""What listed scans are called: by the names of their files, or by keyed hashes."""

Detail = Literal["own", "model"]
"""What an edited image shows beside the edit: the scan's own detail, or what the model decodes."""

Features = Literal["z", "wide"]
"""z_sem, or the features from which the encoder's last layer computes it."""

MISSING_WORDS = (
    "",
    "NA",
    "N/A",
    "n/a",
    "NaN",
    "nan",
    "null",
    "NULL",
    "#N/A",
    "#N/A N/A",
    "#NA",
    "<NA>",
    "-NaN",
    "-nan",
    "1.#IND",
    "-1.#IND",
    "1.#QNAN",
    "-1.#QNAN",
)
"""Words for a missing label, as of pandas. ``None`` is not one: it can be a class, such as no treatment."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise an error about the argument ``name`` if a value is no choice of a ``Literal`` or a list."""
    words = list(get_args(choices) or choices)
    if value not in words:
        raise ConfigError(f"{name}: {quoted(value)} is not one of {', '.join(words)}")
