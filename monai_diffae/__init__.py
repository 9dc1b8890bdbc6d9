"""Diffusion autoencoders for medical scans, on MONAI.

The names below are the public interface. Each is imported when it is first used, so ``import monai_diffae`` is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# MLflow reports to its makers, and writes an installation id into the home folder, as soon as it is imported, which
# MONAI's handlers do. Therefore it is forbidden here, before any other import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

if TYPE_CHECKING:
    from monai_diffae.apps.embedding.embed import embed as embed
    from monai_diffae.apps.embedding.estimator import DiffAEEncoder as DiffAEEncoder
    from monai_diffae.apps.embedding.index import EmbeddingIndex as EmbeddingIndex
    from monai_diffae.apps.evaluation.anomaly import anomaly as anomaly
    from monai_diffae.apps.evaluation.calibrate import calibrate as calibrate
    from monai_diffae.apps.evaluation.diagnose import diagnose as diagnose
    from monai_diffae.apps.evaluation.evaluate import evaluate as evaluate
    from monai_diffae.apps.evaluation.info import info as info
    from monai_diffae.apps.evaluation.neighbors import neighbors as neighbors
    from monai_diffae.apps.evaluation.probe import probe as probe
    from monai_diffae.apps.pages.compare import compare as compare
    from monai_diffae.apps.pages.report import report as report
    from monai_diffae.apps.pages.start import start as start
    from monai_diffae.apps.settings import Choice as Choice
    from monai_diffae.apps.settings import Decoding as Decoding
    from monai_diffae.apps.settings import Reading as Reading
    from monai_diffae.apps.settings import Run as Run
    from monai_diffae.apps.settings import Training as Training
    from monai_diffae.apps.sharing.pull import pull as pull
    from monai_diffae.apps.sharing.push import push as push
    from monai_diffae.apps.synthesis.combine import combine as combine
    from monai_diffae.apps.synthesis.edit import edit as edit
    from monai_diffae.apps.synthesis.fit_direction import fit_direction as fit_direction
    from monai_diffae.apps.synthesis.generate import generate as generate
    from monai_diffae.apps.synthesis.grade import grade as grade
    from monai_diffae.apps.synthesis.interpolate import interpolate as interpolate
    from monai_diffae.apps.synthesis.reconstruct import reconstruct as reconstruct
    from monai_diffae.apps.synthesis.traverse import traverse as traverse
    from monai_diffae.apps.synthesis.vary import vary as vary
    from monai_diffae.apps.training.demo import demo as demo
    from monai_diffae.apps.training.distill import distill as distill
    from monai_diffae.apps.training.export import export as export
    from monai_diffae.apps.training.import_official import import_official as import_official
    from monai_diffae.apps.training.init import init as init
    from monai_diffae.apps.training.list_scans import list_scans as list_scans
    from monai_diffae.apps.training.plan import plan as plan
    from monai_diffae.apps.training.sample_data import sample_data as sample_data
    from monai_diffae.apps.training.train import train as train
    from monai_diffae.apps.training.train_latent import train_latent as train_latent
    from monai_diffae.apps.training.verify import verify as verify
    from monai_diffae.bundle import load_bundle as load_bundle
    from monai_diffae.bundle import trusting as trusting
    from monai_diffae.diffusion import DiffusionSchedule as DiffusionSchedule
    from monai_diffae.explorer.explore import explore as explore
    from monai_diffae.inferers import DiffusionAutoencoderInferer as DiffusionAutoencoderInferer
    from monai_diffae.label.label_app import label_app as label_app
    from monai_diffae.label.label_server import label_server as label_server
    from monai_diffae.networks import DiffusionAutoencoder as DiffusionAutoencoder

__version__ = "0.1.0"

_MODULES = {
    "Choice": "apps.settings",
    "Decoding": "apps.settings",
    "DiffAEEncoder": "apps.embedding.estimator",
    "DiffusionAutoencoder": "networks",
    "DiffusionAutoencoderInferer": "inferers",
    "DiffusionSchedule": "diffusion",
    "EmbeddingIndex": "apps.embedding.index",
    "Reading": "apps.settings",
    "Run": "apps.settings",
    "Training": "apps.settings",
    "anomaly": "apps.evaluation.anomaly",
    "calibrate": "apps.evaluation.calibrate",
    "compare": "apps.pages.compare",
    "combine": "apps.synthesis.combine",
    "demo": "apps.training.demo",
    "diagnose": "apps.evaluation.diagnose",
    "distill": "apps.training.distill",
    "edit": "apps.synthesis.edit",
    "embed": "apps.embedding.embed",
    "evaluate": "apps.evaluation.evaluate",
    "explore": "explorer.explore",
    "export": "apps.training.export",
    "fit_direction": "apps.synthesis.fit_direction",
    "generate": "apps.synthesis.generate",
    "grade": "apps.synthesis.grade",
    "import_official": "apps.training.import_official",
    "info": "apps.evaluation.info",
    "init": "apps.training.init",
    "interpolate": "apps.synthesis.interpolate",
    "label_app": "label.label_app",
    "label_server": "label.label_server",
    "list_scans": "apps.training.list_scans",
    "load_bundle": "bundle",
    "neighbors": "apps.evaluation.neighbors",
    "plan": "apps.training.plan",
    "probe": "apps.evaluation.probe",
    "pull": "apps.sharing.pull",
    "push": "apps.sharing.push",
    "reconstruct": "apps.synthesis.reconstruct",
    "report": "apps.pages.report",
    "sample_data": "apps.training.sample_data",
    "start": "apps.pages.start",
    "train": "apps.training.train",
    "train_latent": "apps.training.train_latent",
    "traverse": "apps.synthesis.traverse",
    "trusting": "bundle",
    "vary": "apps.synthesis.vary",
    "verify": "apps.training.verify",
}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'monai_diffae' has no attribute {name!r}")
    return getattr(import_module(f"monai_diffae.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
