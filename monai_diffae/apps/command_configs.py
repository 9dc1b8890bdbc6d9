"""The bundle runs of the commands: their JSON is generated from the commands' signatures."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from monai_diffae.apps.commands import COMMANDS, Command
from monai_diffae.bundle.description import as_json

MONAI_KEYS = {"bundle": "bundle_root", "cohort": "dataset_dir", "out": "output_dir"}
"""Arguments whose keys in a bundle's configuration are MONAI's."""


def command_config(command: Command) -> dict[str, Any]:
    """The configuration of a command's bundle run: one key per argument, and the call.

    Example:
        >>> from monai_diffae.apps.commands import COMMANDS
        >>> embed = next(command for command in COMMANDS if command.name == "embed")
        >>> config = command_config(embed)
        >>> config["pool"], config["embed"]["pool"], config["run"]
        ('none', '@pool', '%embed')
    """
    function = command.declared()
    name = function.__name__
    values, call = keys_and_call(function, MONAI_KEYS)
    return {
        "imports": ["$import monai_diffae.bundle as bundle"],
        "bundle_root": ".",
        **values,
        name: {"_target_": f"monai_diffae.{name}", **call},
        "initialize": ["$bundle.check_run('')"],
        "run": f"%{name}",
    }


def keys_and_call(function: Callable[..., Any], names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a function's arguments with their defaults, and the arguments of the call that refer to these keys.

    ``names`` are keys of arguments that have another name in the configuration.
    """
    values: dict[str, Any] = {}
    call: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        settings = parameter.default
        is_settings = is_dataclass(settings)
        defaults = {f.name: getattr(settings, f.name) for f in fields(settings)} if is_settings else {name: settings}
        for argument, default in defaults.items():
            key = names.get(argument, argument)
            call[argument] = f"@{key}"
            if key != "bundle_root":
                values[key] = "???" if default is inspect.Parameter.empty else _plain(default)
    return values, call


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


# -- the runs that MONAI's tools open ---------------------------------------------------------------------------------

_NAMES = {**MONAI_KEYS, "seed": "noise_seed"}
"""Keys of arguments that are called differently; ``seed`` is the one of the cohort's split, as in ``train.json``."""

_DEVICE = "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')"
_EVALUATOR: dict[str, Any] = {
    "dataset": {
        "_target_": "monai_diffae.data.CachedCases",
        "data": "$[case.item() for case in @cohort.choose(@cases, @split, @limit)]",
        "transform": "@preprocessing",
        "keys": "$list(dict.fromkeys([*@model.image_keys, @model.encoder_key]))",
        "num_workers": "@workers",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": "@batch_size", "num_workers": 0},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "monai_diffae.transforms.ToScanSpaced", "keys": "pred", "preprocessing": "@preprocessing"}
        ],
    },
    "writer": {
        "_target_": "monai_diffae.transforms.WriteReconstructiond",
        "keys": "pred",
        "directory": "@output_dir",
        "cases": "$@cohort.cases",
        "preprocessing": "@preprocessing",
        "folders": "@mode",
        "grid": "@grid",
        "model_range": "$@model.model_range",
        "affine": "$@model.grid_affine",
        "dicom": "@dicom",
        "overwrite": "@overwrite",
    },
    "handlers": [
        {
            "_target_": "monai_diffae.handlers.BadScans",
            "directory": "@output_dir",
            "datasets": ["@dataset"],
            "failures": "$[] if @cases else @cohort.failures",
        },
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "prepare_batch": {
            "_target_": "PrepareBatchExtraInput",
            "extra_keys": {"condition": "$@model.encoder_key", "ids": "id"},
        },
        "inferer": {
            "_target_": "monai_diffae.inferers.Reconstructor",
            "inferer": "@inferer",
            "mode": "@mode",
            "seed": "@noise_seed",
        },
        "postprocessing": "$@writer",
        "val_handlers": "@handlers",
    },
}
"""MONAI's standard components.

The evaluator writes the same images as the command. MONAI Label runs the components one by one instead: the
preprocessing, ``inferer(inputs, network)`` and the postprocessing, after which it writes the image itself.
"""


