"""A report of the tiny bundle, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from monai_diffae.apps.report import study
from monai_diffae.apps.report.report import ReportResult, report


@dataclass
class Element:
    """An opening tag with its attributes."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)


class PageReader(HTMLParser):
    """The elements of a page, its text, and tags that are not closed in order."""

    EMPTY = ("meta", "link", "img", "input", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements with a tag and attributes."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [each for each in self.elements if each.tag == tag and wanted.items() <= each.attributes.items()]


def read_page(file: Path) -> PageReader:
    """Read a page, which must be well-formed."""
    return PageReader(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def page_reader() -> Any:
    """Reads a page."""
    return read_page


@pytest.fixture(scope="session")
def quick_evaluation() -> Iterator[None]:
    """An evaluation of a second or two."""
    patch = pytest.MonkeyPatch()
    patch.setattr(study, "_EVALUATION", {"steps": [2, 3], "limit": 3, "draws": 1, "num_images": 0})
    yield
    patch.undo()


@pytest.fixture(scope="session")
def reported(labelled: Any, quick_evaluation: None, tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    """The report of the tiny bundle about its cohort."""
    out = tmp_path_factory.mktemp("reported") / "report"
    return report(labelled.bundle, out, cohort=labelled.cohort, targets=["wide", "head_size"], device="cpu")
