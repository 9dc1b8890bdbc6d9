import pytest

from monai_diffae.apps.synthesis.strengths import STRENGTHS, strength_names, strength_titles
from monai_diffae.errors import ConfigError


def test_names_sort_out_signs_and_titles_are_short():
    assert strength_names(STRENGTHS) == ["-3.00", "-2.00", "-1.00", "+0.00", "+1.00", "+2.00", "+3.00"]
    assert strength_titles(STRENGTHS) == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ((), "are not numbers"),
        ((0, float("nan")), "are not numbers"),
        ((0, 1e308), r"1e\+308 is beyond 100 standard deviations"),
        ((0.001, 0.002), r"two of them are \+0.00 when rounded to two digits"),
    ],
)
def test_unusable_strengths_are_refused(strengths, message):
    with pytest.raises(ConfigError, match=f"^strengths: .*{message}"):
        strength_names(strengths)
