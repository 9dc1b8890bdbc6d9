"""A dataset whose items are the latents of a first stage, which encodes every image once."""

from collections.abc import Mapping
from typing import Any

import torch

from monai_diffae.data.cached import CachedCases
from monai_diffae.data.fingerprints import digest
from monai_diffae.data.streamed import Arrays
from monai_diffae.errors import ConfigError
from monai_diffae.networks import FirstStage


class LatentCases(CachedCases):
    """Like :class:`~monai_diffae.data.CachedCases`, but with a first stage, items hold latents instead of images.

    Each image is preprocessed and encoded once, in float32. Latents show the patients almost as images do.

    Args:
        first_stage: encodes the images; None: items hold images.
        kwargs: arguments of :class:`~monai_diffae.data.CachedCases`.
    """

    def __init__(self, *, first_stage: FirstStage | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first_stage = first_stage
        if first_stage is not None and self.random_transform is not None:
            raise ConfigError(
                "cache_latents: images that are encoded once cannot be augmented; set augmentation to null, or "
                "cache_latents to false"
            )

    def images(self) -> CachedCases:
        """The same cases with their images, which are read and preprocessed at each access."""
        if self.first_stage is None:
            return self
        plain = self.without_augmentation()
        plain._cache = None
        return plain

    @property
    def _task(self) -> str:
        return super()._task if self.first_stage is None else "reading, preprocessing and encoding"

    @property
    def _made_from(self) -> Mapping[str, Any]:
        if self.first_stage is None:
            return super()._made_from
        weights = self.first_stage.state_dict().values()  # the scale of its latents included
        return {**super()._made_from, "first_stage": digest(*(value.cpu().contiguous().numpy() for value in weights))}

    def _finished(self, arrays: Arrays) -> Arrays:
        """The latents (C', *S / f) of images (C, *S)."""
        if self.first_stage is None:
            return arrays
        device = self.first_stage.latent_std.device
        return {
            key: self.first_stage.encode(torch.from_numpy(image)[None].to(device))[0].cpu().numpy()
            for key, image in arrays.items()
        }