_METRIC = "$monai.handlers.from_engine(['pred', 'image'])"
_QUALITY: dict[str, Any] = {
    "mode": "x_T",
    "dataset": {**_EVALUATOR["dataset"], "data": "$[case.item() for case in @cohort.choose((), @split, @limit)]"},
    "dataloader": _EVALUATOR["dataloader"],
    "postprocessing": {
        "_target_": "ScaleIntensityRanged",
        "keys": ["image", "pred"],
        "a_min": "$@model.model_range[0]",
        "a_max": "$@model.model_range[1]",
        "b_min": 0.0,
        "b_max": 1.0,
    },
    "handlers": [],
    "evaluator": {
        **{key: value for key, value in _EVALUATOR["evaluator"].items() if key != "postprocessing"},
        "postprocessing": "@postprocessing",
        "key_val_metric": {
            "ssim": {
                "_target_": "monai.handlers.IgniteMetricHandler",
                "metric_fn": {
                    "_target_": "SSIMMetric", "spatial_dims": "$len(@model.image_shape) - 1", "data_range": 1.0
                },
                "output_transform": _METRIC,
            }
        },
        "additional_metrics": {
            "psnr": {
                "_target_": "monai.handlers.PeakSignalToNoiseRatio", "max_val": 1.0, "output_transform": _METRIC
            }
        },
    },
}  # fmt: skip
"""An evaluator of MONAI with MONAI's metrics, for tools that look for one in ``evaluate.json``."""


def inference_config(command: Command) -> dict[str, Any]:
    """The configuration of ``inference.json``.

    Its runs ``evaluating`` and ``run`` are the command ``reconstruct``. It also opens the trained model, and has
    MONAI's standard components, because MONAI's tools read them by their names.
    """
    config = _with_evaluator(command, _EVALUATOR)
    config["output_dir"] = "$@bundle_root + '/reconstructions'"
    return {**config, "evaluating": config.pop("run"), "run": "%evaluating"}


def evaluation_config(command: Command) -> dict[str, Any]:
    """The configuration of ``evaluate.json``.

    Its run is the command ``evaluate``. Its ``evaluator`` measures SSIM and PSNR of reconstructions with one condition,
    for tools that take MONAI's components.
    """
    return _with_evaluator(command, _QUALITY)


_MODEL: dict[str, Any] = {
    "model": {
        "_target_": "monai_diffae.load_bundle", "bundle": "@bundle_root", "device": "@device", "overrides": "@overrides"
    },
    "network_def": "$@model.network",
    "network": "$@network_def.to(@device)",
    "inferer": "$@model.inferer",
    "preprocessing": "$@model.preprocessing",
    "cohort": {
        "_target_": "monai_diffae.apps.session.split_for", "trained": "@model", "cohort": "@dataset_dir",
        "columns": "@columns", "overrides": "@overrides",
    },
}  # fmt: skip
"""The trained model, opened from its file: MONAI's tools look for these keys."""


def _with_evaluator(command: Command, evaluator: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a command, with the bundle's model and an evaluator."""
    function = command.declared()
    name = function.__name__
    values, call = keys_and_call(function, _NAMES)
    values["device"] = _DEVICE
    config = {
        "bundle_root": ".",
        **values,
        **_MODEL,
        **evaluator,
        name: {"_target_": f"monai_diffae.{name}", **call, "device": "$str(@device)"},
        "initialize": [f"$bundle.check_run('{command.config}')"],
        "run": ["$bundle.check_all_set()", f"%{name}"],
    }
    return {"imports": ["$import monai_diffae.bundle as bundle"], **config}


# -- files ------------------------------------------------------------------------------------------------------------


def write_command_configs(bundle: Path) -> list[Path]:
    """Write the configurations of all commands into a bundle's ``configs``; for a first stage, that of ``export``."""
    with_model = {"inference.json": inference_config, "evaluate.json": evaluation_config}
    is_first_stage = "inferer" not in json.loads((bundle / "configs" / "train.json").read_text())

    files = []
    for command in COMMANDS:
        if command.config is not None and (command.name == "export" or not is_first_stage):
            make = with_model.get(command.config)
            config = command_config(command) if make is None else make(command)
            file = bundle / "configs" / command.config
            file.write_text(as_json(config))
            files.append(file)
    return files


def door_stub() -> str:
    """The text of ``monai_diffae/__init__.pyi``, by which editors and type checkers know what the door opens."""
    import monai_diffae

    imports = [f"from monai_diffae.{module} import {name} as {name}" for name, module in monai_diffae.MODULES.items()]
    return "\n".join([*sorted(imports), "", "__version__: str", "MODULES: dict[str, str]", "__all__: list[str]", ""])


if __name__ == "__main__":  # make configs
    (Path(__file__).parents[1] / "__init__.pyi").write_text(door_stub())
    for folder in map(Path, sys.argv[1:]):
        if (folder / "configs" / "train.json").is_file():  # bundles with weights use those of another one
            write_command_configs(folder)
