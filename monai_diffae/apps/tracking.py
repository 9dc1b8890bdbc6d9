"""Results of commands in MLflow: in a run that is open in this process, or in that of the model's training."""

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def log_to_open_run(metrics: Mapping[str, float], files: Sequence[Path], folder: str) -> None:
    """Log figures and files to MLflow if a run is open in this process; tracking never fails a command."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    try:
        mlflow.log_metrics({_name(folder, name): float(value) for name, value in metrics.items()})
        for file in files:
            mlflow.log_artifact(str(file), folder)
    except Exception as error:  # whatever a tracking server does, the results are on disk
        logger.warning("MLflow tracking failed: %s", type(error).__name__)


def log_to_training(
    bundle: Path, metrics: Mapping[str, float], paths: Sequence[Path], folder: str, *, is_private: bool = False
) -> None:
    """Log figures and files to the MLflow run of a bundle's training if it is found; this never fails a command."""
    from monai_diffae.handlers.mlflow import RUN_ID, is_elsewhere, reason, tracking_client

    id_file = bundle / RUN_ID
    is_server = "MLFLOW_TRACKING_URI" in os.environ
    has_store = not is_private if is_server else (bundle / "mlflow.db").is_file()
    if not id_file.is_file() or not has_store:
        return
    try:
        client, run_id = tracking_client(None, bundle), id_file.read_text().strip()
        if is_elsewhere(client.get_run(run_id).info.artifact_uri, None, bundle):
            logger.info("MLflow: the folder was moved or copied, so its run gets figures only, and no files")
            paths = ()
        for name, value in metrics.items():
            client.log_metric(run_id, _name(folder, name), float(value))
        for path in paths:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(run_id, str(path), f"{folder}/{path.name}" if path.is_dir() else folder)
    except Exception as error:  # whatever a tracking server does, the results are on disk
        if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":  # tracked on another server
            logger.warning("MLflow tracking failed: %s", reason(error))


def _name(folder: str, metric: str) -> str:
    """A metric's name in MLflow, which refuses some characters; a table's column may be called "age (years)"."""
    return re.sub(r"[^\w\-. /]", "_", f"{folder}/{metric}")
