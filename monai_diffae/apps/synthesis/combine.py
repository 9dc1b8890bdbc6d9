"""The command ``combine``: one image from the codes of one or two cases, moved along directions and components.

``explore`` shows the same combinations on its page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from cyclopts import Group, Parameter

from monai_diffae import bundle as bundles
from monai_diffae import latents, transforms
from monai_diffae.apps.command import command
from monai_diffae.apps.record import remove_images, run_once
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Choice, Decoding, Reading, Seed, UnbatchedRun, pairs
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.data.cases import Case
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.lazy import on_first_use
from monai_diffae.policies import Detail

with on_first_use:
    import numpy as np
    import numpy.typing as npt
    import torch

    from monai_diffae.apps import session as sessions
    from monai_diffae.apps import table_origin
    from monai_diffae.data import embeddings as tables
    from monai_diffae.inferers import paths

# at the last =, because folders of files may have one in their names, as Hive's
_PAIRS = Parameter(accepts_keys=False, n_tokens=-1, converter=partial(pairs, split=str.rpartition))


@Parameter(name="*", group=Group("Codes", sort_key=2))
@dataclass(frozen=True)
class Mixture:
    """Which other codes are mixed with those of the case."""

    blend: str | None = None
    """Id of a second case: z_sem is interpolated linearly, x_T spherically."""
    weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the second case: 0 none, 1 all; used only with ``blend``."""
    noise_of: str | None = None
    """Id of the case whose x_T is used instead."""
    noise_seed: Seed | None = None
    """Use Gaussian noise of this random seed as x_T instead, whatever the others say."""


@Parameter(name="*", group=Group("Codes", sort_key=2))
@dataclass(frozen=True)
class Moves:
    """How z_sem is moved, in standard deviations of the training cases."""

    directions: Annotated[Mapping[str, float], _PAIRS] = field(default_factory=dict)
    """Direction files and how far to move along each, e.g. ``sex.json=1.5``."""
    components: Annotated[Mapping[Annotated[int, Ge(1)], float], _PAIRS] = field(default_factory=dict)
    """Numbers of principal components, from 1, and how far to move along each, e.g. ``1=-2 3=0.5``."""
    embeddings: Path | None = None
    """Table of embeddings that the components are computed from; required with ``components``."""


@command
def combine(
    bundle: Path,
    cohort: Path,
    out: Path,
    *,
    case: str,
    mixture: Mixture = Mixture(),
    moves: Moves = Moves(),
    detail: Detail = "model",
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: UnbatchedRun = UnbatchedRun(),
) -> Result:
    """Make one image from the codes of a case: moved, blended with another case, or with another x_T.

    z_sem is that of the case, blended with that of a second case, then moved along directions and principal components.
    x_T is that of the case, blended as well, or that of another case, or noise. ``out/images/`` gets the image in the
    case's own space. The page of ``explore`` shows the same.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the results.
        case: Id of the case.
        detail: ``model`` writes what the model decodes; ``own`` adds the change to the scan, which keeps its own detail
            (only with the case's own x_T, without ``blend``).

    Returns:
        The folder.

    Raises:
        ConfigError: an argument cannot be used, the bundle is not trained, a direction or the embeddings belong to
            another model, or ``out`` holds results of other inputs.
        CohortError: a case does not exist.
        ScanError: a case cannot be read.
    """
    combination = Combination(**vars(mixture), **vars(moves))
    combination.check_detail(detail)
    session = sessions.Session.open(bundle, cohort, decoding=decoding, reading=reading, run=run.batched)
    axes, files = Axes.read(moves, session.trained)
    cases = {name: session.choose(Choice(cases=(name,)))[0] for name in (case, *combination.other_cases)}
    made_from = session.made_from(list(cases.values()), **combination.made_from(), **files, detail=detail)
    images = out / "images"

    def make() -> Mapping[str, Any]:
        opened = {name: session.trained.open(each) for name, each in cases.items()}
        own = opened[case]
        image = own.decode(*combination.codes(case, opened, axes))
        difference = image - own.decode(own.z_sem, own.x_T) if detail == "own" else None
        remove_images(images)
        write_combined(images / cases[case].file_name, cases[case], own, image, difference)
        return {"num_images": 1}

    figures, skipped = run_once("combine", out, [images], made_from, make, overwrite=run.overwrite)
    return Result(out, figures, skipped=skipped)


