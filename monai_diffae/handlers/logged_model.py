"""The trained bundle as a model of MLflow: logged, registered, and served, which answers with z_sem for image files.

MLflow loads the bundle with this module (its ``loader_module``), so the model holds no pickled code.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_diffae import __version__
from monai_diffae.bundle.folders import copy_model
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.scans import scan_suffix
from monai_diffae.handlers.mlflow import RUN_ID, reason, tracking_client

logger = logging.getLogger(__name__)

FILE_NAME = "file_name"


def log_bundle(output_dir: str | Path, tracking_uri: str | None = None, registered_model: str | None = None) -> None:
    """Log the trained bundle as a model of the training's MLflow run, and register it under a name if one is given.

    A training calls this after the calibration, so that the logged bundle is complete. A failure is logged as a
    warning. Without a run's id in ``output_dir``, nothing is logged.
    """
    id_file = Path(output_dir) / RUN_ID
    if not id_file.is_file():
        return
    try:
        client, run_id = tracking_client(tracking_uri, output_dir), id_file.read_text().strip()
        with tempfile.TemporaryDirectory() as folder:
            copy_model(output_dir, Path(folder) / "bundle")
            logged = _log_model(client, run_id, Path(folder), registered_model or "z_sem_encoder")
        if registered_model is not None and logged is not None:
            _register(client, run_id, logged, registered_model)
    except Exception as error:  # whatever a tracking server does, the model is trained
        logger.warning("the trained bundle is not logged or registered with MLflow: %s", reason(error))


def _log_model(client: Any, run_id: str, folder: Path, name: str) -> Any:
    """Log the bundle in ``folder / "bundle"``; returns MLflow's model, or None if the run has this model already."""
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    run, trained = client.get_run(run_id), load_bundle(folder / "bundle", "cpu")
    outputs = run.outputs.model_outputs if run.outputs else []
    if any(client.get_logged_model(output.model_id).tags.get("sha256") == trained.sha256 for output in outputs):
        return None
    logged = client.create_logged_model(run.info.experiment_id, name, run_id, {"sha256": trained.sha256})
    model_id = str(logged.model_id)
    model = Model(artifact_path=name, model_uuid=model_id, run_id=run_id, model_id=model_id)  # names no folder
    images = [ColSpec(DataType.binary, key) for key in trained.image_keys]
    inputs = Schema([*images, ColSpec(DataType.string, FILE_NAME)])
    z_sem = TensorSpec(np.dtype(np.float32), (-1, trained.z_channels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about an example of the input, which would be a patient's scan
        pyfunc.save_model(
            folder / "model",
            loader_module=__name__,
            data_path=str(folder / "bundle"),
            mlflow_model=model,
            signature=ModelSignature(inputs, Schema([z_sem])),
            pip_requirements=[f"monai-diffae=={__version__}"],
        )
    client.log_model_artifacts(model_id, str(folder / "model"))
    client.finalize_logged_model(model_id, "READY")
    step = max((metric.step for metric in client.get_metric_history(run_id, "validation/loss")), default=0)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return logged


def _register(client: Any, run_id: str, logged: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="The encoder of a diffusion autoencoder: z_sem of an image")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # not "models:/<id>" as source: MLflow (3.17) looks it up in the process's own database, not in the client's
    name_of_run = client.get_run(run_id).info.run_name
    client.create_model_version(
        name, logged.artifact_location, run_id, description=name_of_run, await_creation_for=0, model_id=logged.model_id
    )


class ServedEncoder:
    """Encodes images to z_sem, one row for each."""

    def __init__(self, trained: TrainedBundle) -> None:
        self.trained = trained

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """The z_sem (N, D) of N images; for a volume in a 2D bundle, the mean over its slices in use."""
        rows = [self._encode(row) for row in model_input.to_dict("records")]
        return np.stack(rows).astype(np.float32)

    def _encode(self, row: dict[Any, Any]) -> NDArray[np.float32]:
        suffix = scan_suffix(str(row[FILE_NAME]))
        with tempfile.TemporaryDirectory() as folder:
            files = {key: Path(folder) / f"{key}{suffix}" for key in self.trained.image_keys}
            for key, file in files.items():
                file.write_bytes(row[key])
            z_sem = self.trained.open(files, id="image").z_sem
        return np.asarray(z_sem.mean(dim=0).cpu().numpy())


def _load_pyfunc(path: str) -> ServedEncoder:
    """What MLflow calls with the folder of the bundle."""
    return ServedEncoder(load_bundle(path))
