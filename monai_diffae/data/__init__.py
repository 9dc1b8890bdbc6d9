"""Scans, cohorts and splits, from files to arrays. This package does not use networks."""

from __future__ import annotations

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cases import Case
from monai_diffae.data.cohort_split import SplitCohort, split_cohort
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.embeddings import EmbeddedCases, embeddings_fingerprint, read_embeddings
from monai_diffae.data.samples import make_virtual_cohort
from monai_diffae.data.scans import Scan, read_scan, write_scan

__all__ = [
    "CachedCases",
    "Case",
    "EmbeddedCases",
    "Scan",
    "SplitCohort",
    "embeddings_fingerprint",
    "make_virtual_cohort",
    "read_cohort",
    "read_embeddings",
    "read_scan",
    "split_cohort",
    "write_scan",
]
