from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from monai_diffae.bundle import run_overrides
from monai_diffae.errors import ConfigError, one_line

SHIPPED = {
    "columns": {}, "steps": 20, "image_size": [64, 64],
    "network_def": {"_target_": "N", "size": "@image_size"},
    "preprocessing": {"transforms": [{"_target_": "Read"}, {"_target_": "Resized", "spatial_size": 64}]},
    "inferer": {"_target_": "I", "steps": "@steps", "invert_steps": None},
    "cohort": {"_target_": "C", "columns": "@columns", "step": 2},
}  # fmt: skip
TRAINED = {**SHIPPED, "columns": {"image": "file"}, "image_size": [32, 32], "steps": 10}


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """The overrides of a run: of a bundle with both files, and of what runs."""
    for folder, name, content in (("configs", "inference", SHIPPED), ("models", "config", TRAINED)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.json").write_text(json.dumps(content))

    def find(running: dict[str, Any], overrides: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        imports = ["$import monai_diffae.bundle as bundle"]
        parser = ConfigParser({"imports": imports, **json.loads(json.dumps(running))})
        parser.update(changes)
        parser["given"], parser["root"] = overrides or {}, str(tmp_path)
        parser["result"] = "$bundle.run_overrides(@root, @given)"
        content: dict[str, Any] = parser.get_parsed_content("result")
        return content

    return find


@pytest.mark.parametrize("running", [SHIPPED, TRAINED], ids=["alone", "with the trained model's config"])
def test_values_that_a_run_changes_become_overrides(found: Any, running: dict[str, Any]) -> None:
    assert found(running) == {}
    assert found(running, **{"inferer#invert_steps": 5}) == {"inferer#invert_steps": 5}
    assert found(running, **{"preprocessing#transforms#1#spatial_size": 48, "image_size": [48, 48]}) == {
        "preprocessing#transforms#1#spatial_size": 48, "image_size": [48, 48]
    }  # fmt: skip
    assert found(running, **{"cohort#step": 1}, columns={"image": "scan"}) == {"cohort#step": 1}


def test_values_that_a_run_adds_or_leaves_out(found: Any) -> None:
    assert found(TRAINED, **{"inferer#batch_size": 7}) == {"inferer#batch_size": 7}
    assert found(TRAINED, inferer={"_target_": "I", "steps": 3}) == {"inferer": {"_target_": "I", "steps": 3}}
    assert found({key: value for key, value in TRAINED.items() if key != "cohort"}) == {}


def test_a_file_that_cannot_be_read_is_one_line(found: Any, tmp_path: Path) -> None:
    (tmp_path / "models" / "config.json").write_text("{")
    with pytest.raises(RuntimeError) as caught:
        found(TRAINED)
    assert one_line(caught.value) == "config.json: cannot be read; copy the bundle again"


def test_overrides_that_are_named_take_precedence(found: Any) -> None:
    assert found(TRAINED, {"steps": 4, "device": "cpu"}, steps=5) == {"steps": 4, "device": "cpu"}


def test_values_of_the_trained_model_are_used_without_its_config_and_a_warning_says_so(
    found: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        assert found(TRAINED) == {}
        assert not caplog.records
        assert found(SHIPPED) == {}
    (record,) = caplog.records
    assert "the trained model's values of image_size, steps, from models/config.json" in record.getMessage()


def test_without_files_to_compare_with_there_are_no_changes(found: Any, tmp_path: Path) -> None:
    for file in tmp_path.rglob("*.json"):
        file.unlink()
    assert found(TRAINED, {"a": 1}, steps=5) == {"a": 1}


def test_it_is_for_expressions_of_a_config(found: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only be called from an expression"):
        run_overrides(tmp_path, {})
