import hashlib
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from official_numbers import T, official_numbers, official_weights
from PIL import Image
from scan_files import no_file_larger_than

from monai_diffae import DiffusionSchedule, __version__, embed, import_official, info, reconstruct
from monai_diffae import official as package
from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle.config import check_config
from monai_diffae.bundle.loading import load_bundle, load_latent
from monai_diffae.bundle.parser import read_config
from monai_diffae.data.cases import safe_file_name
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import LatentMLP
from monai_diffae.official import load_official, load_official_latent

SIZE = 16
MEAN, STD = torch.arange(12.0), torch.linspace(0.5, 2, 12)


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint as the official training does: a tiny model of 3 channels."""

    def write(name="last.ckpt", model="tiny", latent=True, beside=("x_T", "conds_mean", "conds_std"), **settings):
        state = {f"ema_model.{key}": tensor for key, tensor in official_weights(model).items()}
        state |= {f"model.{key}": tensor for key, tensor in official_weights(model, seed=2).items()}
        if latent:
            state |= {f"ema_model.latent_net.{k}": t for k, t in official_weights("tiny latent").items()}
        values = {"x_T": torch.zeros(4, 3, SIZE, SIZE), "conds_mean": MEAN[None], "conds_std": STD[None]}
        state |= {key: values[key] for key in beside}
        other = {
            "epoch": 1,
            "optimizer_states": [torch.zeros(1000)],
            "hyper_parameters": {"net_attn": (16,), **settings},
        }
        torch.save({"state_dict": state, **other}, tmp_path / name)
        return tmp_path / name

    return write


def imported(*arguments, **options):
    """The folder of the bundle that is made."""
    return import_official(*arguments, **options).folder


def test_a_checkpoint_becomes_a_bundle_that_all_commands_take(save, tmp_path, caplog):
    checkpoint = save()
    with caplog.at_level(logging.INFO, "monai_diffae"):
        out = imported(checkpoint, tmp_path / "bundle")
    assert {"checkpoint_files", "latent", "weights"} < {*dir(package)}  # a new process has not imported them yet
    assert "image size 16 x 16, which is that of x_T" in caplog.text
    last = caplog.records[-1].getMessage()
    assert last.startswith("bundle: a Diff-AE of 0.0 M parameters for images of 16 x 16 with 3 channels, z_sem of 12")
    assert (out / "configs" / "train.json").is_file()
    assert (out / "configs" / "overlays").is_dir()
    assert (out / "LICENSE").is_file()
    trained, network = load_bundle(out, "cpu"), load_official(checkpoint)
    assert trained.model_range == (-1, 1)
    assert trained.network.unet.config == network.unet.config
    assert trained.network.encoder.config == network.encoder.config
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    first = trained.preprocessing({"image": str(images / "0.png")})["image"]
    pixels = np.asarray(Image.open(images / "0.png"), np.float32).transpose(2, 0, 1)
    np.testing.assert_allclose(first.numpy(), pixels / 127.5 - 1, atol=1e-5)  # the official normalisation
    with torch.inference_mode():
        expected = network.encode(first.as_tensor()[None])
        assert torch.equal(trained.inferer.encode(first.as_tensor()[None], trained.network), expected)
    table = pd.read_parquet(embed(out, images, tmp_path / "embedded", device="cpu").path)
    z_sem = table.sort_values("id").filter(regex=r"^z_\d").to_numpy()
    np.testing.assert_allclose(z_sem[:1], expected.numpy(), atol=1e-5)
    official = {"solver": "ddim", "inversion": "ddim", "spacing": "leading", "steps": 3, "invert_steps": 4}
    result = reconstruct(out, images, tmp_path / "made", mode="both", device="cpu", **official)
    assert (result.num_cases, result.num_failed) == (3, 0)
    record = json.loads((tmp_path / "made" / "record.json").read_text())["made_from"]
    assert official.items() <= record.items()
    assert Image.open(tmp_path / "made" / "x_T" / "0.png").mode == "RGB"
    summary = info(out).figures
    assert (summary["in_channels"], summary["image_size"], summary["intensity"]) == (3, [16, 16], "window")
    inferer, schedule = trained.inferer, trained.inferer.schedule
    settings = (inferer.solver.__name__, inferer.steps, inferer.invert_steps)
    assert settings == ("adams", 20, 20)  # ours, unless others are asked for
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, torch.cumprod(1 - betas, dim=0), rtol=1e-6, atol=0)
    assert (schedule.prediction, schedule.clip_range, schedule.timestep_sampling) == ("eps", (-1, 1), "uniform")
    assert schedule.inference_timesteps(10, "leading") == list(range(0, 1000, 100))


def test_the_latent_ddim_comes_along(save, tmp_path):
    checkpoint = save()
    out = imported(checkpoint, tmp_path / "bundle")
    loaded = load_latent(out, "cpu")
    latent = loaded.network
    assert isinstance(latent, LatentMLP)
    expected = load_official_latent(checkpoint)
    z_t, t = torch.randn(2, 12), torch.tensor([3, 800])
    assert torch.equal(latent.eval()(z_t, t), expected(z_t, t))
    assert torch.equal(latent.denormalise(torch.zeros(1, 12))[0], MEAN)
    assert loaded.inferer.sample(latent, 2).isfinite().all()
    schedule = loaded.inferer.schedule
    assert isinstance(schedule, DiffusionSchedule)
    expected_alphas = (1 - 0.008) ** torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected_alphas, rtol=1e-4, atol=0)
    assert (schedule.prediction, schedule.clip_range, schedule.loss_weighting) == ("eps", None, "none")


def test_statistics_from_a_file_of_their_own(save, tmp_path, caplog):
    checkpoint, file = save(beside=["x_T"]), tmp_path / "latent.pkl"
    out = imported(checkpoint, tmp_path / "unknown")
    assert "latent_statistics adds them" in caplog.text
    with pytest.raises(ConfigError, match=r"^latent_model\.safetensors: the mean and std of z_sem are unknown; import"):
        load_latent(out, "cpu")
    torch.save({"conds_mean": MEAN, "conds_std": torch.full((12,), 1e-40)}, file)
    with pytest.raises(ConfigError, match=r"^latent\.pkl: the std of z_sem is not positive"):
        import_official(checkpoint, tmp_path / "known", latent_statistics=file)
    torch.save({"conds": torch.zeros(9, 12), "conds_mean": MEAN, "conds_std": STD}, file)
    out = imported(checkpoint, tmp_path / "known", latent_statistics=file)
    assert torch.equal(load_latent(out, "cpu").network.z_std, STD)
    with pytest.raises(
        ConfigError, match=r"^latent_statistics: alone\.ckpt has no latent DDIM that they belong to; omit"
    ):
        import_official(save("alone.ckpt", latent=False), tmp_path / "no", latent_statistics=file)
    content, other = torch.load(checkpoint, weights_only=True), official_weights("latent")
    kept = {key: value for key, value in content["state_dict"].items() if ".latent_net." not in key}
    content["state_dict"] = kept | {f"ema_model.latent_net.{key}": tensor for key, tensor in other.items()}
    torch.save(content, checkpoint)
    with pytest.raises(
        ConfigError, match=r"^last\.ckpt: the latent DDIM is for a z_sem of 16, but the encoder's has 12"
    ):
        import_official(checkpoint, tmp_path / "no")


def test_provenance_has_checksums_and_no_paths_and_the_configs_fit(save, tmp_path):
    checkpoint = save()
    out = imported(checkpoint, tmp_path / "bundle")
    assert json.loads((out / "models" / "provenance.json").read_text()) == {
        "source": "official phizaz/diffae checkpoint",
        "file_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "weights": "ema_model",
        "monai_diffae": __version__,
    }
    texts = [file.read_text() for file in (out / "models").glob("*.json")]
    assert not any(str(tmp_path) in text or "last.ckpt" in text for text in texts)
    check_config(read_config(out / "configs" / "train.json").get())


def test_image_size_without_x_T(save, tmp_path, caplog):
    checkpoint = save(beside=(), latent=False)  # attention at level 1: 32 there and 16 behind it
    with caplog.at_level(logging.INFO, "monai_diffae"):
        out = imported(checkpoint, tmp_path / "from_attention")
    assert "image size 32 is a guess: at this size, the network's attention sees 16 x 16" in caplog.text
    assert info(out).figures["image_size"] == [32, 32]
    assert info(imported(checkpoint, tmp_path / "said", image_size=48)).figures["image_size"] == [48, 48]
    for model, levels in (("no attention but in the middle", 0), ("widths 32, 96, 64", 2)):
        other = save("other.ckpt", model=model, beside=(), latent=False)
        with pytest.raises(ConfigError, match=f"^image_size: .* attention at {levels} levels; give a value"):
            import_official(other, tmp_path / "no")
    with pytest.raises(ConfigError, match=r"image_size is \[17, 17\]; the network needs multiples of 2"):
        import_official(checkpoint, tmp_path / "no", image_size=17)
    assert not (tmp_path / "no").exists()


def test_settings_that_the_weights_do_not_show_are_those_of_the_checkpoint(save, tmp_path, caplog):
    """Its ``hyper_parameters``, else a JSON file or options; never both with different values."""
    settings = {
        "net_beatgans_attn_head": 2, "net_enc_num_res_blocks": 1, "T": 500, "beta_scheduler": "cosine",
        "net_latent_condition_bias": 0, "net_latent_time_last_act": True, "latent_beta_scheduler": "const0.0015",
        "latent_clip_sample": True, "latent_znormalize": False, "img_size": 48,
        "beatgans_rescale_timesteps": False, "latent_rescale_timesteps": False,
    }  # fmt: skip
    checkpoint = save(beside=(), **settings)
    (tmp_path / "conf.json").write_text(json.dumps({"name": "ffhq", "total_samples": 1, **settings}))
    (_, numbers), (_, of_latent) = official_numbers("tiny, two heads"), official_numbers("tiny latent")
    x_t, z_t, z_sem = numbers["x_t"], of_latent["z_t"], numbers["z_sem"]
    with caplog.at_level(logging.INFO, "monai_diffae"):
        outs = [imported(checkpoint, tmp_path / "from_checkpoint")]
    assert "hyper_parameters or the options: net_beatgans_attn_head 2, " in caplog.text
    assert "latent_clip_sample True" in caplog.text
    assert not re.search("ema_model|guess|released models", caplog.text)
    outs.append(imported(save("silent.ckpt"), tmp_path / "from_json", hyper_parameters=tmp_path / "conf.json"))
    for out in outs:
        trained, latent = load_bundle(out, "cpu"), load_latent(out, "cpu")
        with torch.inference_mode():
            torch.testing.assert_close(trained.network.encode(numbers["x0"]), z_sem, rtol=0, atol=1e-5)
            torch.testing.assert_close(trained.network(x_t, T, z_sem), numbers["eps"], rtol=0, atol=1e-5)
            torch.testing.assert_close(latent.network(z_t, T), of_latent["eps"], rtol=0, atol=1e-5)
        f = np.cos((np.linspace(0, 1, 501) + 0.008) / 1.008 * np.pi / 2) ** 2
        alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
        np.testing.assert_allclose(trained.inferer.schedule.alphas_cumprod, alpha_bar, rtol=1e-9)
        schedule = latent.inferer.schedule
        np.testing.assert_allclose(schedule.alphas_cumprod, 0.997 ** np.arange(1, 501), rtol=1e-4)  # twice the beta
        assert schedule.clip_range == (-1.0, 1.0)
        assert torch.equal(latent.network.denormalise(z_t), z_t)
    sizes = [load_bundle(out, "cpu").config["image_size"] for out in outs]
    assert sizes == [[48, 48], [SIZE, SIZE]]  # x_T is the better witness
    with pytest.raises(ConfigError, match="net_beatgans_attn_head is 2 in the checkpoint, but 4 was given; omit"):
        import_official(checkpoint, tmp_path / "no", num_heads=4)
    with pytest.raises(ConfigError, match="beta_scheduler: the official code has no schedule 'sqrt'"):
        import_official(save(**{"beside": (), **settings, "beta_scheduler": "sqrt"}), tmp_path / "no")


def test_a_linear_classifier_becomes_directions(save, tmp_path):
    head = torch.nn.Linear(12, 2)
    state = {
        f"{name}.{key}": tensor
        for name in ("classifier", "ema_classifier")
        for key, tensor in head.state_dict().items()
    }
    torch.save({"state_dict": {**state, "conds_mean": MEAN[None], "conds_std": STD[None]}}, tmp_path / "head.ckpt")
    options = {"classifier": tmp_path / "head.ckpt", "classes": ["Effusion", "폐렴"]}
    trained = load_bundle(imported(save(), tmp_path / "bundle", **options), "cpu")
    directions = [
        read_direction(trained.folder / "directions" / f"{safe_file_name(name)}.json", trained)
        for name in options["classes"]
    ]
    z_sem = torch.randn(5, 12)
    theirs = head((z_sem - MEAN) / STD).sigmoid().detach()
    np.testing.assert_allclose(np.stack([each.predict(z_sem) for each in directions], 1), theirs, rtol=1e-5)
    moved = z_sem + STD * 0.3 * 12**0.5 * torch.nn.functional.normalize(head.weight[1:], dim=1)  # section 4.2
    np.testing.assert_allclose(directions[1].move(z_sem.numpy(), 0.3 * 12**0.5), moved.detach(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="^classifier: head.ckpt has 2 classes of a z_sem of 12 numbers"):
        import_official(save(), tmp_path / "no", classifier=tmp_path / "head.ckpt", classes=["Mass"])
    with pytest.raises(ConfigError, match="there is no linear classifier in it"):
        import_official(save(), tmp_path / "no", classifier=save("model.ckpt"))


@pytest.mark.goal(id="R17")
def test_a_full_disk_is_one_line_and_leaves_nothing(save, tmp_path):
    checkpoint, out = save(), tmp_path / "empty"
    out.mkdir()
    message = r"^model\.safetensors: cannot be written \(File too large\)"
    with no_file_larger_than(18_000), pytest.raises(MachineError, match=message):
        import_official(checkpoint, out)
    assert list(out.iterdir()) == []
    load_bundle(imported(checkpoint, out), "cpu")  # the second attempt is not refused
