"""The family of errors: exit codes, and how they are found in a chain of causes."""

import pytest

from monai_diffae import errors
from monai_diffae.errors import (
    ConfigError,
    DiffAEError,
    OmittableError,
    ScanError,
    find_diffae_error,
    one_line,
    quoted,
    shortened,
)


def test_each_exit_code_has_one_meaning():
    kinds = [
        kind
        for kind in (*DiffAEError.__subclasses__(), *OmittableError.__subclasses__())
        if kind.__module__ == "monai_diffae.errors" and kind is not OmittableError
    ]
    codes = {kind.__name__: kind.exit_code for kind in kinds}  # errors of a server have a status instead
    assert codes == {
        "ConfigError": 2, "ScanError": 4, "CohortError": 4, "UnsafeInputError": 5, "MachineError": 6,
        "DivergenceError": 7,
    }  # fmt: skip


def test_our_error_is_found_below_others_and_shown_as_one_line():
    wrapped = RuntimeError("applying transform ...\n" * 5)
    wrapped.__cause__ = ScanError("scan.nii: is empty;\n  copy it again")
    assert isinstance(find_diffae_error(wrapped), ScanError)
    assert one_line(wrapped) == "scan.nii: is empty; copy it again"


def test_of_other_errors_the_first_cause_is_shown():
    outer = RuntimeError("a component cannot be built")
    outer.__cause__ = KeyError("lr")
    assert find_diffae_error(outer) is None
    assert one_line(outer) == "KeyError: 'lr'"


def test_a_chain_that_is_a_circle_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert find_diffae_error(first) is None
    assert find_diffae_error(None) is None


def test_errors_holds_errors_only():
    public = [name for name in vars(errors) if name[0].islower() and not name.startswith("_")]
    assert set(public) <= {"annotations", "find_diffae_error", "one_line", "quoted", "shortened"}


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\x85", "\u2028"])
def test_a_message_that_quotes_line_breaks_is_one_line(separator):
    assert str(ConfigError(f'column "a{separator}b": is not known')) == 'column "a b": is not known'


@pytest.mark.goal(id="R30")
@pytest.mark.parametrize(
    "value",
    [10**400, 16**5000, "x" * 500, ["a"] * 500, {"a": {"b": "c" * 500}}, b"\0" * 500],
    ids=["number", "larger number", "text", "list", "mapping", "bytes"],
)
def test_a_quoted_value_is_short(value):
    assert len(quoted(value)) <= 60


def test_short_values_are_quoted_whole():
    assert [quoted(value) for value in ("a", 'it\'s "b"', 3, None, [1, 2])] == [
        "'a'",
        "'it\\'s \"b\"'",
        "3",
        "None",
        "[1, 2]",
    ]
    assert quoted("x" * 500).endswith("x...'")
    assert [shortened("abcdef", longest) for longest in (6, 5, 2)] == ["abcdef", "ab...", "..."]
