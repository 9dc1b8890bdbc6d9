"""A report of the tiny bundle, made once."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from monai_diffae.apps.evaluation.verdicts import Verdict
from monai_diffae.apps.pages.data import ReportData
from monai_diffae.apps.pages.report import report
from monai_diffae.latents import Direction


@dataclass
class Element:
    """An opening tag with its attributes."""

    tag: str
    attributes: dict = field(default_factory=dict)


class PageReader(HTMLParser):
    """The elements of a page, its text, and tags that are not closed in order."""

    EMPTY = ("meta", "link", "img", "input", "br")

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag, **attributes):
        """The elements with a tag and attributes."""
        named = {name.rstrip("_"): value for name, value in attributes.items()}
        return [each for each in self.elements if each.tag == tag and named.items() <= each.attributes.items()]

    @property
    def sections(self):
        return [each.attributes["id"] for each in self.all("details", class_="card")]


@pytest.fixture(scope="session")
def page_reader():
    """Reads a page, which must be well-formed."""
    return lambda file: PageReader(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def uses_z_sem():
    """After a few steps, a decoder may use z_sem or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReportData, "uses_z_sem", True)
        yield


@pytest.fixture(scope="session")
def believe():
    """Takes what few patients say for certain: else, nothing is edited."""

    def certain(patch):
        patch.setattr(Verdict, "is_predicted", True)
        patch.setattr(Direction, "may_be_chance", False)

    return certain


@pytest.fixture(scope="module")
def report_again(labelled, small_pages, uses_z_sem, believe, tmp_path_factory):
    """Makes the report of the tiny bundle about its cohort."""
    out, targets = tmp_path_factory.mktemp("reported") / "report", ["wide", "head_size"]
    with pytest.MonkeyPatch.context() as patch:
        believe(patch)
        yield lambda **more: report(labelled.bundle, out, cohort=labelled.cohort, targets=targets, device="cpu", **more)


@pytest.fixture(scope="module")
def reported(report_again):
    return report_again()
