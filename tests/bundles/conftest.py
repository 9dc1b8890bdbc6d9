"""A trained first stage for the tests of bundles."""

import pytest
from tiny_bundles import copy_tiny, tiny_cohort


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory):
    """A trained first stage, beside the folder ``cohort`` with its scans."""
    root = tmp_path_factory.mktemp("kl")
    tiny_cohort(root / "cohort", "kl")
    return copy_tiny(root / "bundle", "first_stage")
