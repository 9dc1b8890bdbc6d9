"""Quality over network evaluations, for decoding and for inversion: what the defaults of the inferer rest on.

    python benchmarks/solvers.py BUNDLE COHORT.csv --column image=file --out results/ [--num-images 16 --threads 2]

With a trained bundle, on images of held-out patients:

- decoding: x_T drawn from noise, decoded by every solver with every spacing, and by MONAI's DDIMScheduler as it comes.
  The distance (MSE, images in [-1, 1]) to the exact trajectory, DDIM through all 1000 levels.
- round trip: images inverted and decoded again. MSE, SSIM, LPIPS against the image; mean, standard deviation and
  neighbor correlation of x_T (0, 1, 0 for noise). "official" is the paper's code: first order, leading spacing.
- memory: the highest resident memory of a process that inverts with so many steps.

It writes decoding.csv, round_trip.csv, memory.csv and curves.png, and prints the tables in Markdown. LPIPS (AlexNet)
needs the extra ``metrics`` and its weights where torch keeps downloads (TORCH_HOME); else the column is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor

from monai_diffae.bundle.loading import load_bundle
from monai_diffae.bundle.model import TrainedBundle
from monai_diffae.data.cohort_split import split_cohort
from monai_diffae.diffusion import SOLVERS, SPACINGS, solver_facts
from monai_diffae.diffusion.noise import image_noise
from monai_diffae.errors import MachineError
from monai_diffae.inferers import DiffusionAutoencoderInferer
from monai_diffae.metrics import PerceptualDistance, noise_statistics, reconstruction_errors

BUDGETS = (5, 10, 20, 50, 100)
ADAMS = [(5, 5), (10, 10), (15, 15), (20, 20), (24, 16), (30, 10), (50, 50)]
INVERSE_OF_DDIM = [(10, 10), (20, 20), (60, 20), (50, 50)]


def round_trips() -> dict[str, dict[str, Any]]:
    """The inferer's settings by a name with the evaluations of inversion + decoding."""
    first_order = {"solver": "ddim", "inversion": "ddim"}
    runs = {"official 250 + 100": {**first_order, "spacing": "leading", "steps": 100, "invert_steps": 250}}
    for n in (20, 50, 100, 250):
        runs[f"first order {n} + {n}"] = {**first_order, "spacing": "trailing", "steps": n}
    for n in (20, 50):
        runs[f"first order, logsnr, {n} + {n}"] = {**first_order, "steps": n}
    for m, n in INVERSE_OF_DDIM:
        runs[f"inverse of ddim {m} + {n}"] = {"solver": "ddim", "steps": n, "invert_steps": m}
    for m, n in ADAMS:
        runs[f"adams {m} + {n}"] = {"solver": "adams", "steps": n, "invert_steps": m}
    for spacing in ("leading", "trailing", "linspace"):
        runs[f"adams, {spacing}, 20 + 20"] = {
            "solver": "adams",
            "steps": 20,
            "invert_steps": 20,
            "spacing": spacing,
        }
    for solver in sorted(SOLVERS.keys() - {"adams", "ddim"}):
        runs[f"{solver} 20 + 20"] = {"solver": solver, "steps": 20, "invert_steps": 20}
    return runs


