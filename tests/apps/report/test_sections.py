"""Pieces of the page: sections, charts, the map's data, sprites, pictures, and the file itself."""

import base64
import io
import math
import re
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from monai_diffae.apps.report import latent_map, writing
from monai_diffae.apps.report.case_images import CaseImages, frames_of
from monai_diffae.apps.report.charts import Axes, Series, interval_mark, line_chart
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.mosaics import make_mosaic
from monai_diffae.apps.report.page import Page
from monai_diffae.apps.report.quality import quality_section
from monai_diffae.apps.report.sections import Section, facts, table
from monai_diffae.apps.report.sprites import Grid, enlarged, sprite, square_grid, write_sprite
from monai_diffae.apps.steps import Outcome, Step
from monai_diffae.apps.synthesis.reconstruct import reconstruct
from monai_diffae.pictures import three_planes

BAD = "<script>alert(1)</script> & more"


def test_sections_and_tables_are_whole_and_texts_are_escaped():
    section = Section("key", BAD, BAD, Markup("<p>content</p>"), [BAD, BAD]).html()
    root = ElementTree.fromstring(str(section).replace(' open id="', ' open="" id="'))
    assert root.find(".//script") is None
    assert "".join(root.itertext()).count(BAD) == 4
    assert "these 2 commands" in section
    root = ElementTree.fromstring(table([{BAD: BAD, "b": Markup("<em>1</em>")}, {BAD: None, "b": 2}], BAD))
    assert len(root.findall(".//tbody/tr")) == 2
    assert root.find(".//td/em") is not None
    assert root.find(".//script") is None
    assert root.find(".//caption").text == BAD
    root = ElementTree.fromstring(facts({"a": 1, "b": None}))
    assert [each.text for each in root.iter("dt")] == ["a"]


# -- charts ------------------------------------------------------------------------------------------------------------


def markers(chart):
    places = re.findall(r'class="marker" transform="translate\(([-\d.]+) ([-\d.]+)\)"', chart)
    return [(float(x), float(y)) for x, y in places]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.booleans())
def test_higher_values_are_drawn_higher_and_inside(values, is_log):
    y = [abs(value) + 1e-3 for value in values] if is_log else values
    chart = line_chart([Series("a", list(range(len(y))), y)], Axes("x", "y", log_y=is_log))
    ElementTree.fromstring(chart)
    places = markers(chart)
    assert len(places) == len(y)
    assert all(0 <= x <= 460 and 0 <= place <= 270 for x, place in places)
    heights = [places[i][1] for i in sorted(range(len(y)), key=lambda i: y[i])]
    assert all(low >= high for low, high in zip(heights, heights[1:], strict=False))


def test_missing_values_leave_a_gap_and_series_differ_in_more_than_colour():
    chart = line_chart([Series("a", [1, 2, 3], [1, math.nan, 3]), Series("b", [1], [math.nan])], Axes("<x>", "y"))
    ElementTree.fromstring(chart)
    assert len(markers(chart)) == 2
    assert "s1" not in chart
    ElementTree.fromstring(line_chart([], Axes("x", "y")))
    chart = line_chart([Series(name, [1, 2], [1, 2]) for name in "abcd"], Axes("x", "y"))
    assert len(set(re.findall(r'class="line" stroke-dasharray="([^"]*)" d="M\d', chart))) == 4
    assert len(set(re.findall(r'class="marker" transform="[^"]*" d="([^"]*)"', chart))) == 4


def test_an_interval_contains_its_value():
    mark = interval_mark(0.6, 0.4, 0.9, (0.0, 1.0), 0.5)
    ElementTree.fromstring(mark)
    low, high = map(float, re.search(r'class="bar" x1="([\d.]+)" x2="([\d.]+)"', mark).groups())
    assert low < float(re.search(r'cx="([\d.]+)"', mark)[1]) < high
    assert 'class="bar"' not in interval_mark(0.6, math.nan, math.nan, (0.0, 1.0), 0.5)


# -- quality over steps ------------------------------------------------------------------------------------------------


def score(bundle, steps, metric, value, **more):
    empty = {"features": None, "timestep": None, "solver": "heun", "num_cases": 3, "low": value - 1, "high": value + 1}
    own = {"table": "reconstruction", "bundle": bundle, "steps": steps, "metric": metric, "value": value}
    return {**own, **empty, **more}


