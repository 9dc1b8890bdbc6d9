"""Time of ``embed`` compared with reading alone and encoding alone, and its memory for more cases.

    python benchmarks/embedding.py BUNDLE COHORT [--rounds 3] [--workers 1] [--times 1] [--device cpu]

Reading alone: every case is read and preprocessed, with the same number of workers. Encoding alone: the same images,
from memory. Each round runs all three, and medians are compared. ``--times 10`` also runs ``embed`` on the cohort and
on ten copies of it (with other ids), in processes of their own, and compares their largest resident sets (VmHWM).
Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.session import Session
from monai_diffae.data.streamed import read_stream
from monai_diffae.inferers.exact_encoding import encode_exactly


def seconds(bundle: Path, cohort: Path, workers: int, folder: Path, device: str = "cpu") -> dict[str, float]:
    """The seconds of one round, and the number of cases."""
    session = Session.open(bundle, cohort, device=device)
    trained, key = session.trained, session.encoder_key
    items = [case.item() for case in session.cohort.cases]
    start = time.perf_counter()
    results = read_stream(items, trained.preprocessing, (key,), workers)
    images = [torch.from_numpy(result[key]) for result in results if not isinstance(result, Exception)]
    read = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(0, len(images), 64):
        encode_exactly(torch.stack(images[i : i + 64]).to(device), trained.inferer, trained.network).cpu()
    encoded = time.perf_counter() - start
    start = time.perf_counter()
    embed(bundle, cohort, folder / "z.parquet", workers=workers, device=device, overwrite=True)
    return {"cases": len(images), "read": read, "encode": encoded, "embed": time.perf_counter() - start}


def memory_gib(bundle: Path, cohort: Path, times: int, workers: int, folder: Path) -> float:
    """The largest resident set of ``embed`` on a cohort that is copied ``times`` times."""
    table = pd.read_csv(cohort)
    copies = []
    for k in range(times):
        folder_k = folder / f"{times}-{k}"
        folder_k.mkdir()
        names = [f"{i}{''.join(Path(image).suffixes)}" for i, image in enumerate(table["image"])]
        for image, name in zip(table["image"], names, strict=True):
            shutil.copyfile(cohort.parent / image, folder_k / name)
        copies.append(
            table.assign(
                image=[f"{folder_k.name}/{name}" for name in names], id=[f"{k}-{i}" for i in range(len(table))]
            )
        )
    longer = pd.concat(copies)
    longer.to_csv(folder / "longer.csv", index=False)
    program = (
        "import sys\nfrom monai_diffae.apps.embedding.embed import embed\n"
        "embed(sys.argv[1], sys.argv[2], sys.argv[3], workers=int(sys.argv[4]), device='cpu', overwrite=True)\n"
        "print(open('/proc/self/status').read())"
    )
    arguments = [bundle, folder / "longer.csv", folder / "m.parquet", workers]
    status = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024**2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = [
            seconds(arguments.bundle, arguments.cohort, arguments.workers, folder, arguments.device)
            for _ in range(arguments.rounds)
        ]
        middle = {what: statistics.median(row[what] for row in rounds) for what in rounds[0]}
        slower = max(middle["read"], middle["encode"])
        result = {**middle, "embed over the slower": middle["embed"] / slower}
        if arguments.times > 1:
            for times in (1, arguments.times):
                gib = memory_gib(arguments.bundle, arguments.cohort, times, arguments.workers, folder)
                result[f"GiB of {times * int(middle['cases'])} cases"] = gib
    text = json.dumps({**result, "threads": torch.get_num_threads(), "workers": arguments.workers}, indent=2)
    if arguments.json:
        arguments.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
