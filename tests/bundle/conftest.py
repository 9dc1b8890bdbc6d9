"""A trained bundle for each test that changes one."""

import pytest
from tiny_bundles import copy_tiny

from monai_diffae.bundle.loading import load_bundle


@pytest.fixture
def bundle(tmp_path):
    """A trained 2D bundle of this test, without a checkpoint."""
    return copy_tiny(tmp_path / "bundle", "2d")


@pytest.fixture(scope="session")
def trained(tiny_bundle):
    """The tiny bundle, loaded."""
    return load_bundle(tiny_bundle.directory, "cpu")
