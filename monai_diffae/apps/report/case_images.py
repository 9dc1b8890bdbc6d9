"""The images of a report's cases, as the model sees them: frames for sliders, and thumbnails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_diffae.apps.report.sprites import Pixels
from monai_diffae.apps.scans_of_table import content_of_scans
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Choice, Run
from monai_diffae.pictures import plane_slices

PLANES = ("axial", "coronal", "sagittal")


@dataclass
class CaseImages:
    """Reads the cases of a cohort through a bundle's preprocessing, each once.

    Attributes:
        bundle: the bundle's folder.
        cohort: folder, table or datalist.
        folder: folder for lists of failures.
        embeddings: the table of embeddings of the cohort.
        device: where the bundle is loaded.
    """

    bundle: Path
    cohort: Path
    folder: Path
    embeddings: Path
    device: str | None = None
    _images: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def session(self) -> Session:
        """The bundle and the cohort, opened."""
        return Session.open(self.bundle, self.cohort, run=Run(device=self.device))

    @cached_property
    def made_from(self) -> dict[str, Any]:
        """What the images depend on."""
        scans = content_of_scans(self.session.cohort.cases, [self.embeddings])
        return self.session.made_from(decodes=False, scans=scans)

    def read(self, ids: Sequence[str]) -> dict[str, Tensor]:
        """Images (C, *S) in the model's range by id; cases that cannot be read are left out.

        Raises:
            CohortError: no case has such an id, or none can be read.
        """
        missing = [name for name in dict.fromkeys(ids) if name not in self._images]
        if missing:
            cases = self.session.choose(Choice(cases=missing))
            read = self.session.read(cases, self.folder, "pictures_failures.csv", named=True)
            self._images |= {case.id: read.dataset[i]["image"] for i, case in enumerate(read.cases)}
        return {name: self._images[name] for name in ids if name in self._images}

    def pictures(self, ids: Sequence[str]) -> dict[str, Pixels]:
        """One picture (H, W, 3) of each case by id: of a volume its middle axial slice."""
        model_range = self.session.trained.model_range
        return {name: middle_frame(image, model_range) for name, image in self.read(ids).items()}

    def aspects(self) -> dict[str, float]:
        """Width over height of each plane's slices in mm; of the image for a 2D model."""
        config = self.session.trained.config
        size = [float(length) for length in config["image_size"]]
        if len(size) == 2:
            return {"image": size[1] / size[0]}
        r, a, s = (n * mm for n, mm in zip(size, config.get("spacing_mm", (1.0, 1.0, 1.0)), strict=True))
        return {"axial": r / a, "coronal": r / s, "sagittal": a / s}


def frames_of(image: Tensor, model_range: tuple[float, float]) -> Iterator[tuple[str, Pixels]]:
    """The slices of an image as pixels (N, H, W, 3), by plane: three planes of a volume, or ``image`` for a 2D image.

    Args:
        image: (C, *S), volumes in RAS order.
        model_range: black and white.
    """
    if image.ndim == 3:
        yield "image", pixels(image[:, None], model_range)
        return
    for plane in PLANES:
        yield plane, pixels(plane_slices(image, plane), model_range)


def pixels(slices: Tensor, model_range: tuple[float, float]) -> Pixels:
    """Slices (C, N, H, W) as (N, H, W, 3) from 0 to 255; with other than 3 channels, the first channel in grey."""
    low, high = model_range
    shown = slices if len(slices) == 3 else slices[:1].expand(3, -1, -1, -1)
    values = ((shown.detach().as_subclass(Tensor).float().cpu() - low) / (high - low)).clamp(0, 1)
    result: Pixels = (values * 255).round().byte().permute(1, 2, 3, 0).numpy()
    return result


def middle_frame(image: Tensor, model_range: tuple[float, float]) -> Pixels:
    """One picture (H, W, 3) of an image: of a volume its middle axial slice."""
    _, frames = next(frames_of(image, model_range))
    return frames[len(frames) // 2]
