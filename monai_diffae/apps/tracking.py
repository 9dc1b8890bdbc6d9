"""What a command made, into the MLflow run that the caller has open."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def log_to_open_run(metrics: Mapping[str, float], files: Sequence[Path], folder: str) -> None:
    """Log numbers and files to MLflow where a run is open in this process; tracking never fails a command.

    Args:
        metrics: of the whole cohort; nothing of single cases.
        files: pictures and tables.
        folder: of the run's artifacts, also the prefix of the metrics.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or mlflow.active_run() is None:
        return
    try:
        # a table's column may have a name that MLflow refuses, such as "age (years)"
        known = {re.sub(r"[^\w\-. /]", "_", f"{folder}/{name}"): float(value) for name, value in metrics.items()}
        mlflow.log_metrics(known)
        for file in files:
            mlflow.log_artifact(str(file), folder)
    except Exception as error:  # whatever a tracking server does, the results are on disk
        logger.warning("MLflow tracking failed: %s", type(error).__name__)
