import numpy as np
import pytest

from monai_diffae.errors import ConfigError
from monai_diffae.latents import Direction, LatentStatistics


@pytest.fixture
def binary():
    return Direction(
        target="ill", kind="binary", classes=("well", "ill"), weight=np.eye(6)[0], pattern=np.ones(6), intercept=0.1,
        slope=2.0, offset=0.0, std=1.0, statistics=LatentStatistics(np.zeros(6), np.ones(6)), model="a" * 64,
        regularisation=1.0, score=0.9, num_cases=20, num_omitted=1,
    )  # fmt: skip


def test_content_comes_back(binary):
    assert Direction.from_json(binary.to_json()).to_json() == binary.to_json()


BROKEN = [
    (None, [], "not a direction"),
    ("format", "other", "not a direction"),
    ("version", 2, "version 1, not 2"),
    ("weight", None, "weight: must be a list"),
    ("weight", [1.0, 0.0], "weight: must be 6 numbers"),
    ("weight", [1.0, 1.0, 0.0, 0.0, 0.0, 0.0], "of length 1"),
    ("weight", [float("nan")] + [0.0] * 5, "weight: must be a list of finite"),
    ("weight", ["1.0"] + [0.0] * 5, "weight: must be a list of finite"),
    ("weight", [[1.0, 0.0]] * 3, "weight: must be a list of finite"),
    ("pattern", [1.0, 0.0], "pattern: must be 6 numbers"),
    ("pattern", [0.5] * 6, "pattern: must be a vector whose dot product with the weight is 1"),
    ("slope", 0.0, "slope: must be above 0"),
    ("std", -1.0, "std: must be above 0"),
    ("score", float("inf"), "score: must be a finite number"),
    ("intercept", 10**400, "intercept: must be a finite number"),
    ("intercept", True, "intercept: must be a finite number"),
    ("num_cases", 3.5, "num_cases: must be a whole number"),
    ("kind", "ternary", "kind: must be binary or continuous"),
    ("classes", None, "classes: must be two names"),
    ("classes", ["a", "a"], "classes: must be two names"),
    ("model", 7, "model: must be some text"),
    ("statistics", {"mean": [0.0] * 6}, "statistics: must be mean and std"),
    ("statistics", {"mean": [0.0] * 6, "std": [1.0] * 5}, "both must be"),
    ("statistics", {"mean": [0.0] * 6, "std": [0.0] * 6}, "above 0"),
    ("statistics", {"mean": [1e300] * 6, "std": [1.0] * 6}, "not finite"),
    ("preprocessing", "b" * 63, "preprocessing: must be a SHA-256 or null"),
    ("preprocessing", 7, "preprocessing: must be a SHA-256 or null"),
    ("colour", "red", "missing or unknown: 'colour'"),
]


@pytest.mark.parametrize(("key", "value", "message"), BROKEN)
def test_content_that_is_no_direction_is_refused(key, value, message, binary):
    content = value if key is None else {**binary.to_json(), key: value}
    with pytest.raises(ConfigError, match=message):
        Direction.from_json(content)


def test_every_key_but_the_preprocessing_is_needed(binary):
    content = binary.to_json()
    assert Direction.from_json({k: v for k, v in content.items() if k != "preprocessing"}).preprocessing is None
    for key in content.keys() - {"preprocessing"}:
        with pytest.raises(ConfigError):
            Direction.from_json({name: value for name, value in content.items() if name != key})
