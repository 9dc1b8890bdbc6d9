"""The panels of reconstructed cases."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from monai_diffae.apps.report import mosaics
from monai_diffae.apps.report.case_images import frames_of
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.mosaics import Mosaic
from monai_diffae.pictures import three_planes


def test_the_slices_of_a_volume_are_those_of_three_planes() -> None:
    volume = torch.rand(1, 6, 7, 8) * 2 - 1
    frames = dict(frames_of(volume, (-1.0, 1.0)))
    assert {plane: len(each) for plane, each in frames.items()} == {"axial": 8, "coronal": 7, "sagittal": 6}
    planes = three_planes(volume[None], [3, 4, 5])[0, 0]
    axial = ((planes[:, :6] + 1) / 2 * 255).round()
    shown = torch.from_numpy(frames["axial"][5][..., 0].astype("float32"))
    rows = axial[axial.isfinite().all(dim=1)]
    assert torch.equal(rows, shown)


def test_a_slider_moves_all_panels_of_its_plane(tmp_path: Path) -> None:
    mosaic = Mosaic(
        ["c"], {"axial": 9, "coronal": 4, "sagittal": 1}, {"axial": 1, "coronal": 2, "sagittal": 1}, tmp_path
    )
    for plane in mosaic.counts:
        for key in mosaics._TITLES:
            Image.new("L", (3, 3)).save(mosaic.file("c", plane, key))
    panels = [mosaics._Panel(title, mosaic, key) for key, title in mosaics._TITLES.items()]
    html = mosaics._cards(panels, {"c": "caption"}, Media(tmp_path))
    assert html.count('type="range"') == 2  # a single slice needs no slider
    assert 'max="8" value="4" data-frames="c_axial"' in html
    assert html.count('class="sprite"') == 15
