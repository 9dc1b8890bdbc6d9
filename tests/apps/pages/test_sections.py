"""Pieces of the page: templates, charts, marks, the map's data, strips of slices, pictures, and the file itself."""

import base64
import io
import math
import re
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import torch
from markupsafe import Markup
from PIL import Image

from monai_diffae.apps import html as page
from monai_diffae.apps.html import Pictures, render
from monai_diffae.apps.pages.data import ReportData, find_examples, find_positive, find_targets
from monai_diffae.apps.pages.figures import Axes, Chart, Series, line_chart
from monai_diffae.apps.pages.images import ReportImages, _write_strips, enlarged
from monai_diffae.apps.pages.scores import quality_values
from monai_diffae.apps.pages.sections import Report, Section, association_section, scanner_section
from monai_diffae.apps.settings import PageRun
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.pictures import shown, three_planes

BAD = "<script>alert(1)</script> & more"


def report_page(*sections, **more):
    """A report with these sections."""
    values = {"title": BAD, "is_comparison": False, "tiles": {BAD: (BAD, BAD)}, "version": "1", "sections": sections,
              "answers": [{"kind": "bad", "text": BAD, "advice": BAD}]}  # fmt: skip
    return render(more.pop("template", "report.html"), **values, address=str, **more)


def test_texts_of_every_kind_are_escaped(page_reader, tmp_path):
    values = {"omitted": [(BAD, BAD)], "cautions": [BAD], "warnings": [(BAD, [BAD] * 5)], "failed": [{BAD: BAD}]}
    values["caption"] = BAD
    facts = {"models": None, "model": {BAD: BAD, "none": None}, "changed": {BAD: BAD}, "cohort": [{BAD: None}]}
    facts |= {"training": {}, "twins": BAD}
    charts = {"charts": [Chart(BAD, Markup("<svg></svg>"))]}
    maps = {"maps": [{"name": BAD, "data": {"ids": [BAD], "thumbnails": {}}}]}
    (tmp_path / "page.html").write_text(report_page(
        Section("failures", BAD, values, [BAD], [BAD, BAD]), Section("model", BAD, facts),
        Section("curves", BAD, charts),
        Section("map", BAD, maps),
    ))  # fmt: skip
    html = page_reader(tmp_path / "page.html")
    assert len(html.all("script")) == 5  # four scripts and the data of the map
    assert html.text.count(BAD) > 25
    assert "2 more" in html.text
    assert "these 2 commands" in html.text
    assert "none" not in html.text
    assert len(html.all("h3", class_=None)) == 0


# -- charts ------------------------------------------------------------------------------------------------------------


def test_charts_have_the_colours_of_the_page_and_ids_of_their_own():
    losses = Series("a & <b>", [1, 2, 3], [1, math.nan, 3], [0.5, None, 2], [2, None, 4])
    charts = [
        line_chart([losses, Series("b", [1], [math.nan])], Axes("<x>", "y", log_y=is_log, reference=2))
        for is_log in (False, True)
    ]
    ids = [set(re.findall(r'id="([^"]+)"', chart.svg)) for chart in charts]
    assert not ids[0] & ids[1]
    for chart in charts:
        ElementTree.fromstring(chart.svg)
        assert 'aria-label="y: a &amp; &lt;b&gt;"' in chart.svg  # without the line that has no finite value
        assert set(re.findall(r"(?:stroke|fill): (#\w+)", chart.svg)) == set()
    several = line_chart([Series(name, [1, 2], [1, 2]) for name in "abcd"], Axes("x", "y")).svg
    assert len(set(re.findall(r"var\(--c\d\)", several))) == 4
    assert len(set(re.findall(r"stroke-dasharray: [^;]*", several))) >= 3
    for axes in (Axes("x", "y"), Axes("x", "y", log_x=True, log_y=True, diagonal=(0.1, 1))):
        ElementTree.fromstring(line_chart([], axes).svg)


# -- quality over steps ------------------------------------------------------------------------------------------------


def score(bundle, steps, metric, value, **more):
    empty = {"features": None, "timestep": None, "solver": "heun", "num_cases": 3, "low": value - 1, "high": value + 1}
    own = {"table": "reconstruction", "bundle": bundle, "steps": steps, "metric": metric, "value": value}
    return {**own, **empty, **more}


def figures(**more):
    return {
        "rows": [score(bundle, steps, "psnr", steps + 10.0) for bundle in ("a", "b") for steps in (5, 10)],
        "differences": [score("b", 5, "psnr", 2.0, low=1.0, high=3.0) | {"reference": "a"}],
        "omitted": [{"bundle": "a", "metric": "lpips", "reason": "no weights"}],
        "held_out": True, "split": "test", "num_cases": 3, "num_patients": 2, **more,
    }  # fmt: skip


