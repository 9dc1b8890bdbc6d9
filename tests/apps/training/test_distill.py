"""The fast decoder: its data, its training, and its use by the commands that make images."""

import gc
import json
import shutil

import pandas as pd
import pytest
import torch
from tiny_bundles import TINY_FAST, rewrite, scaled

import monai_diffae as mdae
from monai_diffae.apps.training import open_teacher, read_teaching_cases, teacher_levels, teaching_trajectories
from monai_diffae.bundle import load_bundle
from monai_diffae.bundle.model_file import read_description, read_model
from monai_diffae.engines import FewStepInferer
from monai_diffae.errors import ConfigError, MachineError

FAST = {"inferer#decoder": "fast"}


def copy_of(bundle, folder):
    return shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("cache"))


def fast_weights(bundle):
    return read_model(bundle / "models" / "fast_model.safetensors").tensors


def distilled(bundle, labelled, out, **overrides):
    return mdae.distill(bundle, labelled.cohort, out, steps=2, training={"overrides": {**TINY_FAST, **overrides}})


@pytest.fixture
def teacher(fast_bundle, labelled):
    return open_teacher(str(fast_bundle), str(labelled.cohort), device="cpu", batch_size=3)


def test_a_training_leaves_the_autoencoder_and_validates_images(latent_bundle, labelled, teacher, tmp_path):
    out = copy_of(latent_bundle, tmp_path / "bundle")
    result = distilled(out, labelled, None)
    assert (result.folder, result.num_failed) == (out, 0)
    assert "--decoder fast" in result.next[0]
    for name in ("model.safetensors", "model.pt", "latent_model.safetensors"):
        assert (out / "models" / name).read_bytes() == (latent_bundle / "models" / name).read_bytes()
    description = read_description(out / "models" / "fast_model.safetensors")
    assert len(description["levels"]) == 3
    trained = load_bundle(out, "cpu", {**FAST, "inferer#invert_tolerance": None})
    assert description["autoencoder_sha256"] == trained.sha256
    assert not list(out.rglob("*.f32"))
    own, fast = trained.network.unet.state_dict(), fast_weights(out)
    assert own.keys() == fast.keys()
    assert any(not torch.equal(own[name], weight) for name, weight in fast.items())
    read = teacher.read(teacher.cohort.split("val"), tmp_path / "again")
    images = torch.stack([read.dataset[i]["image"] for i in range(len(read.cases))])
    decoder = trained.inferer.fast_decoder
    x_T = teacher.trained.inferer.invert(images, trained.network)
    z_sem = trained.inferer.encode(images, trained.network)
    x_0 = FewStepInferer(trained.inferer.schedule, decoder.levels)(x_T, decoder.unet, z_sem)
    curves = pd.read_csv(out / "fast" / "curves.csv")["validation_loss"].dropna()
    assert curves.iloc[-1] == pytest.approx(float((x_0 - images).square().mean()), rel=1e-3)
    sharp = distilled(latent_bundle, labelled, tmp_path / "sharp", gradient_weight=1.0).folder
    assert any(not torch.equal(weight, fast[name]) for name, weight in fast_weights(sharp).items())


@pytest.mark.slow
def test_more_epochs_resume_and_end_like_an_uninterrupted_run(fast_bundle, labelled, tmp_path):
    constant = {"lr_schedule": "constant"}
    whole = distilled(fast_bundle, labelled, tmp_path / "whole", max_epochs=3, **constant).folder
    distilled(fast_bundle, labelled, tmp_path / "twice", **constant)
    twice = distilled(fast_bundle, labelled, tmp_path / "twice", max_epochs=3, **constant).folder
    torch.testing.assert_close(fast_weights(twice), fast_weights(whole), rtol=0, atol=0)
    assert load_bundle(whole, "cpu", FAST).fast_sha256  # it is a bundle of its own
    with pytest.raises(ConfigError, match=r"fast_checkpoint\.pt: belongs to another model with other values of levels"):
        mdae.distill(twice, labelled.cohort, steps=1, training={"overrides": TINY_FAST})


