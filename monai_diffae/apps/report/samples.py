"""The section with synthetic images, each beside the cases with the nearest z_sem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from monai_diffae.apps.report.case_images import middle_frame
from monai_diffae.apps.report.outliers import CARD, nearest, strip
from monai_diffae.apps.report.sections import Section, number, omitted
from monai_diffae.apps.report.sprites import Pixels
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.report.thumbnails import Atlas, Thumbnails, make_thumbnails
from monai_diffae.apps.web_page import joined
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.transforms.case_images import read_image

_NUM_SHOWN = 3


def sample_thumbnails(study: Study) -> Thumbnails:
    """Write thumbnails of the synthetic images of a study; none without a latent DDIM."""
    if study.result("samples") is None:
        return Thumbnails()
    folder = study.folder / "samples"
    rows = pd.read_csv(folder / "generated.csv", dtype={"id": str})
    files = dict(zip(rows["id"], rows["file"], strict=True))
    summary = study.result("info").summary
    low, high = map(float, summary["model_range"])

    def read(ids: Sequence[str]) -> Mapping[str, Pixels]:
        return {name: _picture(folder / files[name], int(summary["spatial_dims"]), (low, high)) for name in ids}

    made_from = {"generated": file_checksum(folder / "generated.parquet")}
    return make_thumbnails(Atlas(study.folder / "media", "synthetic", made_from, study.overwrite), list(files), read)


def sample_section(study: Study, cases: Thumbnails, samples: Thumbnails) -> Section | None:
    """Synthetic images beside their nearest cases; None without a latent DDIM."""
    if "samples" not in study.outcomes:
        return None
    parts = [omitted(study.outcomes[name]) for name in ("samples", "samples_neighbors") if name in study.outcomes]
    near = pd.DataFrame({"id": [], "neighbor": [], "distance": []})
    if study.result("samples_neighbors") is not None:
        near = nearest(study, "samples_neighbors")
    cards = [_card(name, near[near["id"] == name], cases, samples) for name in samples.ids]
    parts.append(Markup('<div class="nears">{}</div>').format(joined(cards)))
    lead = (
        "Synthetic images of no real patient (outlined), each beside the real cases with the nearest z_sem. A "
        "synthetic image that repeats its neighbor may be a copy of a training case."
    )
    title = "Synthetic images and their nearest cases"
    return Section("samples", title, lead, joined(parts), study.lines("samples", "samples_neighbors"))


def _card(name: str, near: pd.DataFrame, cases: Thumbnails, samples: Thumbnails) -> Markup:
    own = Markup('<span class="synthetic">{}</span>').format(samples.picture(name, f"synthetic image {name}"))
    pictures = [own, *(cases.picture(each, f"case {each}") for each in near["neighbor"][:_NUM_SHOWN])]
    text = f"synthetic {name}" + (
        f"; distance to the nearest case {number(near['distance'].min())}" if len(near) else ""
    )
    return CARD.format(strip(pictures), text)


def _picture(file: Path, spatial_dims: int, model_range: tuple[float, float]) -> Pixels:
    image = read_image(file, model_range)
    return middle_frame(image[..., 0] if image.ndim > spatial_dims + 1 else image, model_range)
