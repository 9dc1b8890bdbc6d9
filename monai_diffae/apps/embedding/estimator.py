"""A trained bundle's encoder as a scikit-learn transformer."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from monai_diffae.apps.embedding.encoding import encode_in_turn, whole_images
from monai_diffae.bundle.checksums import checksum, config_checksum
from monai_diffae.bundle.loading import TrainedBundle, load_bundle
from monai_diffae.data.failures import Failure
from monai_diffae.data.progress import progress
from monai_diffae.data.streamed import read_in_turn
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.inferers.exact_encoding import encode_exactly

OnBadScan = Literal["raise", "nan"]
Item = dict[str, Any]

_OVERSHOOT = 0.05  # of the model's range: interpolation goes a little beyond what it interpolates
_HINT = "give images of that size, or the paths of scans"
_NO_ROW = "X: there is no row; give one a scan"


class DiffAEEncoder(TransformerMixin, BaseEstimator):
    """z_sem of scans, or of images in arrays, by a trained bundle: a transformer for scikit-learn's pipelines.

    Nothing is learnt in ``fit``, which only checks; what the bundle itself was trained on counts all the same. The
    model is not part of the estimator: a copy or a pickle carries the bundle's path and the checksums of its weights
    and config, and refuses a bundle that has changed since ``fit``. A process keeps the model that it used last, for
    all estimators.

    ``X`` is either of:

    - paths of scans, one a row: a list, a Series, an array (N,) or (N, 1), or a DataFrame with the columns that the
      bundle calls its images (``image``) or with a single one, and for slices of volumes in a 2D bundle ``slice``;
      other columns are ignored. They are read and preprocessed as in training, and their z_sem are those that
      :func:`~monai_diffae.apps.embedding.embed.embed` writes, to the bit;
    - numbers: what the encoder sees, (N, C, *S), (N, *S) for one channel, or flattened (N, C * prod(S)), of the
      bundle's image size and in the model's range (-1 to 1).

    Args:
        bundle: a trained bundle's folder.
        device: where to compute; the GPU if there is one when None.
        batch_size: images that are held on the device at once.
        workers: processes that read and preprocess scans; 0 does it in this one.
        on_bad_scan: a scan that cannot be used is an error (``raise``), or a row of NaN with a warning (``nan``).

    Attributes:
        z_channels_: the number of features that come out, the size of z_sem.
        model_sha256_: the checksum of the bundle's weights.
        config_sha256_: the checksum of its config.
        n_features_in_: C * prod(S), after a fit to numbers; their columns' names, if any, are ``feature_names_in_``.

    Raises:
        ConfigError: no trained bundle, or another one than at ``fit``; ``X`` holds neither of the two.
        ScanError: scans cannot be used, with ``on_bad_scan="raise"`` (of ``transform``; ``fit`` opens none).

    Example:
        >>> DiffAEEncoder("no_bundle").fit(["a.nii", "b.nii"])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.pt; train the bundle first
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        workers: int = 0,
        on_bad_scan: OnBadScan = "raise",
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.on_bad_scan = on_bad_scan

    def fit(self, X: Any, y: Any = None) -> DiffAEEncoder:
        """Check the parameters, the bundle and what kind ``X`` is; scans are not opened. ``y`` is ignored."""
        for name, least in {"batch_size": 1, "workers": 0}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)!r} is no whole number of at least {least}")
        if self.on_bad_scan not in get_args(OnBadScan):
            raise ConfigError(f"on_bad_scan: {self.on_bad_scan!r} is not one of {', '.join(get_args(OnBadScan))}")
        trained, model, config = self._open()
        for name in ("n_features_in_", "feature_names_in_"):  # of an earlier fit
            if hasattr(self, name):
                delattr(self, name)
        if _items(X, trained) is None:
            self._images(self._numbers(X, trained, reset=True), trained)
        self.z_channels_, self.model_sha256_, self.config_sha256_ = trained.z_channels, model, config
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """z_sem (N, D), float32, in the order of the rows of ``X``."""
        check_is_fitted(self)
        trained, model, config = self._open()
        if (model, config) != (self.model_sha256_, self.config_sha256_):
            what = "weights" if model != self.model_sha256_ else "config"
            raise ConfigError(
                f"{Path(str(self.bundle)).name}: its {what} have changed since the encoder was fitted; fit it again"
            )
        items = _items(X, trained)
        if items is None:
            return self._of_images(self._images(self._numbers(X, trained, reset=False), trained), trained)
        return self._of_scans(items, trained)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """``z_000``, ``z_001``, ...: as in a table of embeddings. ``input_features`` is ignored."""
        check_is_fitted(self)
        return np.array([f"z_{i:03d}" for i in range(self.z_channels_)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _open(self) -> tuple[TrainedBundle, str, str]:
        """The model, and the checksums of its weights and config."""
        if self.bundle is None:
            raise ConfigError("bundle: none is given; name a trained bundle's folder")
        folder = Path(self.bundle)
        model = checksum(folder)
        try:
            config = config_checksum(folder)
        except OSError as error:
            raise ConfigError(f"{folder.name}: its config cannot be read; copy the bundle again") from error
        return _opened(folder.resolve(), model, config, self.device), model, config

    def _numbers(self, X: Any, trained: TrainedBundle, *, reset: bool) -> NDArray[np.float32]:
        """Images (N, F) as float32, a row each, checked as scikit-learn checks a table."""
        shape = tuple(X.shape if hasattr(X, "shape") else np.asarray(X).shape)
        if shape and shape[0] == 0:
            raise ConfigError(_NO_ROW)
        if len(shape) > 2:
            expected = trained.image_shape
            if shape[1:] not in (expected, expected[1:] if expected[0] == 1 else expected):
                raise ConfigError(f"X: its images are {_size(shape[1:])}, the bundle's {_size(expected)}; {_HINT}")
            X = np.asarray(X).reshape(shape[0], -1)
        numbers: NDArray[np.float32] = validate_data(self, X, reset=reset, dtype=np.float32)
        return numbers

    def _images(self, numbers: NDArray[np.float32], trained: TrainedBundle) -> NDArray[np.float32]:
        """Rows (N, F) as images (N, C, *S) in the model's range."""
        shape, (low, high) = trained.image_shape, trained.model_range
        if numbers.shape[1] != np.prod(shape):
            raise ConfigError(
                f"X: its rows have {numbers.shape[1]} values, the bundle's images {np.prod(shape)} ({_size(shape)}); "
                f"{_HINT}"
            )
        least, most, slack = float(numbers.min()), float(numbers.max()), _OVERSHOOT * (high - low)
        if least < low - slack or most > high + slack:
            raise ConfigError(
                f"X: its values go from {least:g} to {most:g}, the model's from {low:g} to {high:g}; scale them, or "
                "give the paths of scans, which are preprocessed as in training"
            )
        return numbers.reshape(-1, *shape)

    def _of_images(self, images: NDArray[np.float32], trained: TrainedBundle) -> NDArray[np.float32]:
        batches = np.array_split(images, range(self.batch_size, len(images), self.batch_size))
        z_sem = [encode_exactly(torch.tensor(b).to(trained.device), trained.inferer, trained.network) for b in batches]
        return torch.cat(z_sem).cpu().numpy()

    def _of_scans(self, items: list[Item], trained: TrainedBundle) -> NDArray[np.float32]:
        """z_sem (N, D) of scans as they are read, NaN for those that cannot be used.

        Raises:
            ScanError: one cannot be used, and ``on_bad_scan`` is ``raise``.
        """
        key = str(trained.config.get("encoder_key", "image"))
        read = read_in_turn(items, trained.preprocessing, (key,), self.workers, ahead=self.batch_size)
        in_turn = zip(range(len(items)), items, read, strict=True)
        with progress(len(items), f"encoding {len(items)} scans") as advance:
            rows, codes, failures = encode_in_turn(
                in_turn, trained, key, whole_images(trained, key), self.batch_size, advance
            )
        if failures:
            bad = f"{len(failures)} of {len(items)} scans cannot be used"
            first = f"the first is {_in_row(failures[0])}"
            if self.on_bad_scan == "raise":
                raise ScanError(f"X: {bad}; {first}")
            warnings.warn(f"X: {bad} and are rows of NaN; {first}", stacklevel=3)
        z_sem = np.full((len(items), trained.z_channels), np.nan, np.float32)
        if rows:
            z_sem[rows] = codes
        return z_sem


@functools.lru_cache(maxsize=1)  # the folds of a cross-validation, and copies, share it
def _opened(folder: Path, _model: str, _config: str, device: str | torch.device | None) -> TrainedBundle:
    return load_bundle(folder, device)


def _items(X: Any, trained: TrainedBundle) -> list[Item] | None:
    """What the preprocessing takes, one a row; None where ``X`` holds no paths.

    Raises:
        ConfigError: paths of which it is not clear what they are, or a row without one.
    """
    columns = _path_columns(X, trained.image_keys)
    if columns is None:
        return None
    missing = [key for key in trained.image_keys if key not in columns]
    if missing:
        raise ConfigError(f"X: the bundle also reads {missing[0]!r}; give a DataFrame with that column")
    count = len(columns[trained.image_keys[0]])
    if not count:
        raise ConfigError(_NO_ROW)
    items: list[Item] = [{"id": f"row {row}"} for row in range(count)]
    for key in trained.image_keys:
        for row, path in enumerate(columns[key]):
            if not isinstance(path, (str, os.PathLike)):
                raise ConfigError(f"X: row {row} has a {type(path).__name__} for {key!r}; give the path of a scan")
            items[row][key] = os.fspath(path)
    if trained.config.get("spatial_dims") == 2:
        for row, index in enumerate(pd.to_numeric(columns.get("slice", np.array([])), errors="coerce")):
            if np.isfinite(index):  # a 2D image among slices has none
                items[row]["slice"] = int(index)
    return items


def _path_columns(X: Any, image_keys: list[str]) -> Mapping[str, NDArray[Any]] | None:
    """Paths by image key, and ``slice`` if it is there; None where there are no paths."""
    names = list(getattr(X, "columns", ()))
    if any(key in names for key in image_keys):
        return {key: np.asarray(X[key]) for key in (*image_keys, "slice") if key in names}
    values = _array(X)
    is_text = values.dtype.kind in "UT"
    if not is_text and not (values.dtype == object and any(isinstance(v, (str, os.PathLike)) for v in values.flat)):
        if values.dtype == object and any(isinstance(v, (list, tuple, np.ndarray, Tensor)) for v in values.flat):
            raise ConfigError("X: its rows make no single array; give images of one size, or the paths of scans")
        return None
    if values.ndim != 1 and values.shape[1:] != (1,):
        raise ConfigError(f"X: its paths have {values.ndim} dimensions; give one a row, or a DataFrame with 'image'")
    return {image_keys[0]: values.ravel()}


def _array(X: Any) -> NDArray[Any]:
    """``X`` as it is: of rows of several sizes or kinds, an array of objects."""
    try:
        values = np.asarray(X)
    except ValueError:  # numpy's message names neither X nor a row
        return np.fromiter(X, dtype=object)
    if values.dtype.kind == "U" and isinstance(X, (list, tuple)):  # numpy makes text of numbers beside text, too
        return np.array(X, dtype=object)
    return values


def _in_row(failure: Failure) -> str:
    reason = failure.reason.removeprefix(f"{failure.file}: ").removeprefix(f"{failure.case_id}: ")
    return f"{failure.case_id}, {failure.file}: {reason}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
