"""The page is whole, safe, and its links lead to the pictures."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from monai_diffae.apps.results import FolderResult
from monai_diffae.apps.start.page import write_page
from monai_diffae.apps.steps import Outcome, Step


class Reader(HTMLParser):
    """Collects pictures, headings of sections and whether these are open."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.is_open: list[bool] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(str(dict(attrs)["src"]))
        if tag == "details":
            self.is_open.append("open" in dict(attrs))
        assert tag != "script"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    return reader


def test_results_come_first_and_pictures_are_linked(tmp_path: Path) -> None:
    folder = tmp_path / "what is # here"
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "edits.png")
    prepared = Outcome(
        Step("Embed", "embed", {"bundle": "m", "cohort": "c", "out": "o"}, True), 1.0, FolderResult(tmp_path)
    )
    shown = Outcome(Step("Edit", "edit", {"bundle": "m", "cohort": "c", "out": "o"}), 1.0, FolderResult(folder))
    reader = read(write_page(tmp_path / "index.html", "t", ["about"], [prepared, shown], [("Next:", "monai-diffae x")]))
    assert reader.is_open == [True, False]
    assert reader.text.index("Edit (1 s)") < reader.text.index("Embed (1 s)")
    assert [(tmp_path / unquote(source)).is_file() for source in reader.pictures] == [True]


def test_names_of_files_and_reasons_are_text_not_html(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    failed = Outcome(Step(bad, "embed", {"bundle": bad, "cohort": "c", "out": "o"}), 0.0, error=bad)
    reader = read(write_page(tmp_path / "index.html", bad, [bad], [failed], [(bad, bad)]))
    assert reader.text.count(bad) >= 6


def test_warnings_and_steps_of_earlier_calls_are_shown(tmp_path: Path) -> None:
    before = Outcome(Step("Train", "train", {}, True, typed="monai-diffae train m c"), 400.0)
    loud = Outcome(
        Step("Edit", "edit", {}), 1.0, FolderResult(tmp_path), warnings=tuple(f"warning {i}" for i in range(9))
    )
    text = read(write_page(tmp_path / "index.html", "t", [], [before, loud], [])).text
    assert "Train (400 s)" in text
    assert "monai-diffae train m c" in text
    assert "Done by an earlier call." in text
    assert "Omitted" not in text
    assert [word in text for word in ("warning 0", "warning 4", "warning 5", "and 4 more warnings")] == [
        True, True, False, True
    ]  # fmt: skip
