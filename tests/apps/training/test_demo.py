"""``demo``: ``sample-data``, then ``start``."""

from types import SimpleNamespace

import pandas as pd

from monai_diffae.apps.training.demo import demo


def test_the_demo_starts_with_a_virtual_cohort_and_keeps_it(tmp_path, monkeypatch, caplog):
    calls = []

    def start(cohort, out, **options):
        calls.append((cohort, out, options))
        return SimpleNamespace(folder=out)

    monkeypatch.setattr("monai_diffae.apps.training.demo.start", start)
    caplog.set_level("INFO", "monai_diffae")
    for _ in range(2):
        assert demo(tmp_path, num_patients=20, size=16, minutes=1, device="cpu").folder == tmp_path
    table = tmp_path / "cohort" / "cohort.csv"
    assert calls == [(table, tmp_path, {"minutes": 1, "device": "cpu", "yes": True})] * 2
    assert len(pd.read_csv(table)) == 20
    assert "these are not patients" in caplog.text