@dataclass(frozen=True)
class Axes:
    """The lines along which z_sem can be moved; ``components`` are None if there are none."""

    directions: Mapping[str, latents.Direction]
    components: latents.PrincipalComponents | None = None

    @classmethod
    def read(cls, moves: Moves, trained: bundles.TrainedBundle) -> tuple[Axes, dict[str, Any]]:
        """Read directions of a bundle's model, and compute as many components as are used; also their checksums."""
        axes = cls({name: read_direction(name, trained) for name in moves.directions})
        checksums: dict[str, Any] = {"direction_files": [file_checksum(Path(name)) for name in moves.directions]}
        if moves.embeddings is not None:
            table_origin.check_same_model(moves.embeddings, trained.folder)
            table_origin.warn_of_other_preprocessing(moves.embeddings, trained)
        if not moves.components:
            return axes, checksums
        if moves.embeddings is None:
            raise ConfigError("embeddings: the components are computed from them; give the table, or omit components")
        z_train = tables.z_matrix(tables.read_training_rows(moves.embeddings))
        components = latents.principal_components(z_train, count=max(moves.components))
        return replace(axes, components=components), {**checksums, "embeddings": file_checksum(moves.embeddings)}

    def move(self, z_sem: npt.NDArray[np.float32], combination: Combination) -> npt.NDArray[np.float32]:
        """z_sem (1, D), moved along directions and components."""
        for name, strength in combination.directions.items():
            z_sem = self.directions[name].move(z_sem, strength)
        if self.components is not None:
            for number, strength in combination.components.items():
                z_sem = self.components.traverse(z_sem, number - 1, [strength])
        return z_sem


@dataclass(frozen=True)
class Combination(Mixture, Moves):
    """The codes of an image: those of a case, mixed with others and moved."""

    @property
    def other_cases(self) -> list[str]:
        """The ids of the other cases that are used."""
        return list(dict.fromkeys(name for name in (self.blend, self.noise_of) if name is not None))

    @property
    def x_T_cases(self) -> list[str]:
        """The ids of the other cases whose x_T is used."""
        if self.noise_seed is not None:
            return []
        return [name for name in (self.noise_of or self.blend,) if name is not None]

    @property
    def has_own_x_T(self) -> bool:
        """Whether x_T is that of the case alone."""
        return self.blend is None and self.noise_of is None and self.noise_seed is None

    def check_detail(self, detail: Detail) -> None:
        """Refuse to add the change to the scan if the image is not an edit of that scan."""
        if detail == "own" and not self.has_own_x_T:
            raise ConfigError("detail: own is for edits with the case's own x_T; choose model, or omit the other x_T")

    def made_from(self) -> dict[str, Any]:
        """What the image depends on; directions by their strengths only, as their files have checksums."""
        return {
            "blend": self.blend,
            "weight": self.weight,
            "noise_of": self.noise_of,
            "noise_seed": self.noise_seed,
            "strengths": list(self.directions.values()),
            "components": {str(number): strength for number, strength in self.components.items()},
        }

    def codes(
        self, case: str, opened: Mapping[str, bundles.ModelCase], axes: Axes
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The z_sem (1, D) and x_T (1, C, *S) of a case; ``opened`` has it and :attr:`other_cases`, by id."""
        own = opened[case]
        z_sem = own.z_sem
        if self.blend is not None:
            z_sem = paths.lerp(z_sem, opened[self.blend].z_sem, [self.weight])
        moved = axes.move(z_sem.cpu().numpy(), self)
        return torch.from_numpy(moved).to(z_sem), self._x_T(own, opened)

    def _x_T(self, own: bundles.ModelCase, opened: Mapping[str, bundles.ModelCase]) -> torch.Tensor:
        if self.noise_seed is not None:
            trained = own.trained
            return image_noise(trained.x_T_shape, self.noise_seed, [0]).to(trained.device)
        if self.noise_of is not None:
            return opened[self.noise_of].x_T
        if self.blend is not None:
            return paths.slerp(own.x_T, opened[self.blend].x_T, [self.weight])
        return own.x_T


def write_combined(
    path: Path, case: Case, opened: bundles.ModelCase, image: torch.Tensor, difference: torch.Tensor | None = None
) -> Path:
    """Write an image (1, C, *S), or a scan plus a difference, as PNG or NIfTI in the space of a case."""
    from monai_diffae.data.scan_writing import SYNTHETIC

    array = opened.back(image) if difference is None else opened.add_difference(difference)
    return transforms.write_native(
        path.with_name(f"{path.name}{opened.scan.suffix}"), array, opened.scan, description=SYNTHETIC
    )
