"""The page has every section, shows what was computed, and contains nothing that it should not."""

import html
import json
import re
import shlex
import shutil
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from monai_diffae import report
from monai_diffae.apps.html import number, write_page
from monai_diffae.apps.pages.data import ReportData
from monai_diffae.apps.pages.sections import Report, _cautions, _unfair
from monai_diffae.apps.settings import PageRun, Topics
from monai_diffae.apps.steps import Outcome, Step, Steps
from monai_diffae.cli import build_app, parse
from monai_diffae.data.cohort_split import whole_scan
from monai_diffae.data.samples.virtual_cohort import make_virtual_cohort
from monai_diffae.errors import CohortError, ConfigError
from monai_diffae.networks import SemanticEncoder


def sources(page):
    """The addresses of the pictures."""
    return [each.attributes["src"] for each in page.all("img")]


def test_every_section_is_there_in_order_and_open(reported, page_reader):
    page = page_reader(reported.page)
    expected = ["reconstructions", "edits", "probes", "associations", "map", "outliers", "quality", "model", "curves",
                "failures"]  # fmt: skip
    assert page.sections == expected
    assert all("open" in each.attributes for each in page.all("details", class_="card"))
    assert [each.attributes["href"] for each in page.all("a") if each.attributes["href"] != "#content"] == [
        f"#{name}" for name in expected
    ]
    assert reported.incomplete is None
    assert not page.all("p", class_="error")
    assert "The decoder hardly uses z_sem" in page.text  # the tiny bundle knows nothing
    files = {unquote(source) for source in sources(page) if not source.startswith("data:")}
    assert len(files) > 5
    assert all((reported.folder / file).is_file() for file in files)
    assert all(each.attributes["aria-label"] for each in page.elements if each.attributes.get("role") == "img")
    assert all(each.attributes["alt"] for each in page.all("img"))
    assert len(page.all("svg")) > 5


def test_the_numbers_are_those_of_the_commands(reported, labelled, page_reader):
    text = page_reader(reported.page).text
    assert text.split()[0] == labelled.cohort.stem  # the title
    made = pd.read_csv(reported.folder / "reconstructions" / "reconstructions.csv")
    assert f"{made['psnr_z_sem'].mean():.1f} dB" in text
    assert f"from both codes {made['psnr_x_T'].mean():.1f} dB" in text
    probes = pd.read_csv(reported.folder / "probe" / "probes.csv")
    assert set(probes["target"]) == {"wide", "head_size"}
    assert probes["features"].tolist()[:4] == ["z_sem", "wide", "PCA of pixels", "intensity statistics"]
    evaluated = json.loads((reported.folder / "evaluation" / "evaluation.json").read_text())["rows"]
    quality = [row["value"] for row in evaluated if row["metric"] in ("psnr", "ssim", "mse")]
    assert len(quality) == 3 * 2 * 2
    for value in (*map(number, probes["score"]), *(number(value, 4) for value in quality)):
        assert value in text


