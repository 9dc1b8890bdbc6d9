import torch
from PIL import Image

from monai_diffae.pictures import draw_cells


def test_pictures_in_colour_with_an_empty_cell(tmp_path):
    draw_cells([[(torch.ones(3, 8, 8), "case 1"), (None, "1.2")]], tmp_path / "p.png", (-1.0, 1.0))
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > picture.height


def test_captions_may_have_several_lines_and_dollars(tmp_path):
    image = torch.ones(1, 8, 8)
    for name, text in (("one", "1.2"), ("three", "1.2\ncost $5\nsum $6 _x")):
        draw_cells([[(image, text), (image, "")]], tmp_path / f"{name}.png", (-1.0, 1.0))
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "three.png") as three:
        assert three.height > one.height
