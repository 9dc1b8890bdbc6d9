"""A dataset whose items are the latents of a first stage, which encodes every image once."""

import math
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_diffae.data.atomic import ProcessLock, write_atomic
from monai_diffae.data.cached import CachedCases
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.streamed import Arrays
from monai_diffae.errors import ConfigError, ScanError
from monai_diffae.networks import FirstStage

_SAVED = re.compile(r"[0-9a-f]{64}\.f32|\.tmp-.*\.f32|\.lock")


class LatentCases(CachedCases):
    """Like :class:`~monai_diffae.data.CachedCases`, but with a first stage, items hold latents instead of images.

    Each image is preprocessed and encoded once, in float32. Its latents are saved in ``cache_dir/latents``, under a
    name that depends on the image and the weights of the first stage, so that an interrupted training resumes without
    encoding again. :meth:`remove_latents` deletes them: latents show the patients almost as images do.

    Args:
        first_stage: encodes the images; None: items hold images.
        kwargs: arguments of :class:`~monai_diffae.data.CachedCases`; ``cache_dir`` is needed.
    """

    def __init__(self, *, first_stage: FirstStage | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first_stage = first_stage
        if first_stage is not None and self.random_transform is not None:
            raise ConfigError(
                "cache_latents: images that are encoded once cannot be augmented; set augmentation to null, or "
                "cache_latents to false"
            )
        self._folder = Path(kwargs["cache_dir"]) / "latents"

    def images(self) -> CachedCases:
        """The same cases with their images, which are read and preprocessed at each access."""
        if self.first_stage is None:
            return self
        plain = self.without_augmentation()
        plain._stores = {}  # no cache
        return plain

    def remove_latents(self) -> None:
        """Delete the saved latents, and no other file of their folder; this dataset keeps its own."""
        for file in self._folder.glob("*"):
            if _SAVED.fullmatch(file.name):
                file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds files of the user, or does not exist
            self._folder.rmdir()

    @property
    def _task(self) -> str:
        return super()._task if self.first_stage is None else "reading, preprocessing and encoding"

    def _keep(self, arrays: Arrays) -> ScanError | None:
        if self.first_stage is not None:
            arrays = {key: self._encoded(image, self.first_stage) for key, image in arrays.items()}
        return super()._keep(arrays)

    def _encoded(self, image: NDArray[np.float32], first_stage: FirstStage) -> NDArray[np.float32]:
        """The latents (C', *S / f) of an image (C, *S), read if they are saved."""
        name = digest(self._weights, str(image.shape), image)
        file = self._folder / f"{name}.f32"
        shape = first_stage.latent_shape(image.shape)
        with ProcessLock(self._folder / ".lock"):  # others wait, then read this file and encode another one
            with suppress(FileNotFoundError):  # another training with this folder may delete it at any time
                latents = np.fromfile(file, np.float32)
                if latents.size == math.prod(shape):
                    return latents.reshape(shape)
            encoded = first_stage.encode(torch.from_numpy(image)[None].to(first_stage.latent_std.device))
            latents = encoded[0].cpu().numpy()
            write_atomic(file, lambda path: path.write_bytes(latents.tobytes()))
        return latents

    @cached_property
    def _weights(self) -> str:
        """A hash of the first stage's weights, the scale of its latents included."""
        weights = self.first_stage.state_dict().values() if self.first_stage is not None else ()
        return digest(*(value.cpu().contiguous().numpy() for value in weights))
