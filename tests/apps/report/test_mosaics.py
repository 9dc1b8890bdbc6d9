"""The panels of reconstructed cases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import torch
from PIL import Image

from monai_diffae.apps.report import mosaics
from monai_diffae.apps.report.case_images import CaseImages, frames_of
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.mosaics import Mosaic, make_mosaic
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.synthesis.reconstruct import reconstruct
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


def test_cases_are_shown_whatever_their_ids_are(labelled: Any, tmp_path: Path) -> None:
    table = pd.read_csv(labelled.cohort)
    table.assign(id=[f"case ({n}).nii.gz" for n in range(len(table))]).to_csv(tmp_path / "cohort.csv", index=False)
    arguments: dict[str, Any] = {"mode": "both", "grid": "model", "limit": 1, "steps": 2, "device": "cpu"}
    reconstruct(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "reconstructions", **arguments)
    assert {file.name for file in tmp_path.glob("reconstructions/*/*")} == {"case_0.nii.gz"}
    images = CaseImages(labelled.bundle, tmp_path / "cohort.csv", tmp_path / "media", labelled.embeddings, "cpu")
    names = {case.id: case.file_name for case in images.session.cohort.cases}
    study = SimpleNamespace(result=lambda name: True, folder=tmp_path, overwrite=False, file_names=names)
    mosaic = make_mosaic(cast(Study, study), images, tmp_path / "media")
    assert mosaic is not None
    assert mosaic.file("case (0).nii.gz", "image", "x_T").is_file()


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
