"""R20: what computes only is built; anything else that a model or a configuration names needs the user's trust."""

import importlib
import json
import sys

import pytest
from complaints import complaint
from tiny_bundles import rewrite

from monai_diffae import train
from monai_diffae.bundle import init_bundle, load_bundle, trusting
from monai_diffae.bundle.code import TRUST, check_code
from monai_diffae.bundle.description import set_value
from monai_diffae.bundle.loading import load_untrained
from monai_diffae.errors import CohortError

pytestmark = pytest.mark.goal(id="R20")


@pytest.fixture
def untrusted(bundle):
    """A bundle whose preprocessing has a transform that is not known to compute only."""
    preprocessing = load_bundle(bundle, "cpu").config["preprocessing"]
    transforms = [*preprocessing["transforms"], {"_target_": "monai.transforms.Identityd", "keys": "image"}]
    rewrite(bundle, lambda tensors: tensors, preprocessing=preprocessing | {"transforms": transforms})
    return bundle


def edit(bundle, id, value):
    path = bundle / "configs" / "train.json"
    config = json.loads(path.read_text())
    set_value(config, id, value)
    path.write_text(json.dumps(config).replace("#", "::"))  # as MONAI writes ids


def test_trust_acts_while_it_is_given(untrusted, monkeypatch):
    for _ in range(2):
        message = "model.safetensors is not trusted to use the target 'monai.transforms.Identityd'; nothing was run"
        assert complaint(load_bundle, untrusted, "cpu").startswith(message)
        with trusting():
            assert load_bundle(untrusted, "cpu").z_channels == 8
    monkeypatch.setenv(TRUST, "1")
    assert load_bundle(untrusted, "cpu").z_channels == 8


def test_every_command_that_uses_the_model_refuses_it(untrusted, tiny_bundle, labelled, tmp_path, run):
    """R20, R25: each ends with 5."""
    names, cohort = ("OUT", "APP", "BUNDLE", "COHORT", "WIDE"), tiny_bundle.cohort
    places = dict(zip(names, (tmp_path / "out", tmp_path / "app", untrusted, cohort, labelled.direction), strict=True))
    for line in (
        "embed BUNDLE COHORT OUT", "reconstruct BUNDLE COHORT OUT", "generate BUNDLE OUT", "calibrate BUNDLE COHORT",
        "vary BUNDLE COHORT OUT --case a", "interpolate BUNDLE COHORT OUT --start a --end b",
        "combine BUNDLE COHORT OUT --case a --blend b", "edit BUNDLE COHORT OUT --direction WIDE",
        "anomaly BUNDLE COHORT OUT",
        "evaluate OUT --bundle BUNDLE --cohort COHORT", "diagnose BUNDLE COHORT OUT", "report BUNDLE OUT",
        "explore --bundle BUNDLE --cohort COHORT", "label-app APP --bundle BUNDLE", "train-latent BUNDLE COHORT",
    ):  # fmt: skip
        code, _, error = run(*(places.get(word, word) for word in line.split()))
        (message,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert (code, "is not trusted to use the target" in message) == (5, True), (line, error)


@pytest.mark.parametrize("name", ["diffae_2d", "diffae_3d"])
def test_a_shipped_bundle_and_plain_edits_of_it_need_no_trust(name, tmp_path):
    folder = init_bundle(tmp_path / "mine", name)
    edit(folder, "z_channels", 16)
    edit(folder, "dataset_dir", "/data/scans.csv")
    edit(folder, "augmentation#transforms#2", {"_target_": "RandGaussianSmoothd", "keys": "@image_keys"})
    check_code(json.loads((folder / "configs" / "train.json").read_text()), "train.json")
    assert load_untrained(folder, "cpu").z_channels == 16


@pytest.mark.parametrize(
    ("id", "value", "what"),
    [("tracking_uri", "https://example.org", "place"), ("output_dir", "/tmp/elsewhere", "place"),
     ("output_dir", "a/../../b", "place"), ("output_dir", "~/.config", "place"), ("mlflow", "%/etc/a.json::b", "file"),
     ("train#dataset#cache_dir", "C:\\Users", "place"), ("dataset_dir", "\\\\server\\share", "place"),
     ("inferer#_mode_", "debug", "argument"), ("network_def#pretrained", True, "argument"),
     ("optimizer#_target_", "os.system", "target"), ("seed", "$print(1)", "expression")],
)  # fmt: skip
def test_a_training_runs_no_own_code_and_names_no_place_to_write_or_send_to(bundle, tiny_bundle, id, value, what):
    edit(bundle, id, value)
    assert f"use the {what} {str(value)!r} at '{id}" in complaint(train, bundle, tiny_bundle.cohort)


@pytest.mark.parametrize(
    ("key", "place", "id", "value"),
    [("dataset_dir", "/tmp/a", "output_dir", "@dataset_dir"), ("dataset_dir", "/tmp/a", "output_dir", "%dataset_dir"),
     ("patient_pattern", "https://a.org", "tracking_uri", "@cohort#patient_pattern"),
     ("bundle", "@first_stage_bundle", "output_dir", "@bundle"), ("_meta_", {"a": "/tmp/a"}, "output_dir", "%_meta_#a"),
     ("dataset_dir", {"directory": "/tmp/a"}, "train#handlers#7", "@dataset_dir")],
)  # fmt: skip
def test_a_place_that_is_only_read_is_not_written_or_sent_to_by_a_reference(bundle, tiny_bundle, key, place, id, value):
    edit(bundle, "first_stage_bundle", "/tmp/a")
    edit(bundle, key, place)
    edit(bundle, id, value)
    assert "is not trusted to use the place" in complaint(train, bundle, tiny_bundle.cohort)


def test_overrides_are_not_a_way_around_the_check(tiny_bundle):
    for overrides in ({"inferer#spacing": "$print('x')"}, {"network_def#_target_": "os.system"}):
        message = complaint(load_bundle, tiny_bundle.directory, "cpu", overrides)
        assert message.startswith("overrides is not trusted to use the ")


def test_a_module_in_a_bundle_is_not_imported_by_its_training(bundle, tmp_path, monkeypatch):
    """MONAI's own run puts the bundle's folder before the standard library."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (bundle / "wave.py").write_text("raise SystemExit")
    (tmp_path / "scans.csv").write_text("image\nscan.png\n")
    with pytest.raises(CohortError):
        train(bundle, tmp_path / "scans.csv")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    importlib.import_module("wave")
    assert str(bundle) not in sys.path
