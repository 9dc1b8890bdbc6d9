"""Pictures in labelled rows: images, and anomaly maps with the outlines of their masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from monai_diffae.pictures.pixels import PLANES, in_colours, shown, side_by_side, three_planes
from monai_diffae.policies import Range

_OUTLINE = (255, 64, 26)  # red, green, blue, of a mask


def draw_mosaic(rows: Mapping[str, Tensor], path: str | Path, columns: Sequence[str] = (), footing: str = "") -> None:
    """Draw one labelled row of pictures for each entry.

    Args:
        rows: for each label, pictures (B, 3 P, H, W), or of volumes (B, 3 P, R, A, S), which are shown as their three
            middle planes. A label may have several lines. A row of larger images is shown in the size of the others.
        path: the PNG.
        columns: headings of the images.
        footing: a line below them; for volumes, it names the planes.
    """
    footing = footing or (PLANES if any(images.ndim == 5 for images in rows.values()) else "")
    flat = [three_planes(images) if images.ndim == 5 else images for images in rows.values()]
    strips = [_strip(images) for images in flat]
    height = min(strip.height for strip in strips)
    width = max(strip.width for strip in strips if strip.height == height)
    one_channel = max(len(images) * (images.shape[3] + 2) for images in flat)
    enlarged = -(-1000 // one_channel)  # a whole number, so that the pixels of the model are shown as they are
    font = ImageFont.load_default(size=16)
    margin = 10 + max(int(font.getlength(line)) for label in rows for line in label.split("\n")) + 10
    heading, bottom = 26 if columns else 0, 26 if footing else 0
    size = (margin + width * enlarged, heading + len(strips) * height * enlarged + bottom)
    mosaic = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(mosaic)
    draw.text((margin, size[1] - 13), footing, "black", ImageFont.load_default(size=13), anchor="lm")
    for i, text in enumerate(columns):
        draw.text((margin + (i + 0.5) * width * enlarged / len(columns), 13), text, "black", font, anchor="mm")
    for i, (label, strip) in enumerate(zip(rows, strips, strict=True)):
        top = heading + i * height * enlarged
        factor = enlarged * min(height / strip.height, width / strip.width)  # no strip leaves the picture
        size = (round(strip.width * factor), round(strip.height * factor))
        how = Image.Resampling.NEAREST if strip.height == height else Image.Resampling.BICUBIC
        mosaic.paste(strip.resize(size, how), (margin, top))
        draw.text((10, top + height * enlarged // 2), label, "black", font, anchor="lm")
    mosaic.save(path, format="PNG")


def _strip(images: Tensor) -> Image.Image:
    pixels = np.pad(side_by_side(images), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    return Image.fromarray(np.concatenate(list(pixels), axis=1))


def draw_anomalies(
    cases: Sequence[Mapping[str, Tensor]],
    captions: Sequence[str],
    path: Path,
    model_range: Range = (-1.0, 1.0),
    is_colour: bool = False,
) -> None:
    """Draw one column per case: the input, the reconstruction, the map in colours, the input with the mask's outline.

    Args:
        cases: ``image`` and ``reconstruction`` (C, *S), ``map`` (1, *S) and ``mask`` (1, *S) of each case. Volumes are
            shown in three planes through the map's highest value.
        captions: a heading for each case.
        path: the PNG.
        model_range: black and white.
        is_colour: whether channels are colours.
    """
    limit = max(float(case["map"].max()) for case in cases)
    rows: dict[str, list[Tensor]] = {"input": [], "expected": [], "anomaly map": [], "mask": []}
    for case in cases:
        flat = _in_planes(case)
        image = shown(flat["image"], model_range, is_colour)
        rows["input"].append(image)
        rows["expected"].append(shown(flat["reconstruction"], model_range, is_colour))
        rows["anomaly map"].append(in_colours(flat["map"].expand(-1, image.shape[1] // 3, -1, -1), limit, "inferno"))
        rows["mask"].append(_outlined(image, flat["mask"]))
    draw_mosaic({name: torch.cat(images) for name, images in rows.items()}, path, captions)


def _in_planes(case: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors (1, C, H, W) of a case."""
    tensors = {name: tensor.as_subclass(Tensor)[None].float().cpu() for name, tensor in case.items()}
    if tensors["map"].ndim == 4:
        return tensors
    peak = torch.unravel_index(tensors["map"].argmax(), tensors["map"].shape)[2:]
    planes = {name: three_planes(tensor, [int(i) for i in peak]) for name, tensor in tensors.items()}
    return {name: plane.nan_to_num(posinf=0.0) if name in ("map", "mask") else plane for name, plane in planes.items()}


def _outlined(images: Tensor, masks: Tensor) -> Tensor:
    """Pictures (1, 3 P, H, W) with the pixels at the inner border of the mask in colour."""
    eroded = -nn.functional.max_pool2d(-nn.functional.pad(masks, (1, 1, 1, 1)), 3, stride=1)
    border = (masks > 0) & (eroded <= 0)
    colour = torch.tensor(_OUTLINE, dtype=torch.uint8).repeat(images.shape[1] // 3)[:, None, None]
    return torch.where(border, colour, images)
