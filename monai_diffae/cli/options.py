"""What several commands take, under the same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_diffae.errors import ConfigError

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
Embeddings = Annotated[
    Path, typer.Option("--embeddings", help="embeddings.parquet, made with this bundle.", show_default=False)
]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Network evaluations for decoding; the bundle's by default.")
]
Solver = Annotated[
    str | None, typer.Option("--solver", help="adams, ddim, euler, heun, dpmpp_2m or unipc; the bundle's by default.")
]
Dicom = Annotated[
    bool,
    typer.Option("--dicom", help="Write DICOM cases also as new series of the same study, patient's name and all."),
]


def pairs_of(texts: list[str] | None, option: str) -> dict[str, str]:
    """``name=value`` as both."""
    for text in texts or []:
        if "=" not in text.strip("="):
            raise ConfigError(f"{option}: {text!r} is not of the form name=value")
    return dict(text.split("=", 1) for text in texts or [])


def columns_of(texts: list[str] | None) -> dict[str, str]:
    """``image=file`` as our word and the table's."""
    return pairs_of(texts, "--column")


def settings_of(texts: list[str] | None) -> dict[str, Any]:
    """``max_epochs=5`` as a config id and its value: JSON, or else text."""
    values: dict[str, Any] = {}
    for name, text in pairs_of(texts, "--set").items():
        words = {"true": True, "false": False, "none": None, "null": None}
        try:
            values[name] = words[text.lower()] if text.lower() in words else json.loads(text)
        except ValueError:
            values[name] = text
    return values


def end(num_failed: int, num_cases: int, failures_name: str = "failures.csv") -> None:
    """Exit with 3 where cases failed, and say which file lists them."""
    if num_failed:
        typer.echo(f"{num_failed} of {num_failed + num_cases} cases failed: see {failures_name}", err=True)
        raise typer.Exit(3)


def numbers_of(text: str, option: str) -> list[float]:
    """``-2,0,2.5`` as numbers."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not numbers with commas between, such as -2,0,2") from None
