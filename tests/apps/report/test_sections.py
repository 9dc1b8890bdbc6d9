"""Pieces of HTML escape what they are given."""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup

from monai_diffae.apps.report.sections import Section, facts, table

BAD = "<script>alert(1)</script> & more"


def test_a_section_is_whole_and_texts_are_escaped() -> None:
    html = Section("key", BAD, BAD, Markup("<p>content</p>"), [BAD, BAD]).html()
    root = ElementTree.fromstring(str(html).replace(' open id="', ' open="" id="'))
    assert root.find(".//script") is None
    assert "".join(root.itertext()).count(BAD) == 4
    assert "these 2 commands" in html


def test_a_table_has_one_row_per_entry_and_keeps_html() -> None:
    html = table([{BAD: BAD, "b": Markup("<em>1</em>")}, {BAD: None, "b": 2}], BAD)
    root = ElementTree.fromstring(html)
    assert len(root.findall(".//tbody/tr")) == 2
    assert root.find(".//td/em") is not None
    assert root.find(".//script") is None
    assert root.find(".//caption").text == BAD


def test_facts_omit_what_is_unknown() -> None:
    root = ElementTree.fromstring(facts({"a": 1, "b": None}))
    assert [each.text for each in root.iter("dt")] == ["a"]
