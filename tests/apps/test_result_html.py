"""What notebooks show of a result."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

import monai_diffae as mdae
from monai_diffae.apps.command import command
from monai_diffae.apps.result_html import result_html
from monai_diffae.apps.results import FolderResult
from monai_diffae.errors import ConfigError


def test_lines_are_escaped_and_pictures_are_inside(tmp_path: Path) -> None:
    folder = tmp_path / "<b>&"
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "mosaic.png")
    html = FolderResult(folder)._repr_html_()
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html
    content = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert content is not None
    assert base64.b64decode(content[1]) == (folder / "mosaic.png").read_bytes()


def test_pictures_can_be_linked(tmp_path: Path) -> None:
    Image.new("L", (3, 2)).save(tmp_path / "mosaic.png")
    assert 'src="there/mosaic.png"' in result_html(FolderResult(tmp_path), lambda path: f"there/{path.name}")


def test_the_embedding_shows_its_first_rows(labelled) -> None:
    from monai_diffae.apps.embedding.embed import EmbedResult

    html = EmbedResult(labelled.embeddings)._repr_html_()
    assert "<table" in html
    assert "z_000" in html


def test_a_result_is_a_path_for_the_next_command(tmp_path: Path) -> None:
    @command
    def use(folder: Path, other: Path | None = None) -> list[Path | None]:
        return [folder, other]

    assert use(FolderResult(tmp_path), other=FolderResult(tmp_path)) == [tmp_path, tmp_path]


def test_a_result_without_files_is_no_path(labelled) -> None:
    scores = mdae.probe(labelled.embeddings, targets=["wide"], evaluation="cv")
    with pytest.raises(ConfigError, match="wrote no files"):
        mdae.neighbors(scores, "out")
