"""Which value a training uses: a given one, that of an overlay, a remembered one, or the bundle's."""

import json
import shutil
from pathlib import Path

import pytest

from monai_diffae.apps.training.training_run import open_training_run
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.errors import ConfigError


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a checkpoint, and settings that its training remembers."""
    directory = init_bundle(tmp_path / "bundle", "diffae_2d")
    (directory / "models" / "checkpoint.pt").touch()
    remember(directory, {"max_epochs": 3, "image_size": [16, 16], "network_def#unet#dropout": 0.2})
    return directory


def remember(directory: Path, settings: dict) -> None:
    (directory / "models" / "training.json").write_text(json.dumps(settings))


def opened(bundle: Path, overlays=(), **values):
    file = bundle / "configs" / "train.json"
    return open_training_run(file, overlays, {"bundle_root": str(bundle), **values})


def test_remembered_settings_are_used_where_nothing_else_is_given(bundle):
    config = opened(bundle).workflow.parser
    assert (config.get("max_epochs"), config.get("image_size")) == (3, [16, 16])
    assert config.get("network_def#unet#dropout") == 0.2
    assert config.get("learning_rate") == 0.001


def test_a_given_value_is_used_even_if_it_is_the_bundles_own(bundle):
    assert opened(bundle, max_epochs=100).workflow.parser.get("max_epochs") == 100


def test_an_overlay_comes_between(bundle, tmp_path):
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"max_epochs": 5, "learning_rate": 0.5}))
    config = opened(bundle, [overlay], learning_rate=0.25).workflow.parser
    assert [config.get(key) for key in ("max_epochs", "learning_rate", "image_size")] == [5, 0.25, [16, 16]]


def test_an_overlay_that_extends_a_list_can_be_given_again(bundle):
    overlay = bundle / "configs" / "overlays" / "encoder_view.json"
    shutil.move(bundle / "models" / "checkpoint.pt", bundle / "models" / "away")
    first = opened(bundle, [overlay]).workflow.parser.get("preprocessing#transforms")
    shutil.move(bundle / "models" / "away", bundle / "models" / "checkpoint.pt")
    remember(bundle, {"preprocessing#transforms": first, "max_epochs": 3})
    for overlays in ([], [overlay]):
        config = opened(bundle, overlays).workflow.parser
        assert config.get("preprocessing#transforms") == first
        assert config.get("max_epochs") == 3


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_new_training_remembers_nothing(bundle, overwrite):
    if not overwrite:
        (bundle / "models" / "checkpoint.pt").unlink()
    assert opened(bundle, overwrite=overwrite).workflow.parser.get("max_epochs") == 100


def test_the_settings_are_those_of_the_output_folder(bundle, tmp_path):
    out = tmp_path / "out"
    run = opened(bundle, output_dir=str(out))
    assert run.folder == out
    assert run.workflow.parser.get("max_epochs") == 100
    shutil.copytree(bundle / "models", out / "models")
    assert opened(bundle, output_dir=str(out)).workflow.parser.get("max_epochs") == 3
    assert opened(bundle).folder == bundle


def test_settings_that_do_not_fit_the_bundle_are_one_line(bundle):
    remember(bundle, {"augmentation#transforms#99#prob": 1})
    with pytest.raises(ConfigError, match=r"^training\.json: its settings do not fit configs/train\.json; use the "):
        opened(bundle)


def test_a_warm_start_uses_the_settings_of_the_trained_bundle_until_it_has_its_own(bundle, tiny_bundle):
    start = str(tiny_bundle.directory)
    assert opened(bundle, start_from=start).workflow.parser.get("max_epochs") == 3  # resumed
    (bundle / "models" / "checkpoint.pt").unlink()
    config = opened(bundle, start_from=start).workflow.parser
    assert (config.get("max_epochs"), config.get("z_channels")) == (1, 8)
    assert config.get("network_def#unet#time_embed_channels") == 16
    assert opened(bundle, start_from=start, z_channels=9).workflow.parser.get("z_channels") == 9  # refused later
