"""Ids and tags of requests: plain names pass, everything that could lead to another file is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_diffae.errors import ConfigError
from monai_diffae.label.ids import check_id, check_tag


@pytest.mark.parametrize("id", ["hippocampus_001", "IM-0115-0001", "1.2.840.113619.2", "Müller scan 3", "a..b", "id=x"])
def test_names_of_files_are_ids(id):
    assert check_id(id) == id


@pytest.mark.parametrize(
    "id", ["", " ", "..", ".", ".hidden", "../x", "a/b", "/etc/passwd", "a\\b", "C:\\x", "a\x00b", "a\nb", "x" * 201]
)
def test_paths_are_no_ids(id):
    with pytest.raises(ConfigError, match=r"^image: "):
        check_id(id)


@pytest.mark.parametrize("value", [None, 7, ["a"], {"a": 1}])
def test_an_id_is_text(value):
    with pytest.raises(ConfigError):
        check_id(value)


@given(st.text(max_size=30))
def test_an_id_never_leads_out_of_a_folder(text):
    import os.path

    try:
        id = check_id(text)
    except ConfigError:
        return
    assert os.path.dirname(os.path.normpath(os.path.join("/studies", id))) == "/studies"
    assert "\n" not in id


@pytest.mark.parametrize("tag", ["final", "original", "reader-2", "v1.0", "first pass"])
def test_words_are_tags(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "..", "../x", "a/b", "/tmp", ".x", "a..b", " a", "x" * 65, None, 3])
def test_other_texts_are_no_tags(tag):
    with pytest.raises(ConfigError, match=r"^tag: "):
        check_tag(tag)
