"""The check of ``plan``: which scans a training would leave out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from monai.transforms import Transform

from monai_diffae.bundle.code import Parser, set_values
from monai_diffae.bundle.config import build
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.cohort_split import SplitCohort
from monai_diffae.data.failures import Failure
from monai_diffae.errors import CohortError


def unusable_scans(config: Mapping[str, Any], values: Mapping[str, Any]) -> list[Failure]:
    """Read and preprocess all scans as training does, test cases included, and return those that it would leave out."""
    parser = Parser(copy.deepcopy(dict(config)))
    set_values(parser, values, "the configuration", "configs/train.json")
    cohort = build(parser, "cohort", SplitCohort)
    preprocessing = build(parser, "preprocessing", Transform)  # type: ignore[type-abstract]
    keys = tuple(parser.get_parsed_content("image_keys"))
    cases = CachedCases([case.item() for case in cohort.cases], preprocessing, cache="none", keys=keys)
    with suppress(CohortError):  # none can be used: all of them are failures
        cases.prepare()
    return [*cohort.failures, *cases.failures]
