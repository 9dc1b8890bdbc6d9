"""The section with reconstructed cases: 2D images, or volumes in three planes with a slider through the slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from torch import Tensor

from monai_diffae.apps.report.case_images import CaseImages, frames_of
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.sections import Section, number
from monai_diffae.apps.report.sprites import sprite, square_grid, write_sprite
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.results import run_once
from monai_diffae.apps.web_page import joined
from monai_diffae.bundle.checksums import file_checksum
from monai_diffae.pictures import in_colours
from monai_diffae.transforms.case_images import read_image

_TITLES = {
    "input": "input", "z_sem": "from z_sem alone", "z_sem_difference": "difference", "x_T": "from both codes",
    "x_T_difference": "difference",
}  # fmt: skip
_LIMIT = 0.25  # the end of the scale of differences, as a fraction of the model's range

_SLIDER = Markup(
    '<label class="slider screen-only"><span>{plane} slice</span>'
    '<input type="range" min="0" max="{last}" value="{middle}" data-frames="{group}"><output>{shown}</output></label>'
)


@dataclass(frozen=True)
class Mosaic:
    """The sprites of the reconstructed cases.

    Attributes:
        ids: the cases.
        counts: the number of slices in each plane.
        aspects: width over height of the slices of each plane.
        folder: the folder of the sprites.
    """

    ids: list[str]
    counts: Mapping[str, int]
    aspects: Mapping[str, float]
    folder: Path

    def file(self, case_id: str, plane: str, panel: str) -> Path:
        """The sprite of a panel."""
        return _sprite_file(self.folder, case_id, plane, panel)


def make_mosaic(study: Study, images: CaseImages, folder: Path) -> Mosaic | None:
    """Write the sprites of a study's reconstructed cases, unless they are there; None without reconstructions."""
    if study.result("reconstructions") is None:
        return None
    results = study.folder / "reconstructions"
    ids = pd.read_csv(results / "reconstructions.csv", dtype={"id": str})["id"].tolist()
    made_from = {**images.made_from, "reconstructions": file_checksum(results / "reconstructions.csv")}
    aspects = images.aspects()
    files = [_sprite_file(folder, name, plane, panel) for name in ids for plane in aspects for panel in _TITLES]

    def make() -> Mapping[str, Any]:
        model_range = images.session.trained.model_range
        counts: dict[str, int] = {}
        for name, image in images.read(ids).items():
            for panel, shown in _panels(image, results, name, model_range).items():
                for plane, frames in frames_of(shown, model_range):
                    counts[plane] = len(frames)
                    write_sprite(frames, square_grid(len(frames)), _sprite_file(folder, name, plane, panel))
        return {"counts": counts}

    figures, _ = run_once(folder / "mosaics.json", files, made_from, make, overwrite=study.overwrite)
    return Mosaic(ids, figures["counts"], aspects, folder)


def mosaic_section(study: Study, mosaic: Mosaic, media: Media) -> Section:
    """The section: one card per case."""
    errors = pd.read_csv(study.folder / "reconstructions" / "reconstructions.csv", dtype={"id": str}).set_index("id")
    cards = [_card(case_id, errors.loc[case_id], mosaic, media) for case_id in mosaic.ids]
    kind = "volumes" if "axial" in mosaic.counts else "images"
    split = study.outcomes["reconstructions"].step.arguments["split"]
    held_out = f"cases of the split {split}" if split else "cases; the cohort has no held-out split"
    lead = (
        f"{len(mosaic.ids)} {held_out}, with the pixels of the model. From z_sem alone, the detail is drawn at random: "
        "what agrees with the input is what z_sem knows. From both codes, an image should come back almost exactly."
    )
    legend = Markup(
        '<p class="muted small">Differences: <span class="ramp"></span> darker to brighter than the input, '
        "the ends are {:.0%} of the range of intensities.</p>"
    ).format(_LIMIT)
    body = Markup('<div class="cards {}">{}</div>{}').format(kind, joined(cards), legend)
    return Section("reconstructions", "Reconstructions", lead, body, study.lines("reconstructions"))


def _card(case_id: str, errors: pd.Series[Any], mosaic: Mosaic, media: Media) -> Markup:
    rows = [_row(case_id, plane, mosaic, media) for plane in mosaic.counts]
    caption = (
        f"{case_id}: PSNR {number(errors['psnr_z_sem'])} dB from z_sem alone, {number(errors['psnr_x_T'])} dB from both"
    )
    heads = joined([Markup("<span>{}</span>").format(title) for title in _TITLES.values()])
    return Markup(
        '<figure class="case"><div class="panels heads" aria-hidden="true">{}</div>{}'
        "<figcaption>{}</figcaption></figure>"
    ).format(heads, joined(rows), caption)


def _row(case_id: str, plane: str, mosaic: Mosaic, media: Media) -> Markup:
    count = mosaic.counts[plane]
    grid, group = square_grid(count), f"{case_id}_{plane}"
    shown = [
        sprite(
            f"url('{media.address(mosaic.file(case_id, plane, panel))}')", grid,
            f"{case_id}, {title}{'' if count == 1 else f', {plane} slice'}", frame=count // 2,
            aspect=mosaic.aspects[plane],
        )
        for panel, title in _TITLES.items()
    ]  # fmt: skip
    panels = Markup('<div class="panels" data-group="{}">{}</div>').format(group, joined(shown))
    if count == 1:
        return panels
    slider = _SLIDER.format(plane=plane, last=count - 1, middle=count // 2, shown=count // 2 + 1, group=group)
    return joined([panels, slider])


def _panels(image: Tensor, results: Path, case_id: str, model_range: tuple[float, float]) -> dict[str, Tensor]:
    panels = {"input": image.as_subclass(Tensor)}
    for mode in ("z_sem", "x_T"):
        files = (results / mode / f"{case_id}{suffix}" for suffix in (".png", ".nii.gz"))
        decoded = read_image(next(file for file in files if file.is_file()), model_range)
        panels[mode] = decoded[..., 0] if decoded.ndim > image.ndim else decoded
        limit = _LIMIT * (model_range[1] - model_range[0])
        panels[f"{mode}_difference"] = in_colours(
            (panels[mode] - panels["input"])[None], limit, model_range=model_range
        )[0]
    return panels


def _sprite_file(folder: Path, case_id: str, plane: str, panel: str) -> Path:
    return folder / f"{case_id}_{plane}_{panel}.png"  # ids are safe file names
