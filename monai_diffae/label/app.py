"""The MONAI Label app."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import monai_diffae
from monai_diffae.errors import CohortError
from monai_diffae.label.anomaly_tasks import ANOMALY_LABELS, diffae_anomaly, diffae_anomaly_map
from monai_diffae.label.answers import answered
from monai_diffae.label.app_folder import AppFolder
from monai_diffae.label.batch import BatchInference
from monai_diffae.label.code_tasks import diffae_encode, diffae_neighbors
from monai_diffae.label.datastore import FolderDatastore
from monai_diffae.label.dicomweb import DicomWebDatastore
from monai_diffae.label.ids import check_id, check_tag
from monai_diffae.label.image_tasks import EditTask, diffae_edit, diffae_reconstruct
from monai_diffae.label.logs import silence_monai_label
from monai_diffae.label.scoring import EmbedScoring
from monai_diffae.label.served_model import ServedModel
from monai_diffae.label.strategies import strategies
from monai_diffae.label.task import DiffAETask
from monai_diffae.label.trainer import DiffAETrainer
from monai_diffae.serving.answers import NotFoundError

logger = logging.getLogger(__name__)


class DiffAEApp(MONAILabelApp):
    """Serves a diffusion autoencoder: inference, active learning, and training on all images of the datastore.

    MONAI Label finds this class in the app folder's ``main.py``, in the server and in each of its jobs.

    Args:
        app_dir: an app folder, made by :func:`monai_diffae.label_app`.
        studies: a folder, or the URL of a DICOMweb server.
        conf: MONAI Label's configuration of the app; not used.

    Raises:
        ConfigError: the folder is not an app, or its bundle cannot be loaded.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        silence_monai_label()
        self.folder = AppFolder(Path(app_dir))
        self.served = ServedModel(self.folder.bundle, self.folder.settings().get("device"))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name="MONAI Label - diffusion autoencoder",
            description="Anomalies, similar scans, edits and active learning with a diffusion autoencoder",
            version=monai_diffae.__version__,
        )

    def init_datastore(self) -> Datastore:
        """The datastore, with checked ids and tags.

        Raises:
            MachineError: the DICOMweb server cannot be reached.
        """
        if self.studies.startswith(("http://", "https://")):
            datastore = DicomWebDatastore(self.studies.rstrip("/"), settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
            datastore.check_reachable()
            return datastore
        return FolderDatastore(
            self.studies,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The inference tasks by name."""
        served, folder = self.served, self.folder
        return {
            "diffae_anomaly": DiffAETask(
                diffae_anomaly, served, folder, type=InferType.SEGMENTATION, labels=ANOMALY_LABELS
            ),
            "diffae_anomaly_map": DiffAETask(diffae_anomaly_map, served, folder),
            "diffae_reconstruct": DiffAETask(diffae_reconstruct, served, folder),
            "diffae_edit": EditTask(diffae_edit, served, folder),
            "diffae_encode": DiffAETask(diffae_encode, served, folder, makes_image=False),
            "diffae_neighbors": DiffAETask(diffae_neighbors, served, folder, makes_image=False),
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods by name."""
        return {"diffae_embed": EmbedScoring(self.served, self.folder)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies by name."""
        return strategies(self.served, self.folder)

    def init_trainers(self) -> dict[str, TrainTask]:
        """The trainers by name."""
        return {"diffae": DiffAETrainer(self.served, self.folder)}

    def init_batch_infer(self) -> BatchInference:
        """What runs a task for many images."""
        return BatchInference()

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task for one image.

        Args:
            request: ``model``, ``image`` (an id of the datastore) or ``session`` (with its ``name``), and options.
            datastore: the images; None: the app's.

        Returns:
            ``file``: a temporary file with the image, or None; ``label``: the id of a stored label, or the file;
            ``tag``, and ``params``: the figures.

        Raises:
            HTTPException: the request cannot be served; with the reason.
        """
        with answered():
            store = datastore or self.datastore()
            task = self._task(self._infers, request.get("model"), "model")
            id, path = self._image(request, store)
            tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL))
            file, figures = task({**request, "image": path, "image_id": id})
            label = file
            if file and id and request.get("save_label"):
                label = store.save_label(id, file, tag, {"model": request["model"], "params": figures})
            return {"label": label, "tag": tag, "file": file, "params": figures}

    def infer_wsi(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Refuse inference on whole slides, for which MONAI Label reads any path.

        Raises:
            HTTPException: always.
        """
        with answered():
            raise NotFoundError("wsi: whole-slide images are not supported; use POST /infer/")

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task for many images; see :class:`BatchInference`.

        Raises:
            HTTPException: the request cannot be served; with the reason.
        """
        with answered():
            self._task(self._infers, request.get("model"), "model")
            return dict(self._batch_infer(request, datastore or self.datastore(), self.infer))

    def scoring(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a scoring method.

        Raises:
            HTTPException: the request cannot be served; with the reason.
        """
        with answered():
            self._task(self._scoring_methods, request.get("method"), "method")
            return dict(super().scoring(dict(request), datastore))

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a training.

        Raises:
            HTTPException: the request cannot be served; with the reason.
        """
        with answered():
            self._task(self._trainers, request.get("model"), "model")
            return dict(super().train(dict(request)))

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the image to label next.

        Raises:
            HTTPException: there is no image, or none has been scored; with the reason.
        """
        with answered():
            self._task(self._strategies, request.get("strategy") or "random", "strategy")
            if isinstance(self.datastore(), FolderDatastore):
                self.datastore().refresh()
            if not self.datastore().list_images():
                raise CohortError("studies: there is no image; add scans to the folder or the DICOMweb server")
            return dict(super().next_sample(dict(request)) or {})

    def async_scoring(self, method: str | None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Start a scoring beside the server; without a method only if there are images to score.

        MONAI Label (0.8.5) calls this at the start and after each ``next_sample``, and starts a process each time.
        """
        embedding = self._scoring_methods.get("diffae_embed")
        if method is None and isinstance(embedding, EmbedScoring) and embedding.is_current(self.datastore()):
            return {}
        return dict(super().async_scoring(method, params) or {})

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Log that a label was saved, without its id; MONAI Label calls this."""
        logger.info("a label was saved")

    def _task(self, tasks: Mapping[str, Any], name: Any, what: str) -> Any:
        if not isinstance(name, str) or name not in tasks:
            raise NotFoundError(f"{what}: {str(name)[:40]!r} is not one of {', '.join(sorted(tasks))}")
        return tasks[name]

    def _image(self, request: Mapping[str, Any], store: Datastore) -> tuple[str, str]:
        """The id and path of a request's image; the id of an uploaded one is ``""``."""
        session = request.get("session")
        if session is None:
            id = check_id(request.get("image"))
            return id, str(store.get_image_uri(id))
        name = check_id(session.get("name") if isinstance(session, Mapping) else session, "session")
        known = self.sessions().get_session(name) if self.sessions() is not None else None
        if known is None:
            raise NotFoundError("session: there is no such session, or it has expired; upload the scan again")
        return "", str(known.image)
