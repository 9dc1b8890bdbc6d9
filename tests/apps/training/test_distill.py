"""The fast decoder: its data, its training, and its use by the commands that make images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import monai_diffae as mdae
from monai_diffae.apps.training import (
    image_loss,
    open_teacher,
    read_teaching_cases,
    teacher_levels,
    teaching_trajectories,
)
from monai_diffae.bundle import load_bundle
from monai_diffae.engines import FewStepInferer
from monai_diffae.errors import ConfigError, MachineError, UnsafeInputError

QUICK = {
    "max_epochs": 2, "batch_size": 4, "val_batch_size": 4, "warmup_steps": 1, "report_every": 1, "mlflow": False,
    "device": "cpu",
}  # fmt: skip


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("cache")))


def fast_weights(bundle: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(bundle / "models" / "fast_model.pt", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def distilled(latent_bundle: Path, labelled: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle and its latent DDIM, with a fast decoder of 2 steps."""
    bundle = copy_of(latent_bundle, tmp_path_factory.mktemp("distilled") / "bundle")
    result = mdae.distill(bundle, labelled.cohort, steps=2, training={"overrides": QUICK})
    assert (result.folder, result.num_failed) == (bundle, 0)
    assert "--decoder fast" in result.next_line
    return bundle


def test_the_files_of_the_training_and_the_autoencoder_as_it_was(distilled: Path, latent_bundle: Path) -> None:
    for name in ("model.pt", "config.json", "checkpoint.pt", "latent_model.pt"):
        assert (distilled / "models" / name).read_bytes() == (latent_bundle / "models" / name).read_bytes()
    config = json.loads((distilled / "models" / "fast_config.json").read_text())
    assert len(config["levels"]) == 3
    assert config["autoencoder_sha256"] == load_bundle(distilled, "cpu").sha256
    assert (distilled / "fast" / "curves.csv").is_file()
    assert not list(distilled.rglob("*.f32"))
    own = load_bundle(distilled, "cpu").network.unet.state_dict()
    assert own.keys() == fast_weights(distilled).keys()
    assert any(not torch.equal(own[name], weight) for name, weight in fast_weights(distilled).items())


def test_more_epochs_resume_and_end_like_an_uninterrupted_run(distilled: Path, labelled: Any, tmp_path: Path) -> None:
    longer = {"overrides": {**QUICK, "max_epochs": 3, "lr_schedule": "constant"}}
    shorter = {"overrides": {**QUICK, "lr_schedule": "constant"}}
    whole = mdae.distill(distilled, labelled.cohort, tmp_path / "whole", steps=2, training=longer).folder
    mdae.distill(distilled, labelled.cohort, tmp_path / "twice", steps=2, training=shorter)
    twice = mdae.distill(distilled, labelled.cohort, tmp_path / "twice", steps=2, training=longer).folder
    torch.testing.assert_close(fast_weights(twice), fast_weights(whole), rtol=0, atol=0)
    assert load_bundle(whole, "cpu", {"inferer#decoder": "fast"}).fast_sha256  # it is a bundle of its own


