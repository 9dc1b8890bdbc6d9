from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch

import monai_diffae.apps.evaluation.baselines as baselines
import monai_diffae.apps.evaluation.quality as quality
import monai_diffae.apps.pages.data as page_data
import monai_diffae.apps.pages.page as pages
import monai_diffae.apps.pages.sections as sections
import monai_diffae.apps.provenance as provenance
import monai_diffae.apps.session as sessions
import monai_diffae.apps.training.speed as speeds
import monai_diffae.bundle as bundles
import monai_diffae.bundle.loading as loading
import monai_diffae.bundle.model as models
import monai_diffae.bundle.parser as parsing
import monai_diffae.data.cached as cached
import monai_diffae.data.cohort_split as cohort_split
import monai_diffae.data.cohorts as cohorts
import monai_diffae.data.embeddings as tables
import monai_diffae.data.formats.dicom as dicom
import monai_diffae.data.inspection.listing as listings
import monai_diffae.data.inspection.survey as surveys
import monai_diffae.data.inspection.twins as twins
import monai_diffae.data.masks as masks
import monai_diffae.data.samples as samples
import monai_diffae.data.scans as scans
import monai_diffae.data.sequences as case_sequences
import monai_diffae.data.streamed as streamed
import monai_diffae.data.tensor_files as tensor_files
import monai_diffae.engines as engines
import monai_diffae.inferers as inferers
import monai_diffae.inferers.counterfactual as counterfactual
import monai_diffae.inferers.paths as paths
import monai_diffae.latents as latents
import monai_diffae.latents.association as association
import monai_diffae.latents.directions as directions
import monai_diffae.latents.harmonization as harmonization
import monai_diffae.latents.representation as representation
import monai_diffae.latents.statistics as statistics
import monai_diffae.latents.targets as targets
import monai_diffae.metrics as metrics
import monai_diffae.networks as networks
import monai_diffae.networks.network_parts as network_parts
import monai_diffae.official as official
import monai_diffae.pictures as pictures
import monai_diffae.serving.server as server
import monai_diffae.transforms as transforms
import monai_diffae.transforms.writing as writing

__all__ = [
    "association",
    "attach",
    "baselines",
    "bundles",
    "cached",
    "case_sequences",
    "cohort_split",
    "cohorts",
    "counterfactual",
    "dicom",
    "directions",
    "engines",
    "harmonization",
    "inferers",
    "latents",
    "listings",
    "loading",
    "masks",
    "metrics",
    "models",
    "network_parts",
    "networks",
    "np",
    "npt",
    "official",
    "pa",
    "page_data",
    "pages",
    "parsing",
    "paths",
    "pd",
    "pictures",
    "pq",
    "provenance",
    "pydantic",
    "quality",
    "representation",
    "samples",
    "scans",
    "sections",
    "server",
    "sessions",
    "speeds",
    "statistics",
    "streamed",
    "surveys",
    "tables",
    "targets",
    "tensor_files",
    "torch",
    "transforms",
    "twins",
    "writing",
]

def attach(room: str, modules: Mapping[str, str]) -> Callable[[str], Any]: ...
