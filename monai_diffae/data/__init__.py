"""Scans, cohorts and splits: from files to arrays. Knows no networks."""

from __future__ import annotations

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort, split_cohort
from monai_diffae.data.embeddings import EmbeddedCases, embeddings_fingerprint, read_embeddings

__all__ = [
    "CachedCases",
    "Case",
    "EmbeddedCases",
    "SplitCohort",
    "embeddings_fingerprint",
    "read_embeddings",
    "split_cohort",
]
