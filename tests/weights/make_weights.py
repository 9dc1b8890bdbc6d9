"""Put the weights of a trained bundle into ``bundles/``, so that ``monai-diffae init`` has them: ``make weights``.

It writes the models in half precision, without anything of cases, the figures into the card and the metadata that
people wrote (words that begin with ``FIGURE_``), and ``tests/weights/<name>/z_sem.csv``: what ``embed`` finds in images
of formulas.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from golden_bundles import embed_golden_scans, write_golden_scans
from make_configs import write_training_config
from torch import Tensor

from monai_diffae.bundle import init_bundle, layout
from monai_diffae.bundle.model_file import read_description, read_model, unknown_targets, write_model
from monai_diffae.data.embeddings import z_columns
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import DiffAEError
from monai_diffae.latents.probing.probes import PCA_NAME

HERE = Path(__file__).parent
BUNDLES = HERE.parents[1] / "bundles"
LARGEST_FILE = 25_000_000  # bytes; the model zoo takes no larger files
PLACEHOLDER = re.compile(r"FIGURE_\w+")


def make_weights(bundle: Path, name: str, figures: Mapping[str, Any], *, bundles: Path = BUNDLES) -> list[str]:
    """Write weights and figures (a number, one with its interval, or a text); return the placeholders that remain."""
    target = bundles / name
    code = unknown_targets(read_description(bundle / layout.MODELS / layout.MODEL))
    if code:
        sys.exit(f"{bundle.name}: has code of its own ({code[0]}); only bundles without it are shipped")
    _write_models(bundle / layout.MODELS, target / layout.MODELS)
    write_training_config(target)
    _describe_tensors(target)
    return fill_in(target, {**_texts(target), **figures})


def _write_models(source: Path, target: Path) -> None:
    """Copy the models without the fingerprint of their data; those beside the autoencoder name its new checksum."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copyfile(source / layout.METRICS, target / layout.METRICS)
    for file in (layout.MODEL, layout.LATENT_MODEL, layout.ANOMALY, layout.WIDE):
        if not (source / file).is_file():
            continue
        model = read_model(source / file)
        description = {key: value for key, value in model.description.items() if key != "data"}
        if "autoencoder_sha256" in description:
            description["autoencoder_sha256"] = file_checksum(target / layout.MODEL)
        if "made_from" in description:
            made = description["made_from"]
            number = made["num_patients"] if "num_patients" in made else len(set(made["patients"]))
            kept = {"num_patients": number, "config": made["config"], "model": file_checksum(target / layout.MODEL)}
            description["made_from"] = kept
        is_exact = file in (layout.ANOMALY, layout.WIDE)  # scores of a calibration, and what is small already
        tensors = model.tensors if is_exact else {name: _halved(tensor) for name, tensor in model.tensors.items()}
        write_model(target / file, model.kind, tensors, description)
    for path in target.iterdir():
        if path.stat().st_size > LARGEST_FILE:
            sys.exit(f"{path.name}: has {path.stat().st_size / 1e6:.1f} MB, but at most 25 MB can be shipped")


def _halved(tensor: Tensor) -> Tensor:
    """A tensor in half precision, unless it would overflow; networks are float32 all the same when it is loaded."""
    half = tensor.half() if tensor.dtype == torch.float32 else tensor
    return half if half.isfinite().all() else tensor


def _describe_tensors(target: Path) -> None:
    """Write the size of the images that the model was trained on into the metadata."""
    size = read_description(target / layout.MODELS / layout.MODEL)["image_size"]
    metadata = _read(target / "configs" / "metadata.json")
    for kind, name in (("inputs", "image"), ("outputs", "pred")):
        metadata["network_data_format"][kind][name]["spatial_shape"] = size
    _write(target / "configs" / "metadata.json", metadata)


_OF_TABLES = {"reconstruction": "{}_x_T", "z_sem_only": "{}_z_sem", "z_sem": "{}", "generation": "{}"}


