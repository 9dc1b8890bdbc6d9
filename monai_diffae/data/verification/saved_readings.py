"""Readings kept in a file, so that only new and changed cases are read when a cohort is verified again."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_diffae.data.atomic import disk_errors
from monai_diffae.data.cases import Case
from monai_diffae.data.file_states import file_state
from monai_diffae.data.fingerprints import Fingerprint
from monai_diffae.data.formats.scan import Doubt
from monai_diffae.data.verification.readings import Reading

_VERSION = 2  # raised when readings have other content or come from other checks


@dataclass
class SavedReadings:
    """Readings by the id of a case and the state of its files. Each line of the file is one reading.

    Attributes:
        file: the file; a line that was not written to its end is ignored.
        headers: whether the readings are those of headers only.
    """

    file: Path
    headers: bool = False
    _lines: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.file.is_file():
            return
        for line in self.file.read_text(errors="replace").splitlines():
            key, _, content = line.partition(" ")
            self._lines[key] = content

    def get(self, case: Case) -> Reading | None:
        """The reading of a case whose files have not changed; None if there is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a run was killed while it wrote the line
            return _decoded(json.loads(self._lines[self._key(case)]))
        return None

    def add(self, case: Case, reading: Reading) -> None:
        """Append a reading.

        Raises:
            MachineError: the file cannot be written.
        """
        with disk_errors(self.file.name):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as stream:
                stream.write(f"\n{self._key(case)} {json.dumps(_encoded(reading))}")

    def _key(self, case: Case) -> str:
        files = [file for key in sorted(case.images) for file in _as_tuple(case.images[key])]
        # files of several patients may have the same name, size and time, so the case counts, too
        state = hashlib.sha256(f"{case.file_name} {file_state(files, change_times=True)}".encode()).hexdigest()
        return f"{_VERSION}-{'headers' if self.headers else 'whole'}-{state}"


def _as_tuple(images: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return images if isinstance(images, tuple) else (images,)


def _encoded(reading: Reading) -> dict[str, Any]:
    content = {**vars(reading), "doubts": [asdict(doubt) for doubt in reading.doubts], "fingerprint": None}
    if reading.fingerprint is not None:
        digest, thumbnail = reading.fingerprint.digest, reading.fingerprint.thumbnail
        small = None if thumbnail is None else [len(thumbnail), base64.b64encode(thumbnail.tobytes()).decode()]
        content["fingerprint"] = [digest.hex(), small]
    return content


def _decoded(content: dict[str, Any]) -> Reading:
    doubts = tuple(Doubt(**doubt) for doubt in content.pop("doubts"))
    saved = content.pop("fingerprint")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return Reading(**values, doubts=doubts, fingerprint=None if saved is None else _fingerprint(*saved))


def _fingerprint(digest: str, saved: list[Any] | None) -> Fingerprint:
    if saved is None:
        return Fingerprint(bytes.fromhex(digest), None)
    planes, text = saved
    thumbnail = np.frombuffer(base64.b64decode(text), np.float32).reshape(planes, 32, 32)
    return Fingerprint(bytes.fromhex(digest), thumbnail)
