"""MONAI Label's datastore for a folder: scans in subfolders, DICOM series, and no label lost or written elsewhere."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import SimpleITK as sitk
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore

from monai_diffae.data.fingerprints import split_channel
from monai_diffae.data.folders import names_within, search_folder
from monai_diffae.data.formats import dicom, itk
from monai_diffae.data.scans import SUFFIXES, read_scan, scan_suffix
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, counted, one_line
from monai_diffae.serving.answers import ConflictError, NotFoundError

logger = logging.getLogger(__name__)

_PATTERNS = [f"*{form}" for suffix in SUFFIXES for form in (suffix, suffix.upper())]


def check_tag(tag: object) -> str:
    """Return the tag of a label, which names a folder, if it is a plain word such as ``final``."""
    text = getattr(tag, "value", tag)  # MONAI Label's own tags are an enumeration of texts
    if not isinstance(text, str) or not re.fullmatch(r"\w(?:[\w .-]{0,62}\w)?", text):
        raise ConfigError("tag: must be a word such as final or original, of letters, digits, _ . or -")
    return text


class CheckedWrites:
    """Mixin for datastores of MONAI Label (0.8.5), which writes labels to the folder that a request names as their tag.

    What clients store beside images and labels must be JSON: NaN would make every later list of the images fail.
    """

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image."""
        _check_info(label_info)
        return super().save_label(image_id, label_filename, check_tag(label_tag), label_info)  # type: ignore[misc]

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is known about an image."""
        _check_info(info)
        super().update_image_info(image_id, info)  # type: ignore[misc]

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is known about a label."""
        _check_info(info)
        super().update_label_info(label_id, label_tag, info)  # type: ignore[misc]


def _check_info(info: Any) -> None:
    try:
        json.dumps(info, allow_nan=False, ensure_ascii=False, default=str).encode()
        by_strategy = (info or {}).get("strategy", {})  # when the image was proposed
        is_usable = isinstance(info, dict | None) and all(
            isinstance(each["ts"], int) for each in by_strategy.values() if "ts" in each
        )
    except (ValueError, TypeError, AttributeError):
        is_usable = False
    if not is_usable:
        raise ConfigError("params: must be a JSON object of valid text and finite numbers; send {} for none")


