"""A trained bundle, and one case as it sees it: images, codes and reconstructions, and how unusual the case is."""

import base64
import html
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from monai_diffae.bundle.config import model_config, preprocessing_checksum, preprocessing_config
from monai_diffae.bundle.folders import WriteLock
from monai_diffae.bundle.layout import ANOMALY, WIDE, models_folder
from monai_diffae.bundle.model_file import checksum, read_description, read_model, write_model
from monai_diffae.data.cases import Case, safe_id
from monai_diffae.data.cohort_split import slice_indices
from monai_diffae.data.fingerprints import digest, json_digest
from monai_diffae.data.formats.dicom import split_series
from monai_diffae.data.formats.scan import Floats
from monai_diffae.data.masks import case_mask
from monai_diffae.data.scans import Scan, scan_suffix
from monai_diffae.diffusion.steps import StepCallback
from monai_diffae.errors import ConfigError, OmittableError, counted
from monai_diffae.inferers import DiffusionAutoencoderInferer, ReconstructionMode, Reconstructor, encode_exactly
from monai_diffae.inferers.reconstruction import estimate_from_noised, images_at_once
from monai_diffae.latents.neighbors import p_values
from monai_diffae.metrics.anomaly import anomaly_maps, highest_mean, residual_spread, smoothed_residuals
from monai_diffae.pictures import shown, thumbnail
from monai_diffae.policies import Detail, PathLike, Range, check_choice
from monai_diffae.transforms import write_native
from monai_diffae.transforms.native import CaseSpace
from monai_diffae.transforms.writing import write_image

CaseImage: TypeAlias = "PathLike | Sequence[PathLike] | NDArray[Any] | Tensor | Scan"
CaseImages: TypeAlias = "CaseImage | Mapping[str, CaseImage] | Case"
"""What :meth:`TrainedBundle.open` opens."""
_TENSORS = ("mean_squares", "scores", "scans", "quantiles")
_ANOMALY_ROOTS = ("network_def", "preprocessing", "diffusion", "model_range", "encoder_key")


