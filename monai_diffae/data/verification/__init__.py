"""Verify a cohort before training: read every scan, give a verdict on each, and find what is wrong with the whole."""

from __future__ import annotations

from monai_diffae.data.verification.readings import Reading, read_case
from monai_diffae.data.verification.saved_readings import SavedReadings
from monai_diffae.data.verification.verdicts import Finding, Verdict, give_verdicts
from monai_diffae.data.verification.verification import Verification, read_cases, verify_cases

__all__ = [
    "Finding",
    "Reading",
    "SavedReadings",
    "Verdict",
    "Verification",
    "give_verdicts",
    "read_case",
    "read_cases",
    "verify_cases",
]
