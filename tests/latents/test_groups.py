import numpy as np
import pytest

from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.outliers import outlier_scores
from monai_diffae.latents.probing.probes import grouped_folds
from monai_diffae.latents.probing.scores import score_with_interval
from monai_diffae.latents.selection import outlier_order
from monai_diffae.latents.stability import stability


@pytest.mark.parametrize("groups", [["b", "a", "b", "c"], [3.5, 1.0, 3.5, 2.0], [None, "a", None, 7]])
def test_groups_are_numbered_as_they_appear(groups):
    assert numbered_groups(groups).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_results_do_not_depend_on_the_names_of_groups(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    z, groups = generator.normal(size=(90, 4)), generator.integers(30, size=90)
    names = np.array([f"{name:02d}" for name in generator.permutation(30)])[groups]
    target = (z[:, 0] + generator.normal(size=90) > 0).astype(int)

    def results(groups):
        yield score_with_interval("auroc", target, z[:, 0], groups)
        for num_classes in (2, None):
            yield [test.tolist() for _, test in grouped_folds(target, groups, num_classes)]
        yield stability(z, z + 0.5, groups)
        yield outlier_scores(z[:60], z[60:], groups=groups[:60], reference_groups=groups[60:], k=2).distances.tolist()
        yield outlier_order(z, groups).tolist()

    monkeypatch.setattr("monai_diffae.latents.stability._MAX_PAIRS", 100)  # so that pairs are drawn
    assert list(results(groups)) == list(results(names))
