"""A trained bundle's encoder as a scikit-learn transformer."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from monai_diffae.apps.embedding.encoders import wide_checksum, with_wide_features
from monai_diffae.apps.embedding.encoding import encode_scans
from monai_diffae.apps.settings import Reading
from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.bundle.model_file import checksum
from monai_diffae.data.progress import Failure
from monai_diffae.errors import ConfigError, ScanError, counted
from monai_diffae.inferers.reconstruction import encode_exactly
from monai_diffae.policies import Features, PathLike

OnBadScan = Literal["raise", "nan"]
Item = dict[str, Any]

_OVERSHOOT = 0.05  # accepted values beyond the model's range, as a fraction of it: interpolation overshoots a little
_HINT = "give images of that size, or paths of scans"


class DiffAEEncoder(TransformerMixin, BaseEstimator):
    """A scikit-learn transformer that encodes scans, or images in arrays, to z_sem with a trained bundle.

    ``fit`` learns nothing; it only checks its arguments. (The bundle itself was trained, so evaluate on patients that
    were not in its training.) The model is not part of the estimator: a copy or a pickle holds the bundle's path and
    the checksum of its model, and refuses a bundle that has changed since ``fit``. Each process keeps the model that it
    used last, for all estimators.

    ``X`` is either of:

    - paths of scans, one per row: a list, a Series, an array (N,) or (N, 1), or a DataFrame with one column per image
      key of the bundle (``image``) or with a single column. For slices of volumes in a 2D bundle it also has the
      column ``slice``; other columns are ignored. The scans are read and preprocessed as in training, and their z_sem
      equal those of :func:`monai_diffae.embed` to the bit;
    - numbers: images as the encoder sees them, (N, C, *S), (N, *S) for one channel, or flattened (N, C * prod(S)),
      in the bundle's image size and the model's range (-1 to 1).

    Args:
        bundle: folder of a trained bundle.
        device: where to compute, e.g. ``cpu`` or ``cuda:1``; None: the GPU if there is one.
        batch_size: images on the device at once.
        workers: processes that read and preprocess scans ahead; 0: none; None: one per core (at most 8) for 256
            scans or more.
        columns: names that a DataFrame uses for the bundle's image keys and ``slice``, such as ``{"image": "file"}``.
        overrides: values for keys of the bundle's configuration, such as ``{"nonfinite": 0.0}``.
        on_bad_scan: ``raise`` raises an error if a scan cannot be used; ``nan`` gives a row of NaN and a warning.
        features: ``z`` is z_sem; ``wide`` are the wide features that ``embed`` has stored in the bundle.

    Attributes:
        z_channels_: the number of features.
        model_sha256_: the checksum of the model's file.
        n_features_in_: C * prod(S), after a fit to numbers; ``feature_names_in_`` are the names of their columns.

    Raises:
        ConfigError: the bundle is not trained or has changed since ``fit``, or ``X`` is neither paths nor images.
        ScanError: (by ``transform``) scans cannot be used, and ``on_bad_scan`` is ``raise``.

    Example:
        >>> DiffAEEncoder("no_bundle").fit(["a.nii", "b.nii"])
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: no_bundle: there is no models/model.safetensors; train the bundle first, ...
    """

    def __init__(
        self,
        bundle: PathLike | None = None,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        workers: int | None = 0,
        columns: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        on_bad_scan: OnBadScan = "raise",
        features: Features = "z",
    ) -> None:
        self.bundle, self.device = bundle, device
        self.batch_size, self.workers = batch_size, workers
        self.columns, self.overrides = columns, overrides
        self.on_bad_scan, self.features = on_bad_scan, features

    def fit(self, X: Any, y: Any = None) -> DiffAEEncoder:
        """Check the parameters, the bundle and the kind of ``X``, without opening scans. ``y`` is ignored."""
        trained, state = self._open()
        for name in ("n_features_in_", "feature_names_in_"):  # set by an earlier fit
            self.__dict__.pop(name, None)
        if self._items(X, trained) is None:
            self._images(X, trained, reset=True)
        self.z_channels_, self._fitted_state = trained.z_channels, state
        self.model_sha256_ = state["model"]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Encode ``X`` to z_sem (N, D), float32, in the order of its rows."""
        check_is_fitted(self)
        trained, state = self._open()
        changed = [name for name in state if state[name] != self._fitted_state[name]]
        if changed:
            name = Path(str(self.bundle)).name
            raise ConfigError(f"{name}: {changed[0]} changed since the encoder was fitted; fit it again")
        items = self._items(X, trained)
        if items is not None:
            return self._encode_scans(items, trained)
        images = self._images(X, trained, reset=False)
        batches = np.array_split(images, range(self.batch_size, len(images), self.batch_size))
        z_sem = [encode_exactly(torch.tensor(b).to(trained.device), trained.network, trained.inferer) for b in batches]
        return torch.cat(z_sem).cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """``z_000``, ``z_001``, ... or ``w_000``, ..., as in a table of embeddings. ``input_features`` is ignored."""
        check_is_fitted(self)
        prefix = "w" if self.features == "wide" else "z"
        return np.array([f"{prefix}_{i:03d}" for i in range(self.z_channels_)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _open(self) -> tuple[TrainedBundle, dict[str, str]]:
        """Load the bundle, with all that its z_sem depend on: the model's file and overrides."""
        folder = Path(self.bundle or "")
        state = {"model": checksum(folder), "overrides": json.dumps(dict(self.overrides or {}), sort_keys=True)}
        if self.features == "wide":
            state["wide"] = wide_checksum(folder)
        return _load(folder.resolve(), state["model"], state["overrides"], self.device, state.get("wide")), state

    def _images(self, X: Any, trained: TrainedBundle, *, reset: bool) -> NDArray[np.float32]:
        """Images (N, C, *S), checked as scikit-learn checks a table, and for the bundle's size and range."""
        shape, (low, high), given = trained.image_shape, trained.model_range, np.asarray(X).shape
        if len(given) > 2:
            if given[1:] not in (shape, shape[1:] if shape[0] == 1 else shape):
                raise ConfigError(f"X: images are {_size(given[1:])}, but the bundle's are {_size(shape)}; {_HINT}")
            X = np.asarray(X).reshape(given[0], -1)
        numbers: NDArray[np.float32] = validate_data(self, X, reset=reset, dtype=np.float32)
        if (num := numbers.shape[1]) != np.prod(shape):  # otherwise rows could become another number of images
            raise ConfigError(f"X: rows have {num} values, but the bundle's images are {_size(shape)}; {_HINT}")
        least, most, slack = float(numbers.min()), float(numbers.max()), _OVERSHOOT * (high - low)
        if least < low - slack or most > high + slack:
            raise ConfigError(
                f"X: values range from {least:g} to {most:g}, but the model's from {low:g} to {high:g}; scale them, "
                "or give paths of scans, which are preprocessed as in training"
            )
        return numbers.reshape(-1, *shape)

    def _encode_scans(self, items: list[Item], trained: TrainedBundle) -> NDArray[np.float32]:
        """Encode scans as they are read: z_sem (N, D), NaN for scans that cannot be used."""
        workers = Reading(workers=self.workers).workers_for(len(items))
        z_sem = np.full((len(items), trained.z_channels), np.nan, np.float32)
        failures: dict[int, Failure] = {}
        for rows, codes, failed in encode_scans(items, trained, self.batch_size, workers):
            failures |= failed
            if rows:
                z_sem[rows] = codes
        if failures:
            counts = f"{len(failures)} of {counted(len(items), 'scan')} cannot be used"
            failure = next(iter(failures.values()))
            reason = failure.reason.removeprefix(f"{failure.file}: ").removeprefix(f"{failure.case_id}: ")
            first = f"the first is {failure.case_id}, {failure.file}: {reason}"
            if self.on_bad_scan != "nan":
                raise ScanError(f"X: {counts}; {first}")
            warnings.warn(f"X: {counts} and are rows of NaN; {first}", stacklevel=3)
        return z_sem

    def _items(self, X: Any, trained: TrainedBundle) -> list[Item] | None:
        """The items that the preprocessing takes, one per row; None if ``X`` holds no paths."""
        keys, sequences = trained.image_keys, trained.config.get("sequences", [])
        if sequences and {*sequences} <= {*getattr(X, "columns", ())}:
            X = X.assign(image=[[*map(str, row)] for row in X[sequences].to_numpy()])
        columns = self._path_columns(X, keys)
        if columns is None:
            return None
        missing = next((key for key in keys if key not in columns), None)
        if missing is not None:
            raise ConfigError(f"X: the bundle also reads {missing!r}; give a DataFrame with that column")
        paths = zip(*(columns[key] for key in keys), strict=True)
        items: list[Item] = [
            {"id": f"row {row}", **{k: v if isinstance(v, list) else str(v) for k, v in zip(keys, each, strict=True)}}
            for row, each in enumerate(paths)
        ]
        if trained.config.get("spatial_dims") == 2:
            for row, index in enumerate(pd.to_numeric(columns.get("slice", np.array([])), errors="coerce")):
                if np.isfinite(index):  # a 2D image among slices has no index
                    items[row]["slice"] = int(index)
        return items

    def _path_columns(self, X: Any, image_keys: list[str]) -> Mapping[str, NDArray[Any]] | None:
        """Paths by image key, and ``slice`` if X has it; None if ``X`` holds no paths."""
        header = list(getattr(X, "columns", ()))
        given = self.columns or {}
        names = {key: given.get(key, key) for key in (*image_keys, "slice")}
        if unknown := [key for key in given if key not in names]:
            raise ConfigError(f"columns: {unknown[0]!r} is not one of {', '.join(names)}")
        if header and (lacking := [name for name in given.values() if name not in header]):
            raise ConfigError(f"X: has no column {lacking[0]!r}; check columns")
        if any(names[key] in header for key in image_keys):
            return {key: np.asarray(X[name]) for key, name in names.items() if name in header}
        values = np.asarray(X)
        is_text = values.dtype.kind in "UT"
        if not is_text and not (values.dtype == object and any(isinstance(v, str | os.PathLike) for v in values.flat)):
            return None
        if values.ndim != 1 and values.shape[1:] != (1,):
            raise ConfigError(
                f"X: paths have {values.ndim} dimensions; give one path per row, or a DataFrame with column 'image'"
            )
        return {image_keys[0]: values.ravel()}


@functools.lru_cache(maxsize=1)  # the folds of a cross-validation, and copies, share one model
def _load(
    folder: Path, _sha256: str, overrides: str, device: str | torch.device | None, wide_sha256: str | None
) -> TrainedBundle:
    trained = load_bundle(folder, device, json.loads(overrides))
    return trained if wide_sha256 is None else with_wide_features(trained, with_z_sem=False)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
