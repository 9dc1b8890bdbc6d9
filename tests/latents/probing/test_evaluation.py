import numpy as np
import pandas as pd
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents.probing.evaluation import ProbeSettings, evaluate_probes
from monai_diffae.latents.probing.features import FeatureSet


def test_feature_sets_are_compared_on_the_same_cases_and_targets_that_cannot_be_probed_are_omitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    table = pd.DataFrame({"id": range(60), "patient": np.arange(60) // 2, "age": x[:, 0], "site": 1})
    is_available = np.arange(60) < 50
    sets = [FeatureSet.from_values("z_sem", x), FeatureSet.from_values("noise", rng.normal(size=(60, 2)), is_available)]
    settings = ProbeSettings("cv", probes=("linear",))
    evaluated, omitted = evaluate_probes(table, ["site", "age"], sets, settings, with_few_labels=True)
    assert list(omitted) == ["site"]
    assert not omitted["site"].startswith("target")
    assert [probe.row["features"] for probe in evaluated] == ["z_sem", "noise"]
    assert [len(probe.predictions.predicted) for probe in evaluated] == [50, 50]
    assert evaluated[0].row["difference"] is None
    assert evaluated[1].row["difference_low"] > 0.5
    assert [row["num_patients"] for row in evaluated[0].few_labels] == [10]
    with pytest.raises(ConfigError, match="^target 'site'"):
        evaluate_probes(table, ["site"], sets, settings, with_few_labels=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": ("svm",)}, "^probes: 'svm' is not one of linear, knn, boosting"),
        ({"probes": ()}, "^probes: is empty; choose from linear"),
        ({"evaluation": "loo"}, "^evaluation: 'loo' is not one of split, cv"),
        ({"evaluation": "split", "splits": ("val",)}, "^splits: applies to cross-validation"),
    ],
)
def test_settings_that_are_not_possible_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ProbeSettings(**settings)
