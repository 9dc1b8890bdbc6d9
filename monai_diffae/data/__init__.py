"""Scans, cohorts and splits, from files to arrays. This package does not use networks.

The names below are imported when they are first used, so that reading a cohort loads no torch.
"""

from monai_diffae.lazy import attach

MODULES = {
    "CachedCases": "cached",
    "Case": "cases",
    "EmbeddedCases": "embeddings",
    "ModelImages": "cohort_split",
    "Scan": "scans",
    "ScanNeeds": "scans",
    "SplitCohort": "cohort_split",
    "embeddings_fingerprint": "embeddings",
    "make_virtual_cohort": "samples",
    "read_cohort": "cohorts",
    "read_embeddings": "embeddings",
    "read_scan": "scans",
    "split_cohort": "cohort_split",
    "write_scan": "scans",
}

__all__ = [*MODULES]

__getattr__ = attach(__name__, MODULES)
