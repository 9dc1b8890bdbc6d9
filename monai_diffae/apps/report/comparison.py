"""Several models on one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monai_diffae import __version__
from monai_diffae.apps.report.about import curves_of, curves_section, failure_section
from monai_diffae.apps.report.contents import Pictures, make_pictures
from monai_diffae.apps.report.latent_map import map_section
from monai_diffae.apps.report.media import Media
from monai_diffae.apps.report.mosaics import compared_mosaics
from monai_diffae.apps.report.page import Page
from monai_diffae.apps.report.probes import probe_section
from monai_diffae.apps.report.quality import quality_section
from monai_diffae.apps.report.sections import Section, number, table
from monai_diffae.apps.report.study import JOURNAL, Study, shown_line
from monai_diffae.apps.steps import Outcome, Steps
from monai_diffae.apps.web_page import joined
from monai_diffae.errors import ConfigError, counted


@dataclass
class Comparison:
    """Several models and what the commands find out about them.

    Attributes:
        studies: one per model.
        folder: the folder of the page.
        steps: all commands that were run.
        evaluation: what became of ``evaluate``; None: it was not run.
        pictures: the pictures of each model, by its name.
    """

    studies: Sequence[Study]
    folder: Path
    steps: Steps
    evaluation: Outcome | None = None
    pictures: dict[str, Pictures] = field(default_factory=dict)

    @classmethod
    def of(cls, bundles: Sequence[Path], folder: Path, cohort: Path | None, **settings: Any) -> Comparison:
        """A comparison of bundles, each with a folder of its name.

        Args:
            bundles: the folders of the bundles.
            folder: the folder of the page.
            cohort: folder, table or datalist; None: only the trainings are compared.
            settings: further fields of each :class:`~monai_diffae.apps.report.study.Study`.
        """
        from monai_diffae.apps.evaluation.quality import unique_names

        steps, names = Steps(journal=folder / JOURNAL), unique_names(bundles)
        studies = [
            Study(bundle, folder / name, cohort, name=name, steps=steps, **settings)
            for bundle, name in zip(bundles, names, strict=True)
        ]
        return cls(studies, folder, steps)

    def run(self) -> None:
        """Run all commands; complete results are skipped.

        Raises:
            ConfigError: a bundle is not trained, they take images of different kinds, or a target is no label.
        """
        self._check_kinds()
        for study in self.studies:
            study.look(cases=self.studies[0].shown_cases)
        first = self.studies[0]
        if first.cohort is not None:
            arguments = first.evaluation_arguments | {"bundle": [study.bundle for study in self.studies]}
            self.steps.attempt("Evaluate the models", "evaluate", out=self.folder / "evaluation", **arguments)
            self.evaluation = self.steps.outcomes[-1]

    def _check_kinds(self) -> None:
        """Check that the models take the same kind of images.

        Raises:
            ConfigError: they do not.
        """
        first, *others = [(study.name, _kind(study.describe())) for study in self.studies]
        for name, kind in others:
            if kind != first[1]:
                raise ConfigError(
                    f"bundle: {first[0]} takes {first[1]} and {name} takes {kind}, so they cannot see the same cases; "
                    "compare models of one kind"
                )

    def make_pictures(self) -> None:
        """Write the pictures that are not there."""
        self.pictures = {study.name: make_pictures(study) for study in self.studies}

    def page(self, media: Media) -> Page:
        """The page."""
        names = [study.name for study in self.studies]
        styles = [self.pictures[name].thumbnails.style(media) for name in names]
        return Page(
            eyebrow="What diffusion autoencoders have learnt",
            title=" and ".join([", ".join(names[:-1]), names[-1]]),
            tiles=self._tiles(),
            sections=list(self._sections(media)),
            style=joined(styles),
            footer=f"Made with monai-diffae {__version__}.",
        )

    def _sections(self, media: Media) -> Iterator[Section]:
        mosaics = {study.name: self.pictures[study.name].mosaic for study in self.studies}
        line = "" if self.evaluation is None else shown_line(self.evaluation.step, self.folder)
        candidates = [
            failure_section(self.studies, self.folder, [self.evaluation] if self.evaluation else []),
            self._models(),
            curves_section(self.studies),
            compared_mosaics(self.studies, mosaics, media),
            quality_section(self.evaluation, line),
            self._maps(),
            probe_section(self.studies),
        ]
        yield from (section for section in candidates if section is not None)

    def _models(self) -> Section:
        rows = [_described(study) for study in self.studies]
        lines = [line for study in self.studies for line in study.lines("info", "embeddings")]
        return Section("model", "What was trained on what", "The models side by side.", table(rows), lines)

    def _maps(self) -> Section | None:
        maps = [map_section(study, self.pictures[study.name].thumbnails) for study in self.studies]
        shown = [(study.name, each) for study, each in zip(self.studies, maps, strict=True) if each is not None]
        if not shown:
            return None
        parts = [Markup("<h3>{}</h3>{}").format(name, each.content) for name, each in shown]
        lines = [line for _, each in shown for line in each.lines]
        return Section("map", "Maps of z_sem", shown[0][1].lead, joined(parts), lines)

    def _tiles(self) -> dict[str, tuple[str, str]]:
        """The best score of each model."""
        tiles = {}
        for study in self.studies:
            usage = study.result("info").summary.get("z_sem_usage")
            tiles[f"use of z_sem: {study.name}"] = (number(usage), "1: the decoder ignores it")
        return tiles


def _kind(summary: Mapping[str, Any]) -> str:
    channels = summary.get("in_channels", 1)
    return f"{summary['spatial_dims']}D images of {counted(channels, 'channel')}"


def _described(study: Study) -> dict[str, Any]:
    summary, curves = study.result("info").summary, curves_of(study.bundle)
    row = {
        "model": study.name,
        "z_sem": summary["z_channels"],
        "images": " × ".join(map(str, summary["image_size"])),
        "parameters": f"{summary['parameters']:,}",
        "images seen": None if curves is None else f"{curves['images_seen'].max():,.0f}",
        "use of z_sem": number(summary.get("z_sem_usage")),
        "decoding": f"{summary['steps']} steps of {summary['solver']}",
    }
    if study.result("reconstructions") is not None:
        means = study.result("reconstructions").means
        row |= {"PSNR, both codes": f"{means['psnr_x_T']:.1f}", "PSNR, z_sem alone": f"{means['psnr_z_sem']:.1f}"}
    return row
