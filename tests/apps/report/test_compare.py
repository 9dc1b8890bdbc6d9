"""Several models on one page."""

from __future__ import annotations

import shutil

import pytest

from monai_diffae.apps.report.compare import compare
from monai_diffae.errors import ConfigError


@pytest.mark.usefixtures("quick_evaluation")
def test_models_stand_side_by_side(labelled, tiny_bundle, tmp_path, page_reader) -> None:
    other = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    made = compare(
        tmp_path / "out", bundle=[labelled.bundle, other], cohort=labelled.cohort, targets=["wide"], device="cpu"
    )
    page = page_reader(made.page)
    sections = [each.attributes["id"] for each in page.all("details", class_="card")]
    assert sections == ["failures", "model", "curves", "reconstructions", "quality", "map", "probes"]
    assert "bundle (2): from z_sem alone" in page.text
    assert "bundle (2) minus bundle" in page.text
    assert len([each for each in page.all("div") if "data-map" in each.attributes]) == 2
    assert len({each.attributes["id"] for each in page.elements if "id" in each.attributes}) == len(
        [each for each in page.elements if "id" in each.attributes]
    )
    assert str(tmp_path) not in made.page.read_text()


def test_trainings_can_be_compared_without_a_cohort(tiny_bundle, labelled, tmp_path, page_reader) -> None:
    made = compare(tmp_path / "out", bundle=[labelled.bundle, tiny_bundle.directory])
    sections = [each.attributes["id"] for each in page_reader(made.page).all("details", class_="card")]
    assert sections == ["failures", "model", "curves"]


def test_one_model_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="use report"):
        compare(tmp_path / "out", bundle=["a"])


def test_models_of_different_kinds_are_refused_before_any_work(tiny_bundle, tiny_bundle_3d, tmp_path) -> None:
    with pytest.raises(ConfigError, match="takes 2D images of 1 channel and .* takes 3D images of 1 channel"):
        compare(
            tmp_path / "out", bundle=[tiny_bundle.directory, tiny_bundle_3d.directory], cohort=tiny_bundle.cohort,
            device="cpu",
        )  # fmt: skip
    assert not list((tmp_path / "out").rglob("embeddings*"))
