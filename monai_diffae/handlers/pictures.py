"""Pictures of what the model makes of a few fixed images."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import Dataset

from monai_diffae.data.atomic import write_atomic
from monai_diffae.data.cases import spread
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.networks import FirstStage
from monai_diffae.pictures.mosaic import draw_mosaic
from monai_diffae.pictures.pixels import shown
from monai_diffae.policies import Colour, Range


@dataclass(eq=False, repr=False, kw_only=True)
class Pictures:
    """Ignite handler for the evaluator: after a validation, draw ``num_images`` images in ``model_range`` as PNG.

    They are spread over the dataset, and the same each time, so that pictures can be compared. The newest picture is
    also ``pictures/latest.png``. Subclasses define the rows.
    """

    directory: str | Path
    dataset: Dataset[Any]
    device: torch.device | str = "cpu"
    num_images: int = 8
    model_range: Range = (-1.0, 1.0)
    colour: Colour = "refuse"  # rgb: channels are colours, and are not drawn side by side

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    @abstractmethod
    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Images (B, C, *S) by their labels, made from these items of the dataset."""

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Draw one picture."""
        # spread over the set, as neighbors may be slices of one volume
        positions = spread(len(self.dataset), self.num_images)  # type: ignore[arg-type]
        if not positions:
            return
        rows = {
            label: shown(images, self.model_range, self.colour == "rgb")
            for label, images in self.rows([self.dataset[position] for position in positions]).items()
        }
        # the trainer's step, which Validation sets; the evaluator's own step counts its batches
        step = getattr(engine.state, "trainer_step", None)
        name = "latest" if step is None else f"step_{step:07d}"
        folder = Path(self.directory) / "pictures"
        path = write_atomic(folder / f"{name}.png", lambda p: draw_mosaic(rows, p))
        if step is not None:
            write_atomic(folder / "latest.png", lambda p: p.write_bytes(path.read_bytes()))

    def _stack(self, items: Sequence[Mapping[str, Any]], key: str) -> Tensor:
        return torch.stack([item[key] for item in items]).to(self.device)


@dataclass(eq=False, repr=False, kw_only=True)
class ReconstructionPictures(Pictures):
    """Draws images, decoded from z_sem alone (with the same noise) and with their x_T; else a :class:`Pictures`."""

    network: nn.Module
    inferer: DiffusionAutoencoderInferer
    encoder_key: str | None = None

    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Images (B, C, *S) by their labels."""
        images = self._stack(items, "image")
        shape = self.inferer.x_T_shape(images.shape[1:])
        noise = image_noise(shape, 0, [int(item["index"]) for item in items]).to(self.device)
        z_sem = self.inferer.encode(self._stack(items, self.encoder_key or "image"), self.network)
        return {
            "input": images,
            "z_sem only": self.inferer.decode(z_sem, self.network, noise),
            "inverted x_T": self.inferer.decode(z_sem, self.network, self.inferer.invert(images, self.network, z_sem)),
        }


@dataclass(eq=False, repr=False, kw_only=True)
class FirstStagePictures(Pictures):
    """Draws images and their reconstructions by the averaged network; arguments as of :class:`Pictures`."""

    network: FirstStage

    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Images (B, C, *S) by their labels."""
        images = self._stack(items, "image")
        return {"input": images, "reconstruction": self.network.decode(self.network.encode(images))}
