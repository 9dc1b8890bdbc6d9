"""Mean and standard deviation of z_sem over a training set, and the normalised z_sem that they define."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError

Codes = NDArray[np.floating[Any]]

# A dimension whose std is below this fraction of the median std holds a constant and its rounding errors.
_NEVER_VARIES = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and standard deviation of the training set's z_sem, per dimension.

    Attributes:
        mean: ``[D]``, float32.
        std: ``[D]``, float32, above 0.

    Raises:
        ConfigError: the shapes differ or are not ``[D]``, a value is not finite, or a std is not above 0.

    Example:
        >>> statistics = LatentStatistics.of([[1.0, 0.0], [3.0, 4.0]])
        >>> statistics.normalise([2.0, 4.0])
        array([0., 1.])
        >>> statistics.denormalise([0.0, 1.0])
        array([2., 4.])
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            # values beyond the range of float32 become inf, which is refused below
            with np.errstate(over="ignore"):
                values = np.asarray(getattr(self, name)).astype(np.float32)
            object.__setattr__(self, name, values)
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape or len(self.mean) == 0:
            raise ConfigError(
                f"statistics of z_sem: mean and std have the shapes {self.mean.shape} and {self.std.shape}; "
                "both must be (D,)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise ConfigError("statistics of z_sem: the mean or the std is not finite; compute them again")
        if (self.std < np.finfo(np.float32).tiny).any():
            raise ConfigError("statistics of z_sem: the std must be above 0 in every dimension; compute them again")

    @classmethod
    def of(cls, z: ArrayLike, *, common_scale: bool = False) -> LatentStatistics:
        """Compute the statistics of a training set's z_sem.

        A dimension that never varies (std 0, or below 1e-6 times the median of the positive stds) gets std 1, so that
        its rounding errors are not amplified. A warning reports how many dimensions never vary.

        Args:
            z: ``[N, D]``, N at least 2.
            common_scale: all dimensions get the same std, the root of their mean variance. Principal components keep
                their relative sizes that way.

        Raises:
            ConfigError: there are fewer than 2 cases, the shape differs, a value is not finite, or no dimension varies.
        """
        codes = checked_codes(z, num_least=2).astype(np.float64)
        std = scales(codes, common_scale)
        if not std.any():
            raise ConfigError(f"z_sem is the same for all {len(codes)} cases; train the encoder, or embed other cases")
        never = std == 0
        if never.any():
            logger.warning("%d of %d dimensions of z_sem never vary and are not rescaled", never.sum(), len(never))
        return cls(codes.mean(axis=0), np.where(never, 1.0, std))

    @property
    def z_channels(self) -> int:
        """The size D of z_sem."""
        return len(self.mean)

    def normalise(self, z: ArrayLike) -> Codes:
        """Normalise z_sem ``[N, D]`` or ``[D]`` to mean 0 and standard deviation 1 over the training set.

        The dtype is that of z; float16 becomes float32.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        codes = checked_codes(z, self.z_channels)
        return (codes - self.mean) / self.std

    def deviations(self, z: ArrayLike) -> Codes:
        """How far z_sem ``[N, D]`` is from the training set: ``[N]``, its mean square after :meth:`normalise`.

        The mean over the training set is 1.

        Raises:
            ConfigError: the shape differs, or a value is not finite.

        Example:
            >>> LatentStatistics.of([[1.0, 0.0], [3.0, 4.0]]).deviations([[3.0, 4.0], [2.0, 8.0]])
            array([1. , 4.5])
        """
        deviations: Codes = np.square(self.normalise(z)).mean(axis=-1)
        return deviations

    def denormalise(self, z: ArrayLike) -> Codes:
        """Undo :meth:`normalise`.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        codes = checked_codes(z, self.z_channels)
        return codes * self.std + self.mean

    def moved(self, z: ArrayLike, step: NDArray[np.floating[Any]]) -> Codes:
        """Move z_sem by a step of normalised z_sem: ``denormalise(normalise(z) + step)``, without the round trip.

        Args:
            z: ``[N, D]`` or ``[D]``, not normalised.
            step: ``[D]``; z is unchanged, bit by bit, in dimensions where the step is 0.

        Returns:
            The moved z_sem, in the shape and dtype of ``z``.

        Raises:
            ConfigError: the shape differs, or a value is not finite.
        """
        codes = checked_codes(z, self.z_channels)
        return np.where(step == 0, codes, (codes + step * self.std).astype(codes.dtype))


def scales(codes: NDArray[np.float64], common_scale: bool) -> NDArray[np.float64]:
    """The std ``[D]`` of codes ``[N, D]``, or the root of the mean variance for all; 0 where they never vary."""
    std = codes.std(axis=0)
    # rounding in the mean of equal values would leave a tiny std
    std[np.ptp(codes, axis=0) == 0] = 0
    if common_scale:
        return np.full_like(std, np.sqrt(np.square(std).mean()))
    if std.any():
        std[std < _NEVER_VARIES * np.median(std[std > 0])] = 0
    return std


def checked_codes(z: ArrayLike, z_channels: int | None = None, *, num_least: int | None = None) -> Codes:
    """Check z_sem and return it as an array of floats.

    Args:
        z: ``[N, D]``; without ``num_least`` also ``[D]``.
        z_channels: required D; None: any.
        num_least: smallest N.

    Raises:
        ConfigError: the values are not numbers or not finite, the shape differs, or there are too few cases.

    Example:
        >>> checked_codes([[1, 2]]).dtype
        dtype('float64')
        >>> checked_codes([[1.0, float("nan")]])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: z_sem: 1 of 1 cases hold values that are not finite; embed again
    """
    codes = np.asarray(z)
    if codes.dtype.kind not in "fiu":
        raise ConfigError(f"z_sem: holds {codes.dtype}, not numbers; give an array of floats")
    if codes.dtype.kind != "f":
        codes = codes.astype(np.float64)
    expected = "(N, D)" if z_channels is None else f"(N, {z_channels})"
    if codes.ndim != 2 and not (codes.ndim == 1 and num_least is None):
        raise ConfigError(f"z_sem: has the shape {codes.shape}; {expected} is needed")
    if codes.shape[-1] != (z_channels or codes.shape[-1]) or codes.shape[-1] == 0:
        raise ConfigError(f"z_sem: has the shape {codes.shape}; {expected} is needed, z_sem of the same model")
    if num_least is not None and len(codes) < num_least:
        raise ConfigError(f"z_sem: {len(codes)} cases are too few; {num_least} are the least")
    not_finite = ~np.isfinite(codes).all(axis=-1)
    if not_finite.any():
        raise ConfigError(
            f"z_sem: {not_finite.sum()} of {not_finite.size} cases hold values that are not finite; embed again"
        )
    return codes
