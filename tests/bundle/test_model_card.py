from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from monai_diffae.bundle.folders import complete_bundle, init_bundle
from monai_diffae.bundle.model_card import NOTE, mark_replaced_weights


def figures(bundle: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    return content


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return init_bundle(tmp_path / "shipped", "hippocampus")


def test_a_card_is_marked_once_and_its_figures_leave_the_metadata(shipped: Path) -> None:
    card = shipped / "docs" / "README.md"
    heading, _, rest = card.read_text().partition("\n")
    assert figures(shipped)
    for _ in range(2):
        mark_replaced_weights(shipped)
        assert card.read_text() == f"{heading}\n\n{NOTE}\n{rest}"
        assert figures(shipped) == {}


def test_a_bundle_without_figures_is_not_changed(tmp_path: Path) -> None:
    bundle = init_bundle(tmp_path / "bundle")
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    mark_replaced_weights(bundle)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["configs/metadata.json", "docs/README.md"])
def test_a_file_that_cannot_be_read_is_a_warning(shipped: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    (shipped / file).write_bytes(b"\xff{")
    with caplog.at_level(logging.WARNING, logger="monai_diffae"):
        mark_replaced_weights(shipped)
    assert "the model card still describes the earlier weights (" in caplog.text


def test_the_card_of_a_copy_belongs_to_the_same_weights_only(shipped: Path, tmp_path: Path) -> None:
    weights = torch.load(shipped / "models" / "model.pt", weights_only=True)
    for name, factor in (("same", 1), ("trained", 2)):
        (tmp_path / name / "models").mkdir(parents=True)
        changed = {key: value * factor for key, value in weights.items()}
        torch.save(changed, tmp_path / name / "models" / "model.pt")
        if factor == 1:
            (tmp_path / name / "models" / "model.pt").write_bytes((shipped / "models" / "model.pt").read_bytes())
        complete_bundle(shipped, tmp_path / name)
    assert figures(tmp_path / "same") == figures(shipped) != {}
    assert figures(tmp_path / "trained") == {}
    assert NOTE in (tmp_path / "trained" / "docs" / "README.md").read_text()
    assert NOTE not in (shipped / "docs" / "README.md").read_text()