def test_each_condition_has_a_line_and_each_metric_a_column():
    values = quality_values(figures())
    ((rows,),) = (part["tables"] for part in values["parts"])
    assert [list(row) for row in rows] == [["bundle", "solver", "steps", "PSNR (dB) ↑"]] * 4
    content = report_page(Section("quality", "Quality", values))
    assert "<td>15<br>" in re.sub(r"\s*\n\s*", "", content)
    assert 'class="clear">+2' in content  # the interval excludes 0
    assert "lpips is left out: no weights" in content
    assert "may have been trained on" not in content
    assert "may have been trained on" in report_page(Section("quality", "", quality_values(figures(held_out=False))))
    usage = [score("a", 5, "z_sem_usage", 2.0, table="noise_levels", timestep=t) for t in (50, 150)]
    usage += [score("a", 5, "z_sem_usage", 2.0, table="z_sem")]
    (part,) = quality_values(figures(rows=usage, differences=[]))["parts"]
    assert (len(part["charts"]), len(part["tables"])) == (1, 1)
    codes = [score("a", 5, "mmd", 0.1, table="generation"), score("a", 5, "active", 3, table="z_sem")]
    for num, parts in ((3, 0), (16, 2)):
        assert len(quality_values(figures(rows=codes, differences=[], num_cases=num))["parts"]) == parts
    assert "no held-out case" in report_page(Section("quality", "", quality_values(None), ["no held-out case"]))


# -- strips of slices --------------------------------------------------------------------------------------------------


def test_the_slices_of_a_volume_lie_below_each_other_in_three_planes(tmp_path):
    volume = torch.rand(1, 6, 7, 8) * 2 - 1
    strips = _write_strips(shown(volume[None])[0], (1.0, 1.0, 2.0), tmp_path / "case")
    assert strips.counts == {"axial": 8, "coronal": 7, "sagittal": 6}
    assert strips.sizes == {"axial": "110/128", "coronal": "48/128", "sagittal": "56/128"}  # 6 x 7 mm, 6 x 16, 7 x 16
    assert Image.open(strips.files["axial"]).size == (110, 8 * 128)
    axial = np.asarray(Image.open(strips.files["axial"]).convert("L"), float)[5 * 128 : 6 * 128]
    plane = ((three_planes(volume[None], [3, 4, 5])[0, 0, :7, :6] + 1) / 2 * 255).numpy()
    small = np.asarray(Image.fromarray(axial.astype("uint8")).resize((6, 7), Image.Resampling.BOX), float)
    assert np.corrcoef(small.ravel(), plane.ravel())[0, 1] > 0.97
    tall = _write_strips(torch.zeros(3, 200, 200, 200, dtype=torch.uint8), (1.0, 1.0, 1.0), tmp_path / "tall")
    assert tall.counts["axial"] == 67  # every third slice, as the format has a limit
    assert enlarged(np.zeros((2, 16, 32, 3), np.uint8))[0].shape == (64, 128, 3)
    assert enlarged(np.zeros((2, 200, 100, 3), np.uint8))[0].shape == (200, 100, 3)


def test_cases_are_shown_whatever_their_ids_are(labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)
    cohort.assign(id=[f"case ({n}).nii.gz" for n in range(len(cohort))]).to_csv(tmp_path / "cohort.csv", index=False)
    arguments = {"mode": "both", "grid": "model", "limit": 1, "steps": 2, "device": "cpu"}
    reconstruct(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "reconstructions", **arguments)
    assert {file.name for file in tmp_path.glob("reconstructions/*/*")} == {"case_0.nii.gz"}
    data = ReportData(labelled.bundle, tmp_path, tmp_path / "cohort.csv", run=PageRun(device="cpu"))
    panels = ReportImages(data).reconstructions()["case (0).nii.gz"]
    assert all(each.files["image"].is_file() for each in panels.values())


# -- pictures and the file ---------------------------------------------------------------------------------------------


