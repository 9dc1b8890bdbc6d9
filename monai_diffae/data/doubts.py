"""Policies for scans that can be read, but may not be what was measured."""

# tested in tests/data/test_scan_refusals.py

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from monai_diffae.data.formats.scan import Doubt, problem, warn_once
from monai_diffae.errors import ConfigError

Uneven = Literal["resample", "refuse"]
"""What to do with DICOM series whose slices are unevenly spaced: resample them by their positions, or refuse them."""

Doubtful = Literal["warn", "refuse"]
"""What to do with all other doubts, such as about left and right: log a warning, or refuse the scan."""


def judge(path: Path, doubts: Sequence[Doubt], uneven: Uneven = "resample", doubtful: Doubtful = "warn") -> None:
    """Log each doubt as a warning, once per process, or refuse the scan because of the first one.

    Raises:
        ScanError: a policy refuses it.

    Example:
        >>> doubt = Doubt("uneven", "its slices are unevenly spaced", "they are resampled", "resample it yourself")
        >>> judge(Path("ct"), [doubt], uneven="refuse")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ScanError: ct: its slices are unevenly spaced; resample it yourself
    """
    for doubt in doubts:
        if (uneven if doubt.kind == "uneven" else doubtful) == "refuse":
            raise problem(path, doubt.wrong, doubt.remedy)
        warn_once(path, str(doubt))


def check_policies(uneven: str, doubtful: str) -> None:
    """Raise an error if a policy is unknown.

    Example:
        >>> check_policies("resample", "ignore")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: doubtful: 'ignore' is not one of warn, refuse
    """
    for name, value, allowed in (("uneven", uneven, get_args(Uneven)), ("doubtful", doubtful, get_args(Doubtful))):
        if value not in allowed:
            raise ConfigError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
