"""First stages of others: MONAI's autoencoders with their weights, on whose latents a new bundle works."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai_diffae.bundle.code import AUTOENCODERS, components, read_values, refuse_code
from monai_diffae.bundle.config import build
from monai_diffae.bundle.description import resolved, versions, write_description
from monai_diffae.bundle.layout import FIRST_STAGE_MODEL, MODEL, MODELS
from monai_diffae.bundle.model_file import check_fit, check_writable, is_small, read_model, unknown_targets, write_model
from monai_diffae.bundle.parser import Parser
from monai_diffae.data.tensor_files import read_torch_file
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, quoted
from monai_diffae.networks import FirstStage

PREPARATION = ("intensity", "percentiles", "window_hu", "model_range", "spacing_mm")
"""How images are prepared for a first stage, by the keys of its description."""

_OF_GENERATIVE = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}  # arguments in MONAI Generative


def add_first_stage(folder: Path, source: Path) -> None:
    """Let a new ``diffae_3d`` work on the latents of a first stage, which is copied into its folder.

    Args:
        folder: the bundle.
        source: a bundle of MONAI's model zoo with an autoencoder, a file with the weights of one beside the JSON file
            that defines its network, or a trained ``autoencoder_kl_3d``.

    Raises:
        ConfigError: there is no such path, or there are no weights and definition that belong together.
        ScanError: as there are none, and a file of weights cannot be read.
        UnsafeInputError: the weights or the definition would run code.
    """
    if not source.exists():
        raise ConfigError(f"first_stage: there is no such file or folder as {quoted(source.name)}; check the path")
    target, own = folder / MODELS / FIRST_STAGE_MODEL, source / MODELS / MODEL
    if own.is_file():
        description = read_model(own, "first_stage").description
        shutil.copyfile(own, target)
        values = {key: description[key] for key in (*PREPARATION, "in_channels", "image_size") if key in description}
    else:
        stage, description = _find(source)
        write_model(target, "first_stage", stage.state_dict(), {**description, "versions": versions()})
        values = {"model_range": [0.0, 1.0], "in_channels": stage.in_channels}  # the range of MONAI's own ones
    write_description({**values, "first_stage": description["network_def"]}, folder)


def _find(source: Path) -> tuple[FirstStage, dict[str, Any]]:
    """The first stage whose weights fit its description; weights of diffusion models can be large, and come last."""
    files = sorted((source / MODELS).glob("*.pt"), key=lambda file: ("autoencoder" not in file.name, file.name))
    problem: DiffAEError = ConfigError(
        f"first_stage: {source.name} has no weights that fit a definition of a 3D {' or '.join(AUTOENCODERS)}, with as "
        "many channels out as in, in its JSON files; give a zoo bundle, or a file of weights beside its definition"
    )
    for file in [source] if source.is_file() else files:
        try:
            content = read_torch_file(file, "cannot be read; copy it again")
        except ScanError as error:
            problem = error
            continue
        parts = [content, *content.values()] if isinstance(content, Mapping) else []
        states = [part for part in parts if isinstance(part, Mapping) and "quant_conv_mu.conv.weight" in part]
        for description in _descriptions(file.parent) if states else ():
            check_writable(description)  # before it is built, as formulas would run
            refuse_code([f"the target {quoted(target)}" for target in unknown_targets(description)], source.name)
            with suppress(ConfigError):
                stage = build(Parser(deepcopy(description)), "network_def", FirstStage)
                state = _renamed(states[0], stage.autoencoder.state_dict())
                check_fit(state, stage.autoencoder, file.name)
                stage.autoencoder.load_state_dict(state)
                return stage, description
    raise problem


def _descriptions(models: Path) -> Iterator[dict[str, Any]]:
    """First stages with the autoencoders in JSON files: in the ``configs`` of the weights' bundle, or beside them."""
    for file in sorted([*models.parent.glob("configs/*.json"), *models.glob("*.json")]):
        config: dict[str, Any] = {}
        with suppress(ConfigError):  # another file, or damaged
            config = read_values(file)
        for id, part in components(config):
            module, _, name = str(part["_target_"]).rpartition(".")
            given: dict[str, Any] = {}
            with suppress(ConfigError):  # it refers to keys of other files
                given = resolved(config, id) if name in AUTOENCODERS and is_small(config, id, part) else {}
            given = {key: value for key, value in given.items() if not key.startswith("_")}
            if module.startswith("generative"):
                given = {_OF_GENERATIVE.get(key, key): value for key, value in given.items()}
            if given.get("spatial_dims") == 3 and given.get("in_channels") == given.get("out_channels"):
                autoencoder = {"_target_": AUTOENCODERS[name], **given}
                yield {"network_def": {"_target_": "monai_diffae.networks.FirstStage", "autoencoder": autoencoder}}


def _renamed(state: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of MONAI Generative under the names that MONAI gives them; others keep theirs."""
    old = {re.sub(r"attn\.(?=to_)", "", key).replace("attn.out_proj", "proj_attn"): key for key in new}
    names = {name.replace("postconv", "conv"): key for name, key in old.items()}
    return {names.get(key, key): value for key, value in state.items()}
