"""An embedded page is scaled down until it is small enough, and a line says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from monai_diffae.apps.report import writing
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.page import Page
from monai_diffae.apps.report.sections import Section


@pytest.fixture
def page_with(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")

    def page(media: Media) -> Page:
        section = Section("a", "A", "", media.picture(tmp_path / "a.png", "noise"))
        return Page("", "t", {}, [section], Markup(), "")

    return page


def test_a_linked_page_is_small(page_with, tmp_path: Path) -> None:
    file = writing.write_report(tmp_path / "page.html", page_with, is_embedded=False)
    assert 'src="a.png"' in file.read_text()


def test_an_embedded_page_that_is_small_enough_keeps_its_pictures(page_with, tmp_path: Path, caplog) -> None:
    file = writing.write_report(tmp_path / "page.html", page_with, is_embedded=True)
    assert "data:image/png" in file.read_text()
    assert caplog.text == ""


def test_pictures_are_scaled_down_to_fit(page_with, tmp_path: Path, monkeypatch, caplog) -> None:
    whole = writing.write_report(tmp_path / "page.html", page_with, is_embedded=True).stat().st_size
    monkeypatch.setattr(writing, "MOST_BYTES", whole - 1000)
    file = writing.write_report(tmp_path / "page.html", page_with, is_embedded=True)
    assert file.stat().st_size < whole - 1000
    assert "data:image/webp" in file.read_text()
    assert "scaled to 75 %" in caplog.text


def test_a_page_that_cannot_fit_says_so(page_with, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(writing, "MOST_BYTES", 10)
    assert writing.write_report(tmp_path / "page.html", page_with, is_embedded=True).is_file()
    assert "which is more than" in caplog.text
    assert "omit embed" in caplog.text