def outcome(**more):
    figures = {
        "rows": [score(bundle, steps, "psnr", steps + 10.0) for bundle in ("a", "b") for steps in (5, 10)],
        "differences": [score("b", 5, "psnr", 2.0, low=1.0, high=3.0) | {"reference": "a"}],
        "omitted": [{"bundle": "a", "metric": "lpips", "reason": "no weights"}],
        "held_out": True, "split": "test", "num_cases": 3, "num_patients": 2, **more,
    }  # fmt: skip
    return Outcome(Step("Evaluate", "evaluate", {}), 1.0, SimpleNamespace(figures=lambda: figures))


def test_each_condition_has_a_line_and_each_metric_a_column():
    content = quality_section(outcome(), "line").content
    root = ElementTree.fromstring(f"<div>{content}</div>")
    quality, differences = root.findall(".//table")
    assert [each.text for each in quality.findall(".//thead/tr/th")] == ["bundle", "solver", "steps", "PSNR (dB) ↑"]
    assert len(quality.findall(".//tbody/tr")) == 4
    assert "+2" in "".join(differences.itertext())
    assert differences.find(".//strong") is not None  # the interval excludes 0
    assert "lpips is left out: no weights" in content
    usage = [score("a", 5, "z_sem_usage", 2.0, table="z_sem", timestep=t, low=None, high=None) for t in (50, 150)]
    content = quality_section(outcome(rows=usage, differences=[])).content
    assert content.count('class="marker"') == 2
    assert "<table>" not in content


def test_an_evaluation_that_failed_or_may_have_seen_training_cases_says_so():
    assert "may have been trained on" in quality_section(outcome(held_out=False)).content
    assert quality_section(None) is None
    failed = Outcome(Step("Evaluate", "evaluate", {}), 1.0, error="no held-out case")
    assert "no held-out case" in quality_section(failed).content


# -- the map -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (2, 1e-6), (1000, 1e6)])
def test_places_survive_packing(count, scale):
    places = (np.random.default_rng(0).normal(size=(count, 2)) * scale).astype(np.float32)
    packed = latent_map._packed(places)
    low, high = np.array(packed["low"]), np.array(packed["high"])
    whole = np.frombuffer(base64.b64decode(packed["values"]), "<u2").reshape(-1, 2)
    unpacked = low + whole / 65535 * (high - low)
    assert np.abs(unpacked - places).max() <= (high - low).max() / 65535 + 1e-6 * scale


def test_labels_and_axes_of_the_map():
    assert latent_map._label(pd.Series([f"name {i}" for i in range(13)])) is None
    assert latent_map._label(pd.Series(["one"] * 5)) is None
    assert latent_map._label(pd.Series(["b", "a", None, "a"])) == {"codes": [1, 0, -1, 0], "classes": ["a", "b"]}
    assert latent_map._label(pd.Series([*range(20), np.nan]))["numbers"][-1] is None
    z = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    z[:, 1] = z[:, 0] + 0.1 * z[:, 1]
    table = pd.DataFrame({"id": range(50), "split": "train", **{f"z_00{i}": z[:, i] for i in range(3)}})
    projection = latent_map._principal_components(table)
    first, second = projection.places.var(axis=0)
    assert first > second
    assert "(6" in projection.axes[0]  # two of three normalised dimensions are nearly the same: about 66 %


# -- sprites and panels of reconstructed cases -------------------------------------------------------------------------


