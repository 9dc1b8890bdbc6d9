import torch
from PIL import Image

from monai_diffae.pictures import draw_cells


def test_pictures_in_colour_with_an_empty_cell(tmp_path):
    draw_cells([[(torch.ones(3, 8, 8), "case 1"), (None, "1.2")]], tmp_path / "p.png", (-1.0, 1.0))
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > picture.height
