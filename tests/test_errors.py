"""The family of errors: exit codes, and how they are found in a chain of causes."""

import pytest
from complaints import complaint
from monai.bundle import ConfigParser

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


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("monai.networks.schedulers.DDIMScheduler", {"num_train_timesteps": 0}, "ValueError: `steps_offset`: 0"),
        ("monai.networks.nets.DenseNet121", {"depth": 3}, "TypeError: "),
        ("my_encoders.Encodr", {}, "ModuleNotFoundError: "),
    ],
)
def test_an_argument_that_a_component_of_others_refuses_is_one_line(target, arguments, said):
    line = complaint(ConfigParser({"part": {"_target_": target, **arguments}}).get_parsed_content, "part")
    assert line.startswith(f"{target}: {said}")
    assert line.endswith("; check its name and arguments in the configuration")


@pytest.mark.goal(id="R30")
def test_values_in_messages_are_short_and_on_one_line():
    for separator in ("\n", "\r\n", "\x85", "\u2028"):
        assert str(ConfigError(f'column "a{separator}b": is not known')) == 'column "a b": is not known'
    for value in (16**5000, "x" * 500, ["a"] * 500, {"a": {"b": "c" * 500}}, b"\0" * 500):
        assert len(quoted(value)) <= 60
    assert [quoted(value) for value in ("a", 'it\'s "b"', 3, [1, 2])] == ["'a'", "'it\\'s \"b\"'", "3", "[1, 2]"]
    assert [shortened("abcdef", longest) for longest in (6, 5, 2)] == ["abcdef", "ab...", "..."]
