"""The command ``explore``: a page on this machine that shows what a model has learned."""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from cyclopts import Group, Parameter

from monai_diffae.apps.command import command, refuse_results_among_scans
from monai_diffae.apps.result import Result
from monai_diffae.apps.settings import Decoding, Reading, Run
from monai_diffae.lazy import on_first_use

with on_first_use:
    from monai_diffae.serving import server

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)


@Parameter(name="*", group=Group("Page", sort_key=2))
@dataclass(frozen=True)
class Address:
    """Where the page is."""

    host: str = "127.0.0.1"
    """Address to listen on; by default, only this machine can reach the page."""
    port: Annotated[int, Ge(1), Le(65535)] = 8765
    """Port to listen on."""
    no_browser: bool = False
    """Do not open the browser."""


@command
def explore(
    bundle: Path,
    cohort: Path,
    *,
    out: Path = Path("explored"),
    embeddings: Path | None = None,
    directions: Sequence[Path] = (),
    num_components: Annotated[int, Ge(1)] = 8,
    address: Address = Address(),
    decoding: Decoding = Decoding(),
    reading: Reading = Reading(),
    run: Run = Run(),
) -> Result:
    """Open a page that shows what a model has learned: a map of z_sem, and scans that change with sliders.

    The page shows every case on a map. A click opens its scan, its neighbors, its labels and its outlier score.
    Sliders move z_sem along directions and principal components, and the edited image follows. Cases can be blended,
    and decoded with another x_T. Every image can be saved in the scan's own space, or made again by the command and
    the lines of Python that the page shows.

    Only this machine can reach the page, and only with the token in its address. Ctrl-C ends the server.

    Args:
        bundle: Folder of a trained bundle.
        cohort: Folder, CSV/TSV, MONAI datalist or single scan.
        out: Folder for the table of embeddings, if none is given.
        embeddings: Table of embeddings of the cohort; by default it is made first, as by ``embed``.
        directions: Direction files, written by ``fit-direction``: one slider each.
        num_components: Number of principal components with sliders.

    Returns:
        Nothing, when the server has ended.

    Raises:
        ConfigError: an argument cannot be used, the bundle is not trained, or another model made the embeddings or a
            direction.
        CohortError: there is no usable case, or the table has none of them.
        MachineError: the port is in use.
    """
    from monai_diffae.explorer.app import build_app
    from monai_diffae.explorer.exploration import Caller, open_exploration

    refuse_results_among_scans(cohort, out=out)  # the default, too, which lies in the working folder
    server.check_port(address.host, address.port)
    caller = Caller(bundle, cohort, embeddings, decoding, reading, run)
    exploration = open_exploration(caller, out, directions, num_components)
    token = secrets.token_urlsafe(24)
    if address.host not in server.LOOPBACK:
        logger.warning("host: everyone who can reach %s and knows the token can see the scans", address.host)
    app = build_app(exploration, token, address.port, loopback_only=address.host in server.LOOPBACK)
    try:
        _serve(app, address, token)
    finally:
        exploration.close()
    return Result()


def _serve(app: FastAPI, address: Address, token: str) -> None:
    host = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{host}:{address.port}/?token={token}"

    def announce() -> None:
        print(f"open {url} (Ctrl-C ends the server)", file=sys.stderr, flush=True)
        if not address.no_browser:
            threading.Timer(1, webbrowser.open, [url]).start()

    server.serve(app, address.host, address.port, announce)
