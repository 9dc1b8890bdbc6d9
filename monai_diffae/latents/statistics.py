"""Mean and standard deviation of z_sem over a training set, and what they define: normalised and whitened z_sem."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError

Floats = NDArray[np.float64]
Codes = NDArray[np.floating[Any]]
ACTIVE_SHARE = 0.01  # A dimension is active if its variance is above this share of the mean variance of all dimensions

# A dimension whose std is below this fraction of the median std holds a constant and its rounding errors.
_NEVER_VARIES = 1e-6
_EXPLAINED = 0.95

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and standard deviation of the training set's z_sem, per dimension.

    Raises:
        ConfigError: the shapes differ or are not ``[D]``, a value is not finite, or a std is not above 0.

    Example:
        >>> statistics = LatentStatistics.of([[1.0, 0.0], [3.0, 4.0]])
        >>> statistics.normalise([2.0, 4.0])
        array([0., 1.])
        >>> statistics.denormalise([0.0, 1.0])
        array([2., 4.])
    """

    mean: NDArray[np.float32]  #: ``[D]``, float32
    std: NDArray[np.float32]  #: ``[D]``, float32, above 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            # values beyond the range of float32 become inf, which is refused below
            with np.errstate(over="ignore"):
                values = np.asarray(getattr(self, name)).astype(np.float32)
            object.__setattr__(self, name, values)
        are_vectors = self.mean.ndim == 1 and self.mean.shape == self.std.shape and len(self.mean) > 0
        is_finite = np.isfinite(self.mean).all() and np.isfinite(self.std).all()
        if not (are_vectors and is_finite and (self.std >= np.finfo(np.float32).tiny).all()):
            raise ConfigError(
                "statistics of z_sem: mean and std must be (D,) and finite, and the std above 0 in every dimension; "
                "compute them again"
            )

    @classmethod
    def of(cls, z: ArrayLike, *, common_scale: bool = False) -> "LatentStatistics":
        """Compute the statistics of a training set's z_sem.

        A dimension that never varies (std 0, or below 1e-6 times the median of the positive stds) gets std 1, so that
        its rounding errors are not amplified. A warning reports how many dimensions never vary.

        Args:
            z: ``[N, D]``, N at least 2.
            common_scale: all dimensions get the same std, the root of their mean variance. Principal components keep
                their relative sizes that way.
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
        """
        return (checked_codes(z, self.z_channels) - self.mean) / self.std

    def denormalise(self, z: ArrayLike) -> Codes:
        """Undo :meth:`normalise`."""
        return checked_codes(z, self.z_channels) * self.std + self.mean

    def deviations(self, z: ArrayLike) -> Codes:
        """How far z_sem ``[N, D]`` is from the training set: ``[N]``, its mean square after :meth:`normalise`.

        The mean over the training set is 1.

        Example:
            >>> LatentStatistics.of([[1.0, 0.0], [3.0, 4.0]]).deviations([[3.0, 4.0], [2.0, 8.0]])
            array([1. , 4.5])
        """
        deviations: Codes = np.square(self.normalise(z)).mean(axis=-1)
        return deviations

    def moved(self, z: ArrayLike, step: Codes) -> Codes:
        """Move z_sem by a step of normalised z_sem: ``denormalise(normalise(z) + step)``, without the round trip.

        Args:
            z: ``[N, D]`` or ``[D]``, not normalised.
            step: ``[D]``; z is unchanged, bit by bit, in dimensions where the step is 0.

        Returns:
            The moved z_sem, in the shape and dtype of ``z``.
        """
        codes = checked_codes(z, self.z_channels)
        if not np.isfinite(step).all():
            raise ConfigError("strength: the step is not finite; choose a number such as -3 to 3")
        return np.where(step == 0, codes, (codes + step * self.std).astype(codes.dtype))


def scales(codes: Floats, common_scale: bool) -> Floats:
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
    """Check z_sem ``[N, D]`` (without ``num_least`` also ``[D]``) and return it as an array of floats."""
    codes = np.asarray(z)
    if codes.dtype.kind not in "fiu":
        raise ConfigError(f"z_sem: holds {codes.dtype}, not numbers; give an array of floats")
    if codes.dtype.kind != "f":
        codes = codes.astype(np.float64)
    is_matrix = codes.ndim == 2 or (codes.ndim == 1 and num_least is None)
    if not is_matrix or codes.shape[-1] == 0 or codes.shape[-1] != (z_channels or codes.shape[-1]):
        expected = "(N, D)" if z_channels is None else f"(N, {z_channels}), z_sem of the same model"
        raise ConfigError(f"z_sem: has the shape {codes.shape}; it must have the shape {expected}")
    if num_least is not None and len(codes) < num_least:
        raise ConfigError(f"z_sem: {len(codes)} cases are too few; {num_least} are the least")
    not_finite = ~np.isfinite(codes).all(axis=-1)
    if not_finite.any():
        raise ConfigError(
            f"z_sem: {not_finite.sum()} of {not_finite.size} cases hold values that are not finite; embed again"
        )
    return codes


@dataclass(frozen=True)
class ActiveDimensions:
    """The result of :func:`active_dimensions`."""

    dims: int  #: D, the number of dimensions
    active: int  #: dimensions whose variance over the cases is above 1 % of the mean variance of all dimensions
    #: the squared sum of the covariance's eigenvalues, divided by the sum of their squares: D if all directions vary
    #: equally, 1 if all cases lie on a line
    participation_ratio: float
    dims_for_95_percent: int  #: principal components that explain 95 % of the variance


def active_dimensions(z: ArrayLike) -> ActiveDimensions:
    """Count the dimensions of z_sem ``[N, D]`` in which the cases differ.

    ``active`` follows the active units of Burda et al. 2016, dimensions with a variance above .01 under a prior with
    variance 1; z_sem has no prior, so its mean variance is used instead. The other two figures are computed from the
    covariance and reveal redundant dimensions; for N cases they cannot exceed N - 1.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(500, 3))
        >>> active_dimensions(np.concatenate([z, z[:, :1], np.zeros((500, 4))], axis=1))
        ActiveDimensions(dims=8, active=4, participation_ratio=2.6..., dims_for_95_percent=3)
    """
    codes = checked_codes(z, num_least=2).astype(np.float64)
    centred = codes - codes.mean(axis=0)
    variance = centred.var(axis=0)
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    total = eigenvalues.sum()
    if total == 0:
        return ActiveDimensions(codes.shape[1], 0, 0.0, 0)
    explained = np.cumsum(eigenvalues) / total
    return ActiveDimensions(
        dims=codes.shape[1],
        active=int((variance > ACTIVE_SHARE * variance.mean()).sum()),
        participation_ratio=float(total**2 / np.square(eigenvalues).sum()),
        dims_for_95_percent=int(np.searchsorted(explained, _EXPLAINED - 1e-12) + 1),
    )


def whitening(z: ArrayLike) -> Floats:
    """The matrix ``[D, D]`` that maps normalised z_sem to axes along which the cases have a variance of 1."""
    # it shows a case that deviates, however little, where the others hardly vary; the added 1 % of the variance of a
    # dimension keeps empty directions from being amplified without limit
    codes = checked_codes(z, num_least=1).astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(codes.T, bias=True).reshape(codes.shape[1], -1))
    whitened: Floats = axes / np.sqrt(variance.clip(min=0) + ACTIVE_SHARE)
    return whitened
