"""``inference.json`` and ``evaluate.json``: the runs of ``reconstruct`` and ``evaluate``, with MONAI's components."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diffae.apps.command_configs import MONAI_KEYS, keys_and_call
from monai_diffae.apps.commands import Command

_NAMES = {**MONAI_KEYS, "seed": "noise_seed"}
"""Keys of arguments that are called differently; ``seed`` is the one of the cohort's split, as in ``train.json``."""

_EVALUATOR: dict[str, Any] = {
    "dataset": {
        "_target_": "monai_diffae.data.CachedCases",
        "data": "$[case.item() for case in @cohort.choose(@cases, @split, @limit)]",
        "transform": "@preprocessing",
        "keys": "$list(dict.fromkeys([*@image_keys, @encoder_key]))",
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
        "model_range": "@model_range",
        "affine": "$bundle.grid_affine(bundle.running_config())",
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
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        },
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "prepare_batch": {
            "_target_": "PrepareBatchExtraInput",
            "extra_keys": {"condition": "@encoder_key", "ids": "id"},
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
        "a_min": "$@model_range[0]",
        "a_max": "$@model_range[1]",
        "b_min": 0.0,
        "b_max": 1.0,
    },
    "handlers": [_EVALUATOR["handlers"][1]],
    "evaluator": {
        **{key: value for key, value in _EVALUATOR["evaluator"].items() if key != "postprocessing"},
        "postprocessing": "@postprocessing",
        "key_val_metric": {
            "ssim": {
                "_target_": "monai.handlers.IgniteMetricHandler",
                "metric_fn": {"_target_": "SSIMMetric", "spatial_dims": "@spatial_dims", "data_range": 1.0},
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


def inference_config(command: Command, bundle: Path) -> dict[str, Any]:
    """The configuration of ``inference.json`` for a bundle with this ``configs/train.json``.

    Its runs ``evaluating`` and ``run`` are the command ``reconstruct``. It also describes the model, as ``train.json``
    does, with MONAI's standard components, because MONAI's tools read them by their names.
    """
    config = _with_evaluator(command, bundle, _EVALUATOR)
    config["output_dir"] = "$@bundle_root + '/reconstructions'"
    run = config.pop("run")
    return {**config, "evaluating": [run], "run": "%evaluating"}


def evaluation_config(command: Command, bundle: Path) -> dict[str, Any]:
    """The configuration of ``evaluate.json`` for a bundle with this ``configs/train.json``.

    Its run is the command ``evaluate``. Its ``evaluator`` measures SSIM and PSNR of reconstructions with one condition,
    for tools that take MONAI's components.
    """
    return _with_evaluator(command, bundle, _QUALITY)


def _with_evaluator(command: Command, bundle: Path, evaluator: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a command, with the bundle's model and an evaluator."""
    from monai_diffae.bundle import model_config

    train = json.loads((bundle / "configs" / "train.json").read_text())
    function = command.declared()
    name = function.__name__
    values, call = keys_and_call(function, _NAMES)
    values["device"] = train["device"]
    overrides = f"$bundle.run_overrides(@bundle_root, @overrides, '{command.config}')"
    call |= {"device": "$str(@device)", "overrides": overrides}
    model = {key: value for key, value in model_config(train).items() if key not in ("imports", *values)}
    config = {
        "bundle_root": ".",
        **values,
        **model,
        "network": train["network"],
        **evaluator,
        name: {"_target_": f"monai_diffae.{name}", **call},
        "initialize": [
            f"$bundle.prepare_run('{command.config}')",
            "$bundle.check_running_config()",
            "$bundle.check_trained_weights(@network_def, @bundle_root)",
        ],
        "run": f"%{name}",
    }
    return {"imports": _needed_imports(train["imports"], config), **config}


def _needed_imports(imports: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Those import expressions whose name an expression of the configuration uses."""
    expressions = json.dumps(config)
    return [line for line in imports if re.search(rf"\b{line.split()[-1]}\.", expressions)]
