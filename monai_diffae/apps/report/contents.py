"""What is on the page of one model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from monai_diffae import __version__
from monai_diffae.apps.report.about import curves_of, curves_section, failure_section, model_section
from monai_diffae.apps.report.case_images import CaseImages
from monai_diffae.apps.report.edits import edit_section
from monai_diffae.apps.report.latent_map import map_section
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.mosaics import Mosaic, make_mosaic, mosaic_section
from monai_diffae.apps.report.outliers import outlier_section, shown_ids
from monai_diffae.apps.report.page import Page
from monai_diffae.apps.report.probes import probe_section
from monai_diffae.apps.report.quality import quality_section
from monai_diffae.apps.report.samples import sample_section, sample_thumbnails
from monai_diffae.apps.report.sections import Section, number
from monai_diffae.apps.report.study import Study
from monai_diffae.apps.report.thumbnails import Atlas, Thumbnails, make_thumbnails
from monai_diffae.apps.web_page import joined


@dataclass(frozen=True)
class Pictures:
    """The pictures that a report makes itself.

    Attributes:
        mosaic: the reconstructed cases; None: there are none.
        thumbnails: of the cases on the map.
        samples: of the synthetic images.
    """

    mosaic: Mosaic | None = None
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    samples: Thumbnails = field(default_factory=Thumbnails)


def make_pictures(study: Study) -> Pictures:
    """Write the pictures of a study that are not there."""
    folder, samples = study.folder / "media", sample_thumbnails(study)
    if study.cohort is None or study.result("embeddings") is None:
        return Pictures(samples=samples)
    images = CaseImages(study.bundle, study.cohort, folder, study.embeddings, study.device)
    mosaic = make_mosaic(study, images, folder)
    atlas = Atlas(folder, f"thumbnails-{study.key}", images.made_from, study.overwrite)
    ids = [*shown_ids(study), *_random_order(study)]
    return Pictures(mosaic, make_thumbnails(atlas, ids, images.pictures), samples)


def report_page(study: Study, pictures: Pictures, media: Media) -> Page:
    """The page of one model."""
    return Page(
        eyebrow="What a diffusion autoencoder has learnt",
        title=study.name,
        tiles=_tiles(study),
        sections=list(_sections(study, pictures, media)),
        style=joined([pictures.thumbnails.style(media), pictures.samples.style(media)]),
        footer=f"Made with monai-diffae {__version__}.",
    )


def _sections(study: Study, pictures: Pictures, media: Media) -> Iterator[Section]:
    candidates = [
        failure_section([study], study.folder),
        model_section(study),
        curves_section([study]),
        None if pictures.mosaic is None else mosaic_section(study, pictures.mosaic, media),
        quality_section(study.outcomes.get("evaluation"), "".join(study.lines("evaluation"))),
        map_section(study, pictures.thumbnails),
        probe_section([study]),
        edit_section(study, media),
        sample_section(study, pictures.thumbnails, pictures.samples),
        outlier_section(study, pictures.thumbnails),
    ]
    yield from (section for section in candidates if section is not None)


def _tiles(study: Study) -> dict[str, tuple[str, str]]:
    """The figures at a glance, with a remark each."""
    summary = study.result("info").summary
    tiles = {"images": (" × ".join(map(str, summary["image_size"])), f"become {summary['z_channels']} numbers, z_sem")}
    curves = curves_of(study.bundle)
    if curves is not None:
        tiles["training images seen"] = (f"{curves['images_seen'].max():,.0f}", f"{curves['step'].max():,.0f} steps")
    if summary.get("z_sem_usage") is not None:
        tiles["use of z_sem"] = (number(summary["z_sem_usage"]), "1: the decoder ignores it")
    if study.result("embeddings") is not None:
        patients = f"{study.table['patient'].nunique():,} patients" if "patient" in study.table else ""
        tiles["cases"] = (f"{len(study.table):,}", patients)
    if study.result("reconstructions") is not None:
        means = study.result("reconstructions").means
        tiles["PSNR from both codes"] = (
            f"{means['psnr_x_T']:.1f} dB",
            f"{means['psnr_z_sem']:.1f} dB from z_sem alone",
        )
    if study.result("probe") is not None:
        best = max(study.result("probe").rows, key=lambda row: row["score"])
        interval = "" if best["low"] is None else f" ({number(best['low'])} to {number(best['high'])})"
        tiles[f"best probe: {best['target']}"] = (number(best["score"]), f"{best['metric'].upper()}{interval}")
    return tiles


def _random_order(study: Study) -> list[str]:
    """All cases in random order, held-out ones first."""
    ids = study.table["id"].astype(str).tolist()
    random.Random(0).shuffle(ids)  # noqa: S311, which cases get a thumbnail
    if "split" not in study.table:
        return ids
    split = dict(zip(study.table["id"].astype(str), study.table["split"], strict=True))
    return sorted(ids, key=lambda name: split[name] == "train")
