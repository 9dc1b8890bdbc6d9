"""Store what the official Diff-AE code computes: ``python tests/official/make_official_numbers.py CHECKOUT``.

The checkout is that of https://github.com/phizaz/diffae (MIT licence, 00c57d3).
"""

import json
import sys

import torch
from official_numbers import FILE, T, filled
from safetensors.torch import save_file

TINY = {
    "in_channels": 3, "out_channels": 3, "model_channels": 8, "channel_mult": (1, 1), "enc_channel_mult": (1, 1, 2),
    "num_res_blocks": 1, "enc_num_res_block": 1, "enc_out_channels": 12, "embed_channels": 10,
}  # fmt: skip
# what differs from the default: 1 channel, widths 32 and 64, 2 blocks per level, attention at level 1
CONFIGURATIONS = {
    "default": {},
    "three channels": {"in_channels": 3, "out_channels": 3},
    "width 96": {
        "model_channels": 96, "channel_mult": (1,), "enc_channel_mult": (1, 1), "attention": (9,), "enc": (0,)
    },
    "widths 32, 96, 64": {
        "channel_mult": (1, 3, 2), "enc_channel_mult": (1, 3, 2, 2), "attention": (0, 2), "enc": (3,)
    },
    "first multiplier 2": {"model_channels": 16, "channel_mult": (2, 4), "enc_channel_mult": (2, 4, 4)},
    "widths that fall": {"channel_mult": (2, 1), "enc_channel_mult": (2, 1, 1)},
    "fewer blocks in the encoder": {"enc_num_res_block": 1},
    "more blocks in the encoder": {"num_res_blocks": 1, "enc_num_res_block": 3},
    "one level with attention": {"channel_mult": (1,), "enc_channel_mult": (1,), "attention": (0,), "enc": (9,)},
    "no attention but in the middle": {"attention": (9,), "enc": (9,)},
    "as many levels in the encoder": {"enc_channel_mult": (1, 2)},
    "an encoder that leaves out a row": {"image": (6, 14)},
    "odd sizes": {"enc_out_channels": 7, "embed_channels": 33},
    "with a latent DDIM": {"enc_out_channels": 16},
    "tiny": TINY,
    "tiny, two heads": {**TINY, "num_heads": 2},
    # 3 levels of 1 block, 2 of 2, 1 of 5: 6 blocks of one width without attention
    "unclear blocks": {
        "channel_mult": (1, 1), "enc_channel_mult": (1, 1, 1), "enc_num_res_block": 1, "attention": (9,), "enc": (9,)
    },
}  # fmt: skip
LATENT = {
    "latent": {},
    "latent without skips": {"num_channels": 24, "num_hid_channels": 24, "skip_layers": ()},
    "deep latent": {"num_layers": 6, "skip_layers": (1, 3), "num_channels": 7, "num_hid_channels": 33},
    "tiny latent": {"num_channels": 12, "num_hid_channels": 20, "condition_bias": 0, "time_last_act": True},
}


def fill(model):
    """Fill all parameters; returns the shape of each tensor of the state dict."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.eval().load_state_dict(filled(shapes))
    return shapes


def main():
    sys.path.insert(0, sys.argv[1])
    from model.latentnet import MLPSkipNetConfig
    from model.unet_autoenc import BeatGANsAutoencConfig

    torch.manual_seed(0)
    numbers, metadata = {}, {}
    for name, changes in CONFIGURATIONS.items():
        config = {
            "image_size": 32, "in_channels": 1, "out_channels": 1, "model_channels": 32, "channel_mult": (1, 2),
            "enc_channel_mult": (1, 2, 2), "num_res_blocks": 2, "enc_num_res_block": 2, "enc_out_channels": 24,
            "embed_channels": 40, "resnet_two_cond": True, "enc_pool": "adaptivenonzero", **changes,
        }  # fmt: skip
        shape, levels = config.pop("image", (8, 16)), config.pop("attention", (1,))
        config["attention_resolutions"] = [32 >> level for level in levels]
        config["enc_attn_resolutions"] = [32 >> level for level in config.pop("enc", levels)]
        model = BeatGANsAutoencConfig(resnet_cond_channels=config["enc_out_channels"], **config).make_model()
        metadata[name] = json.dumps({"config": config, "shapes": fill(model)})
        x0, x_t = torch.rand(2, 2, config["in_channels"], *shape) * 2 - 1
        with torch.inference_mode():
            z_sem = model.encoder(x0)
            values = {"x0": x0, "x_t": x_t, "z_sem": z_sem, "eps": model(x_t, T, cond=z_sem).pred}
        numbers |= {f"{name}/{key}": value.contiguous() for key, value in values.items()}
    for name, changes in LATENT.items():
        config = {"num_channels": 16, "num_hid_channels": 24, "num_layers": 4, "skip_layers": (1, 2, 3), **changes}
        model = MLPSkipNetConfig(**config).make_model()
        metadata[name] = json.dumps({"config": config, "shapes": fill(model)})
        z_t = torch.randn(2, config["num_channels"])
        with torch.inference_mode():
            numbers |= {f"{name}/z_t": z_t, f"{name}/eps": model(z_t, T).pred}
    save_file(numbers, FILE, metadata)


if __name__ == "__main__":
    main()