class FolderDatastore(CheckedWrites, LocalDatastore):
    """A folder of studies: all scans in it and in its subfolders, except its labels.

    MONAI Label's file of an image is ``id + suffix``. The id of a scan in a subfolder is its path with ``_`` for ``/``,
    and its "suffix" is ``/`` and its path, of which :meth:`_filename` makes its file. Requests run in several threads,
    so reading and changing the list are serialised. ``read_only``, for jobs beside the server, leaves it as it is.
    """

    def __init__(self, studies: str, *, auto_reload: bool = False, read_only: bool = False) -> None:
        self._lock = RLock()
        self._scans: dict[str, str] = {}  # paths in the folder by id, of the last search
        self._nested: dict[str, str] = {}  # ids by path, of those that are no plain files or folders in it
        self._num_unmatched: dict[str, int] = {}  # labels without an image, by folder
        super().__init__(studies, extensions=_PATTERNS, auto_reload=auto_reload, read_only=read_only)

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image; of one of several series in a folder, ``folder#series=UID``."""
        with self._lock:
            image = self._datastore.objects.get(image_id)
            if image is None:  # MONAI Label would return "", which readers take for the working directory
                raise NotFoundError("image: there is no image with this id; GET /datastore/?output=all lists them")
            uid = dicom.split_series(image.image.ext)[1]
            uri = str(super().get_image_uri(image_id))
        return uri if uid is None else f"{uri}{dicom.SERIES}{uid}"

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The path of a label."""
        with self._lock:
            uri = str(super().get_label_uri(label_id, label_tag))
        if not uri:
            raise NotFoundError("label: the image has no label with this tag")
        return uri

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known about an image; ``name`` is a name without folders, because viewers save files under it."""
        path = dicom.split_series(self.get_image_uri(image_id))[0]
        return {**super().get_image_info(image_id), "name": Path(path).name}

    def remove_image(self, image_id: str) -> None:
        """Delete an image and its labels, but not a DICOM series whose folder holds more."""
        folder = Path(dicom.split_series(self.get_image_uri(image_id))[0])
        others = (Path(dicom.split_series(self.get_image_uri(id))[0]) for id in self.list_images() if id != image_id)
        if folder.is_dir() and (folder in others or any(item.is_dir() for item in folder.iterdir())):
            raise ConfigError("image: its folder holds more than this series; delete its files by hand")
        super().remove_image(image_id)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store a new image; another image under its id, and the labels of the same image, stay."""
        id_of_file, suffix = self._to_id(Path(image_filename).name)
        id: object = image_id or id_of_file
        if not isinstance(id, str) or not id.strip() or id.startswith(".") or re.search(r"[/\\\x00-\x1f]", id):
            raise ConfigError("image: must be an id without folders; GET /datastore/?output=all lists the ids")
        _check_info(image_info)
        if suffix.lower() not in SUFFIXES:
            raise ConfigError(f"file: has an unknown suffix; use one of {' '.join(SUFFIXES)}")
        with self._lock:
            if id not in self._datastore.objects:
                return str(super().add_image(id, image_filename, image_info))
            if not filecmp.cmp(self.get_image_uri(id), image_filename, shallow=False):
                raise ConflictError("image: another image has this id; choose a new id, or delete that image first")
            return id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image in place of the one it has; a file that is no mask of it is refused before."""
        _check_label_file(Path(label_filename), self.get_image_uri(image_id))
        with self._lock:
            id = super().save_label(image_id, label_filename, label_tag, label_info)
            file = Path(self.get_label_uri(id, check_tag(label_tag)))
            for other in file.parent.iterdir():
                # with another suffix: it would take the label's place once that is removed
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

    def _remove_non_existing(self) -> int:
        # MONAI Label (0.8.5) keeps a series as long as its folder exists
        num_removed = super()._remove_non_existing()
        objects = self._datastore.objects
        missing = [id for id in objects if objects[id].image.ext[:1] in ("", "/") and id not in self._scans]
        for id in missing:
            del objects[id]
        return num_removed + len(missing)

    def _search(self) -> None:
        """Find the scans of the folder."""
        root, labels = Path(self._datastore.image_path()), f"{self._datastore.labels_dir}/"
        files = [*dict.fromkeys(split_channel(file)[0] for scan in search_folder(root).scans for file in scan.files)]
        names = (name.replace("/", "_") for name in names_within(files, root))
        paths = [(name, os.path.relpath(file, root)) for name, file in zip(names, files, strict=True)]
        scans = [(id, path) for id, path in paths if not path.startswith(labels)]
        self._scans = dict(reversed(scans))
        self._nested = {path: id for id, path in scans if path == "." or "/" in path or dicom.SERIES in path}
        if len(self._scans) < len(scans):
            logger.warning(
                "%s with the id of another scan, ignored (ids have no suffix, and _ instead of /); rename them",
                counted(len(scans) - len(self._scans), "scan"),
            )

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
        files = {name: name for name in super()._list_files(path, patterns) if (Path(path) / name).is_file()}
        unmatched = [name for name in files if self._to_id(name)[0] not in self._datastore.objects]
        if unmatched and self._num_unmatched.get(path) != len(unmatched):  # MONAI Label would log their names
            logger.warning("%s belong to no image and are ignored", counted(len(unmatched), "label file"))
        self._num_unmatched[path] = len(unmatched)
        return files


def _check_label_file(path: Path, image: str) -> None:
    """Refuse a label that is damaged, whose header names another file, or that is no mask of its image."""
    try:
        if scan_suffix(path) in (".nrrd", ".mha", ".mhd"):
            itk.check_data_files(path)
        with itk.silent_stderr():
            label = sitk.ReadImage(str(path))
    except (RuntimeError, ScanError) as error:
        raise ConfigError("label: cannot be read as an image; save it again as NIfTI, NRRD or PNG") from error
    values = sitk.GetArrayViewFromImage(label)
    if not np.array_equal(values, np.rint(values)):
        raise ConfigError("label: contains values that are not whole numbers; save a mask, whose values are classes")
    with suppress(ScanError):  # viewers may show an image that this package refuses
        sizes = [sorted(n for n in size if n > 1) for size in (label.GetSize(), read_scan(image).array.shape[1:])]
        if sizes[0] != sizes[1]:  # readers may order the axes differently
            raise ConfigError("label: its size differs from the image's; save a mask on the image's own grid")


def image_paths(datastore: Datastore) -> tuple[dict[str, str], dict[str, str]]:
    """The path of every image by id, and the reason for each image that a DICOMweb server does not return."""
    paths: dict[str, str] = {}
    failures: dict[str, str] = {}
    for id in datastore.list_images():
        try:
            paths[id] = datastore.get_image_uri(id)
        except DiffAEError as error:
            failures[id] = one_line(error)
        except Exception as error:  # one series that a DICOMweb server does not give is no reason to stop
            failures[id] = f"{type(error).__name__}: the image cannot be fetched; check the DICOMweb server"
    return paths, failures
