"""Commands that judge embeddings and models: neighbors, usage."""

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
    Out,
    Overwrite,
    Seed,
    Settings,
    Workers,
    columns_of,
    end,
    settings_of,
)

commands = typer.Typer()

Split = Annotated[str | None, typer.Option("--split", help="Only the cases of train, val or test.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first cases.")]


@commands.command(epilog="Example: monai-diffae neighbors embedded/embeddings.parquet --query case-7 --out near")
def neighbors(
    file: Annotated[Path, typer.Argument(help="embeddings.parquet", show_default=False)],
    out: Out,
    k: Annotated[int, typer.Option("--k", min=1, help="How many neighbours.")] = 5,
    query: Annotated[
        list[str] | None, typer.Option("--query", help="A case's id; may be repeated; all by default.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", help="Another embeddings.parquet: the cases to ask about.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="Let neighbours be of the same patient, too.")
    ] = False,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="The model, for the picture and --gap.")] = None,
    cohort: Annotated[Path | None, typer.Option("--cohort", help="What was embedded, for the same.")] = None,
    query_cohort: Annotated[
        Path | None, typer.Option("--query-cohort", help="What --queries was made of; --cohort by default.")
    ] = None,
    gap: Annotated[bool, typer.Option("--gap", help="Also judge by what decoding a case gets wrong.")] = False,
    gap_cases: Annotated[
        int, typer.Option("--gap-cases", min=1, help="Training cases that this is compared with.")
    ] = 200,
    seed: Seed = 0,
    workers: Workers = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Each case's nearest others in z_sem, and p-values of how unusual it is beside the training cases."""
    from monai_diffae.apps.evaluation.neighbors import neighbors as run

    result = run(
        file, out, k=k, query=query, queries=queries, split=split, limit=limit, same_patient=same_patient,
        bundle=bundle, cohort=cohort, query_cohort=query_cohort, gap=gap, gap_cases=gap_cases, seed=seed,
        workers=workers, device=device, columns=columns_of(column), overwrite=overwrite,
        overrides=settings_of(settings),
    )  # fmt: skip
    if as_json:
        print(json.dumps({"num_cases": result.num_cases, "unusual": result.unusual}, indent=2))
    else:
        for score, shares in result.unusual.items():
            for name, share in shares.items():
                print(f"{score}: p < .05 for {share:.1%} of {name}")
        print(result.folder)
    if result.num_failed:  # of training cases, too: no share of the cases asked about
        typer.echo(f"{result.num_failed} images could not be read: see neighbors_failures.csv", err=True)
        raise typer.Exit(3)


@commands.command(epilog="Example: monai-diffae usage --bundle my_model --cohort scans.csv --split val --out usage")
def usage(
    bundle: Bundle,
    cohort: Cohort,
    out: Out,
    split: Split = "val",
    limit: Limit = None,
    num_levels: Annotated[int, typer.Option("--levels", min=1, help="Noise levels that the loss is taken at.")] = 10,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    device: Device = None,
    column: Columns = None,
    settings: Settings = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
) -> None:
    """Whether the decoder uses z_sem, how many dimensions are active, and what leaves z_sem as it is."""
    from monai_diffae.apps.evaluation.usage import show
    from monai_diffae.apps.evaluation.usage import usage as run
    from monai_diffae.handlers.progress import warn_if_unheeded

    result = run(
        bundle, cohort, out, split=split, limit=limit, num_levels=num_levels, seed=seed, batch_size=batch_size,
        workers=workers, device=device, columns=columns_of(column), overwrite=overwrite,
        overrides=settings_of(settings),
    )  # fmt: skip
    if as_json:
        print(json.dumps({"num_cases": result.num_cases, **result.figures}, indent=2))
    else:
        show(result)
        print(result.folder)
    warn_if_unheeded(result.figures["z_sem_usage"])
    end(result.num_failed, result.num_cases, "usage_failures.csv")
