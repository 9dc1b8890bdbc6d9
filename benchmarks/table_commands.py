"""Time and memory of the commands that read tables of embeddings, and how both grow with the rows.

    python benchmarks/table_commands.py OUT [--large] [--commands probe neighbors ...]

Tables of 1,000 and 10,000 rows (and 100,000 with ``--large``) x 256 random dimensions, two rows per patient, with three
scanners, a class and a number that go with z_sem. Each command runs in a process of its own with default settings;
``explore`` opens the table and computes outlier scores and neighbors, as its page does. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from measured_process import run_python

NUM_DIMS = 256
COMMANDS = {
    "probe": [],
    "neighbors": [],
    "harmonize": ["--scanner", "scanner"],
    "associate": [],
    "explore": [],
}


def make_table(folder: Path, num: int) -> None:
    """A table of embeddings with its record."""
    path = folder / f"{num}.parquet"
    rng = np.random.default_rng(0)
    scanner, row = rng.integers(3, size=num), np.arange(num)
    z = rng.normal(size=(num, NUM_DIMS)) @ rng.normal(size=(NUM_DIMS, NUM_DIMS)) / NUM_DIMS**0.5
    columns = {
        "id": [f"c{i}" for i in row],
        "patient": [f"p{i // 2}" for i in row],
        "split": np.where(row // 2 % 5 == 0, "test", "train"),
        "scanner": np.array(["A", "B", "C"])[scanner],
        "sick": np.where(z[:, 0] + rng.normal(size=num) > 0, "yes", "no"),
        "age": 50 + 10 * z[:, 1] + rng.normal(size=num),
    }
    z = (z + 0.3 * rng.normal(size=(3, NUM_DIMS))[scanner]).astype(np.float32)
    pd.DataFrame(columns | {f"z_{i:03d}": z[:, i] for i in range(NUM_DIMS)}).to_parquet(path, index=False)
    record = {"command": "embed", "complete": True, "figures": {}, "files": {}, "made_from": {"model": "random"}}
    path.with_suffix(".json").write_text(json.dumps(record))


def open_atlas(path: Path) -> None:
    """What the page of ``explore`` computes of a table."""
    from monai_diffae.data import Case
    from monai_diffae.explorer.atlas import Atlas

    atlas = Atlas.open(path, [Case(name, {}, name) for name in pd.read_parquet(path, columns=["id"])["id"]], 8)
    print(atlas.coordinates.shape, atlas.outliers[0].shape, len(atlas.neighbors(0)))


def program(call: str) -> list[str]:
    """Arguments of Python that call a function of this file."""
    return [
        "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from table_commands import *; {call}",
    ]


def growth(figures: list[float], sizes: list[int]) -> str:
    """The figures, and the exponent of the last step."""
    texts = [f"{value:.3g}" for value in figures]
    exponent = math.log(figures[-1] / figures[-2]) / math.log(sizes[-1] / sizes[-2]) if len(figures) > 1 else math.nan
    return f"{', '.join(texts)} | {exponent:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--large", action="store_true", help="also tables of 100,000 rows")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    arguments = parser.parse_args()
    sizes = [1_000, 10_000, *([100_000] if arguments.large else [])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for size in sizes:  # in processes of their own, as the peak of a process begins with that of the one that starts it
        run_python(program(f"make_table(Path({str(arguments.out)!r}), {size})"))
    print("| command | seconds | exponent | GiB | exponent |\n|---|---|---|---|---|", flush=True)
    for command in arguments.commands:
        used = []
        for size in sizes:
            table, end = arguments.out / f"{size}.parquet", ".parquet" if command == "harmonize" else ""
            call = ["-m", "monai_diffae", command, str(table), str(arguments.out / f"{command}_{size}{end}")]
            if command == "explore":
                call = program(f"open_atlas(Path({str(table)!r}))")
            with (arguments.out / f"{command}_{size}.log").open("w") as log:
                used.append(run_python([*call, *COMMANDS[command]], output=log))
        seconds, memory = (
            growth([each.seconds for each in used], sizes),
            growth([each.peak_gib for each in used], sizes),
        )
        print(f"| `{command}` | {seconds} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
