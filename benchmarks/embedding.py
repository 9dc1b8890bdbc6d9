"""Time of ``embed`` compared with reading alone and encoding alone.

    python benchmarks/embedding.py BUNDLE COHORT [--rounds 3] [--workers 1] [--device cpu]

Reading alone: every case is read and preprocessed, with the same number of workers. Encoding alone: the same images,
from memory. Each round runs all three, and medians are compared. ``scaling.py`` measures time and memory of ``embed``
for more and more cases.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from monai_diffae.apps.embedding.embed import embed
from monai_diffae.apps.session import Session
from monai_diffae.apps.settings import Run
from monai_diffae.data.streamed import read_stream
from monai_diffae.inferers.reconstruction import encode_exactly


def seconds(bundle: Path, cohort: Path, workers: int, folder: Path, device: str = "cpu") -> dict[str, float]:
    """The seconds of one round, and the number of cases."""
    session = Session.open(bundle, cohort, run=Run(device=device))
    trained, key = session.trained, session.encoder_key
    items = [case.item() for case in session.cohort.cases]
    start = time.perf_counter()
    results = read_stream(items, trained.preprocessing, (key,), workers)
    images = [torch.from_numpy(result[key]) for result in results if not isinstance(result, Exception)]
    read = time.perf_counter() - start
    start = time.perf_counter()
    for i in range(0, len(images), 64):
        encode_exactly(torch.stack(images[i : i + 64]).to(device), trained.network, trained.inferer).cpu()
    encoded = time.perf_counter() - start
    start = time.perf_counter()
    embed(bundle, cohort, folder / "z.parquet", workers=workers, device=device, overwrite=True)
    return {"cases": len(images), "read": read, "encode": encoded, "embed": time.perf_counter() - start}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
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
    text = json.dumps({**result, "threads": torch.get_num_threads(), "workers": arguments.workers}, indent=2)
    if arguments.json:
        arguments.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
