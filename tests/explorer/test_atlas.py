"""The map: coordinates, neighbors, positions."""

import re
from dataclasses import replace

import numpy as np
import pytest

from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import CohortError
from monai_diffae.explorer.atlas import Atlas, Extreme


@pytest.fixture
def atlas(explored):
    return explored.atlas


def test_coordinates_are_the_first_two_components(atlas):
    assert atlas.is_pca
    np.testing.assert_allclose(atlas.coordinates, atlas.positions[:, :2] * atlas.components.stds[:2])
    is_train = np.array(atlas.splits) == "train"
    np.testing.assert_allclose(atlas.positions[is_train].std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(atlas.positions[is_train].mean(axis=0), 0, atol=1e-4)


def test_a_move_along_a_component_is_a_move_on_the_map(atlas):
    z_sem = atlas.table.filter(regex=r"^z_\d+$").to_numpy(np.float32)[:1]
    moved = atlas.components.traverse(z_sem, 1, [2.0])
    before, after = (atlas.positions_of(atlas.training.reference.normalised(z))[0] for z in (z_sem, moved))
    expected = np.eye(len(after))[1] * 2
    np.testing.assert_allclose((after - before)[:4], expected[:4], atol=1e-3)
    assert len(after) > atlas.num_components


def test_extremes_are_found_among_all_components(atlas, labelled):
    """A case that is unusual along the last component only: it has no fixed slider, and is still the most extreme."""
    table = read_embeddings(labelled.embeddings)
    columns = [name for name in table if re.fullmatch(r"z_\d+", name)]
    last = len(atlas.components.directions)
    start = z_matrix(table.iloc[[0]])
    strong = 30 * (1 + 0.1 / atlas.components.stds[-1])
    moved = atlas.components.traverse(start, last - 1, [strong])
    table.loc[0, columns] = moved[0]
    unusual = replace(atlas, table=table)
    first = unusual.extremes(0)[0]
    assert first.component == last > unusual.num_components
    assert first.share > 0.5
    assert len(unusual.extremes(0)) >= min(unusual.num_components + 4, last)


def test_shares_are_those_of_the_whitened_distance(atlas):
    extremes = atlas.extremes(2)
    sizes = [abs(each.whitened) for each in extremes]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sum(each.share for each in extremes) <= 1 + 1e-9
    assert all(abs(each.whitened) <= abs(each.position) for each in extremes)


@pytest.mark.parametrize("position", [-12.0, -2.6, 2.6, 7.0])
def test_a_typical_position_is_two_standard_deviations_on_the_same_side(position):
    moved = position + Extreme(1, position, position, 0.1).to_typical
    assert moved == pytest.approx(np.copysign(2, position))


def test_the_nearest_other_patient_of_a_case_is_its_first_neighbor(atlas):
    for row in range(len(atlas.cases)):
        nearest, distance = atlas.nearest_other(atlas.z_norm[row], row)
        assert (nearest, pytest.approx(distance, rel=1e-4)) == atlas.neighbors(row)[0]


def test_a_table_with_places_of_its_own_keeps_them(labelled, explored, tmp_path):
    table = read_embeddings(labelled.embeddings)
    table = table.assign(x=np.arange(12.0), y=-np.arange(12.0), thumbnail=[b"png"] * 12)
    table.to_parquet(tmp_path / "e.parquet")
    atlas = Atlas.open(tmp_path / "e.parquet", explored.atlas.cases, 2)
    np.testing.assert_array_equal(atlas.coordinates, np.stack([np.arange(12.0), -np.arange(12.0)], axis=1))
    assert "thumbnail" not in atlas.labels
    assert not {"x", "y"} & set(atlas.labels)


def test_only_cases_of_the_cohort_are_on_the_map_but_all_training_cases_count(labelled, explored):
    some = Atlas.open(labelled.embeddings, explored.atlas.cases[:3], 2)
    assert len(some.cases) == 3
    assert len(some.training.rows) == len(explored.atlas.training.rows)
    np.testing.assert_allclose(some.outliers[0], explored.atlas.outliers[0][:3])


def test_ids_that_are_not_unique_are_refused(labelled, explored, tmp_path):
    read_embeddings(labelled.embeddings).assign(id="same").to_parquet(tmp_path / "e.parquet")
    with pytest.raises(CohortError, match="unique name for each case"):
        Atlas.open(tmp_path / "e.parquet", explored.atlas.cases, 2)
