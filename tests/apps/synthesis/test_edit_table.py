import pandas as pd

from monai_diffae.apps.synthesis.edit_table import _rises, warn_of_small_changes


def test_an_edit_that_moves_as_requested_is_no_warning(caplog):
    for achieved in (None, 0.2, 1.0):
        warn_of_small_changes(achieved, "pattern")
    assert not caplog.records
    warn_of_small_changes(0.19, "pattern")
    assert "moved by 19.0 % of the requested strength" in caplog.text


def test_monotone_is_strict_of_values_and_forgives_certain_probabilities():
    certain = pd.Series([1e-9, 1e-9, 0.2, 0.9, 1 - 1e-9, 1 - 1e-9])
    assert _rises(certain, "binary")
    assert not _rises(certain, "continuous")
    assert not _rises(pd.Series([50.0, 48.0, 52.0]), "continuous")
    assert not _rises(pd.Series([0.3, 0.2, 0.9]), "binary")
