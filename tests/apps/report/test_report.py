"""The page has every section, shows what was computed, and contains nothing that it should not."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.report import about
from monai_diffae.apps.report.report import report
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.steps import Steps
from monai_diffae.cli import build_app, parse
from monai_diffae.errors import CohortError, ConfigError


def data_of_map(text: str) -> dict:
    (content,) = re.findall(r'<script type="application/json" id="map-[^"]+">(.*?)</script>', text, flags=re.S)
    return json.loads(content)


def sources(page: Path) -> list[str]:
    """The addresses of the pictures that style sheets name."""
    return re.findall(r"url\(['\"]?([^'\")]+)['\"]?\)", html.unescape(page.read_text(encoding="utf-8")))


def test_every_section_is_there_in_order_and_open(reported, page_reader) -> None:
    page = page_reader(reported.page)
    sections = [each.attributes["id"] for each in page.all("details", class_="card")]
    expected = ["failures", "model", "curves", "reconstructions", "quality", "map", "probes", "edits", "outliers"]
    assert sections == expected
    assert all("open" in each.attributes for each in page.all("details", class_="card"))
    assert [each.attributes["href"] for each in page.all("a") if each.attributes["href"] != "#content"] == [
        f"#{name}" for name in expected
    ]
    assert reported.incomplete is None
    assert not page.all("p", class_="error")
    assert "The decoder hardly uses z_sem" in page.text  # the tiny bundle knows nothing


def test_every_picture_exists_and_has_a_name(reported, page_reader) -> None:
    page = page_reader(reported.page)
    files = {unquote(source) for source in sources(reported.page)}
    assert len(files) > 20
    assert all((reported.folder / file).is_file() for file in files)
    pictures = [each for each in page.elements if each.attributes.get("role") == "img"]
    assert all(each.attributes["aria-label"] for each in pictures)


def test_the_page_needs_no_network(reported) -> None:
    text = reported.page.read_text()
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*['\"]?(?:https?:)?//", text)
    assert "fetch(" not in text


def test_the_page_names_no_folders_and_no_patients(reported, labelled) -> None:
    text = reported.page.read_text()
    assert str(labelled.cohort.parent) not in text
    assert str(reported.folder.parent) not in text
    hashes = pd.read_parquet(reported.folder / "embeddings" / "embeddings.parquet")["patient"]
    assert not [name for name in hashes if name in text]


def test_every_command_on_the_page_can_be_typed(reported, page_reader) -> None:
    text = reported.page.read_text()
    lines = re.findall(r'<pre class="line">(monai-diffae .*?)</pre>', text)
    names = {shlex.split(line)[1] for line in lines}
    assert names >= {"info", "embed", "reconstruct", "evaluate", "neighbors", "probe", "fit-direction", "edit"}
    for line in lines:
        parse(build_app(), shlex.split(line.replace("&#39;", "'").replace("&#34;", '"'))[1:])


def test_the_map_has_every_case_with_its_labels(reported) -> None:
    data = data_of_map(reported.page.read_text())
    table = pd.read_parquet(reported.folder / "embeddings" / "embeddings.parquet")
    assert data["ids"] == table["id"].tolist()
    wide = data["labels"]["wide"]
    assert [wide["classes"][code] for code in wide["codes"]] == table["wide"].tolist()
    assert {"split", "outlier score", "head_size"} <= data["labels"].keys()
    assert "patient" not in data["labels"]
    assert set(data["thumbnails"]["places"]) == set(data["ids"])
    nearest = pd.read_csv(reported.folder / "neighbors" / "neighbors.csv", dtype=str)
    first = nearest[nearest["id"] == data["ids"][0]]["neighbor"].tolist()
    assert [data["ids"][i] for i in data["neighbors"][0]] == first


def test_a_second_call_computes_nothing_and_writes_the_same_page(reported, labelled, monkeypatch, caplog) -> None:
    before = reported.page.read_bytes()
    again = report(
        labelled.bundle, reported.folder, cohort=labelled.cohort, targets=["wide", "head_size"], device="cpu"
    )
    assert again.page.read_bytes() == before
    assert all(getattr(outcome.result, "skipped", True) for outcome in again.outcomes)


def test_one_file_has_all_pictures_inside(reported, labelled, page_reader) -> None:
    linked = reported.page.read_bytes()
    made = report(
        labelled.bundle,
        reported.folder,
        cohort=labelled.cohort,
        targets=["wide", "head_size"],
        device="cpu",
        embed=True,
    )
    page_reader(made.page)
    assert len(sources(made.page)) > 20
    assert all(source.startswith("data:image/") for source in sources(made.page))
    reported.page.write_bytes(linked)


def test_a_step_that_fails_is_omitted_and_the_page_says_why(labelled, quick_evaluation, tmp_path, page_reader) -> None:
    table = pd.read_csv(labelled.cohort)
    table["lonely"] = np.where(table.index == 0, "a", "b")  # one case of a class: no direction can be fitted
    table.to_csv(tmp_path / "cohort.csv", index=False)
    made = report(labelled.bundle, tmp_path / "out", cohort=tmp_path / "cohort.csv", targets=["lonely"], device="cpu")
    page = page_reader(made.page)
    assert "Predict the labels" in (made.incomplete or "")
    assert "is omitted" in page.text
    assert "failures" in [each.attributes["id"] for each in page.all("details", class_="card")]


def test_warnings_stand_on_the_page_of_a_second_call_too(reported, labelled, page_reader) -> None:
    """Probing the training patients, too, is what the figures are to be read with."""
    warning = "the autoencoder was trained on patients of"
    assert warning in page_reader(reported.page).text
    arguments = {"cohort": labelled.cohort, "targets": ["wide", "head_size"], "device": "cpu"}
    assert warning in page_reader(report(labelled.bundle, reported.folder, **arguments).page).text


def test_a_label_of_three_classes_has_a_direction_towards_one_of_them(tmp_path, monkeypatch) -> None:
    findings = ["benign"] * 5 + ["malignant"] * 3 + ["normal"] * 4
    table = pd.DataFrame({"id": [f"c{i}" for i in range(12)], "split": "test", "finding": findings})
    study = Study(tmp_path / "model", tmp_path)
    monkeypatch.setitem(vars(study), "table", table)
    given: dict[str, dict] = {}

    def attempt(name, title, command, **arguments):
        given[command] = arguments
        return "a result"

    monkeypatch.setattr(study, "_attempt", attempt)
    study._edit("finding")
    assert given["fit-direction"]["positive"] == "malignant"
    ends = dict(zip(table["id"], findings, strict=True))
    assert [ends[name] == "malignant" for name in given["edit"]["cases"]] == [False, True, False, True]


def test_a_mistyped_cohort_is_refused_before_any_work(labelled, tmp_path) -> None:
    with pytest.raises(CohortError, match=r"^missing\.csv: there is no such folder, table or scan"):
        report(labelled.bundle, tmp_path / "out", cohort=tmp_path / "missing.csv")
    assert not (tmp_path / "out").exists()


def test_without_a_cohort_the_training_is_shown(labelled, tmp_path, page_reader) -> None:
    made = report(labelled.bundle, tmp_path / "out")
    sections = [each.attributes["id"] for each in page_reader(made.page).all("details", class_="card")]
    assert sections == ["failures", "model", "curves"]


def test_failed_cases_come_first(labelled, quick_evaluation, tmp_path, page_reader) -> None:
    table = pd.read_csv(labelled.cohort)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    table.loc[0, "image"] = str(tmp_path / "broken.png")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    made = report(labelled.bundle, tmp_path / "out", cohort=tmp_path / "cohort.csv", targets=["wide"], device="cpu")
    page = page_reader(made.page)
    assert "1 failed case" in page.text
    assert page.text.index("broken.png") < page.text.index("The model, how long it was trained")
    assert str(tmp_path) not in made.page.read_text()


def test_a_target_that_is_no_label_is_named_with_the_choices(labelled, reported, tmp_path) -> None:
    with pytest.raises(ConfigError, match="targets: there is no label 'nothing'; choose from: .*wide"):
        report(labelled.bundle, reported.folder, cohort=labelled.cohort, targets=["nothing"], device="cpu")


def test_samples_stand_beside_their_nearest_cases(
    labelled, latent_bundle, quick_evaluation, tmp_path, page_reader
) -> None:
    made = report(latent_bundle, tmp_path / "out", cohort=labelled.cohort, targets=["wide"], device="cpu")
    page = page_reader(made.page)
    assert "samples" in [each.attributes["id"] for each in page.all("details", class_="card")]
    synthetic = [each for each in page.elements if (each.attributes.get("aria-label") or "").startswith("synthetic")]
    assert len(synthetic) == 16


def test_without_labels_a_few_held_out_cases_are_shown_not_all(labelled, reported) -> None:
    study = Study(labelled.bundle, reported.folder, labelled.cohort)
    study.table = study.table.assign(wide=None)
    assert set(study.table.set_index("id").loc[study._examples("wide", 2), "split"]) == {"test"}


def test_volumes_have_sliders_in_three_planes(tiny_bundle_3d, quick_evaluation, tmp_path, page_reader) -> None:
    made = report(tiny_bundle_3d.directory, tmp_path / "out", cohort=tiny_bundle_3d.cohort, device="cpu")
    page = page_reader(made.page)
    sliders = [each for each in page.all("input", type="range") if "data-frames" in each.attributes]
    planes = {str(each.attributes["data-frames"]).rsplit("_", 1)[1] for each in sliders}
    assert planes == {"axial", "coronal", "sagittal"}
    assert {each.attributes["max"] for each in sliders} == {"15"}
    groups = {each.attributes.get("data-group") for each in page.elements}
    assert {each.attributes["data-frames"] for each in sliders} <= groups


def test_a_command_that_fails_with_a_bug_is_not_hidden(labelled, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Steps, "attempt", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(labelled.bundle, tmp_path / "out", cohort=labelled.cohort, device="cpu")


def test_a_probe_of_the_training_is_one_chart_with_its_interval() -> None:
    seen = [100.0, 200.0]
    curves = {"images_seen": seen, "validation_probe_age": [0.5, 0.6]}
    ends = {"validation_low_of_probe_age": [0.4, 0.5], "validation_high_of_probe_age": [0.6, 0.7]}
    chart = about._metric_chart({"model": pd.DataFrame({**curves, **ends})}, "validation_probe_age", "probe age")
    plain = about._metric_chart({"model": pd.DataFrame(curves)}, "validation_probe_age", "probe age")
    assert chart.count('class="bar') == plain.count('class="bar') + 2
    assert list(about._last({"probe_age": 0.6, "low_of_probe_age": 0.5, "loss": 0.1})) == [
        "last probe age",
        "last loss",
    ]
