"""One case, opened with a trained bundle: its images, codes and reconstructions, and the way back to its scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from monai_diffae.data.cases import safe_id
from monai_diffae.data.formats.dicom import split_series
from monai_diffae.data.scans import Scan, scan_suffix
from monai_diffae.data.slice_cases import slice_indices
from monai_diffae.diffusion.integration import StepCallback
from monai_diffae.errors import ConfigError
from monai_diffae.inferers import DiffusionAutoencoderInferer, ReconstructionMode, Reconstructor, encode_exactly
from monai_diffae.inferers.exact_encoding import images_at_once
from monai_diffae.transforms import write_native
from monai_diffae.transforms.case_space import CaseSpace

if TYPE_CHECKING:
    from monai_diffae.bundle.loading import TrainedBundle

ScanPath: TypeAlias = "str | os.PathLike[str]"
CaseImage: TypeAlias = "ScanPath | Sequence[ScanPath] | NDArray[Any] | Tensor | Scan"
CaseImages: TypeAlias = "CaseImage | Mapping[str, CaseImage]"
"""What :meth:`TrainedBundle.open` opens."""
Detail = Literal["own", "model"]
"""What an edited image shows beside the edit: the scan's own detail, or what the model decodes."""


@dataclass(frozen=True)
class OpenedCase:
    """One case, opened by :meth:`~monai_diffae.bundle.TrainedBundle.open`.

    N is 1; for a volume that a 2D bundle opened without ``slice``, it is the number of its slices in use.

    Attributes:
        trained: the bundle.
        space: the case's own space, and its images in the model's.
        id: the given id, or the file's name without its suffix, or ``""``.
    """

    trained: TrainedBundle = field(repr=False)
    space: CaseSpace = field(repr=False)
    id: str

    @property
    def scan(self) -> Scan:
        """The scan in its own space and units: the whole scan, or the slice that was opened."""
        return self.space.scan

    @property
    def slices(self) -> list[int | None]:
        """The index of the slice that each of the N images shows; ``[None]`` for a whole image."""
        return list(self.space.spaces)

    @cached_property
    def images(self) -> Tensor:
        """The model's images, float32 (N, C, *S) in its range, on its device."""
        return self.space.images("image").to(self.trained.device)

    @cached_property
    def z_sem(self) -> Tensor:
        """The semantic codes (N, D), the same to the bit as those that ``embed`` writes."""
        key = self.trained.encoder_key
        images = self.images if key == "image" else self.space.images(key).to(self.trained.device)
        return encode_exactly(images, self.trained.inferer, self.trained.network)

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
            max_evaluations: most network evaluations for refining the inversion of one image. They bound its time
                whatever the machine. None: no limit, 0: no refinement.
            callback: called after each step of the inversion, then of the decoding that checks it, with the steps done,
                all steps and the image; not during refinement, and not if the codes are known.

        Raises:
            ConfigError: an argument is out of range.
        """
        return self._round_trip(steps, max_evaluations, callback)[1]

    def decode(self, z_sem: Tensor, x_T: Tensor, *, steps: int | None = None) -> Tensor:
        """Decode images (N, C, *S); a single z_sem (1, D) or x_T (1, C, *S) serves all images.

        Args:
            z_sem: (N, D).
            x_T: (N, C, *S), noise or stochastic codes.
            steps: network evaluations; None: the bundle's. Codes of :meth:`invert` need the same number again.
        """
        count = max(len(z_sem), len(x_T))
        codes, noise = z_sem.expand(count, -1), x_T.expand(count, *x_T.shape[1:])
        return self._inferer(steps).decode(codes, noise, self.trained.network)

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

        Raises:
            ConfigError: an argument is out of range.
        """
        if mode == "x_T" and draws == 1:
            return self._round_trip(steps, max_evaluations)[0]
        names = None if self.slices == [None] else [f"slice {index}" for index in self.slices]
        reconstructor = Reconstructor(self._inferer(steps), mode, seed, draws, max_evaluations)
        return reconstructor.decode(self.images, self.trained.network, self.z_sem, names)[0]

    def edited(
        self,
        z_sem: Tensor,
        *,
        detail: Detail = "own",
        steps: int | None = None,
        max_evaluations: int | None = None,
    ) -> NDArray[np.float32]:
        """The scan with another z_sem, decoded with its own x_T: ``[C, *native S]`` in the scan's units.

        Args:
            z_sem: (N, D), such as a moved :attr:`z_sem`.
            detail: ``own`` adds the difference that the change of z_sem makes to the scan, which keeps its own detail;
                with the case's own z_sem, the result is the scan to the bit. ``model`` is the decoded image itself.
            steps: network evaluations for inversion and for decoding; None: the bundle's.
            max_evaluations: as for :meth:`invert`.

        Raises:
            ConfigError: an argument is out of range.
        """
        if detail not in get_args(Detail):
            raise ConfigError(f"detail: {detail!r} is not one of {', '.join(get_args(Detail))}")
        x_T = self.invert(steps=steps, max_evaluations=max_evaluations)
        images = self.decode(z_sem, x_T, steps=steps)
        if detail == "model":
            return self.back(images)
        return self.add_difference(images - self.decode(self.z_sem, x_T, steps=steps))

    def back(self, images: Tensor) -> NDArray[np.float32]:
        """Convert images of the model to the scan's space and units; see :meth:`CaseSpace.back`."""
        return self.space.back(images)

    def back_difference(self, differences: Tensor) -> NDArray[np.float32]:
        """Convert differences of two images to the scan's space and units; see :meth:`CaseSpace.back_difference`."""
        return self.space.back_difference(differences)

    def add_difference(self, differences: Tensor) -> NDArray[np.float32]:
        """Add differences of two images of the model to the scan; see :meth:`CaseSpace.add_difference`."""
        return self.space.add_difference(differences)

    def back_map(self, maps: Tensor) -> NDArray[np.float32]:
        """Convert maps to the scan's space, keeping their values; see :meth:`CaseSpace.back_map`."""
        return self.space.back_map(maps)

    def back_mask(self, masks: Tensor) -> NDArray[np.uint8]:
        """Convert masks to the scan's space; see :meth:`CaseSpace.back_mask`."""
        return self.space.back_mask(masks)

    def write(self, path: ScanPath, array: NDArray[Any], dtype: DTypeLike | None = None) -> Path:
        """Write an array ``[C, *native S]`` in the scan's space, with the scan's affine to the bit.

        Args:
            path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.png``. PNG takes uint8 only.
            array: as the methods ``back...`` return it.
            dtype: data type of the file; None: the array's. Values are rounded to integers.

        Raises:
            ConfigError: the array has another size than the scan, or the file format cannot hold it.
            MachineError: the disk is full, or the folder cannot be written.
        """
        return write_native(path, array, self.scan, array.dtype if dtype is None else dtype)

    @cached_property
    def _round_trips(self) -> dict[tuple[int | None, int | None], tuple[Tensor, Tensor]]:
        return {}

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


