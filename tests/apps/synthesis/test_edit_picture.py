"""The picture of edits, the names of their strengths, and when they are warned of."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Resized

from monai_diffae.apps.synthesis import edit_picture
from monai_diffae.apps.synthesis.edit_picture import PicturedCase, draw_edits, own_detail
from monai_diffae.apps.synthesis.edit_table import _rises, warn_of_small_changes
from monai_diffae.apps.synthesis.strengths import STRENGTHS, strength_names, strength_titles
from monai_diffae.errors import ConfigError
from monai_diffae.pictures.mosaic import in_colours
from monai_diffae.transforms import NativeSpace, ReadScand, ToModelRanged


@pytest.fixture
def drawn(monkeypatch):
    """The rows of the last picture."""
    rows = {}
    whole = edit_picture.draw_mosaic
    monkeypatch.setattr(edit_picture, "draw_mosaic", lambda new, *rest: rows.update(new) or whole(new, *rest))
    return rows


def test_the_scale_of_differences_is_theirs_or_a_tenth_of_the_range(drawn, tmp_path):
    images = torch.zeros(1, 1, 4, 4)
    for largest, model_range, scale in ((0.05, (-1.0, 1.0), 0.2), (0.5, (-1.0, 1.0), 0.5), (0.05, (0.0, 1.0), 0.1)):
        drawn.clear()
        differences = torch.full_like(images, -largest)
        draw_edits(tmp_path / "edits.png", [PicturedCase(images, differences, "a\nsex f")], [0], model_range)
        assert list(drawn) == ["case 1\na\nsex f", f"difference 1 (±{scale})"]
        expected = in_colours(differences, scale, model_range=model_range)
        torch.testing.assert_close(drawn[f"difference 1 (±{scale})"], expected)


def test_a_2d_scan_is_shown_with_its_own_detail_and_in_its_own_shape():
    stripes = np.tile(np.array([0.0, 100.0]), (96, 24))[None]  # no model of 16 pixels can show them
    native = NativeSpace(Compose([ReadScand("image", 2), ToModelRanged("image", method="minmax")]), {"image": stripes})
    differences = torch.stack([torch.zeros(1, 96, 48), torch.full((1, 96, 48), 0.5)])
    images, changes = own_detail(native, differences)
    assert images.shape == changes.shape == (2, 1, 224, 224)
    middle = images[0, 0, :, 56:168]  # 96 x 48 pixels become 224 x 112
    assert set(middle.unique().tolist()) == {-1.0, 1.0}
    assert not changes[0].any()
    torch.testing.assert_close(changes[1, 0, :, 56:168], torch.full((224, 112), 0.5))
    assert not changes[1, 0, :, :56].any()


def test_a_volume_is_shown_in_three_planes_of_its_own_detail_in_mm():
    array = np.zeros((1, 56, 28, 20), np.float32)  # superior, left, posterior; 1, 2 and 4 mm
    array[:, 28:] = 80.0
    array[:, ::2] += 20.0  # stripes of 1 mm
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -4.0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    native = NativeSpace(
        Compose([ReadScand("image", 3), ToModelRanged("image", method="minmax"), Resized("image", (14, 14, 10))]),
        {"image": MetaTensor(array, affine=affine)},
    )
    differences = torch.stack([torch.zeros(1, 14, 14, 10), torch.full((1, 14, 14, 10), 0.5)])
    images, changes = own_detail(native, differences)
    assert images.shape == changes.shape == (2, 1, 112, 3 * 112)
    assert not changes[0].any()
    # 56 x 80 x 56 mm (right, anterior, superior), so the coronal plane is 78 pixels high and wide
    coronal = images[0, 0, :, 112:224]
    shown = (coronal > -1).nonzero()
    assert (shown.amin(dim=0).tolist(), shown.amax(dim=0).tolist()) == ([17, 17], [94, 94])
    rows = coronal[:, 56]
    assert rows[17:56].mean() > rows[56:95].mean()  # superior is above, and brighter
    assert {-1.0, 1.0} <= {round(value, 5) for value in rows[17:95].tolist()}  # the stripes are there
    torch.testing.assert_close(changes[1, 0, 20:90, 112 + 20 : 112 + 90], torch.full((70, 70), 0.5))


def test_an_edit_that_moves_as_requested_is_no_warning(caplog):
    for achieved in (None, 0.2, 1.0):
        warn_of_small_changes(achieved, "pattern")
    assert not caplog.records
    warn_of_small_changes(0.19, "pattern")
    assert "moved by 19.0 % of the requested strength; the decoder hardly uses z_sem" in caplog.text
    warn_of_small_changes(0.19, "weight")
    assert "moved by 19.0 % of the requested strength; the weight may" in caplog.text


def test_monotone_is_strict_of_values_and_forgives_certain_probabilities():
    certain = pd.Series([1e-9, 1e-9, 0.2, 0.9, 1 - 1e-9, 1 - 1e-9])
    assert _rises(certain, "binary")
    assert not _rises(certain, "continuous")
    assert not _rises(pd.Series([50.0, 48.0, 52.0]), "continuous")
    assert not _rises(pd.Series([0.3, 0.2, 0.9]), "binary")


def test_names_of_strengths_have_signs_and_titles_are_short():
    assert strength_names(STRENGTHS) == ["-3.00", "-2.00", "-1.00", "+0.00", "+1.00", "+2.00", "+3.00"]
    assert strength_titles(STRENGTHS) == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]
    for strengths, message in (
        ((), "are not numbers"),
        ((0, float("nan")), "are not numbers"),
        ((0, 1e308), r"1e\+308 is beyond 100 standard deviations"),
        ((0.001, 0.002), r"two of them are \+0.00 when rounded to two digits"),
    ):
        with pytest.raises(ConfigError, match=f"^strengths: .*{message}"):
            strength_names(strengths)
