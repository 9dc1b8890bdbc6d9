"""What the names of files say in BIDS: subject, session and suffix."""

from __future__ import annotations

import re
from pathlib import PurePath

_SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|[/_])(ses-[A-Za-z0-9]+)")
_SUFFIX = re.compile(r"sub-.*_([A-Za-z0-9]+)")


def subject(name: str) -> str | None:
    """The subject in a path.

    Example:
        >>> subject("sub-01/ses-2/anat/sub-01_ses-2_T1w"), subject("scans/a")
        ('sub-01', None)
    """
    match = _SUBJECT.search(name)
    return match[1] if match else None


def details(name: str) -> dict[str, str]:
    """The session and the suffix in a path, for paths of BIDS.

    Example:
        >>> details("sub-01/ses-2/anat/sub-01_ses-2_T1w")
        {'session': 'ses-2', 'suffix': 'T1w'}
    """
    if subject(name) is None:
        return {}
    session, suffix = _SESSION.search(name), _SUFFIX.fullmatch(PurePath(name).name)
    found = {"session": session and session[1], "suffix": suffix and suffix[1]}
    return {word: value for word, value in found.items() if value and "-" not in value.removeprefix("ses-")}