def test_the_page_needs_no_network_and_names_no_folders_and_no_patients(reported, labelled):
    text = reported.page.read_text()
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*['\"]?(?:https?:)?//", text)
    assert "fetch(" not in text
    assert str(labelled.cohort.parent) not in text
    assert str(reported.folder.parent) not in text
    hashes = pd.read_parquet(reported.folder / "embeddings" / "embeddings.parquet")["patient"]
    assert not [name for name in hashes if name in text]


def test_every_command_on_the_page_can_be_typed(reported):
    lines = re.findall(r'<pre class="line">(monai-diffae .*?)</pre>', reported.page.read_text())
    names = {shlex.split(line)[1] for line in lines}
    assert names >= {"info", "embed", "reconstruct", "evaluate", "neighbors", "probe", "associate", "edit"}
    for line in lines:
        parse(build_app(), shlex.split(html.unescape(line))[1:])


def test_the_map_has_every_case_with_its_labels(reported):
    text = reported.page.read_text()
    (content,) = re.findall(r'<script type="application/json" id="map-[^"]+">(.*?)</script>', text, flags=re.S)
    data = json.loads(content)
    table = pd.read_parquet(reported.folder / "embeddings" / "embeddings.parquet")
    assert data["ids"] == table["id"].tolist()
    wide = data["labels"]["wide"]
    assert [wide["classes"][code] for code in wide["codes"]] == table["wide"].tolist()
    assert {"split", "outlier score", "head_size"} <= data["labels"].keys()
    assert "patient" not in data["labels"]
    assert set(data["thumbnails"]) == set(data["ids"])
    assert len(data["x"]) == len(data["y"]) == len(table)
    nearest = pd.read_csv(reported.folder / "neighbors" / "neighbors.csv", dtype=str)
    for i in (0, 5):
        expected = nearest[nearest["id"] == data["ids"][i]]["neighbor"].tolist()
        assert [data["ids"][j] for j in data["neighbors"][i]] == expected


def test_a_second_call_computes_nothing_again(reported, report_again, labelled, page_reader):
    before = reported.page.read_bytes()
    assert "the autoencoder was trained on patients of" in page_reader(reported.page).text  # a warning
    again = report_again()
    assert again.page.read_bytes() == before  # with its warnings
    quick = ("info", "fit-direction")  # these have no record
    assert all(each.result.skipped for each in again.outcomes if each.step.command not in quick)


def test_what_fails_is_said_and_samples_stand_beside_their_nearest_cases(
    labelled, latent_bundle, small_pages, tmp_path, page_reader
):
    table = pd.read_csv(labelled.cohort)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    table.loc[0, "image"] = str(tmp_path / "broken.png")
    table["lonely"] = np.where(table.index == 1, "a", "b")  # one case of a class: no direction can be fitted
    table.to_csv(tmp_path / "cohort.csv", index=False)
    made = report(latent_bundle, tmp_path / "out", cohort=tmp_path / "cohort.csv", targets=["lonely"], device="cpu")
    page = page_reader(made.page)
    assert "Predict the labels" in made.incomplete
    assert "is omitted" in page.text
    assert "1 failed case" in page.text
    assert page.text.index("1 scan could not be used") < page.text.index("broken.png")
    assert str(tmp_path) not in made.page.read_text()
    assert {"failures", "samples"} < set(page.sections)
    synthetic = [each for each in page.all("img") if each.attributes["alt"].startswith("synthetic")]
    assert len(synthetic) == 4


def test_scores_without_wide_features_are_kept_and_explained(labelled, tmp_path, monkeypatch):
    def study(cohort, folder="out"):
        made = ReportData(bundle, tmp_path / folder, cohort, run=PageRun(device="cpu"))
        made.run_common()
        given = made.outcomes["probe"].step.arguments.get("features")
        return made.result("embeddings").skipped, given, "no wide features" in " ".join(_cautions(made))

    def attempt(steps, title, command, **given):  # all but embed take too long here
        kept = Outcome(Step(title, command, given), 0.0)
        return run(steps, title, command, **given) if command == "embed" else steps.outcomes.append(kept)

    run = Steps.attempt
    monkeypatch.setattr(Steps, "attempt", attempt)
    bundle = shutil.copytree(labelled.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache", "wide*"))
    pd.read_csv(labelled.cohort).iloc[:9].to_csv(tmp_path / "few.csv", index=False)
    assert study(tmp_path / "few.csv") == (False, None, True)
    shutil.copytree(labelled.embeddings.parent, tmp_path / "earlier" / "embeddings")
    assert study(labelled.cohort, "earlier") == (True, None, False)
    assert study(labelled.cohort, "fitted") == (False, ["z", "wide"], False)
    assert study(tmp_path / "few.csv") == (True, None, False)
    assert study(tmp_path / "few.csv", "second") == (False, ["z", "wide"], False)
    monkeypatch.delattr(SemanticEncoder, "features")  # as an encoder of another package
    assert ReportData(bundle, tmp_path / "third", tmp_path / "few.csv").can_have_wide is None


def test_a_mistyped_cohort_is_refused_before_any_work(labelled, tmp_path):
    with pytest.raises(CohortError, match=r"^missing\.csv: there is no such folder, table or scan"):
        report(labelled.bundle, tmp_path / "out", cohort=tmp_path / "missing.csv")
    assert not (tmp_path / "out").exists()
    pd.read_csv(labelled.cohort).assign(same=1).to_csv(labelled.cohort.with_name("same.csv"), index=False)
    for target, message in (("wode", "targets: there is no label 'wode'; choose from: .*wide"), ("same", "all '1'")):
        with pytest.raises(ConfigError, match=message):
            report(labelled.bundle, tmp_path / "out", cohort=labelled.cohort.with_name("same.csv"), targets=[target])
    assert not (tmp_path / "out" / "embeddings").exists()


# -- several models on one page ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_models_stand_side_by_side(labelled, tiny_bundle, small_pages, tmp_path, page_reader):
    other = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))
    options = {"cohort": labelled.cohort, "targets": ["head_size"], "device": "cpu"}
    made = report(labelled.bundle, tmp_path / "out", against=[other], **options)
    page = page_reader(made.page)
    assert page.sections == ["probes", "map", "reconstructions", "quality", "model", "curves", "failures"]
    assert "bundle (2): from z_sem alone" in page.text
    assert "bundle (2) minus bundle" in page.text
    assert len([each for each in page.all("div") if "data-map" in each.attributes]) == 2
    ids = [each.attributes["id"] for each in page.elements if "id" in each.attributes]
    assert len(set(ids)) == len(ids)
    assert str(tmp_path) not in made.page.read_text()


