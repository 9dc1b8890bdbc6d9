"""The map's data: places that can be unpacked, and labels that name nobody."""

from __future__ import annotations

import base64

import numpy as np
import pandas as pd
import pytest

from monai_diffae.apps.report import latent_map


@pytest.mark.parametrize("count", [1, 2, 1000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_places_survive_packing(count: int, scale: float) -> None:
    places = (np.random.default_rng(0).normal(size=(count, 2)) * scale).astype(np.float32)
    packed = latent_map._packed(places)
    low, high = np.array(packed["low"]), np.array(packed["high"])
    whole = np.frombuffer(base64.b64decode(packed["values"]), "<u2").reshape(-1, 2)
    unpacked = low + whole / 65535 * (high - low)
    assert np.abs(unpacked - places).max() <= (high - low).max() / 65535 + 1e-6 * scale


def test_text_with_many_values_is_no_label_of_the_map() -> None:
    assert latent_map._label(pd.Series([f"name {i}" for i in range(13)])) is None
    assert latent_map._label(pd.Series(["one"] * 5)) is None
    assert latent_map._label(pd.Series(["b", "a", None, "a"])) == {"codes": [1, 0, -1, 0], "classes": ["a", "b"]}
    numbers = latent_map._label(pd.Series([*range(20), np.nan]))
    assert numbers["numbers"][-1] is None


def test_the_first_component_has_the_largest_variance() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 3)).astype(np.float32)
    z[:, 1] = z[:, 0] + 0.1 * z[:, 1]
    table = pd.DataFrame({"id": range(50), "split": "train", **{f"z_00{i}": z[:, i] for i in range(3)}})
    projection = latent_map._principal_components(table)
    first, second = projection.places.var(axis=0)
    assert first > second
    assert "(6" in projection.axes[0]  # two of three normalised dimensions are nearly the same: about 66 %
