"""MONAI Label's datastore for a DICOMweb server: complete and regular series only, each a volume."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from threading import RLock
from typing import Any

import nibabel as nib
import numpy as np
import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils.convert import dicom_to_nifti
from monailabel.datastore.utils.dicom import dicom_web_download_series

from monai_diffae.data.atomic import ProcessLock
from monai_diffae.data.scans import Scan, read_scan
from monai_diffae.errors import ConfigError, MachineError, ScanError
from monai_diffae.label.datastore import CheckedWrites, check_tag
from monai_diffae.serving.answers import NotFoundError

logger = logging.getLogger(__name__)

_NO_IMAGES = frozenset(
    {"SEG", "SR", "PR", "KO", "REG", "FID", "RWV", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD"}
)
_LISTED_FOR_S = 10.0
_SAME_PLACE_MM = 0.1
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


class DicomWebDatastore(CheckedWrites, DICOMWebDatastore):
    """A DICOMweb server whose series are the images, or those that fit a filter such as ``{"Modality": "MR"}``."""

    def __init__(self, url: str, search_filter: dict[str, Any]) -> None:
        self._listed: tuple[float, list[str]] = (-_LISTED_FOR_S, [])
        self._lock = RLock()
        session = None
        if settings.MONAI_LABEL_DICOMWEB_USERNAME and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
            from dicomweb_client.session_utils import create_session_from_user_pass

            session = create_session_from_user_pass(
                settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
            )
        client = DICOMwebClientX(
            url=url,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        super().__init__(
            client=client,
            search_filter=search_filter,
            cache_path=settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or None,
            fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
        )

    def check_reachable(self) -> None:
        """Ask the server for its series, once; dicomweb_client would try again for half a minute."""
        self._client.set_http_retry_params(retry=False)
        try:
            self.list_images()
        except (requests.RequestException, ValueError) as error:
            response = getattr(error, "response", None)
            what = "does not list its series" if response is None else f"answers with status {response.status_code}"
            if isinstance(error, (requests.ConnectionError, requests.Timeout)):
                what = "cannot be reached"
            raise MachineError(f"studies: the DICOMweb server {what}; check its address and password") from error
        finally:
            self._client.set_http_retry_params()

    def get_image_uri(self, image_id: str) -> str:
        """The path of a series as NIfTI (or of its folder, if series are not converted); it is fetched once.

        MONAI Label (0.8.5) takes a folder that another process or thread is still filling for the whole series, and
        converts slices of any distance and tilt. Here a series is complete before it is seen, and is checked.
        """
        uid, cache = _check_uid(image_id), Path(self._datastore.image_path())
        series, image = cache / uid, cache / f"{uid}.nii.gz"
        if not series.is_dir() and not self._client.search_for_series(search_filters={"SeriesInstanceUID": uid}):
            raise NotFoundError("image: the DICOMweb server has no such series; GET /datastore/?output=all lists them")
        with ProcessLock(cache / f".{uid}.lock"):
            if not series.is_dir():
                self._fetch(uid, series)
            if self._convert_to_nifti and not image.exists():
                _convert(series, image)
        if not self._convert_to_nifti:
            return str(series)
        if not settings.MONAI_LABEL_DATASTORE_READ_ONLY:
            self._register(uid)
        return str(image)

    def _fetch(self, uid: str, series: Path) -> None:
        unfinished = Path(mkdtemp(prefix=".tmp-", dir=series.parent))
        try:
            dicom_web_download_series(None, uid, str(unfinished), self._client, self._fetch_by_frame)
            unfinished.chmod(0o755)
            unfinished.replace(series)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _register(self, uid: str) -> None:
        """Add a fetched series and what the server says about it to the list of images; labels need it there."""
        with self._lock:
            if "SeriesInstanceUID" not in self.get_image_info(uid):
                self.refresh()
                LocalDatastore.update_image_info(self, uid, self._dicom_info(uid))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse an upload; series are stored on the DICOMweb server itself."""
        raise ConfigError("image: cannot be uploaded here; store the series on the DICOMweb server")

    def list_images(self) -> list[str]:
        """The SeriesInstanceUIDs of the listed series, sorted; asked of the server every ten seconds at most."""
        asked_at, uids = self._listed
        if time.monotonic() - asked_at > _LISTED_FOR_S:
            answer = self._client.search_for_series(search_filters=self._search_filter, fields=["Modality"])
            images = [series for series in answer if _value(series, "00080060") not in _NO_IMAGES]
            uids = sorted({str(_value(series, "0020000E")) for series in images})
            self._listed = (time.monotonic(), uids)
        return list(uids)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The listed series with a readable DICOM-SEG on the server or a final label saved here, each once."""
        try:
            remote = super().get_labeled_images(label_tag, labels)
        except (requests.RequestException, KeyError, IndexError) as error:
            logger.warning(
                "the server's DICOM-SEG objects cannot be listed (%s); only labels saved here are counted",
                type(error).__name__,
            )
            remote = []
        local = LocalDatastore.get_labeled_images(self, label_tag, labels)
        return sorted({*remote, *local} & set(self.list_images()))

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The other listed series."""
        return sorted(set(self.list_images()) - set(self.get_labeled_images(label_tag, labels)))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The path of a label: that of an image, as it was saved here, or a DICOM-SEG on the server."""
        uid, tag = _check_uid(label_id), check_tag(label_tag)
        stored = str(LocalDatastore.get_label_uri(self, uid, tag))
        if stored or tag != "final":
            return stored
        return str(DICOMWebDatastore.get_label_uri(self, uid, tag, _check_uid(image_id or uid)))


def _check_uid(text: object) -> str:
    """Return a SeriesInstanceUID, which becomes part of a path."""
    if not isinstance(text, str) or not _UID.fullmatch(text):
        raise ConfigError("image: is not a SeriesInstanceUID; GET /datastore/?output=all lists them")
    return text


def _convert(series: Path, image: Path) -> None:
    """Convert a series to NIfTI as MONAI Label does, because viewers expect its order of voxels, if that is right."""
    scan = read_scan(series)  # refuses slices that are missing, doubled or uneven
    converted = Path(dicom_to_nifti(str(series)))
    try:
        if scan.array.ndim == 4 and not _is_same_grid(scan, read_scan(converted)):
            raise ScanError("series: its slices are tilted, which MONAI Label cannot show; resample and store it again")
        Path(shutil.move(converted, image.with_name(f".{series.name}.part"))).replace(image)
    finally:
        converted.unlink(missing_ok=True)  # MONAI Label (0.8.5) leaves it in the temporary folder


def _is_same_grid(first: Scan, second: Scan) -> bool:
    """Whether two volumes have their corners at the same places; the order of axes does not matter."""
    corners = []
    for scan in (first, second):
        indices = np.array(list(itertools.product(*((0, size - 1) for size in scan.array.shape[1:]))))
        corners.append(nib.affines.apply_affine(scan.affine, indices))
    distances = np.linalg.norm(corners[0][:, None] - corners[1], axis=-1)
    return bool(distances.min(axis=1).max() < _SAME_PLACE_MM)


def _value(series: dict[str, Any], tag: str) -> Any:
    values = series.get(tag, {}).get("Value") or [None]
    return values[0]
