"""``monai-diffae``: the command line. Heavy imports are inside the commands, so that help answers at once."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from monai_diffae import __version__
from monai_diffae.errors import ConfigError, find_diffae_error, one_line

app = typer.Typer(
    name="monai-diffae",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Diffusion autoencoders for medical scans.\n\nExample: monai-diffae demo --out demo",
    epilog="Exit codes: 0 done, 1 a bug, 2 usage, 3 done but some cases failed (failures.csv), 4 no usable case, "
    "5 unsafe input refused, 6 disk or device.",
)

Bundle = Annotated[Path, typer.Option("--bundle", help="A bundle's folder.", show_default=False)]
Cohort = Annotated[
    Path, typer.Option("--cohort", help="A folder, CSV/TSV, MONAI datalist or scan.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", help="Where the results go.", show_default=False)]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; the GPU if there is one by default.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read scans; 0: this one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make it anew although it is there.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="What the table calls image, id, patient or split, as image=file; may be repeated."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A config id and its value, as max_epochs=5; may be repeated.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"monai-diffae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks, and every line of the log.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("monai_diffae").setLevel(level)
    import warnings

    if not debug:
        warnings.filterwarnings("ignore", category=DeprecationWarning)


@app.command(epilog="Example: monai-diffae init my_model --bundle diffae_2d")
def init(
    directory: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    bundle: Annotated[str, typer.Option("--bundle", help="Which shipped bundle.")] = "diffae_2d",
) -> None:
    """Copy a shipped bundle to work in."""
    from monai_diffae.apps.bundles import init_bundle

    print(init_bundle(directory, bundle))


@app.command(epilog="Example: monai-diffae train --bundle my_model --cohort scans.csv --set max_epochs=20")
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
    from monai_diffae.apps.train import train as run

    named = {"seed": seed, "device": device, "batch_size": batch_size, "num_workers": workers}
    overrides = {key: value for key, value in named.items() if value is not None}
    overrides |= {f"columns#{word}": name for word, name in _columns(column).items()}
    overrides |= _settings(settings) | ({"overwrite": True} if overwrite else {})
    folder = run(bundle, cohort, out, overlays=overlay or [], overrides=overrides)
    print(folder)
    failures = folder / "failures.csv"
    if failures.is_file():
        typer.echo(f"some cases were left out: see {failures.name}", err=True)
        raise typer.Exit(3)


@app.command(
    epilog="Example: monai-diffae embed --bundle my_model --cohort scans.csv --out embedded --column image=file"
)
def embed(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    batch_size: BatchSize = 64,
    workers: Workers = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode every case to z_sem: embeddings.parquet."""
    from monai_diffae.apps.embed import embed as run

    result = run(
        bundle, cohort, out, batch_size=batch_size, workers=workers, device=device, columns=_columns(column),
        overwrite=overwrite, overrides=_settings(settings),
    )  # fmt: skip
    print(result.path)
    _end(result.num_failed, result.num_cases)


