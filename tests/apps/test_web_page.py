"""The frame of pages: texts are escaped, style and scripts are inside."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from monai_diffae.apps.web_page import STYLE, joined, web_page


def test_a_page_contains_its_style_and_scripts_and_escapes_texts(tmp_path: Path) -> None:
    script = tmp_path / "a.js"
    script.write_text("if (1 < 2 && true) {}")
    page = web_page("<b>", joined(["a < b", Markup("<main>c</main>")]), scripts=[script])
    assert STYLE.read_text(encoding="utf-8") in page
    assert "<script>\nif (1 < 2 && true) {}</script>" in page
    assert "<title>&lt;b&gt;</title>" in page
    assert "a &lt; b\n<main>c</main>" in page


def test_a_page_names_no_address_of_the_network() -> None:
    assert "//" not in web_page("t", Markup("")).replace("http-equiv", "")