def open_case(
    trained: TrainedBundle, image: CaseImages, *, slice: int | None = None, id: str | None = None
) -> OpenedCase:
    """Open one case; see :meth:`~monai_diffae.bundle.TrainedBundle.open`."""
    images = dict(image) if isinstance(image, Mapping) else {"image": image}
    keys = trained.image_keys
    if set(images) != set(keys):
        given, needed = (", ".join(sorted(names)) or "none" for names in (images, keys))
        raise ConfigError(f"image: the bundle takes the images {needed}, but got {given}; give a mapping of these keys")
    item: dict[str, Any] = {**images, "id": _name(images["image"]) if id is None else id}
    if slice is not None:
        item["slice"] = _index(slice)
    config = trained.config

    def choose_slices(length: int) -> Sequence[int]:
        return slice_indices(length, tuple(config.get("slice_range", (0, 1))), config.get("slice_step", 1))

    space = CaseSpace(trained.preprocessing, {**item, "id": item["id"] or "image"}, choose_slices)
    return OpenedCase(trained, space, item["id"])


def _index(slice: Any) -> int:
    if isinstance(slice, bool) or not isinstance(slice, (int, np.integer)):
        raise ConfigError(f"slice is {slice!r}; it must be a whole number")
    return int(slice)


def _name(image: CaseImage) -> str:
    """A case's id from the name of its file; ``""`` for a folder, or an image in memory."""
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    if not isinstance(first, (str, os.PathLike)) or not os.fspath(first):
        return ""
    file, uid = split_series(first)
    return "" if uid is not None or file.is_dir() else safe_id(file.name[: len(file.name) - len(scan_suffix(file))])
