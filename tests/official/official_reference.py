"""Diff-AE a second time, from its description: plain functions over a dict of official names.

It shares no code with ``monai_diffae`` and knows no module of it, so where both agree, both are right or both were
described wrongly; the files of the official code's own numbers in ``shared/parity`` decide that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Official:
    """A configuration in the official code's words; ``attention`` and ``enc_attention`` are levels, 0 full size."""

    channels: int = 1
    base: int = 32
    mult: Sequence[int] = (1, 2)
    enc_mult: Sequence[int] = (1, 2, 2)
    blocks: int = 2
    enc_blocks: int = 2
    attention: Sequence[int] = (1,)
    enc_attention: Sequence[int] = (1,)
    z: int = 24
    embed: int = 40


class Writer:
    """Fills a dict with random tensors under official names; nothing stays 0, so that every path shows."""

    def __init__(self, seed: int) -> None:
        self.weights: Weights = {}
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, out: int, *shape: int) -> None:
        fan_in = math.prod(shape)
        self.weights[f"{name}.weight"] = torch.randn(out, *shape, generator=self.generator) / fan_in**0.5
        self.weights[f"{name}.bias"] = torch.randn(out, generator=self.generator) * 0.1

    def norm(self, name: str, channels: int) -> None:
        self.layer(name, channels)
        self.weights[f"{name}.weight"] = 1 + 0.1 * self.weights[f"{name}.weight"]

    def block(self, name: str, c_in: int, c_out: int, of: Official | None) -> int:
        self.norm(f"{name}.in_layers.0", c_in)
        self.layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        if of is not None:  # conditioned: the UNet's
            self.layer(f"{name}.emb_layers.1", 2 * c_out, of.embed)
            self.layer(f"{name}.cond_emb_layers.1", c_out, of.z)
            self.norm(f"{name}.out_layers.0", c_out)
            self.layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            self.layer(f"{name}.skip_connection", c_out, c_in, 1, 1)
        return c_out

    def attention(self, name: str, channels: int) -> None:
        self.norm(f"{name}.norm", channels)
        self.layer(f"{name}.qkv", 3 * channels, channels, 1)
        self.layer(f"{name}.proj_out", channels, channels, 1)

    def going_down(
        self, prefix: str, of: Official, mult: Sequence[int], blocks: int, attention: Sequence[int], is_unet: bool
    ) -> list[int]:
        """Input and middle blocks; returns the widths that go to the skip connections."""
        conditions = of if is_unet else None
        width = of.base * mult[0]
        self.layer(f"{prefix}input_blocks.0.0", width, of.channels, 3, 3)
        widths = [width]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                width = self.block(f"{prefix}input_blocks.{len(widths)}.0", width, of.base * m, conditions)
                if level in attention:
                    self.attention(f"{prefix}input_blocks.{len(widths)}.1", width)
                widths.append(width)
            if level < len(mult) - 1:
                widths.append(self.block(f"{prefix}input_blocks.{len(widths)}.0", width, width, conditions))
        self.block(f"{prefix}middle_block.0", width, width, conditions)
        self.attention(f"{prefix}middle_block.1", width)
        self.block(f"{prefix}middle_block.2", width, width, conditions)
        return widths

    def autoencoder(self, of: Official) -> Weights:
        self.layer("time_embed.time_embed.0", of.embed, of.base)
        self.layer("time_embed.time_embed.2", of.embed, of.embed)
        skips = self.going_down("", of, of.mult, of.blocks, of.attention, is_unet=True)
        width, i = skips[-1], 0
        for level, m in reversed(list(enumerate(of.mult))):
            for j in range(of.blocks + 1):
                width = self.block(f"output_blocks.{i}.0", width + skips.pop(), of.base * m, of)
                if level in of.attention:
                    self.attention(f"output_blocks.{i}.1", width)
                if level > 0 and j == of.blocks:
                    self.block(f"output_blocks.{i}.{2 if level in of.attention else 1}", width, width, of)
                i += 1
        self.norm("out.0", width)
        self.layer("out.2", of.channels, width, 3, 3)
        width = self.going_down("encoder.", of, of.enc_mult, of.enc_blocks, of.enc_attention, is_unet=False)[-1]
        self.norm("encoder.out.0", width)
        self.layer("encoder.out.3", of.z, width, 1, 1)
        return self.weights

    def latent_mlp(self, z: int = 16, hidden: int = 24, layers: int = 4, skips: Sequence[int] = (1, 2, 3)) -> Weights:
        self.layer("time_embed.0", z, 64)
        self.layer("time_embed.2", z, z)
        for i in range(layers):
            is_last = i == layers - 1
            width = (z if i == 0 else hidden) + (z if i in skips else 0)
            self.layer(f"layers.{i}.linear", z if is_last else hidden, width)
            if not is_last:
                self.layer(f"layers.{i}.cond_layers.1", hidden, z)
                self.norm(f"layers.{i}.norm", hidden)
        copies = {n.replace("cond_layers.1", "linear_emb"): t for n, t in self.weights.items() if "cond_layers" in n}
        return self.weights | copies  # the official modules have each of these layers twice


