"""`monai-diffae ...`: thin; what the commands do is in :mod:`monai_diffae.apps`, imported inside them."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer

from monai_diffae import __version__
from monai_diffae.cli import cohorts, judgement, models, synthesis
from monai_diffae.errors import find_diffae_error, one_line

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
for group in (models, cohorts, synthesis, judgement):
    app.add_typer(group.commands)


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
