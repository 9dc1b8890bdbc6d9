"""Commands that put a cohort through a model: samples, plan, embed, reconstruct, probe, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from monai_diffae.cli.options import (
    AsJson,
    BatchSize,
    Bundle,
    Cohort,
    Columns,
    Device,
    Dicom,
    Out,
    Overwrite,
    Seed,
    Settings,
    Workers,
    columns_of,
    end,
    pairs_of,
    settings_of,
)
from monai_diffae.errors import ConfigError

commands = typer.Typer()


@commands.command(epilog="Example: monai-diffae samples virtual --num-patients 200")
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


@commands.command(epilog="Example: monai-diffae plan scans/ --memory-gib 8")
def plan(
    cohort: Annotated[Path, typer.Argument(help="A folder, CSV/TSV, MONAI datalist or scan.", show_default=False)],
    memory_gib: Annotated[
        float | None, typer.Option("--memory-gib", help="What training may take; 80 % of what is free by default.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="A shipped one or a folder; what suits most scans by default.")
    ] = None,
    device: Device = None,
    overlay: Annotated[
        list[Path] | None, typer.Option("--overlay", help="A config file to be laid over train.json, as for train.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read every scan to its end; without it, headers and sizes of files only.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train for some seconds, on noise, and say how long training takes.")
    ] = False,
    column: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """What to train a bundle with on these scans and this machine: grid, batch, width."""
    from monai_diffae.apps.training.plan import plan as run
    from monai_diffae.apps.training.plan import show

    result = run(
        cohort, bundle=bundle, memory_gib=memory_gib, device=device, columns=columns_of(column),
        overlays=overlay or [], overrides=settings_of(settings), check=check, measure=measure,
    )  # fmt: skip
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        show(result)
    if result.survey.failures:
        raise typer.Exit(3)


@commands.command(
    epilog="Example: monai-diffae embed --bundle my_model --cohort scans.csv --out embedded --column image=file"
)
def embed(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    pool: Annotated[
        str,
        typer.Option("--pool", help="Of volumes in a 2D model: mean or mean_std of the slices' z_sem, a row a volume."),
    ] = "none",
    patches: Annotated[
        bool, typer.Option("--patches", help="Cut scans larger than the model's field; ..._patches has a row a patch.")
    ] = False,
    overlap: Annotated[
        float | None, typer.Option("--overlap", help="Of neighbouring patches, 0 to less than 1; .25 by default.")
    ] = None,
    batch_size: BatchSize = 64,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that read scans ahead; one a core by default; 0: none."),
    ] = None,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Encode every case to z_sem: embeddings.parquet, or the .csv or .parquet file that --out names.

    A run that was stopped goes on. Under torchrun, processes share the work.
    """
    from monai_diffae.apps.embedding.embed import embed as run

    result = run(
        bundle, cohort, out, pool=pool, patches=patches, overlap=overlap,  # type: ignore[arg-type]
        batch_size=batch_size, workers=workers, device=device, columns=columns_of(column), overwrite=overwrite,
        overrides=settings_of(settings),
    )  # fmt: skip
    print(result.path)
    if result.patches is not None:
        print(result.patches)
    end(result.num_failed, result.num_cases, result.failures.name)


@commands.command(epilog="Example: monai-diffae reconstruct --bundle my_model --cohort scans.csv --out rec --limit 8")
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
    grid: Annotated[
        str, typer.Option("--grid", help="native: the scan's own shape, affine, units and type; model: the model's.")
    ] = "native",
    dicom: Dicom = False,
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
    """Encode and decode again: images in the scan's own space, reconstructions.csv, mosaic.png."""
    from monai_diffae.apps.synthesis.reconstruct import reconstruct as run

    result = run(
        bundle, cohort, out, mode=mode, steps=steps, invert_steps=invert_steps, solver=solver, inversion=inversion,  # type: ignore[arg-type]
        spacing=spacing, grid=grid, dicom=dicom, limit=limit, split=split, seed=seed, batch_size=batch_size,  # type: ignore[arg-type]
        workers=workers, device=device, columns=columns_of(column), overwrite=overwrite,
        overrides=settings_of(settings),
    )  # fmt: skip
    for name, value in result.means.items():
        print(f"{name} {value:.6g}")
    print(result.folder)
    end(result.num_failed, result.num_cases)


@commands.command(
    epilog="Example: monai-diffae probe embedded/embeddings.parquet --target age --target sex --out probed"
)
def probe(
    file: Annotated[Path, typer.Argument(help="embeddings.parquet", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A label column (of the table that was embedded); all numbers by default."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluation",
            help="split: fitted to train, judged on test; cv: nested cross-validation over patients. By default split "
            "where there are enough test cases.",
        ),
    ] = None,
    splits: Annotated[
        str, typer.Option("--splits", help="Cross-validation within these alone, such as val,test; all by default.")
    ] = "",
    probes: Annotated[str, typer.Option("--probes", help="Of linear, knn, boosting.")] = "linear,knn",
    features: Annotated[
        list[str] | None,
        typer.Option("--features", help="To compare with: name=table.csv or .parquet, with ids; may be repeated."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="To compare with: pca or intensity, of the pixels; needs --bundle, --cohort."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="For --baseline: the table's bundle.")] = None,
    cohort: Annotated[Path | None, typer.Option("--cohort", help="For --baseline: the table's cohort.")] = None,
    column: Columns = None,
    workers: Workers = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder for tables, predictions, calibration and few-label curves."),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """What z_sem tells of the labels: probes on patients that they were not fitted to, beside baselines."""
    from monai_diffae.apps.evaluation.baselines import PixelBaselines
    from monai_diffae.apps.evaluation.probe import probe as run
    from monai_diffae.apps.evaluation.probe_report import show

    pixels = None
    if baseline:
        if bundle is None or cohort is None:
            raise ConfigError("--baseline: the images are read through a bundle; give --bundle and --cohort too")
        pixels = PixelBaselines(tuple(baseline), bundle, cohort, columns_of(column), workers)  # type: ignore[arg-type]
    elif bundle is not None or cohort is not None:
        there = "--cohort" if bundle is None else "--bundle"
        raise ConfigError(f"{there}: is for --baseline; give that too, or leave it out")
    rows = run(
        file, target, evaluation=evaluation, splits=_words(splits), probes=_words(probes),  # type: ignore[arg-type]
        baselines=pairs_of(features, "--features"), pixels=pixels, out=out, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)
        if out is not None:
            print(out)
    if rows.num_failed:
        where = "name a folder with --out for a list" if out is None else "probe_failures.csv"
        why = f"their images cannot be read ({where}) or are not in the cohort"
        typer.echo(f"{rows.num_failed} cases are left out, for {why}", err=True)
    if rows.num_failed or rows.left_out:  # a warning says why
        raise typer.Exit(3)


@commands.command(epilog="Example: monai-diffae demo --out demo")
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
    from monai_diffae.apps.training.demo import demo as run
    from monai_diffae.apps.training.demo import show

    show(
        run(
            out,
            overlay=overlay,
            num_patients=num_patients,
            steps=steps,
            workers=workers,
            device=device,
            overrides=settings_of(settings),
        )
    )


def _words(text: str) -> list[str]:
    """``val,test`` as words."""
    return [word.strip() for word in text.split(",") if word.strip()]
