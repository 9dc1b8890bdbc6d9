"""Outlier scores of cases relative to reference cases, and their p-values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.diffusion.noise import seed_of
from monai_diffae.latents.groups import numbered_groups
from monai_diffae.latents.neighbors import nearest_neighbors, p_values
from monai_diffae.latents.statistics import LatentStatistics, checked_codes, scales
from monai_diffae.latents.whitening import whitening

Floats = NDArray[np.float64]
Groups = NDArray[np.str_]

_FOLDS = 10


@dataclass(frozen=True, eq=False)
class ReferenceCases:
    """The cases, such as those of the training, with which other cases are compared.

    Attributes:
        z_sem: ``[M, D]``, not normalised.
        groups: ``[M]``, the patient of each case, as text.
        statistics: mean and standard deviation of ``z_sem``.
        common_scale: whether all dimensions have the same scale, as principal components need.
    """

    z_sem: NDArray[np.floating[Any]]
    groups: Groups
    statistics: LatentStatistics
    common_scale: bool = False

    @classmethod
    def of(cls, z_sem: ArrayLike, groups: ArrayLike | None = None, *, common_scale: bool = False) -> ReferenceCases:
        """The reference cases with their statistics.

        Args:
            z_sem: ``[M, D]``, not normalised.
            groups: ``[M]``, the patient of each case; None: each case is a patient of its own.
            common_scale: as for :meth:`LatentStatistics.of <monai_diffae.latents.statistics.LatentStatistics.of>`.

        Raises:
            ConfigError: there are fewer than two cases, or all are the same.
        """
        codes = checked_codes(z_sem, num_least=2)
        names = (np.arange(len(codes)) if groups is None else np.asarray(groups)).astype(np.str_)
        return cls(codes, names, LatentStatistics.of(codes, common_scale=common_scale), common_scale)

    def normalised(self, z_sem: ArrayLike) -> NDArray[np.floating[Any]]:
        """z_sem ``[N, D]`` of any cases, scaled by the standard deviations of the reference cases."""
        return self.statistics.normalise(z_sem)

    def distances(self, z_sem: ArrayLike, groups: ArrayLike, k: int, whitened: bool) -> Floats:
        """The mean distance ``[N]`` from cases to their k nearest reference cases of other patients.

        Scales, whitening and neighbors are those of nine of ten folds of the reference patients; the case's own patient
        is in the tenth. Reference cases are thus scored like unseen cases, and all scores can be compared. The names of
        the patients decide the fold that is left out, so give names that do not change, such as the id of a patient's
        first case.

        Args:
            z_sem: ``[N, D]``, not normalised.
            groups: ``[N]``, the patient of each case.
            k: number of neighbors.
            whitened: scale each direction of z_sem by the variation of the reference cases, not only each dimension.

        Raises:
            ConfigError: there are fewer than k reference cases of other patients.
        """
        codes, reference = (checked_codes(z, num_least=1).astype(np.float64) for z in (z_sem, self.z_sem))
        patients = np.asarray(groups, str)
        names, member = np.unique(self.groups, return_inverse=True)
        num_folds = max(2, min(_FOLDS, len(names)))
        reference_folds = {str(name): i % num_folds for i, name in enumerate(names)}
        fold = np.array([
            reference_folds[name] if name in reference_folds else seed_of("units", name) % num_folds
            for name in patients.tolist()
        ])  # fmt: skip
        scores = np.empty(len(codes))
        for i in np.unique(fold):
            others = member % num_folds != i
            others |= ~others.any()  # a single reference patient cannot be divided
            units = self._units(reference[others], whitened)
            pool, cases = (z - self.statistics.mean for z in (reference[others], codes[fold == i]))
            nearest = nearest_neighbors(cases @ units, pool @ units, k, patients[fold == i], self.groups[others])
            scores[fold == i] = nearest.distances.mean(axis=1)
        return scores

    def own_distances(self, k: int, whitened: bool) -> Floats:
        """The :meth:`distances` of the reference cases themselves.

        Raises:
            ConfigError: there are fewer than k reference cases of other patients.
        """
        return self.distances(self.z_sem, self.groups, k, whitened)

    def _units(self, fitted: Floats, whitened: bool) -> Floats:
        """The matrix [D, D] that scales each dimension, or each direction, by the variation of the fitted cases."""
        std = scales(fitted, self.common_scale)
        std = np.where(std > 0, std, 1)
        return (whitening(fitted / std) if whitened else np.eye(len(std))) / std[:, None]


@dataclass(frozen=True, eq=False)
class OutlierScores:
    """The result of :func:`outlier_scores`.

    Attributes:
        distances: ``[N]``, the mean distance to the nearest reference cases, higher for more unusual cases.
        p_values: ``[N]``, the probability of a distance at least as high among the reference cases.
    """

    distances: Floats
    p_values: Floats


def outlier_scores(
    z_sem: ArrayLike,
    reference: ArrayLike,
    *,
    k: int = 5,
    whitened: bool = True,
    groups: ArrayLike | None = None,
    reference_groups: ArrayLike | None = None,
) -> OutlierScores:
    """Score how unusual new cases are compared with reference cases, with the arithmetic of ``neighbors``.

    Args:
        z_sem: ``[N, D]``, not normalised; none of them is a reference case.
        reference: ``[M, D]``, the reference cases, such as those of the training.
        k: number of neighbors.
        whitened: scale each direction of z_sem by the variation of the reference cases, not only each dimension.
        groups: ``[N]``, the patient of each case; None: none is a patient of the reference cases.
        reference_groups: ``[M]``, their patients; None: each case is a patient of its own.

    Raises:
        ConfigError: there are fewer than k reference cases of other patients, or the shapes do not match.

    Example:
        >>> reference = np.random.default_rng(0).normal(size=(99, 2))
        >>> outlier_scores([[0.0, 0.0], [9.0, 9.0]], reference).p_values
        array([0.59, 0.01])
    """
    references, codes = checked_codes(reference, num_least=2), checked_codes(z_sem, num_least=1)
    reference_names = (
        list(range(len(references))) if reference_groups is None else np.asarray(reference_groups).tolist()
    )
    names = [f"case {i}" for i in range(len(codes))] if groups is None else np.asarray(groups).tolist()
    numbers = numbered_groups([*reference_names, *names])
    cases = ReferenceCases.of(references, numbers[: len(reference_names)])
    distances = cases.distances(codes, numbers[len(reference_names) :], k, whitened)
    p = p_values(distances, cases.own_distances(k, whitened), np.zeros(len(codes), bool))
    return OutlierScores(distances, p)
