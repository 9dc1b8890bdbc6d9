"""R20: what computes only is built; anything else that a model or a configuration names needs the user's trust."""

import importlib
import json
import pydoc
import sys

import pytest
from complaints import complaint
from monai.bundle import create_workflow
from monai.bundle import run as run_bundle
from tiny_bundles import rewrite

from monai_diffae import train
from monai_diffae.apps.evaluation import calibrate_trained
from monai_diffae.bundle import init_bundle, load_bundle, trusting
from monai_diffae.bundle.code import MODEL_TARGETS, TRUST, check_code, is_trusting
from monai_diffae.bundle.description import set_value
from monai_diffae.bundle.loading import load_untrained, untrained_network
from monai_diffae.bundle.model_file import unknown_targets
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


def test_trust_is_a_key_on_monais_command_line(untrusted, tiny_bundle, tmp_path):
    file = str(untrusted / "configs" / "inference.json")
    values = {"config_file": file, "dataset_dir": str(tiny_bundle.cohort), "output_dir": str(tmp_path), "device": "cpu"}
    assert "is not trusted to use the target" in complaint(run_bundle, "evaluating", **values, trust=False)
    run_bundle("evaluating", **values, limit=1, grid="model", trust=True)
    assert len(list(tmp_path.rglob("x_T/*.nii.gz"))) == 1
    assert not is_trusting()


def test_trust_on_monais_command_line_ends_within_a_trusting_block(untrusted, tiny_bundle):
    values = {"config_file": str(untrusted / "configs" / "inference.json"), "dataset_dir": str(tiny_bundle.cohort)}
    with trusting():
        workflow = create_workflow(**values, device="cpu", trust=True)
    assert not is_trusting()
    assert workflow.parser.get_parsed_content("model").z_channels == 8
    workflow.finalize()
    assert not is_trusting()


def test_a_bundles_own_file_does_not_trust_it(untrusted, tiny_bundle, tmp_path):
    file = untrusted / "configs" / "inference.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trust": True}))
    values = {"dataset_dir": str(tiny_bundle.cohort), "output_dir": str(tmp_path), "device": "cpu"}
    message = complaint(run_bundle, "evaluating", config_file=str(file), **values)
    assert "is not trusted to use the target" in message


def test_what_a_training_calls_at_its_end_loads_only_what_is_trusted(untrusted, caplog):
    calibrate_trained(untrusted, [], None, limit=2, device="cpu")
    assert "anomaly maps are not calibrated (model.safetensors is not trusted to use the target" in caplog.text


@pytest.mark.parametrize(
    "name", ["data.CacheDataset", "data.DataLoader", "data.ThreadDataLoader", "handlers.StatsHandler"]
)
def test_monais_parts_of_a_training_need_no_trust_by_either_name(name):
    for target in (name.partition(".")[2], f"monai.{name}"):
        check_code({"part": {"_target_": target}}, "train.json")


def test_a_training_says_when_it_begins_what_its_model_needs_trust_for(make_workflow, caplog):
    transform = {"_target_": "monai.transforms.Identityd", "keys": "image"}
    make_workflow({"preprocessing#transforms#2": transform}).parser.get_parsed_content(
        "train#checkpoint#description#model"
    )
    assert "each run needs --trust (in MONAI's --trust True): it uses monai.transforms.Identityd" in caplog.text


def test_monais_loader_and_networks_need_no_trust(bundle, class_folders, tmp_path):
    network = {"_target_": "monai.networks.nets.DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 8}
    encoder = {"_target_": "monai_diffae.networks.EncoderAdapter", "network": network, "channels": 1, "size": [32, 32]}
    config = load_bundle(bundle, "cpu").config
    loader = {"_target_": "LoadImaged", "keys": "@image_keys", "ensure_channel_first": True}
    transforms = [loader, *config["preprocessing"]["transforms"][1:]]
    changed = {"network_def": {**config["network_def"], "encoder": encoder}}
    changed["preprocessing"] = {**config["preprocessing"], "transforms": transforms}
    weights = untrained_network({**config, **changed}).state_dict()
    rewrite(bundle, lambda _: weights, **changed)
    values = {"dataset_dir": str(class_folders), "output_dir": str(tmp_path / "out"), "device": "cpu", "limit": 2}
    run_bundle(
        "evaluating", config_file=str(bundle / "configs" / "inference.json"), **values, grid="model", mode="z_sem"
    )
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_what_needs_no_trust_exists():
    assert [name for name in MODEL_TARGETS if "." in name and pydoc.locate(name) is None] == []


def test_weights_that_a_default_would_download_need_trust():
    network = {"_target_": "monai.networks.nets.EfficientNetBN", "model_name": "efficientnet-b0"}
    assert unknown_targets({"network_def": network}) == ["monai.networks.nets.EfficientNetBN(pretrained)"]
    assert unknown_targets({"network_def": {**network, "pretrained": False}}) == []
    assert "'a#pretrained' (set \"pretrained\": false)" in complaint(check_code, {"a": network}, "train.json")


@pytest.mark.parametrize("reader", [{"open": 1}, {"os.system": 1}])
def test_a_reader_whose_keys_monai_would_call_needs_trust(reader):
    loader = {"_target_": "LoadImaged", "keys": "image", "reader": reader, "file": "scans.csv", "mode": "w"}
    assert unknown_targets({"preprocessing": loader}) == ["LoadImaged(reader)"]


def test_every_command_that_uses_the_model_refuses_it(untrusted, tiny_bundle, labelled, tmp_path, run):
    """R20, R25: each ends with 5."""
    names, cohort = ("OUT", "APP", "BUNDLE", "COHORT", "WIDE"), tiny_bundle.cohort
    places = dict(zip(names, (tmp_path / "out", tmp_path / "app", untrusted, cohort, labelled.direction), strict=True))
    for line in (
        "embed BUNDLE COHORT OUT", "reconstruct BUNDLE COHORT OUT", "generate BUNDLE OUT",
        "decode BUNDLE OUT --cohort COHORT --case a", "edit BUNDLE COHORT OUT --direction WIDE",
        "anomaly BUNDLE COHORT OUT",
        "evaluate OUT --bundle BUNDLE --cohort COHORT", "report BUNDLE OUT",
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
     ("inferer#_mode_", "debug", "argument"), ("network_def#pretrained", True, "argument"), ("trust", True, "argument"),
     ("preprocessing#transforms#0#reader", "os.system", "argument"),
     ("preprocessing#transforms#0#reader", {"open": 1}, "argument"),
     ("preprocessing#transforms#0#reader", {"os.system": 1}, "argument"),
     ("preprocessing#transforms#0#allow_pickle", True, "argument"),
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
    monkeypatch.syspath_prepend(tmp_path)  # undone after the test
    (bundle / "wave.py").write_text("raise SystemExit")
    (tmp_path / "scans.csv").write_text("image\nscan.png\n")
    with pytest.raises(CohortError):
        train(bundle, tmp_path / "scans.csv")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    importlib.import_module("wave")
    assert str(bundle) not in sys.path
