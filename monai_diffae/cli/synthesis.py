"""Commands that make images: train-latent, sample, interpolate, vary, walk, fit-direction, edit, grade."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_diffae.cli.options import (
    AsJson,
    BatchSize,
    Bundle,
    Cohort,
    Columns,
    Device,
    Dicom,
    Embeddings,
    Out,
    Overwrite,
    Seed,
    Settings,
    Solver,
    Steps,
    Workers,
    columns_of,
    end,
    numbers_of,
    settings_of,
)

commands = typer.Typer()

Case = Annotated[str, typer.Option("--case", help="A case's id; embed and reconstruct list them.", show_default=False)]
DirectionFile = Annotated[Path, typer.Option("--direction", help="A file of fit-direction.", show_default=False)]
Amounts = Annotated[
    str, typer.Option("--amounts", help="Standard deviations along it, as -2,0,2; 0 is the plain reconstruction.")
]
_AMOUNTS = "-3,-2,-1,0,1,2,3"


def _decoding(settings: list[str] | None, steps: int | None, solver: str | None) -> dict[str, Any]:
    from monai_diffae.bundle.decoding import inferer_overrides

    return inferer_overrides(settings_of(settings), steps, solver=solver)


@commands.command("train-latent", epilog="Example: monai-diffae train-latent --bundle my_model --cohort scans.csv")
def train_latent(
    bundle: Bundle,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="What the bundle was trained on; embedded first.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="Instead: its embeddings.parquet, made with this bundle.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Another folder for it; into the bundle by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The config's by default.")] = None,
    device: Device = None,
    overlay: Annotated[
        list[Path] | None, typer.Option("--overlay", help="A config file laid over train_latent.json.")
    ] = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the latent DDIM, which sample draws from. An interrupted training goes on."""
    from monai_diffae.apps.training.train_latent import train_latent as run

    named = {"seed": seed, "device": device}
    overrides = {key: value for key, value in named.items() if value is not None}
    overrides |= {f"columns#{word}": name for word, name in columns_of(column).items()}
    overrides |= settings_of(settings) | ({"overwrite": True} if overwrite else {})
    print(run(bundle, cohort, embeddings=embeddings, out=out, overlays=overlay or [], overrides=overrides))