def random_weights(of: Official, seed: int = 0) -> Weights:
    return Writer(seed).autoencoder(of)


def random_latent(seed: int = 0, **sizes: object) -> Weights:
    return Writer(seed).latent_mlp(**sizes)  # type: ignore[arg-type]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def conv(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, min(32, x.shape[1]), w[f"{name}.weight"], w[f"{name}.bias"])


def sinusoid(t: Tensor, width: int) -> Tensor:
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def block(
    w: Weights, name: str, x: Tensor, resample: str = "", t: Tensor | None = None, z: Tensor | None = None
) -> Tensor:
    h = F.silu(norm(w, f"{name}.in_layers.0", x))
    if resample == "down":
        h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    if resample == "up":
        h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
    h = conv(w, f"{name}.in_layers.2", h)
    if t is not None and z is not None:
        scale, shift = linear(w, f"{name}.emb_layers.1", F.silu(t))[..., None, None].chunk(2, dim=1)
        of_z = linear(w, f"{name}.cond_emb_layers.1", F.silu(z))[..., None, None]
        h = norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = conv(w, f"{name}.out_layers.3", F.silu(h * (1 + of_z)))
    if f"{name}.skip_connection.weight" in w:
        x = conv(w, f"{name}.skip_connection", x)
    return x + h


def attention(w: Weights, name: str, x: Tensor, heads: int = 1) -> Tensor:
    tokens = norm(w, f"{name}.norm", x).flatten(2)
    qkv = F.conv1d(tokens, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    q, k, v = qkv.unflatten(1, (heads, -1)).chunk(3, dim=2)  # first the heads, then q, k and v
    weight = (q.transpose(-1, -2) @ k / q.shape[2] ** 0.5).softmax(dim=-1)
    h = F.conv1d((v @ weight.transpose(-1, -2)).flatten(1, 2), w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
    return x + h.view_as(x)


def go_down(
    w: Weights, prefix: str, x: Tensor, blocks: int, t: Tensor | None = None, z: Tensor | None = None, heads: int = 1
) -> tuple[Tensor, list[Tensor]]:
    h = conv(w, f"{prefix}input_blocks.0.0", x)
    skips = [h]
    while f"{prefix}input_blocks.{len(skips)}.0.in_layers.0.weight" in w:
        name = f"{prefix}input_blocks.{len(skips)}"
        h = block(w, f"{name}.0", h, "" if len(skips) % (blocks + 1) else "down", t, z)
        if f"{name}.1.qkv.weight" in w:
            h = attention(w, f"{name}.1", h, heads)
        skips.append(h)
    h = block(w, f"{prefix}middle_block.0", h, "", t, z)
    h = attention(w, f"{prefix}middle_block.1", h, heads)
    return block(w, f"{prefix}middle_block.2", h, "", t, z), skips


def encode(w: Weights, x: Tensor, blocks: int, heads: int = 1) -> Tensor:
    h, _ = go_down(w, "encoder.", x, blocks, heads=heads)
    pooled = F.silu(norm(w, "encoder.out.0", h)).mean(dim=(2, 3), keepdim=True)
    return conv(w, "encoder.out.3", pooled).flatten(1)


def predict(w: Weights, x_t: Tensor, t: Tensor, z: Tensor, blocks: int, heads: int = 1) -> Tensor:
    """``blocks`` are ``num_res_blocks``: nothing in the weights says which blocks halve the resolution."""
    embedding = sinusoid(t, w["time_embed.time_embed.0.weight"].shape[1])
    embedding = linear(w, "time_embed.time_embed.2", F.silu(linear(w, "time_embed.time_embed.0", embedding)))
    h, skips = go_down(w, "", x_t, blocks, embedding, z, heads)
    for i in range(len(skips)):
        h = block(w, f"output_blocks.{i}.0", torch.cat([h, skips.pop()], dim=1), "", embedding, z)
        for j in (1, 2):
            if f"output_blocks.{i}.{j}.qkv.weight" in w:
                h = attention(w, f"output_blocks.{i}.{j}", h, heads)
            if f"output_blocks.{i}.{j}.in_layers.0.weight" in w:
                h = block(w, f"output_blocks.{i}.{j}", h, "up", embedding, z)
    return conv(w, "out.2", F.silu(norm(w, "out.0", h)))


def predict_latent(w: Weights, z_t: Tensor, t: Tensor, bias: float = 1, time_last_act: bool = False) -> Tensor:
    time = linear(w, "time_embed.2", F.silu(linear(w, "time_embed.0", sinusoid(t, 64))))
    time = F.silu(time) if time_last_act else time
    h, layers = z_t, len({name.split(".")[1] for name in w if name.startswith("layers.")})
    for i in range(layers):
        if w[f"layers.{i}.linear.weight"].shape[1] > h.shape[1]:
            h = torch.cat([h, z_t], dim=1)
        h = linear(w, f"layers.{i}.linear", h)
        if i < layers - 1:
            h = h * (bias + linear(w, f"layers.{i}.cond_layers.1", F.silu(time)))
            h = F.silu(F.layer_norm(h, h.shape[1:], w[f"layers.{i}.norm.weight"], w[f"layers.{i}.norm.bias"]))
    return h
