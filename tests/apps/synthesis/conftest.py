"""Fixtures of the tests of directions and images: tables with other columns, bundles with a latent DDIM."""

import shutil

import pytest
from tiny_bundles import STORED, rewrite

from monai_diffae.bundle import checksum
from monai_diffae.data.cases import KEY_FILE
from monai_diffae.data.embeddings import read_embeddings


@pytest.fixture
def changed(labelled, tmp_path):
    """Writes the embeddings with other columns, as another table with its record."""

    def write(name="changed", **columns):
        path = tmp_path / f"{name}.parquet"
        read_embeddings(labelled.embeddings).assign(**columns).to_parquet(path)
        shutil.copy(labelled.embeddings.with_suffix(".json"), path.with_suffix(".json"))
        shutil.copy(labelled.embeddings.with_name(KEY_FILE), path.with_name(KEY_FILE))
        return path

    return write


@pytest.fixture(scope="module")
def table(labelled):
    return read_embeddings(labelled.embeddings)


@pytest.fixture
def with_latent(tmp_path):
    """Copies a bundle, and gives it the latent DDIM of the stored 2D bundle, which has as many z channels."""

    def copy(bundle):
        new = shutil.copytree(bundle, tmp_path / "with_latent", ignore=shutil.ignore_patterns("cache"))
        for file in (STORED / "2d_all" / "models").glob("latent*"):
            shutil.copy(file, new / "models")
        rewrite(new, file="latent_model.safetensors", autoencoder_sha256=checksum(new))
        return new

    return copy
