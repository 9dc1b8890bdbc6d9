"""Mean and standard deviation of z_sem over a training set, what they define, and principal components."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_diffae.errors import ConfigError, counted

Floats = NDArray[np.float64]
Codes = NDArray[np.floating[Any]]
ACTIVE_SHARE = 0.01  # A dimension is active if its variance is above this share of the mean variance of all dimensions

# A dimension whose std is below this fraction of the median std holds a constant and its rounding errors.
_NEVER_VARIES = 1e-6
_EXPLAINED = 0.95
_FEW_IMAGES = 500

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
        codes = float64_codes(z, num_least=2)
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
    is_matrix = codes.dtype.kind in "fiu" and (codes.ndim == 2 or (codes.ndim == 1 and num_least is None))
    if not is_matrix or codes.shape[-1] == 0 or codes.shape[-1] != (z_channels or codes.shape[-1]):
        expected = "(N, D)" if z_channels is None else f"(N, {z_channels}), z_sem of the same model"
        raise ConfigError(f"z_sem: is {codes.dtype} of shape {codes.shape}; it must be numbers of shape {expected}")
    if codes.dtype.kind != "f":
        codes = codes.astype(np.float64)
    if num_least is not None and len(codes) < num_least:
        raise ConfigError(f"z_sem: {counted(len(codes), 'case')}, which is too few; {num_least} are the least")
    not_finite = ~np.isfinite(codes).all(axis=-1)
    if not_finite.any():
        raise ConfigError(
            f"z_sem: {not_finite.sum()} of {not_finite.size} cases hold values that are not finite; embed again"
        )
    return codes


def float64_codes(z: ArrayLike, z_channels: int | None = None, *, num_least: int | None = None) -> Floats:
    """The same in float64."""
    return checked_codes(z, z_channels, num_least=num_least).astype(np.float64)


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
    codes = float64_codes(z, num_least=2)
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
    codes = float64_codes(z, num_least=1)
    variance, axes = np.linalg.eigh(np.cov(codes.T, bias=True).reshape(codes.shape[1], -1))
    whitened: Floats = axes / np.sqrt(variance.clip(min=0) + ACTIVE_SHARE)
    return whitened


# -- principal components, without any label: of z_sem, and of the pixels of images ---------------------------------


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Principal components of normalised z_sem, the one with the largest variance first."""

    directions: Floats  #: ``[K, D]``, orthonormal; the loading with the largest absolute value is positive
    stds: Floats  #: ``[K]``, the standard deviation of the training cases along each component
    explained: Floats  #: ``[K]``, each component's share of the variance of normalised z_sem, from 0 to 1
    statistics: LatentStatistics  #: the statistics that normalise z_sem

    def coordinates(self, z: ArrayLike) -> Floats:
        """Where cases ``[N, D]`` lie along the components: ``[N, K]``, in normalised z_sem."""
        return np.asarray(self.statistics.normalise(z) @ self.directions.T, np.float64)

    def traverse(self, z: ArrayLike, component: int, strengths: Sequence[float]) -> Codes:
        """Move a case along a component: ``z_norm + strength * std * direction``, denormalised.

        Args:
            z: ``[D]`` or ``[1, D]``, not normalised.
            component: index of the component, from 0.
            strengths: ``[A]``, in standard deviations of the training cases; strength 0 returns z bit by bit.

        Returns:
            ``[A, D]``, in the dtype of ``z``.
        """
        if not 0 <= component < len(self.directions):
            raise ConfigError(f"component: {component} is not one of 0 to {len(self.directions) - 1}")
        start = checked_codes(np.ravel(z), self.statistics.z_channels)
        step = self.stds[component] * self.directions[component]
        return np.stack([self.statistics.moved(start, strength * step) for strength in strengths])


def principal_components(
    z: ArrayLike, statistics: LatentStatistics | None = None, count: int | None = None
) -> PrincipalComponents:
    """Compute the principal components of normalised z_sem.

    Args:
        z: z_sem of the training cases, ``[N, D]``, not normalised.
        statistics: the statistics that normalise them; None: their own.
        count: number of components, at most N - 1 and D; None: as many.

    Raises:
        ConfigError: ``count`` is out of range, there are fewer than 2 cases, or z_sem does not fit ``statistics``.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(200, 1)) * [3.0, 4.0]
        >>> components = principal_components(z, count=1)
        >>> components.directions.round(3), components.stds.round(3), components.explained.round(3)
        (array([[0.707, 0.707]]), array([1.414]), array([1.]))
        >>> components.traverse([0.0, 0.0], 0, [-1, 0, 1]).shape
        (3, 2)
    """
    from sklearn.decomposition import PCA

    statistics = statistics or LatentStatistics.of(z)
    codes = float64_codes(z, statistics.z_channels, num_least=2)
    most = min(len(codes) - 1, statistics.z_channels)
    count = most if count is None else count
    if not 1 <= count <= most:
        raise ConfigError(
            f"components: {count} of them cannot be computed from {len(codes)} cases with "
            f"{statistics.z_channels} dimensions; choose 1 to {most}"
        )
    # "full" gives the same result for every size; scikit-learn may choose a randomised solver otherwise
    pca = PCA(count, svd_solver="full").fit(statistics.normalise(codes))
    largest = np.abs(pca.components_).argmax(axis=1)
    directions = pca.components_ * np.sign(pca.components_[np.arange(count), largest])[:, None]
    # divided by N, as in the statistics; scikit-learn divides by N - 1
    stds = np.sqrt(pca.explained_variance_ * (len(codes) - 1) / len(codes))
    return PrincipalComponents(directions, stds, pca.explained_variance_ratio_, statistics)


@dataclass(frozen=True, eq=False)
class PixelComponents:
    """Principal components [K, P] of P pixels, scaled so that the features have a standard deviation of about 1."""

    mean: NDArray[np.floating[Any]]
    axes: NDArray[np.floating[Any]]

    @classmethod
    def fit(cls, batches: Iterable[NDArray[np.floating[Any]]], dims: int) -> "PixelComponents":
        """Fit at most ``dims`` components to batches of images ``[N, ...]``; several, each with more, one by one."""
        from sklearn.decomposition import PCA, IncrementalPCA

        iterator = map(_flat, batches)
        first, second = next(iterator), next(iterator, None)
        num = max(1, min(dims, len(first) - 1, first.shape[1]))
        if second is None:
            # the randomised solver is faster, but with few images it is inaccurate for the last components
            solver = "full" if min(first.shape) <= _FEW_IMAGES else "auto"
            pca = PCA(num, svd_solver=solver, random_state=0).fit(first)
        else:
            pca = IncrementalPCA(num).partial_fit(first).partial_fit(second)
            for batch in iterator:
                pca.partial_fit(batch)
        scale = np.sqrt(pca.explained_variance_.mean()) or 1.0
        return cls(pca.mean_, (pca.components_ / scale).astype(pca.components_.dtype))

    def features(self, images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """The features ``[N, K]`` of images ``[N, ...]``."""
        return (_flat(images) - self.mean) @ self.axes.T


def _flat(images: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return images.reshape(len(images), -1)
