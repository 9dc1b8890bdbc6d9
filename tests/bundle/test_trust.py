"""R20: a bundle with code of its own is described, and runs only when its user trusts it."""

import importlib
import json
import re
import shutil
import sys

import pytest

import monai_diffae
from monai_diffae.bundle import load_bundle, trusting
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.own_code import own_code
from monai_diffae.bundle.untrained import load_untrained
from monai_diffae.errors import CohortError, UnsafeInputError

pytestmark = pytest.mark.goal(id="R20")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user who has trusted nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def edit(bundle):
    """Change a configuration of the stranger's bundle; values by their ids, ``+`` appends."""

    def change(values, file="models/config.json"):
        path = bundle / file
        config = json.loads(path.read_text())
        for id, value in values.items():
            *parents, last = id.split("#")
            part = config
            for key in parents:
                part = part[int(key)] if isinstance(part, list) else part[key]
            if last == "+":
                part.append(value)
            else:
                part[int(last) if isinstance(part, list) else last] = value
        path.write_text(json.dumps(config))

    return change


def payloads(proof):
    """Changes of a model's configuration that would each write the file ``proof``."""
    touch = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    return {
        "expression": {"in_channels": f"${touch} or 1"},
        "expression_in_a_list": {"image_size": [16, f"${touch} or 16"]},
        "import": {"imports#+": "$from antigravity import fly_test as x"},
        "target": {"inferer#spacing": {"_target_": "subprocess.check_call", "args": ["touch", str(proof)]}},
        "target_of_torch": {"inferer#spacing": {"_target_": "torch.os.system", "command": f"touch {proof}"}},
        "command_of_ours": {"inferer#spacing": {"_target_": "monai_diffae.train", "bundle": "x"}},
        "target_by_reference": {"name": "os.system", "inferer#spacing": {"_target_": "@name", "command": "true"}},
        "target_by_expression": {"inferer#spacing": {"_target_": "$print"}},
        "required": {"inferer#_requires_": [f"${touch}"]},
        "debugger": {"inferer#_mode_": "debug"},
        "disabled": {"inferer#_disabled_": f"${touch}"},
        "other_file": {"image_size": "%/etc/other.json#size"},
        "transform_with_code": {"preprocessing#transforms#+": {"_target_": "Lambdad", "keys": "image"}},
        "download": {"network_def#encoder": {"_target_": "monai.networks.nets.resnet18", "pretrained": str(proof)}},
    }


