"""MONAI Label's datastore for a folder, with checked ids and tags, and with DICOM series.

MONAI Label (0.8.5) joins ids and tags of requests to paths without a check, so that ``tag=../../x`` writes outside the
folder of the studies.
"""

from __future__ import annotations

import filecmp
import logging
import os
from pathlib import Path
from threading import RLock
from typing import Any

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from monai_diffae.data.folders import name_within, search_folder
from monai_diffae.data.formats import dicom
from monai_diffae.data.scans import SUFFIXES
from monai_diffae.errors import ConfigError, DiffAEError, one_line
from monai_diffae.label.ids import check_id, check_tag
from monai_diffae.label.label_targets import check_label_file
from monai_diffae.label.server_settings import PATTERNS
from monai_diffae.serving.answers import ConflictError, NotFoundError

logger = logging.getLogger(__name__)


class CheckedIds:
    """Mixin for a datastore of MONAI Label: every id and tag is checked before it becomes part of a path."""

    def check_known(self, image_id: object) -> str:
        """Return the id of an image that exists.

        Raises:
            ConfigError: it is not an id.
            NotFoundError: the datastore has no such image.
        """
        id = check_id(image_id)
        if id not in self.list_images():  # type: ignore[attr-defined]
            raise NotFoundError(
                "image: the datastore has no image with this id; GET /datastore/?output=all lists the ids"
            )
        return id

    def check_known_label(self, label_id: object, tag: object) -> tuple[str, str]:
        """Return the id and tag of a label that exists.

        Raises:
            ConfigError: they are not an id and a tag.
            NotFoundError: the datastore has no such label.
        """
        id, checked_tag = check_id(label_id, "label"), check_tag(tag)
        if checked_tag not in self.get_labels_by_image_id(id):  # type: ignore[attr-defined]
            raise NotFoundError(f"label: the image has no label with the tag {checked_tag!r}")
        return id, checked_tag

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image."""
        return super().get_image_uri(self.check_known(image_id))  # type: ignore[misc]

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known about an image."""
        return super().get_image_info(self.check_known(image_id))  # type: ignore[misc]

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about an image."""
        super().update_image_info(self.check_known(image_id), info)  # type: ignore[misc]

    def remove_image(self, image_id: str) -> None:
        """Delete an image and its labels."""
        super().remove_image(self.check_known(image_id))  # type: ignore[misc]

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image."""
        if not isinstance(label_info, dict | None):
            raise ConfigError("params: must be a JSON object; send {} for none")
        return super().save_label(  # type: ignore[misc]
            self.check_known(image_id), label_filename, check_tag(label_tag), label_info
        )

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete a label."""
        super().remove_label(*self.check_known_label(label_id, label_tag))  # type: ignore[misc]

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is known about a label."""
        return super().get_label_info(*self.check_known_label(label_id, label_tag))  # type: ignore[misc]

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known about a label."""
        super().update_label_info(*self.check_known_label(label_id, label_tag), info)  # type: ignore[misc]


class FolderDatastore(CheckedIds, LocalDatastore):
    """A folder of studies: all scans in it and in its subfolders, except its labels.

    MONAI Label's list has an id and a suffix for each image, and its file is ``id + suffix``. The id of a scan in a
    subfolder is its path with ``_`` instead of ``/``, and its "suffix" is ``/`` and its path, from which
    :meth:`_filename` gives its file. Labels have plain suffixes. A series that shares its folder with others has the
    path ``folder#series=UID``.

    Reading and changing the list are serialised, because requests run in several threads.

    Args:
        studies: the folder.
        auto_reload: whether to watch the folder for new files.
        read_only: whether to leave the list of images as it is; for jobs beside the server.
    """

    def __init__(self, studies: str, *, auto_reload: bool = False, read_only: bool = False) -> None:
        self._lock = RLock()
        self._num_unmatched = 0
        self._scans: dict[str, str] = {}  # paths in the folder by id, of the last search
        self._nested: dict[str, str] = {}  # ids by path, of those that are no plain files or folders in it
        super().__init__(studies, extensions=PATTERNS, auto_reload=auto_reload, read_only=read_only)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The path of a label."""
        with self._lock:
            return str(super().get_label_uri(*self.check_known_label(label_id, label_tag)))

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image; of one of several series in a folder, ``folder#series=UID``."""
        uri = str(super().get_image_uri(image_id))
        uid = dicom.split_series(self._datastore.objects[image_id].image.ext)[1]
        return uri if uid is None else f"{uri}{dicom.SERIES}{uid}"

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known about an image; ``name`` is a name without folders, because viewers save files under it."""
        info = dict(super().get_image_info(image_id))
        return {**info, "name": Path(info["path"]).name}

    def remove_image(self, image_id: str) -> None:
        """Delete an image and its labels.

        Raises:
            ConfigError: it is a DICOM series whose folder holds more, which would be deleted, too.
        """
        folder = Path(super().get_image_uri(image_id))
        others = (dicom.split_series(self.get_image_uri(id))[0] for id in self.list_images() if id != image_id)
        if folder.is_dir() and (folder in others or any(item.is_dir() for item in folder.iterdir())):
            raise ConfigError("image: its folder holds more than this series; delete its files by hand")
        super().remove_image(image_id)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store a new image.

        Raises:
            ConfigError: the id cannot be used, or files of this kind are no images.
            ConflictError: another image has this id.
        """
        own_id, suffix = self._to_id(Path(image_filename).name)
        id = check_id(image_id or own_id)
        if suffix.lower() not in SUFFIXES:
            raise ConfigError(f"file: has an unknown suffix; use one of {' '.join(SUFFIXES)}")
        with self._lock:
            known = self._datastore.objects.get(id)
            if known is not None and not filecmp.cmp(self.get_image_uri(id), image_filename, shallow=False):
                raise ConflictError("image: another image has this id; choose a new id, or delete that image first")
            if known is not None:
                return id  # MONAI Label would forget the labels of the image
            return str(super().add_image(id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image; one that the image has already is replaced, whatever the suffix of its file.

        Raises:
            ConfigError: the file is not an image; a label that the image has already stays.
        """
        check_label_file(Path(label_filename))
        with self._lock:
            id = super().save_label(image_id, label_filename, label_tag, label_info)
            file = Path(self.get_label_uri(id, check_tag(label_tag)))
            for other in file.parent.iterdir():
                # else it would take the label's place once that is removed
                if other != file and self._to_id(other.name)[0] == id:
                    other.unlink()
            return id

    def list_images(self) -> list[str]:
        """The ids of all images."""
        with self._lock:
            return sorted(super().list_images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The ids of images with a final label."""
        with self._lock:
            return sorted(super().get_labeled_images(label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The ids of images without a final label."""
        with self._lock:
            return sorted(super().get_unlabeled_images(label_tag, labels))

    def status(self) -> dict[str, Any]:
        """Numbers of images and labels."""
        with self._lock:
            return dict(super().status())

    def _reconcile_datastore(self) -> None:
        with self._lock:
            self._search()
            super()._reconcile_datastore()
            self._report_unmatched_labels()

    def _remove_non_existing(self) -> int:
        # MONAI Label (0.8.5) keeps a series as long as its folder exists
        num_removed = super()._remove_non_existing()
        objects = self._datastore.objects
        gone = [id for id in objects if objects[id].image.ext[:1] in ("", "/") and id not in self._scans]
        for id in gone:
            del objects[id]
        return num_removed + len(gone)

    def _search(self) -> None:
        """Find the scans of the folder."""
        root, labels = Path(self._datastore.image_path()), f"{self._datastore.labels_dir}/"
        files = [scan.first for scan in search_folder(root).scans]
        found = [(name_within(file, root).replace("/", "_"), os.path.relpath(file, root)) for file in files]
        scans = [(id, path) for id, path in found if not path.startswith(labels)]
        self._scans = dict(reversed(scans))
        self._nested = {path: id for id, path in scans if path == "." or "/" in path or dicom.SERIES in path}
        if len(self._scans) < len(scans):
            logger.warning(
                "%d scans have the id of another scan and are ignored (ids have no suffix, and _ instead of /); rename "
                "them", len(scans) - len(self._scans),
            )  # fmt: skip

    def _report_unmatched_labels(self) -> None:
        """Log how many label files belong to no image; MONAI Label (0.8.5) would log their names."""
        known = set(self._datastore.objects)
        unmatched = {
            file
            for tag in Path(self._datastore.label_path(None)).iterdir() if tag.is_dir()
            for file in self._list_files(str(tag), PATTERNS) if self._to_id(file)[0] not in known
        }  # fmt: skip
        if len(unmatched) != self._num_unmatched:
            self._num_unmatched = len(unmatched)
            logger.warning("%d label files belong to no image and are ignored", len(unmatched))

    def _to_id(self, file: str) -> tuple[str, str]:
        # MONAI Label (0.8.5) removes the suffix wherever it occurs in a name, and takes 3 of 1.2.3 for a suffix
        if file in self._nested:
            return self._nested[file], f"/{file}"
        suffix = max((s for s in SUFFIXES if file.lower().endswith(s)), key=len, default="")
        return (file[: -len(suffix)], file[-len(suffix) :]) if suffix else (file, "")

    def _filename(self, id: str, ext: str) -> str:
        return str(dicom.split_series(ext[1:])[0]) if ext.startswith("/") else id + ext

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            return {name: name for name in self._scans.values()}
        names: dict[str, str] = super()._list_files(path, patterns)
        return {name: name for name in names if (Path(path) / name).is_file()}


def image_paths(datastore: Datastore) -> tuple[dict[str, str], dict[str, str]]:
    """The path of every image by id, and the reason for each image that a DICOMweb server does not return."""
    paths: dict[str, str] = {}
    failed: dict[str, str] = {}
    for id in datastore.list_images():
        try:
            paths[id] = datastore.get_image_uri(id)
        except DiffAEError as error:
            failed[id] = one_line(error)
        except Exception as error:  # one series that a DICOMweb server does not give is no reason to stop
            failed[id] = f"{type(error).__name__}: the image cannot be fetched; check the DICOMweb server"
    return paths, failed