@dataclass
class TrainedBundle:
    """A trained model with everything needed to use it."""

    folder: Path  #: the bundle's folder, or the file of its model
    network: nn.Module  #: in evaluation mode, on ``device``, with the averaged weights
    inferer: DiffusionAutoencoderInferer  #: encodes, inverts, decodes
    preprocessing: Callable[[Any], Any]  #: a MONAI transform from a case's item to ``[C, *S]`` in ``model_range``
    #: the model's description, with overrides: configurations of its parts, and values such as ``image_size``
    config: dict[str, Any] = field(repr=False)
    sha256: str  #: SHA-256 of the model's file
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  #: where the network is
    #: SHA-256 of the fast decoder's file; None: the bundle was loaded with the exact decoder
    fast_sha256: str | None = None

    def __repr__(self) -> str:
        """The model in a few lines."""
        config, size = self.config, " x ".join(map(str, self.config["image_size"]))
        usage = "" if self.z_sem_usage is None else f", z_sem_usage {self.z_sem_usage:.2f}"
        parameters = sum(each.numel() for each in self.network.parameters())
        return "\n".join(
            [
                f"TrainedBundle '{self.folder.name}' on {self.device}, SHA-256 {self.sha256[:8]}",
                f"  images: {config['spatial_dims']}D, {size}, {counted(config.get('in_channels', 1), 'channel')}",
                f"  z_sem: {counted(self.z_channels, 'number')}{usage}",
                f"  network: {parameters:,} parameters, decoding in {counted(self.inferer.steps, 'step')}",
            ]
        )

    def is_current(self) -> bool:
        """Whether the bundle's folder still has the model that was loaded."""
        return checksum(self.folder) == self.sha256

    @property
    def made_from(self) -> dict[str, Any]:
        """What every result of this bundle depends on: the beginning of its record."""
        fast = {} if self.fast_sha256 is None else {"fast_decoder": self.fast_sha256}
        return {"model": self.sha256, **fast}

    @property
    def z_sem_usage(self) -> float | None:
        """Denoising loss with another image's z_sem, divided by that with the image's own; None: not measured."""
        usage = self.config.get("figures", {}).get("z_sem_usage")
        return None if usage is None else float(usage)

    @property
    def has_wide(self) -> bool:
        """Whether the bundle has wide features of its present weights."""
        path = models_folder(self.folder) / WIDE
        description = read_description(path) if path.is_file() else {}
        # an older file, without the size of the images, holds other features
        return "size" in description and description.get("autoencoder_sha256") == self.sha256

    @property
    def preprocessing_sha256(self) -> str:
        """SHA-256 of the preprocessing, with overrides: the weights alone do not say which z_sem a scan gets."""
        return preprocessing_checksum(preprocessing_config(self.config))

    @property
    def model_range(self) -> Range:
        """The intensities of the model's images: lowest and highest."""
        low, high = self.config["model_range"]
        return float(low), float(high)

    @property
    def is_colour(self) -> bool:
        """Whether the channels are red, green and blue; if not, pictures show them side by side."""
        return bool(self.config.get("colour") == "rgb")

    @property
    def channel_names(self) -> list[str]:
        """The config's ``sequences``, or ``channel 1`` and so on; one name if the channels are colours."""
        count = 1 if self.is_colour else self.image_shape[0]
        return list(self.config.get("sequences") or (f"channel {i}" for i in range(1, count + 1)))

    def shown(self, images: Tensor) -> Tensor:
        """Pictures of images (B, C, *S), for the functions of :mod:`monai_diffae.pictures`."""
        return shown(images, self.model_range, self.is_colour)

    def write_image(self, path: Path, image: Tensor, source: str = ".png") -> Path:
        """Write ``path`` with a suffix from an image (C, *S) in the model's grid and range: see :func:`write_image`."""
        return write_image(path, image, self.model_range, source, self.grid_affine, self.is_colour)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (C, *S) of the model's images."""
        return (int(self.config["in_channels"]), *map(int, self.config["image_size"]))

    @property
    def grid_affine(self) -> Floats | None:
        """The affine of volumes in the model's grid, with the first voxel at 0 mm; None for 2D models."""
        if "spacing_mm" not in self.config:
            return None
        return np.diag([*map(float, self.config["spacing_mm"]), 1.0])

    @property
    def x_T_shape(self) -> tuple[int, ...]:
        """Shape (C, *S) of an image's stochastic code: that of the image, or of its latents."""
        return self.inferer.x_T_shape(self.image_shape)

    @property
    def z_channels(self) -> int:
        """The number of values in z_sem."""
        return int(self.network.z_channels)  # type: ignore[arg-type]

    @property
    def encoder_key(self) -> str:
        """The key of the image that the encoder sees; the decoder reconstructs ``"image"``."""
        return str(self.config.get("encoder_key", "image"))

    @property
    def image_keys(self) -> list[str]:
        """The columns of the cohort's table that hold the paths of a case's images."""
        return list(self.config["image_keys"])

    def open(self, image: CaseImages, *, slice: int | None = None, id: str | None = None) -> "ModelCase":
        """Open one case: read and preprocess it. Codes and reconstructions are computed when they are asked for.

        Args:
            image: a path; a list of paths, the channels of one image; an array ``[C, *S]``; a MetaTensor, which brings
                its affine; a mapping from the names of sequences, or image keys, to one of these, with ``mask`` for
                bundles that see a region; or a case of a cohort, which brings its slice and id. A 2D image has rows
                first. A volume in a 2D bundle is opened as all slices that the bundle's ``slice_range`` and
                ``slice_step`` select.
            slice: for a volume in a 2D bundle: this slice only, counted from 0 at the inferior (axial), posterior
                (coronal) or left (sagittal) end, not along the file.
            id: the case's id; None: the file's name without its suffix, or ``""``.

        Raises:
            ScanError: the scan cannot be used.
            ConfigError: the image keys or ``slice`` do not fit the bundle, or its preprocessing cannot be inverted.

        Example:
            >>> trained = load_bundle("my_model")  # doctest: +SKIP
            >>> case = trained.open("scan.nii.gz")  # doctest: +SKIP
            >>> case.write("reconstructed.nii.gz", case.back(case.reconstruct("z_sem")))  # doctest: +SKIP
        """
        return ModelCase(self, image, slice=slice, id=id)