@pytest.mark.parametrize("name", payloads("proof"))
def test_a_configuration_with_code_of_its_own_is_refused_and_nothing_of_it_runs(bundle, edit, tmp_path, name):
    proof = tmp_path / "proof"
    edit(payloads(proof)[name])
    with pytest.raises(UnsafeInputError, match=r"^bundle: config.json is not trusted to use ") as error:
        load_bundle(bundle, "cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300
    assert "--trust" in str(error.value)
    assert not proof.exists()
    assert "antigravity" not in sys.modules


def test_every_command_that_reads_the_bundle_refuses_it(bundle, edit, tiny_bundle, labelled, tmp_path, run):
    """R20, R25: each ends with 5."""
    proof = tmp_path / "proof"
    shutil.copy(labelled.bundle / "models" / "model.pt", bundle / "models" / "model.pt")  # the embeddings are of it
    for file in ("models/config.json", "configs/train.json", "configs/train_latent.json"):
        edit(payloads(proof)["expression"], file)
    shutil.copy(bundle / "models" / "config.json", bundle / "models" / "latent_config.json")
    cohort, out = str(tiny_bundle.cohort), str(tmp_path / "out")
    commands = [
        ["embed", bundle, cohort, out], ["embed", bundle, cohort, out, "--encoder", "untrained"],
        ["reconstruct", bundle, cohort, out], ["generate", bundle, out], ["vary", bundle, cohort, out, "--case", "a"],
        ["interpolate", bundle, cohort, out, "--start", "a", "--end", "b"],
        ["traverse", bundle, labelled.embeddings, out], ["combine", bundle, cohort, out, "--case", "a", "--blend", "b"],
        ["edit", bundle, cohort, out, "--direction", labelled.direction], ["diagnose", bundle, cohort, out],
        ["calibrate", bundle, cohort], ["anomaly", bundle, cohort, out],
        ["evaluate", out, "--bundle", bundle, "--cohort", cohort], ["report", bundle, out, "--cohort", cohort],
        ["report", bundle, out],
        ["explore", "--bundle", bundle, "--cohort", cohort], ["label-app", tmp_path / "app", "--bundle", bundle],
        ["train", bundle, cohort, out, "--overrides", "max_epochs=1"], ["train", bundle, cohort, "--minutes", "1"],
        ["train", tiny_bundle.directory, cohort, out, "--start-from", bundle],
        ["train-latent", bundle, cohort, out], ["plan", cohort, "--bundle", bundle],
    ]  # fmt: skip
    not_refused = []
    for words in commands:
        code, _, error = run(*words)
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        if code != 5 or len(lines) != 1 or "is not trusted to use expression" not in lines[0]:
            not_refused.append((words, code, error))
    assert not_refused == []
    assert not proof.exists()


def test_trust_runs_it_and_is_remembered_for_exactly_this_configuration(bundle, edit, home, tmp_path):
    proof = tmp_path / "proof"
    edit(payloads(proof)["expression"])
    with trusting():
        assert load_bundle(bundle, "cpu").z_channels == 8
    proof.unlink()
    assert load_bundle(bundle, "cpu").z_channels == 8
    assert proof.exists()
    edit({"seed": 1})
    with pytest.raises(UnsafeInputError):
        load_bundle(bundle, "cpu")
    assert not list(bundle.rglob("*trust*"))
    assert len(list(home.rglob("*"))) == 3


@pytest.mark.parametrize("name", ["diffae_2d", "diffae_3d"])
def test_a_shipped_bundle_and_plain_edits_of_it_need_no_trust(name, tmp_path):
    folder = init_bundle(tmp_path / "mine", name)
    file = folder / "configs" / "train.json"
    config = json.loads(file.read_text())
    config |= {"z_channels": 16, "dataset_dir": "/data/scans.csv"}
    config["augmentation"]["transforms"].append({"_target_": "RandGaussianSmoothd", "keys": "@image_keys"})
    file.write_text(json.dumps(config).replace("#", "::"))  # as MONAI writes ids
    assert own_code(json.loads(file.read_text())) == []
    assert own_code({"network_def#encoder#_target_": "monai_diffae.networks.EncoderAdapter"}) == []
    assert load_untrained(folder, "cpu").z_channels == 16


@pytest.mark.parametrize(
    ("id", "place"),
    [("tracking_uri", "https://example.org"), ("output_dir", "/tmp/elsewhere"), ("output_dir", "a/../../b"),
     ("output_dir", "~/.config"), ("train#dataset#cache_dir", "C:\\Users"), ("dataset_dir", "\\\\server\\share")],
)  # fmt: skip
def test_a_training_may_not_write_or_send_to_places_that_the_bundle_names(bundle, edit, tiny_bundle, id, place):
    edit({id: place}, "configs/train.json")
    with pytest.raises(UnsafeInputError, match=re.escape(f"use place {place!r} at '{id}'")):
        monai_diffae.train(bundle, tiny_bundle.cohort)


def test_overrides_are_not_a_way_around_the_check(tiny_bundle):
    for overrides in ({"inferer#spacing": "$print('x')"}, {"network_def#_target_": "os.system"}):
        with pytest.raises(UnsafeInputError, match="^overrides is not trusted to use "):
            load_bundle(tiny_bundle.directory, "cpu", overrides)


def test_a_module_in_a_bundle_is_not_imported_by_its_training(bundle, tmp_path, monkeypatch):
    """MONAI's own run puts the bundle's folder before the standard library."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (bundle / "wave.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')")
    (tmp_path / "scans.csv").write_text("image\nscan.png\n")
    with pytest.raises(CohortError):
        monai_diffae.train(bundle, tmp_path / "scans.csv")
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    importlib.import_module("wave")
    assert str(bundle) not in sys.path
    assert not (tmp_path / "proof").exists()
