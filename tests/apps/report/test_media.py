"""Pictures are linked from the page's folder, or embedded at a scale."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from monai_diffae.apps.report.media import Media


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    folder = tmp_path / "a b#c"
    folder.mkdir()
    Image.new("RGB", (40, 20), "red").save(folder / "é.png")
    return folder / "é.png"


def test_a_link_leads_from_the_page_to_the_picture(picture: Path, tmp_path: Path) -> None:
    address = Media(tmp_path).address(picture)
    assert (tmp_path / unquote(address)).is_file()
    assert "#" not in address


@pytest.mark.parametrize(("scale", "size"), [(1.0, (40, 20)), (0.5, (20, 10)), (0.01, (1, 1))])
def test_an_embedded_picture_has_the_scaled_size(picture: Path, scale: float, size: tuple[int, int]) -> None:
    address = Media(picture.parent, is_embedded=True, scale=scale).address(picture)
    kind, content = address.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.size == size
    assert kind == f"data:image/{image.format.lower()}"


def test_the_text_of_a_picture_is_escaped(picture: Path, tmp_path: Path) -> None:
    html = Media(tmp_path).picture(picture, 'a "quoted" <name>')
    assert 'alt="a &#34;quoted&#34; &lt;name&gt;"' in html
    assert 'width="40" height="20"' in html
