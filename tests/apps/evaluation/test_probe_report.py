from monai_diffae.apps.evaluation.probe_report import score_tables


def row(features, **values):
    common = {
        "target": "age", "features": features, "dims": 8, "probe": "linear", "score": 0.5, "low": 0.25, "high": 0.75,
        "r2": 0.5, "mae": 123.45, "difference": None, "difference_low": None, "difference_high": None,
        "evaluation": "cv", "num_folds": 5, "num_train": 80, "num_test": 100, "num_patients": 90,
    }  # fmt: skip
    return {**common, **values}


def test_one_table_per_target_with_intervals_and_differences():
    plain = "\n".join(score_tables([row("z_sem"), row("z_sem", target="weight", evaluation="split")]))
    assert "age: evaluated on 100 cases of 90 patients, fitted to 80 others, by 5-fold nested" in plain
    assert "weight: evaluated on 100 cases of 90 patients, fitted to 80 others, by the table's split" in plain
    assert "0.500 (0.250, 0.750)" in plain
    assert "123.5" in plain
    assert "z_sem minus this" not in plain
    difference = {"difference": 0.125, "difference_low": -0.25, "difference_high": 0.5}
    compared = "\n".join(score_tables([row("z_sem"), row("PCA", **difference)]))
    assert "z_sem minus this" in compared
    assert "0.125 (-0.250, 0.500)" in compared
