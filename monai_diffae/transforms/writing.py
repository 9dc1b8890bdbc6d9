"""Write results to files, as a MONAI transform."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_diffae.data.cases import safe_file_name
from monai_diffae.data.scans import write_scan
from monai_diffae.errors import ConfigError


class WriteScand(MapTransform):
    """Writes each image to ``<directory>/<id>.nii.gz``, in the model's grid and range.

    An id that is not safe as a file name is replaced by one that is.

    Args:
        keys: images ``[C, *S]``; with several keys, each has a folder of its name.
        directory: folder for the files; created if missing.
        overwrite: replace existing files.
        allow_missing_keys: skip keys that an item does not have.

    Raises:
        ConfigError: (on call) the file exists and ``overwrite`` is False.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = WriteScand("pred", folder)({"pred": torch.zeros(1, 4, 4), "id": "a"})
        ...     print(*os.listdir(folder))
        a.nii.gz
    """

    def __init__(
        self,
        keys: KeysCollection,
        directory: str | os.PathLike[str],
        overwrite: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.directory, self.overwrite = Path(directory), overwrite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the item's images; the item itself is unchanged."""
        item = dict(data)
        for key in self.key_iterator(item):
            folder = self.directory if len(self.keys) == 1 else self.directory / str(key)
            path = folder / f"{safe_file_name(str(item['id']))}.nii.gz"
            if path.exists() and not self.overwrite:
                raise ConfigError(f"{path.name}: already exists; choose another output_dir, or set overwrite")
            folder.mkdir(parents=True, exist_ok=True)
            write_scan(path, torch.as_tensor(item[key]).detach().float().cpu().numpy())
        return item


WriteScanD = WriteScanDict = WriteScand
