"""Pictures of what the model does to a few fixed images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.utils.data import Dataset

from monai_diffae.data.atomic import write_atomic
from monai_diffae.engines.seeding import image_noise
from monai_diffae.inferers import DiffusionAutoencoderInferer


class Pictures:
    """Ignite handler for the evaluator: after a validation, draws a few images into ``pictures/``.

    The images are the same each time, so that the pictures of a training tell its story. The newest is also
    ``pictures/latest.png``. A subclass says what is drawn of them.

    Args:
        directory: the run's folder.
        dataset: where the first ``num_images`` come from.
        device: where to compute.
        num_images: columns of the picture; 0: no pictures.
        model_range: black and white.
        image_key: the image that the decoder draws.
    """

    def __init__(
        self,
        directory: str | Path,
        dataset: Dataset[Any],
        device: torch.device | str = "cpu",
        num_images: int = 8,
        model_range: tuple[float, float] = (-1.0, 1.0),
        image_key: str = "image",
    ) -> None:
        self.directory = Path(directory) / "pictures"
        self.dataset = dataset
        self.device = device
        self.num_images = num_images
        self.model_range = model_range
        self.image_key = image_key

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    @abstractmethod
    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Label -> images (B, C, *S) of these items of the dataset."""

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Draw one picture."""
        # spread over the set: neighbours may be slices of one volume
        size = len(self.dataset)  # type: ignore[arg-type]
        count = min(self.num_images, size)
        if count == 0:
            return
        rows = self.rows([self.dataset[i * size // count] for i in range(count)])
        # the trainer's step, which Validation sets: the evaluator's own counts its batches
        step = getattr(engine.state, "trainer_step", None)
        name = "latest" if step is None else f"step_{step:07d}"
        path = write_atomic(self.directory / f"{name}.png", lambda p: draw_mosaic(rows, p, self.model_range))
        if step is not None:
            write_atomic(self.directory / "latest.png", lambda p: p.write_bytes(path.read_bytes()))

    def _stack(self, items: Sequence[Mapping[str, Any]], key: str) -> Tensor:
        return torch.stack([item[key] for item in items]).to(self.device)


class ReconstructionPictures(Pictures):
    """The pictures of a diffusion autoencoder: each image, decoded from z_sem alone, and with its own x_T.

    Args:
        network: the averaged network.
        inferer: its number of steps is what a picture costs.
        encoder_key: the image that the encoder sees; None: the one that is drawn.
        seed: of the noise of the z_sem-only row, which is the same each time.
        kwargs: everything that :class:`Pictures` takes.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        inferer: DiffusionAutoencoderInferer,
        encoder_key: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.inferer = inferer
        self.encoder_key = encoder_key or self.image_key
        self.seed = seed

    def rows(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Label -> images (B, C, *S)."""
        images = self._stack(items, self.image_key)
        shape = self.inferer.x_T_shape(images.shape[1:])
        noise = image_noise(shape, self.seed, [int(item["index"]) for item in items]).to(self.device)
        z_sem = self.inferer.encode(self._stack(items, self.encoder_key), self.network)
        return {
            "input": images,
            "z_sem only": self.inferer.decode(z_sem, noise, self.network),
            "inverted x_T": self.inferer.decode(z_sem, self.inferer.invert(images, self.network, z_sem), self.network),
        }


def draw_mosaic(
    rows: Mapping[str, Tensor],
    path: str | Path,
    model_range: tuple[float, float] = (-1.0, 1.0),
    columns: Sequence[str] = (),
) -> None:
    """A PNG with one labelled row of images for each entry.

    Args:
        rows: label -> images (B, C, H, W), or volumes (B, C, R, A, S), of which the three middle planes are shown.
            Three channels are shown in colour, of any other number the first.
        path: where to.
        model_range: black and white.
        columns: what is written above the images.
    """
    low, high = model_range
    strips = [_strip((images.detach().float().cpu() - low) / (high - low)) for images in rows.values()]
    height, width = strips[0].height, max(strip.width for strip in strips)
    enlarged = -(-1000 // width)  # whole pixels, so that what the model made is seen as it is
    font = ImageFont.load_default(size=16)
    margin = 10 + max(int(font.getlength(label)) for label in rows) + 10
    heading = 26 if columns else 0
    mosaic = Image.new("RGB", (margin + width * enlarged, heading + len(strips) * height * enlarged), "white")
    draw = ImageDraw.Draw(mosaic)
    for i, text in enumerate(columns):
        draw.text((margin + (i + 0.5) * width * enlarged / len(columns), 13), text, "black", font, anchor="mm")
    for i, (label, strip) in enumerate(zip(rows, strips, strict=True)):
        top = heading + i * height * enlarged
        mosaic.paste(strip.resize((strip.width * enlarged, height * enlarged), Image.Resampling.NEAREST), (margin, top))
        draw.text((10, top + height * enlarged // 2), label, "black", font, anchor="lm")
    mosaic.save(path, format="PNG")


def in_colours(
    values: Tensor, limit: float, palette: str = "RdBu_r", model_range: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """Maps (B, C, *S) as colours (B, 3, *S) for :func:`draw_mosaic`: blue below 0, red above, by default.

    Args:
        values: differences, of which the mean over channels is shown; or values from 0 on with another palette.
        limit: the value of the last colour.
        palette: a colour map of matplotlib; one whose name ends in ``_r`` runs from ``-limit``, others from 0.
        model_range: of the mosaic.
    """
    import matplotlib

    shown = values.detach().float().cpu().mean(dim=1) / max(limit, 1e-12)
    shown = (shown + 1) / 2 if palette.endswith("_r") else shown
    rgb = torch.from_numpy(matplotlib.colormaps[palette](shown.clamp(0, 1).numpy())[..., :3]).movedim(-1, 1)
    low, high = model_range
    return rgb.float() * (high - low) + low


def three_planes(volumes: Tensor) -> Tensor:
    """The middle axial, coronal and sagittal plane of volumes in RAS order, side by side as a radiologist sees them.

    They are laid out as :func:`~monai_diffae.data.slices.slice_volume` does: superior or anterior above, the patient's
    right on the left.

    Args:
        volumes: (B, C, R, A, S).

    Returns:
        (B, C, H, W); what a smaller plane leaves free is white.

    Example:
        >>> three_planes(torch.zeros(2, 1, 8, 10, 6)).shape
        torch.Size([2, 1, 10, 26])
    """
    right, anterior, superior = (size // 2 for size in volumes.shape[2:])
    middle = (volumes[..., superior], volumes[..., anterior, :], volumes[:, :, right])
    planes = [plane.flip(2, 3).transpose(2, 3) for plane in middle]
    height = max(plane.shape[2] for plane in planes)
    spare = [height - plane.shape[2] for plane in planes]
    return torch.cat(
        [
            nn.functional.pad(plane, (0, 0, n // 2, n - n // 2), value=float("inf"))
            for plane, n in zip(planes, spare, strict=True)
        ],
        dim=3,
    )


def _strip(images: Tensor) -> Image.Image:
    images = three_planes(images) if images.ndim == 5 else images
    images = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    images = nn.functional.pad(images, (1, 1, 1, 1), value=1.0).clamp(0, 1)
    strip = torch.cat(list(images), dim=-1).permute(1, 2, 0)
    return Image.fromarray((strip * 255).round().to(torch.uint8).numpy())