def measured_figures(evaluated: Path | None, probed: Path | None) -> dict[str, list[float]]:
    """What ``evaluate`` and the linear probe have measured, by the names of the cards, such as ``mse_x_T``."""
    figures = {}
    for row in [] if evaluated is None else _read(evaluated / "evaluation.json")["rows"]:
        is_used = row["metric"] in ("mse", "ssim") or (row["metric"] == "z_sem_usage" and row["timestep"] is None)
        if is_used or (row["metric"] == "copying_ratio" and row["features"] == "z_sem"):
            figures[_OF_TABLES[row["table"]].format(row["metric"])] = [row["value"], row["low"], row["high"]]
    for row in [] if probed is None else pd.read_csv(probed / "probes.csv").to_dict("records"):
        suffix = {"z_sem": "", PCA_NAME: "_pca"}.get(row["features"])
        if row["probe"] == "linear" and suffix is not None:
            figures[f"{row['target']}_{row['metric']}{suffix}"] = [row["score"], row["low"], row["high"]]
    return figures


def fill_in(target: Path, figures: Mapping[str, Any]) -> list[str]:
    """Write figures into the documents of a shipped bundle; the placeholders that remain."""
    readme, metadata = target / "docs" / "README.md", _read(target / "configs" / "metadata.json")
    text = readme.read_text(encoding="utf-8")
    for name, figure in figures.items():
        if isinstance(figure, str):
            text = re.sub(rf"\bFIGURE_{name}\b", lambda _, figure=figure: figure, text)
            continue
        value, *interval = figure if isinstance(figure, list) else [figure]
        cell = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        text, count = re.subn(rf"^\| {name} \|[^|]*\|[^|]*\|", f"| {name} | {value:.4g} | {cell} |", text, flags=re.M)
        if count != 1:
            sys.exit(f"{name}: docs/README.md of {target.name} has no row for this figure; add one, or omit the figure")
        metadata["eval_metrics"][name] = value
    readme.write_text(text, encoding="utf-8")
    _write(target / "configs" / "metadata.json", metadata)
    return sorted(set(PLACEHOLDER.findall(text)))


def _texts(target: Path) -> dict[str, str]:
    """What the model's own files say for the documents."""
    description = read_description(target / layout.MODELS / layout.MODEL)
    values = {**description, "epochs": description["recipe"].get("max_epochs")}
    names = ("z_channels", "image_size", "spacing_mm", "epochs")
    given = {name: values[name] for name in names if values.get(name) is not None}
    return {name: " x ".join(map(str, v)) if isinstance(v, list) else str(v) for name, v in given.items()}


def store_z_sem(name: str, folder: Path) -> None:
    """Store the z_sem that a shipped bundle with weights finds in images of formulas."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = init_bundle(Path(temporary) / "bundle", name)
        spatial_dims = read_description(bundle / layout.MODELS / layout.MODEL)["spatial_dims"]
        scans = write_golden_scans(Path(temporary) / "scans", spatial_dims)
        table = pd.read_parquet(embed_golden_scans(bundle, scans, Path(temporary) / "out")).sort_values("id")
    table[["id", *z_columns(table)]].to_csv(folder / "z_sem.csv", index=False, float_format="%.7g")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    indent = 4 if path.name == "metadata.json" else 2
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a trained bundle")
    parser.add_argument("--name", required=True, help="the folder in bundles/, such as chest_xray")
    parser.add_argument("--evaluated", type=Path, help="folder of `monai-diffae evaluate` with this bundle")
    parser.add_argument("--probed", type=Path, help="folder of `monai-diffae probe` with its embeddings")
    parser.add_argument("--figures", type=Path, help="JSON file: a number, [value, low, high] or a text by its name")
    given = parser.parse_args()
    measured = measured_figures(given.evaluated, given.probed)
    readme = (BUNDLES / given.name / "docs" / "README.md").read_text(encoding="utf-8")
    figures = {name: figure for name, figure in measured.items() if f"| {name} |" in readme}
    if unused := sorted(measured.keys() - figures.keys()):
        print(f"measured, but without a row in docs/README.md: {', '.join(unused)}")
    if given.figures:
        figures |= _read(given.figures)
    try:
        remaining = make_weights(given.bundle, given.name, figures)
        store_z_sem(given.name, HERE / given.name)
    except DiffAEError as error:
        sys.exit(f"error: {error}")
    for path in sorted((BUNDLES / given.name).rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:8.3f} MB  {path.relative_to(BUNDLES)}")
    if remaining:
        print(f"still to fill in: {', '.join(remaining)}")


if __name__ == "__main__":
    main()
