"""Policies for scans that can be read, but may not be what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_diffae.data.formats.scan import Doubt, problem, warn_once
from monai_diffae.policies import Doubtful, Uneven


def judge(path: Path, doubts: Sequence[Doubt], uneven: Uneven = "resample", doubtful: Doubtful = "warn") -> None:
    """Log each doubt as a warning, once per process, or refuse the scan because of the first one.

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