class ModelCase(CaseSpace):
    """One case, opened by :meth:`~monai_diffae.bundle.TrainedBundle.open`; it also converts images back to its scan.

    N is 1; for a volume that a 2D bundle opened without ``slice``, it is the number of its slices in use.

    Args:
        trained: the bundle.
        image: as for :meth:`~monai_diffae.bundle.TrainedBundle.open`, also ``slice`` and ``id``.

    Attributes:
        scan: the scan in its own space and units: the whole scan, or the slice that was opened.
        id: the given id, or the file's name without its suffix, or ``""``.
        case: the case of the cohort; if other images were opened, one with the id alone.
    """

    def __init__(
        self, trained: TrainedBundle, image: CaseImages, *, slice: int | None = None, id: str | None = None
    ) -> None:
        keys, config = trained.image_keys, trained.config
        if isinstance(image, Case):
            slice, id, item = image.slice_index, image.id, image.item()
            images = {key: item[key] for key in (*keys, "mask") if key in item}
        else:
            images = dict(image) if isinstance(image, Mapping) else {"image": image}
        if "image" not in images or "image" in config.get("sequences", []):
            images = _named_images(images, config)
        if set(images) - {"mask"} != set(keys):
            given, needed = (", ".join(sorted(names)) or "none" for names in (images, keys))
            raise ConfigError(f"image: the bundle takes the images {needed}, but got {given}; give a mapping of them")
        self.trained = trained
        self.id = _name(images["image"]) if id is None else id
        self.case = image if isinstance(image, Case) else Case(self.id, {}, self.id)
        item = {**images, "id": self.id or "image"}
        if slice is not None:
            item["slice"] = operator.index(slice)

        def choose_slices(length: int) -> Sequence[int]:
            return slice_indices(length, tuple(config.get("slice_range", (0, 1))), config.get("slice_step", 1))

        super().__init__(trained.preprocessing, item, choose_slices)
        self._round_trips: dict[tuple[int | None, int | None], tuple[Tensor, Tensor]] = {}

    @property
    def slices(self) -> list[int | None]:
        """The index of the slice that each of the N images shows; ``[None]`` for a whole image."""
        return list(self.spaces)

    @cached_property
    def images(self) -> Tensor:
        """The model's images, float32 (N, C, *S) in its range, on its device."""
        return self.inputs("image").to(self.trained.device)

    @cached_property
    def z_sem(self) -> Tensor:
        """The semantic codes (N, D), the same to the bit as those that ``embed`` writes."""
        key = self.trained.encoder_key
        images = self.images if key == "image" else self.inputs(key).to(self.trained.device)
        return encode_exactly(images, self.trained.network, self.trained.inferer)

    @property
    def x_T(self) -> Tensor:
        """The stochastic codes (N, C, *S), inverted with the bundle's settings; cached."""
        return self.invert()

    def invert(
        self, *, steps: int | None = None, max_evaluations: int | None = None, callback: StepCallback | None = None
    ) -> Tensor:
        """The stochastic codes (N, C, *S), from which :meth:`decode` recovers the images; cached.

        Args:
            steps: network evaluations for inversion, and the same number for decoding; None: the bundle's.
            max_evaluations: most network evaluations for refining the inversion of one image; None: no limit.
            callback: called with the steps done, all steps and the image after each step of inversion and decoding.
        """
        return self._round_trip(steps, max_evaluations, callback)[1]

    def decode(self, z_sem: Tensor, x_T: Tensor | None = None, *, steps: int | None = None) -> Tensor:
        """Decode images (N, C, *S); a single z_sem (1, D) or x_T (1, C, *S) serves all images.

        Args:
            z_sem: (N, D).
            x_T: (N, C, *S), noise or stochastic codes; None: those of the case.
            steps: network evaluations; None: the bundle's. Codes of :meth:`invert` need the same number again.
        """
        x_T = self.invert(steps=steps) if x_T is None else x_T
        count = max(len(z_sem), len(x_T))
        codes, noise = z_sem.expand(count, -1), x_T.expand(count, *x_T.shape[1:])
        return self._inferer(steps).decode(codes, self.trained.network, noise)

    def reconstruct(
        self,
        mode: ReconstructionMode = "z_sem",
        *,
        steps: int | None = None,
        draws: int = 1,
        seed: int = 0,
        max_evaluations: int | None = None,
    ) -> Tensor:
        """Reconstruct the images, (N, C, *S). The same arguments give the same result to the bit.

        Args:
            mode: ``z_sem`` decodes z_sem with Gaussian noise; ``x_T`` with the inverted x_T, which is near-exact.
            steps: network evaluations for inversion and for decoding; None: the bundle's.
            draws: in mode ``z_sem``, the result is the mean over this many decodings from different noise.
            seed: random seed of the noise, which is a function of the seed, the draw and the slice.
            max_evaluations: in mode ``x_T``, as for :meth:`invert`.
        """
        if mode == "x_T" and draws == 1:
            return self._round_trip(steps, max_evaluations)[0]
        names = None if self.slices == [None] else [f"slice {index}" for index in self.slices]
        reconstructor = Reconstructor(self._inferer(steps), mode, seed, draws, max_evaluations)
        return reconstructor.decode(self.images, self.trained.network, self.z_sem, names)[0]

    def edited(
        self, z_sem: Tensor, *, detail: Detail = "own", steps: int | None = None, max_evaluations: int | None = None
    ) -> NDArray[np.float32]:
        """The scan with another z_sem, decoded with its own x_T: ``[C, *native S]`` in the scan's units.

        Args:
            z_sem: (N, D), such as a moved :attr:`z_sem`.
            detail: ``own`` adds the difference that the change of z_sem makes to the scan, which keeps its own detail;
                with the case's own z_sem, the result is the scan to the bit. ``model`` is the decoded image itself.
            steps: network evaluations for inversion and for decoding; None: the bundle's.
            max_evaluations: as for :meth:`invert`.
        """
        check_choice("detail", detail, Detail)
        x_T = self.invert(steps=steps, max_evaluations=max_evaluations)
        images = self.decode(z_sem, x_T, steps=steps)
        if detail == "model":
            return self.back(images)
        return self.add_difference(images - self.decode(self.z_sem, x_T, steps=steps))

    @cached_property
    def mask(self) -> NDArray[np.bool_] | None:
        """The mask of the cohort's case on the grid of the scan, ``[*native S]``; None if it has no usable mask."""
        return case_mask(self.case, self.trained.config.get("slice_axis", "axial"))

    def write(self, path: PathLike, array: NDArray[Any], dtype: DTypeLike | None = None) -> Path:
        """Write an array ``[C, *native S]`` in the scan's space, with the scan's affine to the bit.

        Args:
            path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.png``. PNG takes intensities, clipped to 0..255, but no maps.
            array: as the methods ``back...`` return it.
            dtype: data type of the file; None: the array's, or uint8 for PNG. Values are rounded to integers.

        Raises:
            ConfigError: the array has another size than the scan, or the file format cannot hold it.
            MachineError: the disk is full, or the folder cannot be written.
        """
        own = None if str(path).lower().endswith(".png") else array.dtype
        return write_native(path, array, self.scan, own if dtype is None else dtype)

    def __repr__(self) -> str:
        """The case in a few lines."""
        shapes = f"scan {list(self.scan.array.shape)}, images {list(self.images.shape)}"
        return f"ModelCase '{self.id}': {shapes}, for {self.trained.folder.name}"

    def _repr_html_(self) -> str:
        """The case in a notebook, with the picture of its middle image."""
        picture = thumbnail(self.trained.shown(self.images[[len(self.images) // 2]]), 160)
        address = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return f'<img src="{address}" alt=""><pre>{html.escape(repr(self))}</pre>'

    def _round_trip(
        self, steps: int | None, max_evaluations: int | None, callback: StepCallback | None = None
    ) -> tuple[Tensor, Tensor]:
        """The near-exact reconstruction, and x_T; computed once for the same settings."""
        key = (steps, max_evaluations)
        if key not in self._round_trips:
            reconstructor = Reconstructor(self._inferer(steps), "x_T", max_evaluations=max_evaluations)
            images, network = self.images, self.trained.network
            self._round_trips[key] = reconstructor.decode(images, network, self.z_sem, callback=callback)
        return self._round_trips[key]

    def _inferer(self, steps: int | None) -> DiffusionAutoencoderInferer:
        """The bundle's inferer with this number of steps, and a batch size that depends on the image size alone."""
        batch_size = images_at_once(self.trained.image_shape[1:])
        given = {} if steps is None else {"steps": steps, "invert_steps": None}
        return self.trained.inferer.replace(batch_size=batch_size, **given)


def _named_images(images: Mapping[str, CaseImage], config: Mapping[str, Any]) -> dict[str, CaseImage]:
    """Images by the names of the bundle's sequences as the images that it takes, with the mask."""
    sequences = {"image": config.get("sequences", []), "encoder_image": config.get("encoder_sequences", [])}
    if missing := [name for names in sequences.values() for name in names if name not in images]:
        raise ConfigError(f"image: the bundle takes the sequence {missing[0]}, which is not given; add it")
    named: dict[str, Any] = {key: [images[name] for name in names] for key, names in sequences.items() if names}
    return {**named, **({"mask": images["mask"]} if "mask" in images else {})} if named else dict(images)


def _name(image: CaseImage) -> str:
    """A case's id from the name of its file; ``""`` for a folder, or an image in memory."""
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    if not isinstance(first, (str, os.PathLike)) or not os.fspath(first):
        return ""
    file, uid = split_series(first)
    return "" if uid is not None or file.is_dir() else safe_id(file.name[: len(file.name) - len(scan_suffix(file))])


# -- anomaly maps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnomalySettings:
    """How residuals become maps and scores. The defaults were chosen by ``benchmarks/anomaly.py``."""

    #: the share of all timesteps at which images are noised; more noise removes larger lesions
    noise_levels: tuple[float, ...] = (0.3,)
    draws: int = 8  #: noises per level
    seed: int = 0  #: random seed of the noise
    smoothing: float = 1.0  #: standard deviation in voxels of the Gaussian that smooths residuals, and then maps
    floor: float = 1.0  #: share of the mean variance that is added to each voxel's
    fraction: float = 0.01  #: a score is the mean of this share of the voxels, those with the highest values


@dataclass(frozen=True, eq=False)
class Anomaly:
    """What :class:`AnomalyDetector` finds in a case."""

    map: Tensor  #: (N, 1, *S), the size of the residual divided by its usual size at the voxel
    score: float  #: the mean of the highest values of the map; of several slices, the highest
    #: the share of held-out cases with at least this score, from 1 / (n + 1) to 1. A new case of the same kind has a
    #: p-value below a with a probability of about a
    p_value: float
    reconstruction: Tensor = field(repr=False)  #: (N, C, *S), the image that the model expects
    _detector: "AnomalyDetector" = field(repr=False)

    def mask(self, quantile: float = 0.99) -> Tensor:
        """The voxels (N, 1, *S) whose map is above a quantile, from 0 to 1, of the voxels of held-out cases, bool."""
        return self.map > self._detector.threshold(quantile)


@dataclass(frozen=True, eq=False)
class AnomalyDetector:
    """Compares the residuals of a case with those of held-out cases, which ``models/anomaly.safetensors`` holds.

    The residual is the difference between an image and the model's estimate of it from its noised version and z_sem
    (:func:`~monai_diffae.inferers.reconstruction.estimate_from_noised`). A map is the smoothed residual divided by its
    root mean square over held-out cases, voxel by voxel, and smoothed again.

    Example:
        >>> trained = load_bundle("my_model")  # doctest: +SKIP
        >>> case = trained.open("scan.nii.gz")  # doctest: +SKIP
        >>> anomaly = AnomalyDetector.load(trained)(case)  # doctest: +SKIP
        >>> case.write("mask.nii.gz", case.back_mask(anomaly.mask(0.99)))  # doctest: +SKIP
    """

    settings: AnomalySettings  #: how residuals become maps and scores
    mean_squares: Tensor  #: (1, *S), the mean over held-out cases of the squared residuals
    scores: Tensor  #: (n,) float64, the scores of the held-out images, with a spread fitted without their patients
    scans: Tensor  #: (n,), the number of the scan of each image: equal for the slices of a volume
    #: (2, Q) float64: shares, and the values of the held-out maps below which these shares of voxels lie
    quantiles: Tensor
    made_from: Mapping[str, Any]  #: checksums of the weights and of what else the maps depend on

    @classmethod
    def load(cls, trained: TrainedBundle, name: str | None = None) -> "AnomalyDetector":
        """Read the detector of a trained bundle; ``name`` is the bundle's in error messages.

        Raises:
            ConfigError: the bundle is not calibrated, or belongs to another model or configuration.
            ScanError: the file is damaged.
        """
        path, name = models_folder(trained.folder) / ANOMALY, name or trained.folder.name
        advice = f"run monai-diffae anomaly {name} SCANS OUT --calibrate-with NORMAL_SCANS"
        if not path.is_file():
            raise ConfigError(f"{name}: is not calibrated for anomaly maps (no models/{ANOMALY}); {advice}")
        model = read_model(path, "anomaly")
        values, made_from = model.description["settings"], dict(model.description["made_from"])
        current = calibrated_model(trained)
        if differ := [key for key in current if made_from.get(key) != current[key]]:
            what = {"model": "another model", "config": "another configuration"}[differ[0]]
            raise ConfigError(f"{name}: models/{ANOMALY} belongs to {what}; {advice}")
        settings = AnomalySettings(**{**values, "noise_levels": tuple(values["noise_levels"])})
        return cls(settings, **{key: model.tensors[key] for key in _TENSORS}, made_from=made_from)

    @classmethod
    def load_if_usable(cls, trained: TrainedBundle) -> "AnomalyDetector | None":
        """Read the detector of a trained bundle; None if there is none, or it is of another model, or damaged."""
        try:
            return cls.load(trained)
        except OmittableError:
            return None

    def save(self, folder: Path) -> Path:
        """Write the detector into a bundle's folder, in one atomic step."""
        tensors = {key: getattr(self, key) for key in _TENSORS}
        description = {"settings": asdict(self.settings), "made_from": dict(self.made_from)}
        models = models_folder(folder)
        with WriteLock(models):  # a new model that is put in place meanwhile would remove the file
            return write_model(models / ANOMALY, "anomaly", tensors, description)

    def __call__(self, case: ModelCase) -> Anomaly:
        """The anomaly map, score and p-value of a case; a held-out case is compared with those of other patients."""
        reconstruction, residuals = image_residuals(case.trained, case.images, case.z_sem, self.settings)
        others = self._without(case.images, residuals.cpu())
        maps = anomaly_maps(residuals, others.spread.to(residuals.device), self.settings.smoothing)
        scores = highest_mean(maps, self.settings.fraction)
        return Anomaly(maps, float(scores.max()), others._p_value(scores), reconstruction, self)

    def _without(self, images: Tensor, residuals: Tensor) -> "AnomalyDetector":
        """The detector of the held-out cases of other patients, if these are images of a held-out case."""
        names, known = [image_key(image) for image in images], self.made_from.get("images", [])
        own = residuals.square()[[name in known for name in names]]
        excess = (len(own) * self.mean_squares - own.sum(dim=0)) / (len(self.scores) - len(own))
        patients = torch.tensor(self.made_from.get("patients", self.scans.tolist()))
        is_other = ~torch.isin(patients, patients[: len(known)][[name in names for name in known]])
        scores, scans = self.scores[is_other], self.scans[is_other]
        return replace(self, mean_squares=(self.mean_squares + excess).clamp(min=0), scores=scores, scans=scans)

    @cached_property
    def spread(self) -> Tensor:
        """The usual size of the residual at each voxel, (1, *S)."""
        return residual_spread(self.mean_squares, self.settings.floor)

    @cached_property
    def scan_scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The scores of the held-out scans: of a volume's slices, the highest."""
        scans = self.scans.numpy()
        return np.array([self.scores.numpy()[scans == scan].max() for scan in np.unique(scans)])

    def threshold(self, quantile: float) -> float:
        """The map's value below which this share of the voxels of held-out cases lies."""
        if not 0 <= quantile <= 1:
            raise ConfigError(f"quantile: {quantile!r} is not from 0 to 1")
        shares, values = self.quantiles.numpy()
        return float(np.interp(quantile, shares, values))

    def _p_value(self, scores: Tensor) -> float:
        """The p-value of an image, or of the slices of a volume."""
        # The highest score of several slices is compared with the highest scores of held-out volumes. If these are
        # single images, the p-value is corrected for the number of slices (Bonferroni), which is safe but may be high.
        highest = float(scores.max())
        has_volumes = len(self.scan_scores) < len(self.scores)
        reference = self.scan_scores if len(scores) > 1 and has_volumes else self.scores.numpy()
        p_value = float(p_values([highest], reference, [False])[0])
        return p_value if has_volumes else min(1.0, p_value * len(scores))


def image_key(image: Tensor) -> str:
    """A hash of an image (C, *S), by which a detector recognises it."""
    return digest(image.cpu().numpy())[:16]


@torch.no_grad()
def image_residuals(
    trained: TrainedBundle, images: Tensor, z_sem: Tensor, settings: AnomalySettings
) -> tuple[Tensor, Tensor]:
    """The model's estimates (N, C, *S) of images, and the smoothed residuals (N, 1, *S)."""
    estimates = estimate_from_noised(
        images,
        trained.network,
        z_sem,
        trained.inferer,
        noise_levels=settings.noise_levels,
        draws=settings.draws,
        seed=settings.seed,
    )
    residuals = smoothed_residuals(images, estimates, settings.smoothing)
    if not bool(residuals.isfinite().all()):
        raise ConfigError(f"{trained.folder.name}: its estimates are not finite; train with a lower learning_rate")
    return estimates, residuals


def calibrated_model(trained: TrainedBundle) -> dict[str, str]:
    """Checksums of what anomaly maps depend on: the model, and its description with overrides, without solvers."""
    return {"model": trained.sha256, "config": json_digest(model_config(trained.config, roots=_ANOMALY_ROOTS))}
