"""The parts of ``evaluate``: cases measured under several conditions, tables with intervals, and their files."""

from monai_diffae.apps.evaluation.quality.evaluated_bundle import EvaluatedBundle, unique_names
from monai_diffae.apps.evaluation.quality.evaluation import SUMMARY, Evaluation

__all__ = ["SUMMARY", "EvaluatedBundle", "Evaluation", "unique_names"]
