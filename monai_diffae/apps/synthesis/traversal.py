"""The work of ``traverse``: z_sem moved along principal components, decoded and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.results import remove_images
from monai_diffae.apps.session import Session, decode_in_batches
from monai_diffae.apps.synthesis.strengths import strength_names, strength_titles
from monai_diffae.bundle import TrainedBundle
from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import Case
from monai_diffae.data.progress import track
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import counted
from monai_diffae.latents import LatentStatistics, PrincipalComponents, principal_components
from monai_diffae.pictures import draw_mosaic
from monai_diffae.transforms.case_images import write_image


@dataclass(frozen=True)
class Codes:
    """The codes where a traversal starts.

    Attributes:
        z_sem: (1, D).
        x_T: (N, C, *S); an image is the mean over them.
        source: file name of the scan, which decides the format of the images.
    """

    z_sem: Tensor
    x_T: Tensor
    source: str


@dataclass(frozen=True)
class MeanStart:
    """Starts at the training cases' mean z_sem, with ``num_noises`` noise images of ``seed`` as x_T."""

    num_noises: int
    seed: int

    def codes(self, trained: TrainedBundle, statistics: LatentStatistics) -> Codes:
        """Return the codes of the start."""
        x_T = image_noise(trained.x_T_shape, self.seed, list(range(self.num_noises))).to(trained.device)
        return Codes(torch.from_numpy(statistics.mean)[None].to(trained.device), x_T, ".png")


@dataclass(frozen=True)
class CaseStart:
    """Starts at a case of a session, with its own x_T; ``out`` gets the list of failures."""

    session: Session
    case: Case
    out: Path

    def codes(self, trained: TrainedBundle, statistics: LatentStatistics) -> Codes:
        """Return the codes of the start."""
        read = self.session.read([self.case], self.out, named=True)
        coded = next(self.session.coded(read, "inverting the case"))
        return Codes(coded.z_sem, coded.x_T, self.case.file)


@dataclass(frozen=True)
class Traversal:
    """A traversal of principal components.

    Attributes:
        trained: decodes.
        components: the components, in the order of their variance.
        strengths: positions along a component, in standard deviations.
        batch_size: images at once.
    """

    trained: TrainedBundle
    components: PrincipalComponents
    strengths: Sequence[float]
    batch_size: int

    @classmethod
    def of(
        cls,
        trained: TrainedBundle,
        z_train: NDArray[np.floating[Any]],
        num_components: int,
        strengths: Sequence[float],
        batch_size: int,
    ) -> Traversal:
        """Compute the components of the training cases' z_sem ``[N, D]``.

        Raises:
            ConfigError: there are not as many components.
        """
        components = principal_components(z_train, LatentStatistics.of(z_train), num_components)
        return cls(trained, components, strengths, batch_size)

    def write(self, start: CaseStart | MeanStart, out: Path) -> None:
        """Write the images, the picture and the table of components to the folder ``out``."""
        trained, components = self.trained, self.components
        codes = start.codes(trained, components.statistics)
        remove_images(out / "images")
        rows: dict[str, Tensor] = {}
        count = len(components.directions)
        for k in track(range(count), f"traversing {counted(count, 'component')}"):
            images = self._images(codes, k)
            for name, image in zip(strength_names(self.strengths), images, strict=True):
                file = out / "images" / f"{k + 1:03d}_{name}"
                write_image(file, image, trained.model_range, codes.source, trained.grid_affine)
            rows[f"{k + 1}: {components.explained[k]:.0%}"] = images
        titles = strength_titles(self.strengths)
        write_atomic(out / "traversal.png", lambda path: draw_mosaic(rows, path, trained.model_range, titles))
        columns = {"component": range(1, count + 1), "std": components.stds, "explained": components.explained}
        table = pd.DataFrame(columns)
        write_atomic(out / "components.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))

    def _images(self, codes: Codes, component: int) -> Tensor:
        """Decode one image per strength, the mean over all x_T: (A, C, *S)."""
        z_start = codes.z_sem.cpu().numpy()
        z_sem = torch.from_numpy(self.components.traverse(z_start, component, self.strengths)).to(codes.x_T.device)
        num_strengths, num_noises = len(z_sem), len(codes.x_T)
        x_T = codes.x_T.repeat(num_strengths, *[1] * (codes.x_T.ndim - 1))
        images = decode_in_batches(self.trained, z_sem.repeat_interleave(num_noises, dim=0), x_T, self.batch_size)
        return images.unflatten(0, (num_strengths, num_noises)).mean(dim=1)
