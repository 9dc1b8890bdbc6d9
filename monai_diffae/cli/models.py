"""Commands that make a model: init, train, import-official, info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monai_diffae.cli.options import (
    AsJson,
    Bundle,
    Cohort,
    Columns,
    Device,
    Overwrite,
    Settings,
    columns_of,
    settings_of,
)

commands = typer.Typer()


@commands.command(epilog="Example: monai-diffae init my_model --bundle diffae_2d")
def init(
    directory: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    bundle: Annotated[str, typer.Option("--bundle", help="Which shipped bundle.")] = "diffae_2d",
) -> None:
    """Copy a shipped bundle to work in."""
    from monai_diffae.bundle.folders import init_bundle

    print(init_bundle(directory, bundle))


@commands.command(epilog="Example: monai-diffae train --bundle my_model --cohort scans.csv --set max_epochs=20")
def train(
    bundle: Bundle,
    cohort: Cohort,
    out: Annotated[Path | None, typer.Option("--out", help="Where the weights go; into the bundle by default.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The config's by default.")] = None,
    device: Device = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="The config's by default.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="The config's by default.")] = None,
    overlay: Annotated[
        list[Path] | None,
        typer.Option("--overlay", help="A config file laid over train.json; the bundle's configs/overlays has some."),
    ] = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a bundle: the same as python -m monai.bundle run. An interrupted training goes on."""
    from monai_diffae.apps.training.train import train as run

    named = {"seed": seed, "device": device, "batch_size": batch_size, "num_workers": workers}
    overrides = {key: value for key, value in named.items() if value is not None}
    overrides |= {f"columns#{word}": name for word, name in columns_of(column).items()}
    overrides |= settings_of(settings) | ({"overwrite": True} if overwrite else {})
    folder = run(bundle, cohort, out, overlays=overlay or [], overrides=overrides)
    print(folder)
    failures = folder / "failures.csv"
    if failures.is_file():
        typer.echo(f"some cases were left out: see {failures.name}", err=True)
        raise typer.Exit(3)


@commands.command(epilog="Example: monai-diffae import-official last.ckpt --out my_model")
def import_official(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .ckpt of phizaz/diffae, or its weights as .safetensors.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the bundle.", show_default=False)],
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels along a side; read off the checkpoint by default.")
    ] = None,
    latent_statistics: Annotated[
        Path | None,
        typer.Option("--latent-statistics", help="The official latent.pkl; those in the checkpoint by default."),
    ] = None,
    bundle: Annotated[str, typer.Option("--bundle", help="Which shipped bundle to fill.")] = "diffae_2d",
    encoder_num_res_blocks: Annotated[
        int | None, typer.Option("--encoder-num-res-blocks", min=1, help="Where more than one number fits.")
    ] = None,
    num_heads: Annotated[int, typer.Option("--num-heads", min=1, help="Attention heads of the model.")] = 1,
) -> None:
    """Make a trained bundle of a checkpoint of the official Diff-AE code."""
    from monai_diffae.apps.training.import_official import import_official as run

    folder = run(
        checkpoint, out, image_size=image_size, latent_statistics=latent_statistics, bundle=bundle,
        encoder_num_res_blocks=encoder_num_res_blocks, num_heads=num_heads,
    )  # fmt: skip
    print(folder)


@commands.command(epilog="Example: monai-diffae info my_model --json")
def info(
    directory: Annotated[Path, typer.Argument(help="A trained bundle.", show_default=False)], as_json: AsJson = False
) -> None:
    """What a trained bundle is: its images, size and checksum."""
    from monai_diffae.bundle.loading import bundle_summary

    summary = bundle_summary(directory)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    for name, value in summary.items():
        print(f"{name}: {value}")