def test_a_model_that_was_trained_on_the_held_out_cases_of_the_first_is_named():
    def model(name, *splits):
        table = pd.DataFrame({"id": list("abcd"), "split": splits})
        return SimpleNamespace(name=name, table=table, is_embedded=True)

    models = [model("first", *"xyz", "test"), model("same", *"xyz", "test"), model("other", *"xyz", "train")]
    (unfair,) = _unfair(models)
    assert unfair["text"].startswith("other was trained on 1 of the 1 cases that first has not seen")


def test_without_a_cohort_trainings_are_shown_and_compared(tiny_bundle, labelled, tmp_path, page_reader):
    for made in (
        report(labelled.bundle, tmp_path / "report"),
        report(labelled.bundle, tmp_path / "compared", against=[tiny_bundle.directory]),
    ):
        assert page_reader(made.page).sections == ["model", "curves", "failures"]


def test_models_that_cannot_be_compared_are_refused_before_any_work(tiny_bundle, tiny_bundle_3d, tmp_path):
    bundle, other = tiny_bundle.directory, tiny_bundle_3d.directory
    with pytest.raises(ConfigError, match="about targets only"):
        report(bundle, tmp_path / "out", against=[other], scanner="site")
    with pytest.raises(ConfigError, match="takes 2D images of 1 channel and .* takes 3D images of 1 channel"):
        report(bundle, tmp_path / "out", against=[other], cohort=tiny_bundle.cohort, device="cpu")
    assert not list((tmp_path / "out").rglob("embeddings*"))


def test_volumes_of_a_2d_model_are_pooled_and_the_slice_along_a_label_is_edited(
    labelled, believe, page_reader, tmp_path, monkeypatch
):
    believe(monkeypatch)
    monkeypatch.setattr(ReportData, "uses_z_sem", True)
    cohort = make_virtual_cohort(tmp_path / "heads", num_patients=16, size=16, spatial_dims=3, val_fraction=0.2)
    out = tmp_path / "out"
    data = ReportData(labelled.bundle, out, cohort, Topics(["head_size"]), PageRun(device="cpu"))
    data.collect(evaluates=False)
    volumes, names = pd.read_csv(cohort)["id"].tolist(), data.table["id"].tolist()
    assert names == volumes
    probed = pd.read_csv(out / "probe" / "probes.csv")
    assert (probed["num_test"] == len(volumes)).all()
    assert "PCA of pixels" in set(probed["features"])
    direction = data.result("directions/head_size.json").direction
    edited = set(data.read("edits/head_size/edits.csv")["id"])
    assert {data.scan_of[name] for name in edited} <= set(volumes)
    for name in edited:
        opened = data.session.trained.open(data.pictured[name])
        whole = data.session.trained.open(whole_scan(data.pictured[name]))
        distances, own = (direction.distance(case.z_sem.numpy()) for case in (whole, opened))
        assert own[0] == pytest.approx(distances.max() if distances.mean() > 0 else distances.min())
    page = write_page(tmp_path / "page.html", "report.html", **Report([data]).values())
    assert {"probes", "edits", "map", "reconstructions"} <= set(page_reader(page).sections)
    assert all(outcome.error is None for outcome in data.steps.outcomes)
