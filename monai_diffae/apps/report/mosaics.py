"""The section with reconstructed cases: 2D images, or volumes in three planes with a slider through the slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from torch import Tensor

from monai_diffae.apps.report.case_images import CaseImages, frames_of
from monai_diffae.apps.report.media import Media, make_once
from monai_diffae.apps.report.sections import Section, number
from monai_diffae.apps.report.sprites import enlarged, sprite, square_grid, write_sprite
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.web_page import joined
from monai_diffae.data.cases import safe_file_name
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.pictures import in_colours
from monai_diffae.transforms.case_images import read_image

_TITLES = {
    "input": "input", "z_sem": "from z_sem alone", "z_sem_difference": "difference", "x_T": "from both codes",
    "x_T_difference": "difference",
}  # fmt: skip
_LIMIT = 0.25  # the end of the scale of differences, as a fraction of the model's range

_SLIDER = Markup(
    '<label class="slider screen-only"><span>{plane} slice<span class="visually-hidden"> of {case}</span></span>'
    '<input type="range" min="0" max="{last}" value="{middle}" data-frames="{group}"><output>{shown}</output></label>'
)

_LEGEND = Markup(
    '<p class="muted small">Differences: <span class="ramp"></span> darker to brighter than the input; the ends are '
    "{:.0%} of the range of intensities. Small images are shown enlarged.</p>"
).format(_LIMIT)


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
            for panel, shown in _panels(image, results, study.file_names[name], model_range).items():
                for plane, frames in frames_of(shown, model_range):
                    counts[plane] = len(frames)
                    write_sprite(enlarged(frames), square_grid(len(frames)), _sprite_file(folder, name, plane, panel))
        return {"counts": counts}

    figures = make_once(folder / "mosaics.json", files, made_from, make, overwrite=study.overwrite)
    return Mosaic(ids, figures["counts"], aspects, folder)


def mosaic_section(study: Study, mosaic: Mosaic, media: Media) -> Section:
    """The reconstructed cases of one model: one card per case."""
    panels = [_Panel(title, mosaic, key) for key, title in _TITLES.items()]
    alone, both = _psnr(study, "z_sem"), _psnr(study, "x_T")
    captions = {
        name: f"PSNR {number(alone[name])} dB from z_sem alone, {number(both[name])} dB from both"
        for name in mosaic.ids
    }
    lead = (
        f"{_held_out(study)} From z_sem alone, the detail is drawn at random: what agrees with the input is what z_sem "
        "knows. From both codes, an image should come back almost exactly."
    )
    body = joined([_cards(panels, captions, media), _LEGEND])
    return Section("reconstructions", "Reconstructions", lead, body, study.lines("reconstructions"))


def compared_mosaics(studies: Sequence[Study], mosaics: Mapping[str, Mosaic | None], media: Media) -> Section | None:
    """The same cases, reconstructed by several models; None if the first model reconstructed none."""
    shown = {study.name: each for study in studies if (each := mosaics[study.name]) is not None}
    first = mosaics[studies[0].name]
    if first is None:
        return None
    panels = [_Panel("input", first, "input")]
    panels += [_Panel(f"{name}: from z_sem alone", each, "z_sem") for name, each in shown.items()]
    panels += [_Panel(f"{name}: from both codes", each, "x_T") for name, each in shown.items()]
    errors = {study.name: _psnr(study, "z_sem") for study in studies if study.name in shown}
    captions = {
        case_id: "PSNR from z_sem alone: "
        + ", ".join(f"{name} {number(psnr[case_id])} dB" for name, psnr in errors.items())
        for case_id in first.ids
        if all(case_id in each.ids for each in shown.values())
    }
    lead = f"{_held_out(studies[0])} The same cases for all models; the input is that of {studies[0].name}."
    lines = [line for study in studies for line in study.lines("reconstructions")]
    return Section("reconstructions", "Reconstructions", lead, _cards(panels, captions, media), lines)


@dataclass(frozen=True)
class _Panel:
    """A column of a card: its title, and whose sprites it shows."""

    title: str
    mosaic: Mosaic
    key: str


def _held_out(study: Study) -> str:
    cases = study.table.set_index(study.table["id"].astype(str))
    ids = study.outcomes["reconstructions"].step.arguments["cases"]
    splits = set(cases.loc[ids, "split"]) if "split" in cases else {"train"}
    return f"{len(ids)} {'cases, some of which the model was trained on.' if 'train' in splits else 'held-out cases.'}"


def _psnr(study: Study, mode: str) -> dict[str, float]:
    """The PSNR of each case in a mode, in dB."""
    table = pd.read_csv(study.folder / "reconstructions" / "reconstructions.csv", dtype={"id": str})
    return dict(zip(table["id"], table[f"psnr_{mode}"].astype(float), strict=True))


def _cards(panels: Sequence[_Panel], captions: Mapping[str, str], media: Media) -> Markup:
    kind = "volumes" if "axial" in panels[0].mosaic.counts else "images"
    cards = [_card(case_id, panels, caption, media) for case_id, caption in captions.items()]
    return Markup('<div class="cards {}" style="--columns:{}">{}</div>').format(kind, len(panels), joined(cards))


def _card(case_id: str, panels: Sequence[_Panel], caption: str, media: Media) -> Markup:
    rows = [_row(case_id, plane, panels, media) for plane in panels[0].mosaic.counts]
    heads = joined([Markup("<span>{}</span>").format(panel.title) for panel in panels])
    return Markup(
        '<figure class="case"><div class="panels heads" aria-hidden="true">{}</div>{}'
        "<figcaption><strong>{}</strong>: {}</figcaption></figure>"
    ).format(heads, joined(rows), case_id, caption)


def _row(case_id: str, plane: str, panels: Sequence[_Panel], media: Media) -> Markup:
    """One plane of a case, with a slider if it has several slices."""
    count, group = panels[0].mosaic.counts[plane], f"{case_id}_{plane}"
    shown = [_sprite(case_id, plane, panel, media) for panel in panels]
    row = Markup('<div class="panels" data-group="{}">{}</div>').format(group, joined(shown))
    if count == 1:
        return row
    slider = _SLIDER.format(
        case=case_id, plane=plane, last=count - 1, middle=count // 2, shown=count // 2 + 1, group=group
    )
    return joined([row, slider])


def _sprite(case_id: str, plane: str, panel: _Panel, media: Media) -> Markup:
    mosaic, count = panel.mosaic, panel.mosaic.counts[plane]
    text = f"{case_id}, {panel.title}{'' if count == 1 else f', {plane} slice'}"
    source = f"url('{media.address(mosaic.file(case_id, plane, panel.key))}')"
    return sprite(source, square_grid(count), text, frame=count // 2, aspect=mosaic.aspects[plane])


def _panels(image: Tensor, results: Path, file_name: str, model_range: tuple[float, float]) -> dict[str, Tensor]:
    panels = {"input": image.as_subclass(Tensor)}
    for mode in ("z_sem", "x_T"):
        files = (results / mode / f"{file_name}{suffix}" for suffix in (".png", ".nii.gz"))
        decoded = read_image(next(file for file in files if file.is_file()), model_range)
        panels[mode] = decoded[..., 0] if decoded.ndim > image.ndim else decoded
        limit = _LIMIT * (model_range[1] - model_range[0])
        panels[f"{mode}_difference"] = in_colours(
            (panels[mode] - panels["input"])[None], limit, model_range=model_range
        )[0]
    return panels


def _sprite_file(folder: Path, case_id: str, plane: str, panel: str) -> Path:
    return folder / f"{safe_file_name(case_id)}_{plane}_{panel}.webp"
