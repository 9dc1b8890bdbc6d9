"""Tiny trained bundles, stored so that tests copy one; where a decoder must use z_sem, their weights are shaken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

STORED = Path(__file__).parent / "tiny"

TINY: dict[str, Any] = {
    "image_size": [16, 16], "base_channels": 4, "channel_mult": [1, 2], "z_channels": 8,
    "network_def#unet#time_embed_channels": 16, "inferer#steps": 3, "inferer#invert_steps": 4, "max_epochs": 1,
    "batch_size": 4, "val_batch_size": 4, "num_pictures": 0, "picture_steps": 2, "probe_interval": 0, "mlflow": False,
    "check_memory": False, "device": "cpu",
}  # fmt: skip
"""Config ids and values with which the 2D model trains in about a second on a CPU."""

TINY_3D = {key: value for key, value in TINY.items() if key not in ("picture_steps", "probe_interval")} | {
    "image_size": [16, 16, 16], "spacing_mm": [14.0, 14.0, 14.0]
}  # fmt: skip

TINY_KL: dict[str, Any] = {
    "image_size": [16, 16, 24], "spacing_mm": [14.0, 14.0, 14.0], "patch_size": [16, 16, 16], "max_epochs": 1,
    "network_def#autoencoder#channels": [4, 8], "network_def#autoencoder#attention_levels": [False, False],
    "network_def#autoencoder#norm_num_groups": 4, "val_interval": 1, "num_pictures": 0, "mlflow": False,
    "device": "cpu", "test_fraction": 0.2, "val_fraction": 0.2,
}  # fmt: skip

TINY_ON_LATENTS = {
    **TINY_3D, "image_size": [16, 16, 24], "spacing_mm": [14.0, 14.0, 10.0], "z_channels": 4, "picture_steps": 2
}  # fmt: skip

TINY_LATENT: dict[str, Any] = {
    "max_epochs": 2, "batch_size": 2, "val_interval": 1, "report_every": 1, "mlflow": False, "device": "cpu",
    "validate#additional_metrics#copying_ratio#num_samples": 8, "latent_network_def#num_layers": 3,
    "lr_schedule": "constant", "train#dataset#draws": 1,
}  # fmt: skip
"""Config ids and values with which a latent DDIM trains in about a second."""

TINY_FAST: dict[str, Any] = {
    "max_epochs": 2, "batch_size": 4, "val_batch_size": 4, "warmup_steps": 1, "report_every": 1, "mlflow": False,
    "device": "cpu",
}  # fmt: skip

COHORTS: dict[str, dict[str, Any]] = {
    "2d": {"num_patients": 12, "val_fraction": 0.2, "test_fraction": 0.3},
    "3d": {"num_patients": 7, "val_fraction": 0.2, "test_fraction": 0.2, "spatial_dims": 3},
    "kl": {"num_patients": 8, "val_fraction": 0.2, "spatial_dims": 3},
}

KINDS = {
    "2d": "diffae_2d",  # weights as they were trained
    "2d_all": "diffae_2d",  # shaken, with a latent DDIM and a fast decoder
    "3d": "diffae_3d",  # shaken
    "first_stage": "autoencoder_kl_3d",
    "3d_on_latents": "diffae_3d",  # shaken, on the latents of "first_stage"
}


def tiny_cohort(folder: Path, kind: str) -> Path:
    """Write the virtual heads on which a stored bundle was trained, and return their table."""
    from monai_diffae.data.samples import make_virtual_cohort

    return make_virtual_cohort(folder, size=16, **COHORTS[kind])


def copy_tiny(folder: Path, kind: str, ignore: tuple[str, ...] = ()) -> Path:
    """Make a bundle with stored weights and no checkpoint, without the files of ``models/`` that match ``ignore``."""
    from monai_diffae.bundle.folders import init_bundle

    bundle = init_bundle(folder, STORED / kind / "models" / "model.safetensors")
    for file in (file for pattern in ignore for file in (bundle / "models").glob(pattern)):
        file.unlink()
    shutil.copytree(STORED / kind, bundle, ignore=shutil.ignore_patterns(*ignore), dirs_exist_ok=True)
    return bundle


def weights(bundle: Path) -> dict[str, Any]:
    """The averaged weights, which are the same in the model's file and in the one for MONAI's tools."""
    import torch

    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without its cache and its lock."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if ".cache" not in file.parts}


def tiny_kl(spatial_dims: int = 3, channels: tuple[int, ...] = (4, 8), **settings: Any) -> Any:
    """MONAI's ``AutoencoderKL`` without attention, with random weights."""
    import torch
    from monai.networks.nets import AutoencoderKL

    torch.manual_seed(0)
    settings |= dict.fromkeys(("with_encoder_nonlocal_attn", "with_decoder_nonlocal_attn"), False)
    settings |= {"attention_levels": [False] * len(channels), "num_res_blocks": 1, "norm_num_groups": 4}
    return AutoencoderKL(spatial_dims, channels=channels, **settings)