@app.command(epilog="Example: monai-diffae reconstruct --bundle my_model --cohort scans.csv --out rec --limit 8")
def reconstruct(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    mode: Annotated[
        str, typer.Option("--mode", help="x_T (near-exact), z_sem (from z_sem alone), or both; mosaic.png shows both.")
    ] = "x_T",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Network evaluations for decoding; the bundle's by default.")
    ] = None,
    invert_steps: Annotated[
        int | None,
        typer.Option("--invert-steps", min=1, help="Network evaluations for inversion; as --steps, or the bundle's."),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option("--solver", help="adams, ddim, euler, heun, dpmpp_2m or unipc; the bundle's by default."),
    ] = None,
    inversion: Annotated[
        str | None,
        typer.Option(
            "--inversion",
            help="implicit (undoes the solver) or ddim (first order; as in the paper with --spacing leading); "
            "the bundle's by default.",
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            help="Levels visited: logsnr, leading (the paper's), trailing or linspace; the bundle's by default.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first cases.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only train, val or test; all by default, training cases too.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode and decode again, in the model's grid: images, reconstructions.csv, mosaic.png."""
    from monai_diffae.apps.reconstruct import reconstruct as run

    result = run(
        bundle, cohort, out, mode=mode, steps=steps, invert_steps=invert_steps, solver=solver, inversion=inversion,  # type: ignore[arg-type]
        spacing=spacing, limit=limit, split=split, seed=seed, batch_size=batch_size, workers=workers, device=device,
        columns=_columns(column), overwrite=overwrite, overrides=_settings(settings),
    )  # fmt: skip
    for name, value in result.means.items():
        print(f"{name} {value:.6g}")
    print(result.folder)
    _end(result.num_failed, result.num_cases)


@app.command(epilog="Example: monai-diffae probe embedded/embeddings.parquet --target age --target sex")
def probe(
    file: Annotated[Path, typer.Argument(help="embeddings.parquet", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A label column (of the table that was embedded); all numbers by default."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """What z_sem tells of the labels: linear probes on held-out cases."""
    from monai_diffae.apps.probe import probe as run

    rows = run(file, target, seed=seed)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['target']}: {row['metric']} {row['score']:.3f} (95% interval {row['low']:.3f} to {row['high']:.3f}, "
            f"{row['num_train']} training and {row['num_test']} test cases)"
        )


@app.command(epilog="Example: monai-diffae samples virtual --num-patients 200")
def samples(
    directory: Annotated[Path, typer.Argument(help="Where the cohort goes.", show_default=False)],
    num_patients: Annotated[int, typer.Option("--num-patients", min=1, help="Of the virtual cohort.")] = 1000,
    size: Annotated[int | None, typer.Option("--size", help="Pixels along a side; 48, or 28 for MedMNIST.")] = None,
    spatial_dims: Annotated[int, typer.Option("--spatial-dims", help="2: slices, 3: volumes.")] = 2,
    medmnist: Annotated[str | None, typer.Option("--medmnist", help="Instead: a MedMNIST set's name or .npz.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write sample data: a virtual cohort (one real template, simulated variation), or a MedMNIST set."""
    if medmnist is not None:
        from monai_diffae.data.medmnist import medmnist_to_cohort

        print(medmnist_to_cohort(medmnist, directory, size=28 if size is None else size, overwrite=overwrite))
        return
    from monai_diffae.data.samples import make_virtual_cohort

    cohort = make_virtual_cohort(
        directory,
        num_patients=num_patients,
        size=48 if size is None else size,
        spatial_dims=spatial_dims,
        seed=seed,
        overwrite=overwrite,
    )
    print(cohort)


@app.command(epilog="Example: monai-diffae demo --out demo")
def demo(
    out: Out,
    overlay: Annotated[str, typer.Option("--overlay", help="Which shipped overlay says how to train.")] = "demo",
    num_patients: Annotated[int, typer.Option("--num-patients", min=20, help="Of the virtual cohort.")] = 3000,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Network evaluations to invert, and to decode; the bundle's by default."),
    ] = None,
    workers: Workers = 0,
    device: Device = None,
    settings: Settings = None,
) -> None:
    """All of it on a virtual cohort, without a download: train, embed, reconstruct, probe."""
    from monai_diffae.apps.demo import demo as run
    from monai_diffae.apps.demo import show

    show(
        run(
            out,
            overlay=overlay,
            num_patients=num_patients,
            steps=steps,
            workers=workers,
            device=device,
            overrides=_settings(settings),
        )
    )


@app.command(epilog="Example: monai-diffae import-official last.ckpt --out my_model")
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
    from monai_diffae.apps.import_official import import_official as run

    folder = run(
        checkpoint, out, image_size=image_size, latent_statistics=latent_statistics, bundle=bundle,
        encoder_num_res_blocks=encoder_num_res_blocks, num_heads=num_heads,
    )  # fmt: skip
    print(folder)


@app.command(epilog="Example: monai-diffae info my_model --json")
def info(
    directory: Annotated[Path, typer.Argument(help="A trained bundle.", show_default=False)], as_json: AsJson = False
) -> None:
    """What a trained bundle is: its images, size and checksum."""
    from monai_diffae.apps.reading import bundle_summary

    summary = bundle_summary(directory)
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    for name, value in summary.items():
        print(f"{name}: {value}")


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    for text in texts or []:
        if "=" not in text.strip("="):
            raise ConfigError(f"{option}: {text!r} is not of the form name=value")
    return dict(text.split("=", 1) for text in texts or [])


def _columns(texts: list[str] | None) -> dict[str, str]:
    return _pairs(texts, "--column")


def _settings(texts: list[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in _pairs(texts, "--set").items():
        words = {"true": True, "false": False, "none": None, "null": None}
        try:
            values[name] = words[text.lower()] if text.lower() in words else json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _end(num_failed: int, num_cases: int) -> None:
    if num_failed:
        typer.echo(f"{num_failed} of {num_failed + num_cases} cases failed: see failures.csv", err=True)
        raise typer.Exit(3)


def main() -> NoReturn:
    """The program: errors of ours become one line and an exit code; tracebacks only with ``--debug``."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        known = find_diffae_error(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        if known is None:
            print("this is a bug; --debug shows where", file=sys.stderr)
        sys.exit(known.exit_code if known is not None else 1)
    sys.exit(0)


if __name__ == "__main__":
    main()