@commands.command(epilog="Example: monai-diffae sample --bundle my_model --n 64 --out samples")
def sample(
    bundle: Bundle,
    out: Out,
    num_images: Annotated[int, typer.Option("--n", min=1, help="How many images.")] = 16,
    direction: Annotated[
        Path | None,
        typer.Option("--direction", help="A file of fit-direction for two classes: only images of one of them."),
    ] = None,
    side: Annotated[str, typer.Option("--side", help="With --direction: positive or negative.")] = "positive",
    min_probability: Annotated[
        float, typer.Option("--min-probability", help="With --direction: what its classifier must say.")
    ] = 0.5,
    image_format: Annotated[
        str | None, typer.Option("--format", help="png or nii.gz; PNG by default for what it can hold.")
    ] = None,
    steps: Steps = None,
    solver: Solver = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    device: Device = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Make images of nobody: z_sem from the latent DDIM, x_T from noise. More can be added later."""
    from monai_diffae.apps.synthesis.sample import sample as run

    result = run(
        bundle, out, num_images=num_images, seed=seed, direction=direction, side=side,  # type: ignore[arg-type]
        min_probability=min_probability, image_format=image_format, batch_size=batch_size, device=device,  # type: ignore[arg-type]
        overwrite=overwrite, overrides=_decoding(settings, steps, solver),
    )  # fmt: skip
    if direction is not None:
        print(f"accepted {result.accepted:.3f}")
    print(result.folder)


@commands.command(
    epilog="Example: monai-diffae interpolate --bundle my_model --cohort scans.csv --from a --to b --out ab"
)
def interpolate(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    first: Annotated[str, typer.Option("--from", help="A case's id.", show_default=False)],
    second: Annotated[str, typer.Option("--to", help="Another case's id.", show_default=False)],
    num_images: Annotated[int, typer.Option("--n", min=2, help="How many images, both ends included.")] = 9,
    steps: Steps = None,
    solver: Solver = None,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Morph one case into another: images and a strip."""
    from monai_diffae.apps.synthesis.interpolate import interpolate as run

    result = run(
        bundle, cohort, out, first=first, second=second, num_images=num_images, device=device,
        columns=columns_of(column), overwrite=overwrite, overrides=_decoding(settings, steps, solver),
    )  # fmt: skip
    print(result.folder)


@commands.command(epilog="Example: monai-diffae vary --bundle my_model --cohort scans.csv --case a --out variations")
def vary(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    case: Case,
    num_images: Annotated[int, typer.Option("--n", min=2, help="How many variations.")] = 16,
    steps: Steps = None,
    solver: Solver = None,
    seed: Seed = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Decode a case's z_sem with other x_T: what z_sem leaves open, and where."""
    from monai_diffae.apps.synthesis.vary import vary as run

    result = run(
        bundle, cohort, out, case=case, num_images=num_images, seed=seed, device=device, columns=columns_of(column),
        overwrite=overwrite, overrides=_decoding(settings, steps, solver),
    )  # fmt: skip
    print(f"mean_std {result.mean_std:.6g}")
    print(result.folder)


@commands.command(
    epilog="Example: monai-diffae walk --bundle my_model --embeddings embedded/embeddings.parquet --out walk"
)
def walk(
    bundle: Bundle,
    embeddings: Embeddings,
    out: Out,
    num_components: Annotated[int, typer.Option("--components", min=1, help="How many, the largest first.")] = 3,
    amounts: Amounts = _AMOUNTS,
    num_noises: Annotated[
        int, typer.Option("--noises", min=1, help="x_T that an image is averaged over, without --case.")
    ] = 4,
    cohort: Annotated[Path | None, typer.Option("--cohort", help="Where --case is.")] = None,
    case: Annotated[str | None, typer.Option("--case", help="Start from this case, with its own x_T.")] = None,
    steps: Steps = None,
    solver: Solver = None,
    seed: Seed = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Walk along the principal components of the training cases' z_sem."""
    from monai_diffae.apps.synthesis.walk import walk as run

    result = run(
        bundle, embeddings, out, num_components=num_components, amounts=numbers_of(amounts, "--amounts"),
        num_noises=num_noises, cohort=cohort, case=case, seed=seed, device=device, columns=columns_of(column),
        overwrite=overwrite, overrides=_decoding(settings, steps, solver),
    )  # fmt: skip
    for i, share in enumerate(result.explained, start=1):
        print(f"component {i} explained {share:.4f}")
    print(result.folder)


@commands.command(
    "fit-direction",
    epilog="Example: monai-diffae fit-direction --embeddings embedded/embeddings.parquet --target sex --out sex.json",
)
def fit_direction(
    embeddings: Embeddings,
    target: Annotated[
        str, typer.Option("--target", help="A label column: two classes, or numbers.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The file, .json.", show_default=False)],
    positive: Annotated[
        str | None, typer.Option("--positive", help="The class it points to, against all others.")
    ] = None,
    max_cases: Annotated[
        int | None, typer.Option("--max-cases", min=4, help="Only so many labelled cases, for few-shot sampling.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit the direction in which z_sem says more of a label, to the training cases."""
    from monai_diffae.apps.synthesis.directions import fit_direction as run

    found = run(embeddings, target, out, positive=positive, max_cases=max_cases, seed=seed, overwrite=overwrite)
    summary = {
        "target": found.target, "kind": found.kind, "classes": found.classes, "score": found.score,
        "strength": found.strength, "num_cases": found.num_cases, "num_left_out": found.num_left_out,
    }  # fmt: skip
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    metric = "AUROC" if found.kind == "binary" else "R2"
    towards = f" towards {found.classes[1]}" if found.classes else ""
    print(
        f"{found.target}{towards}: cross-validated {metric} {found.score:.3f}, {found.num_cases} training cases, "
        f"{found.num_left_out} without the label left out"
    )
    print(out)


@commands.command(
    epilog="Example: monai-diffae edit --bundle my_model --cohort scans.csv --direction sex.json --case a --out edited"
)
def edit(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    direction: DirectionFile,
    amounts: Amounts = _AMOUNTS,
    along: Annotated[
        str, typer.Option("--along", help="pattern: as cases differ; weight: the classifier's own line, the paper's.")
    ] = "pattern",
    case: Annotated[
        list[str] | None, typer.Option("--case", help="A case's id; may be repeated; else the first --limit cases.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only train, val or test.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first cases.")] = None,
    watch: Annotated[
        list[Path] | None, typer.Option("--watch", help="Another direction, which should not move; may be repeated.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="embeddings.parquet, for the distance to other patients.")
    ] = None,
    dicom: Dicom = False,
    steps: Steps = None,
    solver: Solver = None,
    workers: Workers = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Move cases along a direction, each with its own x_T: images and differences in native space, and figures."""
    from monai_diffae.apps.synthesis.edit import edit as run

    result = run(
        bundle, cohort, out, direction=direction, amounts=numbers_of(amounts, "--amounts"), along=along,  # type: ignore[arg-type]
        cases=case, split=split, limit=limit, watch=watch or [], embeddings=embeddings, dicom=dicom, workers=workers,
        device=device, columns=columns_of(column), overwrite=overwrite, overrides=_decoding(settings, steps, solver),
    )  # fmt: skip
    if result.monotone is not None:
        print(f"monotone {result.monotone:.4f} of {result.num_cases} cases")
    print(result.folder)
    end(result.num_failed, result.num_cases)


@commands.command(
    epilog="Example: monai-diffae grade --embeddings embedded/embeddings.parquet --direction sick.json --out grades.csv"
)
def grade(
    embeddings: Embeddings,
    direction: DirectionFile,
    out: Annotated[Path, typer.Option("--out", help="The table, .csv.", show_default=False)],
    seed: Seed = 0,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """The severity of every case: its signed distance from a direction's plane."""
    from monai_diffae.apps.synthesis.directions import grade as run

    result = run(embeddings, direction, out, seed=seed, overwrite=overwrite)
    if as_json:
        print(json.dumps(result.scores, indent=2))
        return
    for split, row in result.scores.items():
        print(
            f"{split}: {row['metric']} {row['score']:.3f} (95% interval {row['low']:.3f} to {row['high']:.3f}, "
            f"{row['num_cases']} cases)"
        )
    print(result.path)
