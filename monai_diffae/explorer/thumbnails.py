"""Thumbnails of cases: from the table if it has them, else made once and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.apps.session import Session
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.contents import scan_states
from monai_diffae.data.streamed import preprocessed
from monai_diffae.explorer.atlas import Atlas
from monai_diffae.pictures import thumbnail

_AT_ONCE = BoundedSemaphore(2)


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of a cohort.

    Those of another preprocessing lie in another folder, and those of a scan that was replaced have another name.
    """

    session: Session
    atlas: Atlas
    folder: Path

    def of(self, row: int) -> bytes:
        """The PNG of a case."""
        table = self.atlas.table
        if "thumbnail" in table and isinstance(table["thumbnail"][row], bytes):
            return bytes(table["thumbnail"][row])
        case = self.atlas.cases[row]
        (state,) = scan_states([case])
        file = self.folder / self.session.trained.sha256[:12] / f"{case.file_name}-{state[:12]}.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            content = self._make(row)
            write_atomic(file, lambda path: path.write_bytes(content))
        return file.read_bytes()

    def image(self, row: int) -> NDArray[np.float32]:
        """The scan of a case as the model sees it, [C, *S]."""
        with _AT_ONCE:
            item = preprocessed(self.session.trained.preprocessing, self.atlas.cases[row].item(), ("image",))
        return np.asarray(item["image"], np.float32)

    def _make(self, row: int) -> bytes:
        return thumbnail(torch.from_numpy(self.image(row)), self.session.trained.model_range)