def test_a_checkpoint_of_another_decoder_is_refused_before_any_scan_is_inverted(
    distilled: Path, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_diffae.apps.session.Session.read", lambda *_: pytest.fail("scans were read"))
    with pytest.raises(ConfigError, match=r"fast_checkpoint\.pt: belongs to another model with other values of levels"):
        mdae.distill(distilled, labelled.cohort, steps=1, training={"overrides": QUICK})


@pytest.mark.parametrize("key", ["mixed", "gradient_weight", "lpips_weight", "learning_rate"])
def test_values_that_cannot_be_used_are_refused_before_scans_are_read(
    distilled: Path, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("monai_diffae.apps.session.Session.read", lambda *_: pytest.fail("scans were read"))
    with pytest.raises(ConfigError, match=f"{key} is 'x'; it must be a number of at least 0"):
        mdae.distill(distilled, labelled.cohort, tmp_path, training={"overrides": {**QUICK, key: "x"}})


@pytest.mark.parametrize("run", [mdae.distill, mdae.train_latent])
def test_the_model_of_another_bundle_is_not_replaced(distilled: Path, labelled: Any, tmp_path: Path, run: Any) -> None:
    other = copy_of(distilled, tmp_path / "other")
    model = other / "models" / "model.pt"
    torch.save({name: value * 1.01 for name, value in torch.load(model, weights_only=True).items()}, model)
    before = model.read_bytes()
    with pytest.raises(ConfigError, match=r"output_dir: other holds another trained model than bundle; choose another"):
        run(distilled, labelled.cohort, other, training={"overrides": {"mlflow": False}})
    assert model.read_bytes() == before


def test_trajectories_lead_from_x_T_to_the_scan_and_mixed_ones_are_the_decoders(
    distilled: Path, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu", batch_size=3)
    read = read_teaching_cases(teacher, str(tmp_path))
    levels = teacher_levels(teacher, 3)
    arguments: dict[str, Any] = {"mixed": 1.5, "seed": 1}
    made = teaching_trajectories(teacher, read, "train", levels, **arguments)
    num_cases = sum(case.split == "train" for case in read.cases)
    assert len(made) == num_cases + round(1.5 * num_cases)
    trained = teacher.trained
    assert torch.equal(made[0]["trajectory"][-1], read.dataset[0]["image"])
    x_T = trained.inferer.invert(read.dataset[0]["image"][None], trained.network)
    torch.testing.assert_close(made[0]["trajectory"][0], x_T[0], atol=1e-5, rtol=1e-4)
    for item in (made[num_cases], made[num_cases + 1]):
        decoded = trained.inferer.decode(item["z_sem"][None], item["trajectory"][0][None], trained.network)
        torch.testing.assert_close(item["trajectory"][-1], decoded[0], atol=1e-5, rtol=1e-4)
    cases = [made[i] for i in range(num_cases)]
    edited = made[num_cases]
    (own,) = [case for case in cases if torch.equal(case["trajectory"][0], edited["trajectory"][0])]
    ways = torch.stack([last["z_sem"] - first["z_sem"] for first in cases for last in cases])
    cosines = torch.nn.functional.cosine_similarity(ways, (edited["z_sem"] - own["z_sem"])[None])
    assert cosines.max() > 0.9999  # moved as two cases differ
    on_disk = teaching_trajectories(
        teacher, read, "train", levels, **arguments, cache_dir=str(tmp_path / "cache"), cache_gib=0.0
    )
    assert all(torch.equal(on_disk[i]["trajectory"], made[i]["trajectory"]) for i in range(len(made)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(MachineError, match="GiB are free"):
        teaching_trajectories(
            teacher, read, "train", levels, **arguments, cache_dir=str(tmp_path / "small"), cache_gib=0.0
        )
    assert list((tmp_path / "small").iterdir()) == []
    other = teaching_trajectories(teacher, read, "train", levels, mixed=1.5, seed=2)
    assert not torch.equal(other[num_cases]["z_sem"], made[num_cases]["z_sem"])


def test_the_levels_of_a_decoder_with_more_steps_than_the_bundles_are_refused(distilled: Path, labelled: Any) -> None:
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    steps = teacher.trained.inferer.solver_steps
    assert len(teacher_levels(teacher, steps)) == steps + 1
    with pytest.raises(ConfigError, match=f"must be a whole number between 1 and {steps}"):
        teacher_levels(teacher, steps + 1)


def test_gradients_in_the_loss_change_the_decoder(distilled: Path, labelled: Any, tmp_path: Path) -> None:
    overrides = {**QUICK, "max_epochs": 1, "gradient_weight": 1.0}
    sharp = mdae.distill(distilled, labelled.cohort, tmp_path / "sharp", steps=2, training={"overrides": overrides})
    overrides["gradient_weight"] = 0
    plain = mdae.distill(distilled, labelled.cohort, tmp_path / "plain", steps=2, training={"overrides": overrides})
    weights = [fast_weights(each.folder) for each in (sharp, plain)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("limit", [0, -1, 2.5, "x", True])
def test_a_limit_that_is_no_whole_number_above_0_is_refused(
    distilled: Path, labelled: Any, tmp_path: Path, limit: Any
) -> None:
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    with pytest.raises(ConfigError, match=f"limit is {limit!r}; it must be a whole number above 0, or null"):
        read_teaching_cases(teacher, str(tmp_path), limit)


def test_a_limit_chooses_cases_of_the_whole_split(distilled: Path, labelled: Any, tmp_path: Path) -> None:
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    train = [case.id for case in teacher.cohort.split("train")]
    read = read_teaching_cases(teacher, str(tmp_path), limit=2)
    assert [case.id for case in read.cases if case.split == "train"] == [train[0], train[len(train) // 2]]


@pytest.mark.parametrize("mixed", [-1, "x", None, True, float("nan"), float("inf")])
def test_a_number_of_mixed_codes_below_0_is_refused(distilled: Path, labelled: Any, tmp_path: Path, mixed: Any) -> None:
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    read = read_teaching_cases(teacher, str(tmp_path), limit=1)
    with pytest.raises(ConfigError, match=f"mixed is {mixed!r}; it must be a number of at least 0"):
        teaching_trajectories(teacher, read, "train", teacher_levels(teacher, 1), mixed=mixed)


def test_losses_that_cannot_be_used_are_refused(
    distilled: Path, labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lpips")
    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    with pytest.raises(ConfigError, match=r"gradient_weight is -1; it must be a number, at least 0"):
        image_loss(teacher, gradient_weight=-1)
    with pytest.raises(ConfigError, match=r"lpips_weight: images of 16 x 16 are too small for LPIPS; it needs 32"):
        image_loss(teacher, lpips_weight=0.5)
    teacher.trained.config["image_size"] = [32, 32]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(MachineError, match=r"there is no alexnet-owt-7be5be79\.pth; give the file, or put it"):
        image_loss(teacher, lpips_weight=0.5)


def test_commands_that_make_images_use_it(distilled: Path, labelled: Any, tmp_path: Path) -> None:
    fast, exact = tmp_path / "fast", tmp_path / "exact"
    mdae.reconstruct(distilled, labelled.cohort, fast, mode="z_sem", limit=2, device="cpu", decoder="fast")
    mdae.reconstruct(distilled, labelled.cohort, exact, mode="z_sem", limit=2, device="cpu")
    records = [json.loads((folder / "reconstructions.json").read_text())["made_from"] for folder in (fast, exact)]
    assert "fast_decoder" in records[0]
    assert "fast_decoder" not in records[1]
    generated = [tmp_path / name for name in ("fast_images", "exact_images")]
    mdae.generate(distilled, generated[0], num_images=2, device="cpu", decoder="fast")
    mdae.generate(distilled, generated[1], num_images=2, device="cpu")
    names = sorted(path.name for path in (generated[0] / "images").iterdir())
    assert names
    assert all((generated[0] / "images" / n).read_bytes() != (generated[1] / "images" / n).read_bytes() for n in names)


def test_the_fast_decoder_of_an_opened_case(distilled: Path, labelled: Any) -> None:
    import pandas as pd

    file = pd.read_csv(labelled.cohort)["image"][0]
    exact, fast = (load_bundle(distilled, "cpu", {"inferer#decoder": name}).open(file) for name in ("exact", "fast"))
    assert torch.equal(exact.z_sem, fast.z_sem)
    assert not torch.equal(exact.reconstruct("z_sem"), fast.reconstruct("z_sem"))


@pytest.mark.parametrize("setting", [{"steps": 5}, {"solver": "ddim"}, {"spacing": "leading"}])
def test_settings_of_the_exact_decoder_are_refused(
    distilled: Path, labelled: Any, tmp_path: Path, setting: dict[str, Any]
) -> None:
    for fast in ({"decoder": "fast"}, {"overrides": {"inferer#decoder": "fast"}}):
        with pytest.raises(ConfigError, match=f"{next(iter(setting))}: has no effect on the fast decoder"):
            mdae.reconstruct(distilled, labelled.cohort, tmp_path / "out", **fast, **setting)


def test_a_bundle_without_one_or_with_that_of_another_autoencoder_is_refused(
    distilled: Path, labelled: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"there is no fast decoder in this bundle; train it with monai-diffae"):
        load_bundle(labelled.bundle, "cpu", {"inferer#decoder": "fast"})
    bundle = copy_of(distilled, tmp_path / "bundle")
    model = bundle / "models" / "model.pt"
    state = torch.load(model, weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, model)
    with pytest.raises(ConfigError, match=r"fast_model\.pt: belongs to another autoencoder"):
        load_bundle(bundle, "cpu", {"inferer#decoder": "fast"})
    for content, message in (("[]", "cannot be read"), ("{}", "does not describe a fast decoder")):
        (bundle / "models" / "fast_config.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"fast_config\.json: {message}; "):
            load_bundle(bundle, "cpu", {"inferer#decoder": "fast"})


@pytest.mark.parametrize("levels", ["12", [], [-1], [5, 999, -1], [999, 3], [999.5, -1], [5000, -1]])
def test_levels_that_are_not_those_of_a_decoder_are_refused(distilled: Path, tmp_path: Path, levels: Any) -> None:
    bundle = copy_of(distilled, tmp_path / "bundle")
    config = bundle / "models" / "fast_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "levels": levels}))
    with pytest.raises(ConfigError, match=r"train it again with monai-diffae distill"):
        load_bundle(bundle, "cpu", {"inferer#decoder": "fast"})


def test_weights_that_run_code_are_refused(distilled: Path, tmp_path: Path) -> None:
    import pickle

    bundle = copy_of(distilled, tmp_path / "bundle")

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("run",))

    (bundle / "models" / "fast_model.pt").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UnsafeInputError):
        load_bundle(bundle, "cpu", {"inferer#decoder": "fast"})


def test_the_page_of_explore_shows_its_images_at_once(distilled: Path, labelled: Any, tmp_path: Path) -> None:
    from monai_diffae.apps.settings import Decoding, Reading, Run
    from monai_diffae.explorer.opening import Files, open_exploration

    files = Files(distilled, labelled.cohort, tmp_path / "explored", labelled.embeddings)
    opened = open_exploration(files, 2, Decoding(decoder="fast"), Reading(), Run(device="cpu"))
    try:
        assert (opened.studio.steps, opened.studio.preview_steps) == (2, 2)
    finally:
        opened.close()


def test_the_validation_loss_is_the_squared_error_of_held_out_images(distilled: Path, labelled: Any) -> None:
    import pandas as pd

    teacher = open_teacher(str(distilled), str(labelled.cohort), device="cpu")
    trained = load_bundle(distilled, "cpu", {"inferer#decoder": "fast", "inferer#invert_tolerance": None})
    read = teacher.read(teacher.cohort.split("val"), distilled / "again")
    images = torch.stack([read.dataset[i]["image"] for i in range(len(read.cases))])
    decoder = trained.inferer.fast_decoder
    assert decoder is not None
    x_T = teacher.trained.inferer.invert(images, trained.network)
    z_sem = trained.inferer.encode(images, trained.network)
    x_0 = FewStepInferer(trained.inferer.schedule, decoder.levels)(x_T, decoder.unet, z_sem)
    curves = pd.read_csv(distilled / "fast" / "curves.csv")["validation_loss"].dropna()
    assert curves.iloc[-1] == pytest.approx(float((x_0 - images).square().mean()), rel=1e-3)