def small_autoencoder(spatial_dims: int = 2, std: float = 0.05, **settings: Any) -> Any:
    """A network for evaluation in which no layer is 0, so that z_sem has an effect."""
    import torch

    from monai_diffae.networks import build_autoencoder

    torch.manual_seed(0)
    sizes = {"base_channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "time_embed_channels": 8}
    network = build_autoencoder(spatial_dims, **{**sizes, **settings})
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=std)
    return network.eval()


def shake(bundle: Path) -> None:
    """Change weights at random, so that z_sem tells cases apart and the decoder uses it."""
    import torch

    rng = torch.Generator().manual_seed(0)

    def shaken(state: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in state.items() if not name.startswith("first_stage.")}
        new = {name: value + 0.05 * torch.randn(value.shape, generator=rng) for name, value in own.items()}
        head = {name: 100 * value for name, value in new.items() if name.startswith("encoder.head.4.")}
        assert head
        return state | new | head

    rewrite(bundle, shaken)


def rewrite(
    bundle: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    file: str = "model.safetensors",
    **description: Any,
) -> None:
    """Change the tensors of a bundle's model, and values of its description."""
    from monai_diffae.bundle.model_file import read_model, write_for_monai, write_model

    path = bundle / "models" / file
    model = read_model(path)
    tensors = change(model.tensors)
    write_model(path, model.kind, tensors, model.description | description)
    if file == "model.safetensors":
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage.")}
        write_for_monai(path.with_suffix(".pt"), own)


def scaled(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Multiplies all tensors."""
    return lambda tensors: {name: factor * tensor for name, tensor in tensors.items()}


def train_tiny_bundles(stored: Path, work: Path) -> None:
    """Train all bundles in ``work``, and replace the ones in ``stored``."""
    from monai_diffae import anomaly, distill, embed, train, train_latent
    from monai_diffae.bundle.folders import init_bundle

    bundles = {kind: init_bundle(work / kind, name) for kind, name in KINDS.items() if kind != "2d_all"}
    cohorts = {kind: tiny_cohort(work / f"cohort_{kind}", kind) for kind in COHORTS}
    train(bundles["2d"], cohorts["2d"], overrides=TINY)
    train(bundles["3d"], cohorts["3d"], overrides=TINY_3D)
    train(bundles["first_stage"], cohorts["kl"], overrides=TINY_KL)
    train(
        bundles["3d_on_latents"], cohorts["kl"],
        overlays=[bundles["3d_on_latents"] / "configs" / "overlays" / "latent_space.json"],
        overrides={**TINY_ON_LATENTS, "first_stage_bundle": str(bundles["first_stage"])},
    )  # fmt: skip
    bundles["2d_all"] = Path(shutil.copytree(bundles["2d"], work / "2d_all"))
    for kind in ("2d_all", "3d", "3d_on_latents"):
        shake(bundles[kind])
    anomaly(bundles["2d_all"], cohorts["2d"], work / "unusual", calibrate_with=cohorts["2d"], limit=1, device="cpu")
    table = embed(bundles["2d_all"], cohorts["2d"], work / "z", device="cpu").path
    train_latent(bundles["2d_all"], embeddings=table, overrides=TINY_LATENT)
    distill(bundles["2d_all"], cohorts["2d"], steps=2, training={"overrides": TINY_FAST})
    shutil.rmtree(stored, ignore_errors=True)
    unneeded = shutil.ignore_patterns("*.pt", "*.lock", "configs", "docs", "LICENSE", "cache", "*.png")
    for kind, bundle in bundles.items():
        shutil.copytree(bundle, stored / kind, ignore=unneeded)
