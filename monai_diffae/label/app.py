"""The MONAI Label app."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.sessions import SessionInfo, Sessions

import monai_diffae
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.label.datastore import FolderDatastore, check_tag
from monai_diffae.label.dicomweb import DicomWebDatastore
from monai_diffae.label.label_app import AppFolder, silence_monai_label
from monai_diffae.label.strategies import EmbedScoring, strategies
from monai_diffae.label.tasks import ServedModel, all_tasks
from monai_diffae.label.trainer import DiffAETrainer
from monai_diffae.serving import answers
from monai_diffae.serving.answers import NotFoundError

logger = logging.getLogger(__name__)


class DiffAEApp(MONAILabelApp):
    """Serves a diffusion autoencoder: inference, active learning, and training on all images of the datastore.

    MONAI Label finds this class in the ``main.py`` of an app folder of :func:`monai_diffae.label_app`, in the server
    and in each of its jobs. ``studies`` is a folder, or the URL of a DICOMweb server; ``conf`` is not used.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        silence_monai_label()
        self.folder = AppFolder(Path(app_dir))
        self.served = ServedModel(self.folder.bundle, self.folder.settings()["device"])
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name="MONAI Label - diffusion autoencoder",
            description="Anomalies, similar scans, edits and active learning with a diffusion autoencoder",
            version=monai_diffae.__version__,
        )

    def init_datastore(self) -> Datastore:
        """The folder or the DICOMweb server."""
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
        return dict(all_tasks(self.served, self.folder))

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods by name."""
        return {"diffae_embed": EmbedScoring(self.served, self.folder)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The strategies by name."""
        return strategies(self.served, self.folder)

    def init_trainers(self) -> dict[str, TrainTask]:
        """The trainers by name."""
        return {"diffae": DiffAETrainer(self.served, self.folder)}

    def init_batch_infer(self) -> BatchInferTask:
        """What runs a task for many images."""
        return BatchInference()

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task for one image, which is an id of the datastore or a session, never a path."""
        store = datastore or self.datastore()
        task = self._infers.get(request.get("model"))
        if task is None:
            raise NotFoundError(f"model: must be one of {', '.join(sorted(self._infers))}")
        id, path = self._image(request, store)
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL))
        file, figures = task({**request, "image": path, "image_id": id})
        label = file
        if file and id and request.get("save_label"):
            label = store.save_label(id, file, tag, {"model": request["model"], "params": figures})
        return {"label": label, "tag": tag, "file": file, "params": figures}

    def check_training(self, model: str, request: Mapping[str, Any]) -> None:
        """Refuse a training that could not begin, before MONAI Label accepts it and starts a process."""
        if model not in self._trainers:
            raise NotFoundError(f"model: must be one of {', '.join(sorted(self._trainers))}")
        self._trainers[model].check(request)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Choose the image to label next."""
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
        """Log that a label was saved; MONAI Label calls this."""
        logger.info("a label was saved")

    def _load_sessions(self, load: bool = False) -> Sessions | None:
        return CheckedSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def _image(self, request: Mapping[str, Any], store: Datastore) -> tuple[str, str]:
        """The id and path of a request's image; the id of an uploaded one is ``""``."""
        if request.get("session") is None:
            id = str(request.get("image") or "")
            return id, str(store.get_image_uri(id))
        session = request["session"]
        session = self.sessions().get_session(str(session.get("name") if isinstance(session, Mapping) else session))
        if session is None:
            raise NotFoundError("session: there is no such session, or it has expired; upload the scan again")
        return "", str(session.image)


class CheckedSessions(Sessions):
    """Sessions of MONAI Label (0.8.5), which reads and deletes any folder whose path a request names as a session."""

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True) -> SessionInfo | None:
        """A session, or None if there is none."""
        is_id = re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", session_id)
        return super().get_session(session_id, update_ts, fetch_cache) if is_id else None

    def add_session(
        self, data_file: str, expiry: int = 0, uncompress: bool = False, session_id: str | None = None
    ) -> Any:
        """Store a scan; archives are refused, because unpacking one can write files anywhere."""
        if uncompress:
            raise ConfigError("uncompress: archives are not unpacked; upload the files of the scan")
        return super().add_session(data_file, expiry, session_id=session_id)


class BatchInference(BatchInferTask):
    """Runs a task for many images; MONAI Label's (0.8.5) divides by zero without a GPU and ends at the first error."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Datastore, infer: Callable[..., dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """What the task returns for each image by id, or ``{"error": reason}``."""
        tag = check_tag(request.get("label_tag", DefaultLabelTag.ORIGINAL))
        ids = sorted(self.get_images(request, datastore))
        results: dict[str, dict[str, Any]] = {}
        limit = request.get("max_batch_size") or 0
        if type(limit) is not int:
            raise ConfigError("max_batch_size: must be a whole number, 0 for no limit")
        for id in ids[:limit] if limit > 0 else ids:
            save = request.get("save_label", True)
            try:
                with answered():
                    result = infer({**request, "image": id, "save_label": save, "label_tag": tag}, datastore)
                if result.get("file"):
                    Path(result["file"]).unlink(missing_ok=True)
                results[id] = {key: value for key, value in result.items() if key != "file"}
            except HTTPException as error:
                results[id] = {"error": error.detail}
        num_failed = sum("error" in result for result in results.values())
        logger.info("batch: %d images done, %d failed", len(results) - num_failed, num_failed)
        return results


@contextmanager
def answered() -> Iterator[None]:
    """Turn errors, which MONAI Label (0.8.5) answers with a bare 500, into ``HTTPException`` with a reason."""
    with answers.answered():
        try:
            yield
        except MONAILabelException as error:
            is_missing = isinstance(error, (ImageNotFoundException, LabelNotFoundException))
            raise HTTPException(404 if is_missing else 400, " ".join(str(error.msg).split())) from error
        except json.JSONDecodeError as error:
            raise HTTPException(400, "params: is not valid JSON; send a JSON object") from error
        except requests.RequestException as error:
            raise HTTPException(
                503, "studies: the DICOMweb server did not return the data; check that it is running"
            ) from error
