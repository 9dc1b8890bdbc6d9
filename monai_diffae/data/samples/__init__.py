"""Sample data: a virtual cohort of a real brain template, and MedMNIST sets as cohorts of ordinary files."""

from monai_diffae.data.samples.medmnist import medmnist_to_cohort
from monai_diffae.data.samples.virtual_cohort import FACTORS, make_virtual_cohort

__all__ = ["FACTORS", "make_virtual_cohort", "medmnist_to_cohort"]