def test_frames_lie_row_by_row_and_at_the_places_of_css(tmp_path):
    frames = np.stack([np.full((8, 16, 3), 50 * i, np.uint8) for i in range(5)])
    grid = square_grid(5)
    image = Image.open(write_sprite(frames, grid, tmp_path / "s.webp"))
    assert image.size == (16 * grid.columns, 8 * grid.rows)
    for i in range(5):
        row, column = divmod(i, grid.columns)
        assert abs(image.convert("RGB").getpixel((16 * column + 8, 8 * row + 4))[0] - 50 * i) < 4
    for count in (1, 2, 5, 16, 299):  # CSS puts the point at p % of the picture on the point at p % of the box
        grid = square_grid(count)
        assert grid.columns * grid.rows >= count
        for frame in {0, count // 2, count - 1}:
            x, y = (float(part.rstrip("%")) / 100 for part in grid.place(frame).split())
            assert round(y * (grid.rows - 1)) * grid.columns + round(x * (grid.columns - 1)) == frame
    assert enlarged(np.zeros((2, 16, 32, 3), np.uint8))[0].shape == (64, 128, 3)
    assert enlarged(np.zeros((2, 200, 100, 3), np.uint8))[0].shape == (200, 100, 3)
    assert 'aria-label="a &amp; b"' in sprite("url(a.webp)", Grid(4, 2), "a & b")


def test_the_slices_of_a_volume_are_those_of_three_planes():
    volume = torch.rand(1, 6, 7, 8) * 2 - 1
    frames = dict(frames_of(volume, (-1.0, 1.0)))
    assert {plane: len(each) for plane, each in frames.items()} == {"axial": 8, "coronal": 7, "sagittal": 6}
    planes = three_planes(volume[None], [3, 4, 5])[0, 0]
    axial = ((planes[:, :6] + 1) / 2 * 255).round()
    shown = torch.from_numpy(frames["axial"][5][..., 0].astype("float32"))
    assert torch.equal(axial[axial.isfinite().all(dim=1)], shown)


def test_cases_are_shown_whatever_their_ids_are(labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)
    cohort.assign(id=[f"case ({n}).nii.gz" for n in range(len(cohort))]).to_csv(tmp_path / "cohort.csv", index=False)
    arguments = {"mode": "both", "grid": "model", "limit": 1, "steps": 2, "device": "cpu"}
    reconstruct(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "reconstructions", **arguments)
    assert {file.name for file in tmp_path.glob("reconstructions/*/*")} == {"case_0.nii.gz"}
    images = CaseImages(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "media", labelled.embeddings, "cpu")
    names = {case.id: case.file_name for case in images.session.cohort.cases}
    study = SimpleNamespace(result=lambda name: True, folder=tmp_path, overwrite=False, file_names=names)
    mosaic = make_mosaic(study, images, tmp_path / "media")
    assert mosaic.file("case (0).nii.gz", "image", "x_T").is_file()


# -- pictures and the file ---------------------------------------------------------------------------------------------


def test_pictures_are_linked_or_embedded_at_a_scale(tmp_path):
    picture = tmp_path / "a b#c" / "é.png"
    picture.parent.mkdir()
    Image.new("RGB", (40, 20), "red").save(picture)
    address = Media(tmp_path).address(picture)
    assert (tmp_path / unquote(address)).is_file()
    assert "#" not in address
    tag = Media(tmp_path).picture(picture, 'a "quoted" <name>')
    assert 'alt="a &#34;quoted&#34; &lt;name&gt;"' in tag
    assert 'width="40" height="20"' in tag
    for scale, size in {1.0: (40, 20), 0.5: (20, 10), 0.01: (1, 1)}.items():
        kind, content = Media(picture.parent, is_embedded=True, scale=scale).address(picture).split(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert image.size == size
        assert kind == f"data:image/{image.format.lower()}"


def test_an_embedded_page_is_scaled_down_until_it_is_small_enough(tmp_path, monkeypatch, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")

    def page(media):
        return Page("", "t", {}, [Section("a", "A", "", media.picture(tmp_path / "a.png", "noise"))], Markup(), "")

    def write(is_embedded=True):
        return writing.write_report(tmp_path / "page.html", page, is_embedded=is_embedded).read_text()

    assert 'src="a.png"' in write(is_embedded=False)
    whole = write()
    assert "data:image/png" in whole
    assert caplog.text == ""
    monkeypatch.setattr(writing, "MOST_BYTES", len(whole) - 1000)
    scaled = write()
    assert len(scaled) < len(whole) - 1000
    assert "data:image/webp" in scaled
    assert "scaled to 75 %" in caplog.text
    monkeypatch.setattr(writing, "MOST_BYTES", 10)
    assert write()
    assert "which is more than" in caplog.text
    assert "omit embed" in caplog.text
