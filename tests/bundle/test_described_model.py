"""``inference.json`` of a trained bundle describes the trained model, whoever wrote the weights."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events

from monai_diffae.bundle import export_bundle, init_bundle
from monai_diffae.bundle.described_model import describe_model
from monai_diffae.errors import one_line


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def inference(bundle: Path) -> Path:
    return bundle / "configs" / "inference.json"


def assert_describes_the_model(bundle: Path, shipped: str = "diffae_2d") -> None:
    described, model = read(inference(bundle)), read(bundle / "models" / "config.json")
    assert {key: described[key] for key in model if key not in ("_meta_", "imports")} == {
        key: value for key, value in model.items() if key not in ("_meta_", "imports")
    }
    assert set(model["imports"]) <= set(described["imports"])
    assert "_meta_" not in described
    before = read(Path(__file__).parents[2] / "bundles" / shipped / "configs" / "inference.json")
    assert {key: described[key] for key in before.keys() - model.keys()} == {
        key: before[key] for key in before.keys() - model.keys()
    }


def test_training_describes_the_model_it_trained(tiny_bundle: Any) -> None:
    assert read(inference(tiny_bundle.directory))["image_size"] == [16, 16]
    assert_describes_the_model(tiny_bundle.directory)


def test_an_export_is_described_and_the_source_untouched(tiny_bundle: Any, tmp_path: Path) -> None:
    source = init_bundle(tmp_path / "untrained")
    before = inference(source).read_bytes()
    export_bundle(source, tiny_bundle.directory, tmp_path / "exported")
    assert_describes_the_model(tmp_path / "exported")
    assert inference(source).read_bytes() == before


def test_training_elsewhere_describes_the_result_only(make_workflow: Callable[..., Any], tmp_path: Path) -> None:
    bundle = init_bundle(tmp_path / "bundle")
    before = inference(bundle).read_bytes()
    make_workflow({"bundle_root": str(bundle), "image_size": [32, 16]}).run()
    assert_describes_the_model(tmp_path / "out")
    assert read(inference(tmp_path / "out"))["image_size"] == [32, 16]
    assert inference(bundle).read_bytes() == before


def test_it_is_described_together_with_the_first_weights(make_workflow: Callable[..., Any], tmp_path: Path) -> None:
    bundle = init_bundle(tmp_path / "bundle")
    folders = {"bundle_root": str(bundle), "output_dir": str(bundle)}
    trainer = make_workflow(folders).parser.get_parsed_content("train#trainer")
    before = inference(bundle).read_bytes()

    def stop(engine: Any) -> None:
        assert inference(bundle).read_bytes() == before
        raise KeyboardInterrupt

    with trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), stop), pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert inference(bundle).read_bytes() == before
    make_workflow(folders).run()
    assert_describes_the_model(bundle)


def test_a_refused_training_changes_nothing(
    tiny_bundle: Any, make_workflow: Callable[..., Any], tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    before = inference(bundle).read_bytes()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        make_workflow({"bundle_root": str(bundle), "output_dir": str(bundle), "z_channels": 4})
    assert "other values of z_channels" in one_line(caught.value)
    assert inference(bundle).read_bytes() == before


def test_keys_of_the_user_stay_and_nothing_is_written_twice(tiny_bundle: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    file = inference(bundle)
    file.write_text(json.dumps(read(file) | {"limit": 3, "mine": "text", "z_channels": 5}))
    describe_model(bundle)
    assert read(file)["limit"] == 3
    assert read(file)["mine"] == "text"
    assert read(file)["z_channels"] == 8
    first = file.stat().st_ino
    describe_model(bundle)
    assert file.stat().st_ino == first


def test_an_unreadable_file_is_left_alone_with_a_warning(
    tiny_bundle: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    inference(bundle).write_text("{")
    with caplog.at_level(logging.WARNING, "monai_diffae"):
        describe_model(bundle)
    assert inference(bundle).read_text() == "{"
    assert "inference.json: cannot be read" in caplog.text
