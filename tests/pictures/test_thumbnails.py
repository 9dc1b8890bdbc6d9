"""Thumbnails are small PNGs."""

import io

import numpy as np
import torch
from PIL import Image

from monai_diffae.pictures import thumbnail


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(thumbnail(image, (-1.0, 1.0)))))


def test_a_thumbnail_spans_black_to_white():
    image = torch.linspace(-1, 1, 16).reshape(1, 4, 4)
    assert (pixels(image).min(), pixels(image).max()) == (0, 255)


def test_a_large_picture_becomes_small_and_keeps_its_shape():
    assert pixels(torch.zeros(1, 100, 200)).shape == (32, 64)


def test_colour_stays_colour():
    assert pixels(torch.zeros(3, 8, 8)).shape == (8, 8, 3)


def test_a_volume_is_shown_by_its_axial_middle_plane_as_a_radiologist_sees_it():
    volume = torch.full((1, 6, 10, 20), -1.0)
    volume[0, 5, 9, 10] = 1  # right, anterior
    assert pixels(volume).shape == (10, 6)
    assert np.argwhere(pixels(volume) == 255).tolist() == [[0, 0]]