def test_pictures_are_linked_or_embedded_at_a_scale(tmp_path):
    picture = tmp_path / "a b#c" / "é.png"
    picture.parent.mkdir()
    Image.new("RGB", (40, 20), "red").save(picture)
    address = Pictures(tmp_path).address(picture)
    assert (tmp_path / unquote(address)).is_file()
    assert "#" not in address
    for scale, size in {1.0: (40, 20), 0.5: (20, 10), 0.01: (1, 1)}.items():
        kind, content = Pictures(picture.parent, is_embedded=True, scale=scale).address(picture).split(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.size == size
        assert kind == f"data:image/{image.format.lower()}"


def test_an_embedded_page_is_scaled_down_until_it_is_small_enough(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")

    result = SimpleNamespace(lines=lambda: [], preview=lambda: None, pictures=lambda: [tmp_path / "a.png"])

    def write(embed=True, **most):
        return page.write_page(tmp_path / "page.html", "result.html", embed=embed, result=result, **most).read_text()

    assert 'src="a.png"' in write(embed=False)
    whole = write()
    assert "data:image/png" in whole
    assert caplog.text == ""
    scaled = write(most_bytes=len(whole) - 1000)
    assert len(scaled) < len(whole) - 1000
    assert "data:image/webp" in scaled
    assert "scaled to 75 %" in caplog.text
    assert write(most_bytes=10)
    assert "omit embed" in caplog.text


# -- which labels are predicted, and which cases are edited -----------------------------------------------------------


def table(**labels):
    number = len(next(iter(labels.values())))
    return pd.DataFrame({"id": [f"c{i}" for i in range(number)], **labels, "z_000": 0.0})


def test_numbers_and_classes_are_targets_and_names_and_constants_are_not():
    ages, names = [20 + 1.5 * i for i in range(20)], [f"person {i}" for i in range(20)]
    rare, missing = ["common"] * 19 + ["rare"], ["F", None] * 10
    labels = {"name": names, "age": ages, "scanner": ["A"] * 20, "finding": rare, "known": missing}
    assert find_targets(table(**labels, sex=["F", "M"] * 10)) == ["age", "sex"]
    many = table(**{f"score_{i}": [1.5 * j + i for j in range(20)] for i in range(8)})
    assert find_targets(many) == [f"score_{i}" for i in range(5)]
    assert find_targets(many, ["score_7", "other"]) == ["score_7", "other"]


def test_examples_are_held_out_cases_from_both_ends():
    frame = table(age=[float(i) for i in range(8)], split=["train"] * 3 + ["test"] * 4 + ["val"])
    assert find_examples(frame, "age", 4) == ["c3", "c6", "c4", "c5"]
    assert find_examples(frame, "age", 3) == ["c3", "c6", "c4"]
    assert find_examples(frame.drop(columns="split"), "age", 2) == ["c0", "c7"]
    assert sorted(find_examples(table(sex=["F", "M", "F"]), "sex", 10)) == ["c0", "c1", "c2"]
    frame = table(finding=["x", "b", "normal", "b", "x"], split="test")
    assert find_examples(frame, "finding", 4) == ["c0", "c3", "c2", "c1"]  # a class alternates with the rest


def test_the_rarest_unusual_class_is_compared_with_the_rest():
    three = ["benign"] * 5 + ["malignant"] * 3 + ["normal"] * 2
    assert find_positive(table(finding=three), "finding") == "malignant"
    assert find_positive(table(finding=["abnormal", "normal", None]), "finding") == "abnormal"
    assert find_positive(table(sex=["F", "M"]), "sex") is None
    assert find_positive(table(sex=["F", "M"]), "sex", towards="F") == "F"
    assert find_positive(table(tumour=["no tumour", "glioma"]), "tumour") == "glioma"
    assert find_positive(table(grade=[1.0, 2.0, 3.0]), "grade") is None


def test_the_column_of_effects_is_filled(tmp_path):
    one = {"variable": "age", "contrast": "per 1", "component": 2, "share": 0.5, "p": 0.01, "q": 0.01}
    rows = [{**one, "effect": 0.7654, "low": 0.7, "high": 0.8}, {**one, "effect": None}]
    results = {"associations": SimpleNamespace(strongest=rows, num_tests=2, num_significant=2)}
    model = SimpleNamespace(outcomes={"associations": SimpleNamespace(error=None)}, result=results.get)
    model.folder, model.lines = tmp_path, lambda *steps: []
    shown = association_section(Report([model])).values["rows"]
    assert [row["effect"] for row in shown] == [{"value": "0.765", "low": "0.7", "high": "0.8"}, "F test"]


def test_the_scanner_has_a_section_if_its_column_was_given(page_reader, tmp_path):
    scores = {f"{name}{end}": 0.4 for name in ("nuisance_accuracy", "left_out") for end in ("", "_low", "_high")}
    row = {"target": "age", "features": "z_sem", "metric": "r2", "score": 0.7654, "nuisance_chance": 0.25, **scores}
    results = {"probe": SimpleNamespace(rows=[row]), "reliability": SimpleNamespace(notes=["31% is the scanner."])}
    model = SimpleNamespace(outcomes={}, result=results.get, folder=tmp_path, lines=lambda *steps: [])
    (tmp_path / "page.html").write_text(report_page(scanner_section(Report([model]))))
    html = page_reader(tmp_path / "page.html")
    assert all(text in html.text for text in ("31% is the scanner.", "0.765", "chance is 0.25"))
    assert html.all("img", class_="picture")
    assert scanner_section(Report([SimpleNamespace(outcomes={}, result={}.get)])) is None
