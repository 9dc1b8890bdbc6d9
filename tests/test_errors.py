"""The family of errors: exit codes, and how they are found in a chain of causes."""

import pytest

from monai_diffae.errors import ConfigError, ScanError, find_diffae_error, one_line, quoted, shortened


def test_our_error_is_found_below_others_and_shown_as_one_line():
    wrapped = RuntimeError("applying transform ...\n" * 5)
    wrapped.__cause__ = ScanError("scan.nii: is empty;\n  copy it again")
    assert isinstance(find_diffae_error(wrapped), ScanError)
    assert one_line(wrapped) == "scan.nii: is empty; copy it again"
    outer = RuntimeError("a component cannot be built")
    outer.__cause__ = KeyError("lr")
    assert find_diffae_error(outer) is None
    assert one_line(outer) == "KeyError: 'lr'"
    assert find_diffae_error(None) is None


@pytest.mark.goal(id="R30")
def test_values_in_messages_are_short_and_on_one_line():
    for separator in ("\n", "\r\n", "\x85", "\u2028"):
        assert str(ConfigError(f'column "a{separator}b": is not known')) == 'column "a b": is not known'
    for value in (16**5000, "x" * 500, ["a"] * 500, {"a": {"b": "c" * 500}}, b"\0" * 500):
        assert len(quoted(value)) <= 60
    assert [quoted(value) for value in ("a", 'it\'s "b"', 3, [1, 2])] == ["'a'", "'it\\'s \"b\"'", "3", "[1, 2]"]
    assert [shortened("abcdef", longest) for longest in (6, 5, 2)] == ["abcdef", "ab...", "..."]
