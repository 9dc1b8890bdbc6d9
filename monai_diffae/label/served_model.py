"""The trained bundle that an app serves: loaded once per process, and again when its files have changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from monai_diffae.bundle import AnomalyDetector, TrainedBundle, load_bundle
from monai_diffae.bundle.layout import ANOMALY, models_folder
from monai_diffae.errors import BusyError, ConfigError
from monai_diffae.label.app_folder import AppFolder


class ServedModel:
    """A trained bundle for the requests of many threads, one at a time.

    Args:
        folder: the bundle's folder.
        device: where to compute; None: the GPU if there is one.

    Raises:
        ConfigError: the bundle is not trained, its weights are those of another network, or it needs several images of
            a case.

    Example:
        >>> ServedModel(Path("no_bundle"))
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.safetensors; train the bundle first, ...
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.folder, self.device = folder, device
        is_copy = folder == AppFolder(folder.parent).copied_bundle and AppFolder(folder.parent).main.is_file()
        self._name = f"{folder.parent.name}/{folder.name}" if is_copy else folder.name
        self._lock = RLock()
        self._trained = self._load()
        self._detector: tuple[int, AnomalyDetector] | None = None  # with the time of its file

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return int(self._trained.config["spatial_dims"])

    @contextmanager
    def in_use(self) -> Iterator[TrainedBundle]:
        """The bundle with the weights that are in its folder now, for this thread alone.

        Raises:
            ConfigError: the folder's weights are missing, or those of another network.
        """
        with self._lock:
            if not self._trained.is_current():
                self._detector = None
                self._trained = self._load()
            yield self._trained

    def detector(self, trained: TrainedBundle) -> AnomalyDetector:
        """The bundle's anomaly detector; call it within :meth:`in_use`.

        Raises:
            ConfigError: the bundle is not calibrated, or was calibrated with other weights.
            BusyError: a training published other weights since the request began.
        """
        file = models_folder(self.folder) / ANOMALY
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        if self._detector is None or self._detector[0] != changed:
            try:
                self._detector = (changed, AnomalyDetector.load(trained, self._name))
            except ConfigError as error:
                if trained.is_current():
                    raise
                raise BusyError("the model was replaced a moment ago; send the request again") from error
        return self._detector[1]

    def _load(self) -> TrainedBundle:
        trained = load_bundle(self.folder, self.device)
        if trained.image_keys != ["image"]:
            keys = ", ".join(trained.image_keys)
            raise ConfigError(
                f"{self.folder.name}: needs the images {keys} per case, but MONAI Label has one image per id; "
                "use another bundle"
            )
        return trained
