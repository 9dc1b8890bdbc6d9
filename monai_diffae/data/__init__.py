"""Scans, cohorts and splits, from files to arrays. This package does not use networks.

The names below are imported when they are first used, so that reading a cohort loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_diffae.lazy import attach

if TYPE_CHECKING:
    from monai_diffae.data.cached import CachedCases as CachedCases
    from monai_diffae.data.cases import Case as Case
    from monai_diffae.data.cohort_split import SplitCohort as SplitCohort
    from monai_diffae.data.cohort_split import split_cohort as split_cohort
    from monai_diffae.data.cohorts import read_cohort as read_cohort
    from monai_diffae.data.embeddings import EmbeddedCases as EmbeddedCases
    from monai_diffae.data.embeddings import embeddings_fingerprint as embeddings_fingerprint
    from monai_diffae.data.embeddings import read_embeddings as read_embeddings
    from monai_diffae.data.samples import make_virtual_cohort as make_virtual_cohort
    from monai_diffae.data.scans import Scan as Scan
    from monai_diffae.data.scans import read_scan as read_scan
    from monai_diffae.data.scans import write_scan as write_scan

_MODULES = {
    "CachedCases": "cached",
    "Case": "cases",
    "EmbeddedCases": "embeddings",
    "Scan": "scans",
    "SplitCohort": "cohort_split",
    "embeddings_fingerprint": "embeddings",
    "make_virtual_cohort": "samples",
    "read_cohort": "cohorts",
    "read_embeddings": "embeddings",
    "read_scan": "scans",
    "split_cohort": "cohort_split",
    "write_scan": "scans",
}

__all__ = [*_MODULES]

__getattr__ = attach(__name__, _MODULES)
