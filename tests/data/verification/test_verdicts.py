import pytest

from monai_diffae.data.cases import Case
from monai_diffae.data.formats.scan import Doubt
from monai_diffae.data.verification import Reading, give_verdicts

_VOLUME = Reading(size=(4, 5, 6), spacing_mm=(1, 1, 1), channels=1)
_IMAGE = Reading(size=(4, 5), spacing_mm=(1, 1), channels=1)
_COLOUR = Reading(size=(4, 5), spacing_mm=(1, 1), channels=3)


def _judge(readings, outliers=()):
    return give_verdicts([Case(str(k), {}, str(k)) for k in range(len(readings))], readings, outliers)


@pytest.mark.parametrize(
    ("readings", "judgement", "kind"),
    [
        ([_VOLUME] * 3, "ok", ""),
        ([_VOLUME, _VOLUME, _IMAGE], "failed", "a 2D image among volumes"),
        ([_IMAGE, _IMAGE, _VOLUME], "doubtful", "a volume among 2D images"),
        ([_IMAGE, _IMAGE, _COLOUR], "doubtful", "a colour image among grey ones"),
        ([_COLOUR] * 3, "ok", ""),
        ([_COLOUR, _COLOUR, _IMAGE], "doubtful", "it has N channels, but most have N"),
        ([Reading(error="a.nii: it is bad; x"), Reading(error="b.nii: it is bad; x"), _VOLUME], "ok", ""),
    ],
)
def test_a_case_is_compared_with_most_others(readings, judgement, kind):
    last = _judge(readings)[-1]
    assert (last.judgement, "".join(finding.kind for finding in last.findings)) == (judgement, kind)


def test_doubts_and_outliers_are_findings():
    doubt = Doubt("uneven", "its slices are uneven", "they are resampled", "resample it")
    doubtful = Reading(size=(4, 5, 6), spacing_mm=(1, 1, 1), channels=1, doubts=(doubt,))
    first, second = _judge([doubtful, _VOLUME], ["1"])
    assert (first.judgement, first.findings[0].reason) == ("doubtful", "its slices are uneven; they are resampled")
    assert [finding.kind for finding in second.findings] == ["unusual geometry"]


def test_a_reason_may_have_colons_and_semicolons():
    [verdict] = _judge([Reading(error="a.nii: broken (ValueError: 3; 4); copy it again")])
    assert verdict.findings[0].reason == "broken (ValueError: 3; 4)"
    assert (verdict.findings[0].kind, verdict.findings[0].remedy) == ("broken", "copy it again")