def test_trajectories_lead_from_x_T_to_the_scan_and_mixed_ones_are_the_decoders(teacher, tmp_path, monkeypatch):
    read = read_teaching_cases(teacher, str(tmp_path))
    levels = teacher_levels(teacher, 3)
    arguments = {"mixed": 1.5, "seed": 1}
    made = teaching_trajectories(teacher, read, "train", levels, **arguments)
    num_cases = sum(case.split == "train" for case in read.cases)
    assert len(made) == num_cases + round(1.5 * num_cases)
    trained = teacher.trained
    assert torch.equal(made[0]["trajectory"][-1], read.dataset[0]["image"])
    x_T = trained.inferer.invert(read.dataset[0]["image"][None], trained.network)
    torch.testing.assert_close(made[0]["trajectory"][0], x_T[0], atol=1e-5, rtol=1e-4)
    for item in (made[num_cases], made[num_cases + 1]):
        decoded = trained.inferer.decode(item["z_sem"][None], trained.network, item["trajectory"][0][None])
        torch.testing.assert_close(item["trajectory"][-1], decoded[0], atol=1e-5, rtol=1e-4)
    cases = [made[i] for i in range(num_cases)]
    edited = made[num_cases]
    (own,) = [case for case in cases if torch.equal(case["trajectory"][0], edited["trajectory"][0])]
    ways = torch.stack([last["z_sem"] - first["z_sem"] for first in cases for last in cases])
    cosines = torch.nn.functional.cosine_similarity(ways, (edited["z_sem"] - own["z_sem"])[None])
    assert cosines.max() > 0.9999  # moved as two cases differ
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(MachineError, match="GiB are free"):
        teaching_trajectories(teacher, read, "train", levels, cache_dir=str(tmp_path / "small"), **arguments)
    monkeypatch.undo()
    gc.collect()
    assert list((tmp_path / "small").iterdir()) == []
    other = teaching_trajectories(teacher, read, "train", levels, mixed=1.5, seed=2)
    assert not torch.equal(other[num_cases]["z_sem"], made[num_cases]["z_sem"])


def test_a_limit_chooses_cases_of_the_whole_split(teacher, tmp_path):
    train = [case.id for case in teacher.cohort.split("train")]
    read = read_teaching_cases(teacher, str(tmp_path), limit=2)
    assert [case.id for case in read.cases if case.split == "train"] == [train[0], train[len(train) // 2]]
    steps = teacher.trained.inferer.solver_steps
    assert len(teacher_levels(teacher, steps)) == steps + 1
    with pytest.raises(ConfigError, match=f"must be a whole number between 1 and {steps}"):
        teacher_levels(teacher, steps + 1)


def test_commands_that_make_images_use_it(fast_bundle, labelled, tmp_path):
    contents = []
    for name in ("fast", "exact"):
        out, options = tmp_path / name, {"device": "cpu", "decoder": name}
        mdae.reconstruct(fast_bundle, labelled.cohort, out / "made", mode="z_sem", limit=2, **options)
        record = json.loads((out / "made" / "record.json").read_text())["made_from"]
        assert ("fast_decoder" in record) == (name == "fast")
        mdae.generate(fast_bundle, out / "new", num_images=2, **options)
        contents.append({path.name: path.read_bytes() for path in (out / "new" / "images").iterdir()})
    assert contents[0].keys() == contents[1].keys() != set()
    assert all(contents[0][name] != contents[1][name] for name in contents[0])
    file = pd.read_csv(labelled.cohort)["image"][0]
    exact, fast = (load_bundle(fast_bundle, "cpu", {"inferer#decoder": name}).open(file) for name in ("exact", "fast"))
    assert torch.equal(exact.z_sem, fast.z_sem)
    assert not torch.equal(exact.reconstruct("z_sem"), fast.reconstruct("z_sem"))


def test_settings_of_the_exact_decoder_are_refused(fast_bundle, labelled, tmp_path):
    for setting in ({"steps": 5}, {"solver": "ddim"}, {"spacing": "leading"}):
        for fast in ({"decoder": "fast"}, {"overrides": FAST}):
            with pytest.raises(ConfigError, match=f"{next(iter(setting))}: has no effect on the fast decoder"):
                mdae.reconstruct(fast_bundle, labelled.cohort, tmp_path / "out", **fast, **setting)


def test_a_bundle_without_one_or_with_that_of_another_autoencoder_is_refused(fast_bundle, labelled, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no fast decoder in this bundle; train it with monai-diffae"):
        load_bundle(labelled.bundle, "cpu", FAST)
    bundle = copy_of(fast_bundle, tmp_path / "bundle")
    rewrite(bundle, scaled(1.01))
    with pytest.raises(ConfigError, match=r"fast_model\.safetensors: belongs to another autoencoder"):
        load_bundle(bundle, "cpu", FAST)
