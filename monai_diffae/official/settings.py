"""Settings of the official code that its weights do not show: from a checkpoint's ``hyper_parameters``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from monai_diffae.errors import ConfigError, quoted


@dataclass(frozen=True)
class OfficialSettings:
    """Settings with the names of the official ``TrainConfig``; the defaults are those of the released models.

    The official training saves its whole ``TrainConfig`` in a checkpoint, as plain values and without its enumerations
    (such as ``net_latent_activation``, which is SiLU in all of its configurations).
    """

    net_beatgans_attn_head: int = 1
    net_enc_num_res_blocks: int | None = None
    img_size: int | None = None
    T: int = 1000
    beta_scheduler: str = "linear"
    beatgans_rescale_timesteps: bool = False
    net_latent_condition_bias: float = 1.0
    net_latent_time_last_act: bool = False
    latent_beta_scheduler: str = "const0.008"
    latent_rescale_timesteps: bool = False
    latent_clip_sample: bool = False
    latent_znormalize: bool = True

    def diffusion(self, of_latents: bool = False) -> dict[str, Any]:
        """The arguments of :class:`~monai_diffae.diffusion.DiffusionSchedule` for images, or for z_sem.

        Raises:
            ConfigError: the official code has no such beta schedule, or the time steps are rescaled.
        """
        kind, prefix = ("latent_", "latent") if of_latents else ("", "beatgans")
        name, key = getattr(self, f"{kind}beta_scheduler"), f"{kind}beta_scheduler"
        if self.T != 1000 and getattr(self, f"{prefix}_rescale_timesteps"):
            raise ConfigError(f"{prefix}_rescale_timesteps with T {self.T} cannot be imported; use the official code")
        scale = 1000 / self.T
        if name == "cosine":
            betas: dict[str, Any] = {"schedule": "cosine_official"}
        elif name == "linear":
            betas = {"schedule": "linear_beta", "beta_start": scale * 0.0001, "beta_end": scale * 0.02}
        else:
            try:
                beta = scale * float(name.removeprefix("const"))
            except ValueError:
                raise ConfigError(f"{key}: the official code has no schedule {quoted(name)}; correct it") from None
            betas = {"schedule": "linear_beta", "beta_start": beta, "beta_end": beta}
        return {"num_train_timesteps": self.T, "prediction": "eps", **betas}


def official_settings(
    hyper_parameters: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> tuple[OfficialSettings, list[str]]:
    """The settings of a checkpoint; where it is silent, those that are given, and else those of the released models.

    Args:
        hyper_parameters: those of the checkpoint; other keys than the fields of the settings are ignored.
        given: values of the user, by the same names; None stands for no value.

    Returns:
        The settings, and the names of those that neither the checkpoint nor the user has.

    Raises:
        ConfigError: a value is of another type, or the checkpoint has another value than the user.
    """
    values: dict[str, Any] = {}
    for source in (hyper_parameters, given or {}):
        for field in fields(OfficialSettings):
            value = source.get(field.name)
            if value is None:
                continue
            kind: type = int if field.default is None else type(field.default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind or (isinstance(value, int) and kind is int and value < 1):
                raise ConfigError(
                    f"{field.name}: is {quoted(value)}, which the official code does not allow; correct it"
                )
            if values.setdefault(field.name, value) != value:
                raise ConfigError(
                    f"{field.name} is {quoted(values[field.name])} in the checkpoint, but {quoted(value)} was given; "
                    "omit the option"
                )
    return OfficialSettings(**values), [field.name for field in fields(OfficialSettings) if field.name not in values]
