"""The work of ``combine`` and ``explore``: which codes an image is decoded from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_diffae.apps.provenance import check_same_model, warn_of_other_preprocessing
from monai_diffae.apps.synthesis.combine import Mixture, Moves
from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.bundle import TrainedBundle
from monai_diffae.bundle.model_case import Detail, ModelCase
from monai_diffae.data.cases import Case
from monai_diffae.data.embeddings import training_z_sem
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.data.scan_writing import SYNTHETIC
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import ConfigError
from monai_diffae.inferers.paths import lerp, slerp
from monai_diffae.latents import Direction, LatentStatistics, PrincipalComponents, principal_components
from monai_diffae.transforms import write_native
from monai_diffae.transforms.native import fits_png


@dataclass(frozen=True)
class Axes:
    """The lines along which z_sem can be moved.

    Attributes:
        directions: by the name that a combination uses for each.
        components: None: there are none.
        made_from: checksums of the files that they were read from.
    """

    directions: Mapping[str, Direction]
    components: PrincipalComponents | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, moves: Moves) -> Axes:
        """Read the direction files, and compute as many components as are used.

        Raises:
            ConfigError: a file is not a direction, or there are no such components.
            CohortError: the embeddings cannot be used.
        """
        if moves.components and moves.embeddings is None:
            raise ConfigError("embeddings: the components are computed from them; give the table, or omit components")
        if moves.embeddings is not None and not moves.components:
            raise ConfigError("embeddings: are used for components only; give components, or omit embeddings")
        directions = {name: read_direction(name) for name in moves.directions}
        made_from: dict[str, Any] = {"direction_files": [file_checksum(Path(name)) for name in moves.directions]}
        components = None
        if moves.embeddings is not None:
            components = components_of(training_z_sem(moves.embeddings), max(map(component_number, moves.components)))
            made_from["embeddings"] = file_checksum(moves.embeddings)
        return cls(directions, components, made_from)

    def check_fits(self, trained: TrainedBundle, embeddings: Path | None) -> None:
        """Refuse directions and embeddings of another model.

        Raises:
            ConfigError: names it.
        """
        for direction in self.directions.values():
            direction.check_fits(trained.sha256, trained.z_channels, trained.preprocessing_sha256)
        if embeddings is not None:
            check_same_model(embeddings, trained.folder)
            warn_of_other_preprocessing(embeddings, trained)

    def moved(self, z_sem: NDArray[np.float32], combination: Combination) -> NDArray[np.float32]:
        """z_sem (1, D), moved along directions and components.

        Raises:
            ConfigError: there is no such direction or component.
        """
        for name, strength in combination.directions.items():
            if name not in self.directions:
                raise ConfigError(f"directions: '{name}' is not one of {', '.join(self.directions) or 'none'}")
            z_sem = self.directions[name].move(z_sem, strength)
        for name, strength in combination.components.items():
            index = component_number(name) - 1
            if self.components is None or index >= len(self.components.directions):
                raise ConfigError(f"components: there is no component {name}")
            z_sem = self.components.traverse(z_sem, index, [strength])
        return z_sem


def components_of(z_train: NDArray[np.float32], count: int) -> PrincipalComponents:
    """The first principal components of the training cases' z_sem (N, D).

    Raises:
        ConfigError: there are not as many.
    """
    return principal_components(z_train, LatentStatistics.of(z_train), count)


def component_number(name: str) -> int:
    """The number of a component, from 1.

    Raises:
        ConfigError: it is not such a number.

    Example:
        >>> component_number("3")
        3
    """
    if not name.isdecimal() or int(name) < 1:
        raise ConfigError(f"components: {name!r} is not the number of a component; they are numbered from 1")
    return int(name)


@dataclass(frozen=True)
class Combination:
    """The codes of an image: those of a case, mixed with others and moved.

    Attributes:
        blend: id of a second case.
        weight: how much of it, from 0 to 1.
        noise_of: id of the case whose x_T is used.
        noise_seed: seed of the noise that is used as x_T.
        directions: strengths by the names of the directions.
        components: strengths by the numbers of the components, from 1.
    """

    blend: str | None = None
    weight: float = 0.5
    noise_of: str | None = None
    noise_seed: int | None = None
    directions: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, mixture: Mixture, moves: Moves) -> Combination:
        """The combination that a command's arguments describe.

        Raises:
            ConfigError: two x_T are requested, or a strength is not finite.
        """
        if mixture.noise_of is not None and mixture.noise_seed is not None:
            raise ConfigError("noise_seed: noise_of also chooses the x_T; omit one of them")
        strengths = {**moves.directions, **moves.components}
        bad = next((name for name, strength in strengths.items() if not np.isfinite(strength)), None)
        if bad is not None:
            raise ConfigError(f"strength: that of '{bad}' is not finite; choose a number such as -3 to 3")
        return cls(**asdict(mixture), directions=dict(moves.directions), components=dict(moves.components))

    @cached_property
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
        """Refuse to add the change to the scan if the image is not an edit of that scan.

        Raises:
            ConfigError: x_T is not the case's own.
        """
        if detail == "own" and not self.has_own_x_T:
            raise ConfigError("detail: own is for edits with the case's own x_T; choose model, or omit the other x_T")

    def made_from(self) -> dict[str, Any]:
        """What the image depends on; directions by their strengths only, as their files have checksums."""
        return {
            "blend": self.blend, "weight": self.weight, "noise_of": self.noise_of, "noise_seed": self.noise_seed,
            "strengths": list(self.directions.values()), "components": dict(self.components),
        }  # fmt: skip

    def codes(self, case: str, opened: Mapping[str, ModelCase], axes: Axes) -> tuple[Tensor, Tensor]:
        """Return z_sem (1, D) and x_T (1, C, *S).

        Args:
            case: id of the case.
            opened: the case and :attr:`other_cases`, by id.
            axes: the lines along which z_sem is moved.

        Raises:
            ConfigError: there is no such direction or component, or two x_T cannot be blended.
        """
        own = opened[case]
        z_sem = own.z_sem
        if self.blend is not None:
            z_sem = lerp(z_sem, opened[self.blend].z_sem, [self.weight])
        moved = axes.moved(z_sem.cpu().numpy(), self)
        return torch.from_numpy(moved).to(z_sem), self._x_T(own, opened)

    def _x_T(self, own: ModelCase, opened: Mapping[str, ModelCase]) -> Tensor:
        if self.noise_seed is not None:
            trained = own.trained
            return image_noise(trained.x_T_shape, self.noise_seed, [0]).to(trained.device)
        if self.noise_of is not None:
            return opened[self.noise_of].x_T
        if self.blend is not None:
            return slerp(own.x_T, opened[self.blend].x_T, [self.weight])
        return own.x_T


def write_combined(path: Path, case: Case, opened: ModelCase, image: Tensor, difference: Tensor | None = None) -> Path:
    """Write an image in the space of a case.

    Args:
        path: the file, without its suffix.
        case: the case.
        opened: the same, opened.
        image: (1, C, *S) in the model's range.
        difference: (1, C, *S), of the image from the plain reconstruction; it is added to the scan, which keeps its own
            detail. None: the image itself is written.

    Returns:
        The file: PNG for a picture of 8 bits, else NIfTI.

    Raises:
        ConfigError: the preprocessing cannot be inverted.
    """
    array = opened.back(image) if difference is None else opened.add_difference(difference)
    suffix = ".png" if fits_png(case.first_file, opened.scan) else ".nii.gz"
    return write_native(path.with_name(f"{path.name}{suffix}"), array, opened.scan, description=SYNTHETIC)