def load_images(bundle: TrainedBundle, cohort: str, columns: dict[str, str], count: int) -> Tensor:
    items = split_cohort(cohort, columns=columns).items("test")
    chosen = [items[i * len(items) // count] for i in range(count)]
    return torch.stack([bundle.preprocessing(item)["image"].as_tensor() for item in chosen])


def monai_schedulers(bundle: TrainedBundle) -> dict[str, DDIMScheduler]:
    """MONAI's scheduler for the same training, as it comes and without clipping; none knows rectified flow."""
    schedule = bundle.inferer.schedule
    if schedule.schedule == "rectified_flow":
        return {}
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    settings = {"schedule": schedule.schedule, "prediction_type": names[schedule.prediction]}
    return {
        "MONAI DDIMScheduler": DDIMScheduler(1000, **settings),
        "MONAI DDIMScheduler, no clipping": DDIMScheduler(1000, clip_sample=False, **settings),
    }


@torch.no_grad()
def monai_decode(bundle: TrainedBundle, scheduler: DDIMScheduler, z_sem: Tensor, x: Tensor, steps: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x, _ = scheduler.step(bundle.network(x, torch.full((len(x),), int(t)), z_sem), int(t), x)
    return x


@torch.no_grad()
def monai_invert(bundle: TrainedBundle, scheduler: DDIMScheduler, z_sem: Tensor, x: Tensor, steps: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps.flip(0)[:-1]:  # it raises an IndexError on its last one
        x, _ = scheduler.reversed_step(bundle.network(x, torch.full((len(x),), int(t)), z_sem), int(t), x)
    return x


def measure_decoding(bundle: TrainedBundle, images: Tensor) -> pd.DataFrame:
    schedule, network = bundle.inferer.schedule, bundle.network
    z_sem = bundle.inferer.encode(images, network)
    x_T = image_noise(tuple(images.shape[1:]), 0, list(range(len(images))))
    exact = DiffusionAutoencoderInferer(schedule, solver="ddim", steps=1000, spacing="leading").decode(
        z_sem, network, x_T
    )
    rows = []

    def add(solver: str, spacing: str, evaluations: int, decode: Callable[[], Tensor]) -> None:
        start = time.perf_counter()
        mse = float((decode() - exact).square().mean())
        seconds = time.perf_counter() - start
        rows.append({"solver": solver, "spacing": spacing, "evaluations": evaluations, "mse": mse, "seconds": seconds})

    for solver in SOLVERS:
        for spacing in SPACINGS:
            for n in BUDGETS if solver_facts(SOLVERS[solver]).order == 1 else BUDGETS[:4]:
                inferer = DiffusionAutoencoderInferer(schedule, solver=solver, steps=n, spacing=spacing)
                add(solver, spacing, inferer.steps, partial(inferer.decode, z_sem, network, x_T))
    for name, scheduler in monai_schedulers(bundle).items():
        for n in BUDGETS:
            add(name, "its own", n, partial(monai_decode, bundle, scheduler, z_sem, x_T, n))
    return pd.DataFrame(rows)


def measure_round_trips(bundle: TrainedBundle, images: Tensor) -> pd.DataFrame:
    schedule, network = bundle.inferer.schedule, bundle.network
    z_sem = bundle.inferer.encode(images, network)
    perceptual = load_lpips()
    rows = []

    def add(method: str, evaluations: int, x_T: Tensor, decoded: Tensor) -> None:
        row = {"method": method, "evaluations": evaluations}
        for name, values in reconstruction_errors(images, decoded).items():
            row[name] = float(values.mean())
        if perceptual is not None:
            row["lpips"] = perceptual(images, decoded)
        row |= {f"x_T {name}": float(values.mean()) for name, values in noise_statistics(x_T).items()}
        rows.append(row)
        print(f"{method}: {row['mse']:.1e}", flush=True)

    for method, settings in round_trips().items():
        inferer = DiffusionAutoencoderInferer(schedule, **settings)
        x_T = inferer.invert(images, network, z_sem)
        add(method, inferer.steps + inferer.invert_steps, x_T, inferer.decode(z_sem, network, x_T))
    for name, scheduler in monai_schedulers(bundle).items():
        for n in (20, 100):
            x_T = monai_invert(bundle, scheduler, z_sem, images, n)
            decoded = monai_decode(bundle, scheduler, z_sem, x_T, n)
            add(f"{name} {n - 1} + {n}", 2 * n - 1, x_T, decoded)
    return pd.DataFrame(rows)


def load_lpips() -> Callable[[Tensor, Tensor], float] | None:
    try:
        network = PerceptualDistance()
    except MachineError as error:
        print(f"without LPIPS: {error}")
        return None

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> float:
        a, b = (v[:, :1].expand(-1, 3, -1, -1).clamp(-1, 1) for v in (a, b))
        if a.shape[-1] < 64:  # AlexNet's layers need as much
            a, b = (torch.nn.functional.interpolate(v, size=64, mode="bilinear") for v in (a, b))
        return float(network(a, b).mean())

    return distance


def _peak_of_inversion(directory: str, steps: int, queue: Any) -> None:
    torch.set_num_threads(1)
    bundle = load_bundle(directory, "cpu")
    images = torch.zeros(16, bundle.config["in_channels"], *bundle.config["image_size"])
    inferer = DiffusionAutoencoderInferer(bundle.inferer.schedule, steps=steps)
    inferer.invert(images, bundle.network)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_memory(directory: str) -> pd.DataFrame:
    context, rows = multiprocessing.get_context("spawn"), []
    for steps in (10, 20, 40, 80):
        queue = context.Queue()
        process = context.Process(target=_peak_of_inversion, args=(directory, steps, queue))
        process.start()
        rows.append({"steps": steps, "peak MiB": round(queue.get())})
        process.join()
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """A table as README and docs show it, two digits per number."""

    def shown(value: object) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.1e}"
        return str(value)

    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(shown, row)) + " |" for row in rows)


def draw(decoding: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    best = decoding.loc[decoding.groupby(["solver", "evaluations"])["mse"].idxmin()]
    for solver, group in best.groupby("solver", sort=False):
        left.plot(group["evaluations"], group["mse"], "o-", label=str(solver))
    left.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="MSE to the exact trajectory")
    left.set_title("decoding from noise, each solver with its best spacing")
    left.legend(fontsize=8)
    families = {
        "first order": "o-",
        "official": "s",
        "inverse of ddim": "o",
        "adams": "o-",
        "MONAI DDIMScheduler": "^-",
    }
    for family, style in families.items():
        group = table[table["method"].str.fullmatch(rf"{family} \d+ \+ \d+")]
        group = group.loc[group.groupby("evaluations")["mse"].idxmin()]
        if len(group):
            right.plot(group["evaluations"], group["mse"], style, label=family)
    right.set(xscale="log", yscale="log", xlabel="network evaluations in all", ylabel="MSE to the image")
    right.set_title("inversion and decoding")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a trained bundle's folder")
    parser.add_argument("cohort", help="CSV")
    parser.add_argument("--column", action="append", default=[], help="our word=the table's, such as image=file")
    parser.add_argument("--out", type=Path, default=Path("solvers"))
    parser.add_argument("--part", choices=["memory", "round_trip", "decoding"], action="append", help="all by default")
    parser.add_argument("--num-images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(args.bundle, "cpu")
    images = load_images(bundle, args.cohort, dict(c.split("=", 1) for c in args.column), args.num_images)
    parts: dict[str, Callable[[], pd.DataFrame]] = {
        "memory": partial(measure_memory, args.bundle),
        "round_trip": partial(measure_round_trips, bundle, images),
        "decoding": partial(measure_decoding, bundle, images),
    }
    for name in args.part or parts:
        table = parts[name]()
        table.to_csv(args.out / f"{name}.csv", index=False)
        if name == "decoding":
            table = table.pivot_table(index=["solver", "spacing"], columns="evaluations", values="mse", sort=False)
            table = table.reset_index()
        print(as_markdown(table), flush=True)
    tables = [args.out / "decoding.csv", args.out / "round_trip.csv"]
    if all(table.is_file() for table in tables):
        draw(*map(pd.read_csv, tables), args.out / "curves.png")


if __name__ == "__main__":
    main()
