"""Fixtures of the tests of directions: tables of embeddings with other columns."""

from __future__ import annotations

import shutil

import pytest

from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.patient_keys import KEY_FILE


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
