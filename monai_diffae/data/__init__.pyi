from monai_diffae.data.cached import CachedCases as CachedCases
from monai_diffae.data.cases import Case as Case
from monai_diffae.data.cohort_split import ModelImages as ModelImages
from monai_diffae.data.cohort_split import SplitCohort as SplitCohort
from monai_diffae.data.cohort_split import split_cohort as split_cohort
from monai_diffae.data.cohorts import read_cohort as read_cohort
from monai_diffae.data.embeddings import EmbeddedCases as EmbeddedCases
from monai_diffae.data.embeddings import embeddings_fingerprint as embeddings_fingerprint
from monai_diffae.data.embeddings import read_embeddings as read_embeddings
from monai_diffae.data.samples import make_virtual_cohort as make_virtual_cohort
from monai_diffae.data.scans import Scan as Scan
from monai_diffae.data.scans import ScanNeeds as ScanNeeds
from monai_diffae.data.scans import read_scan as read_scan
from monai_diffae.data.scans import write_scan as write_scan

MODULES: dict[str, str]
__all__: list[str]
