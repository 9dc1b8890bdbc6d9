"""The command ``demo``: a virtual cohort, training from scratch, embeddings, reconstructions and probes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from monai_diffae.apps.command import command
from monai_diffae.apps.results import CommandResult
from monai_diffae.apps.settings import NONE_GIVEN, Overrides

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

DISCLAIMER = "One real template (MNI152) with simulated variation of known strength: these are not patients."


@dataclass(frozen=True)
class DemoResult(CommandResult):
    """The result of :func:`demo`.

    Attributes:
        probes: one row per factor and kind of features (z_sem, PCA of the pixels, an untrained encoder, the shipped
            model of chest X-rays), as :func:`~monai_diffae.probe` gives them.
        reconstruction: means over the test cases, such as ``mse_x_T``.
        z_sem_usage: factor by which the denoising loss grows with another image's z_sem; None: not measured.
        seconds: duration of each stage; near 0 if it was complete.
        paths: the files to look at, by name.
        shipped: what each shipped model achieves on held-out cases of its own data.
    """

    probes: list[dict[str, Any]]
    reconstruction: dict[str, float]
    z_sem_usage: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    shipped: dict[str, dict[str, float]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """The figures in tables, the files to look at, and how long it took."""
        from monai_diffae.apps.result import table_lines

        yield DISCLAIMER
        yield from table_lines(self._probe_table())
        yield from table_lines(self._reconstruction_table())
        if self.z_sem_usage is not None:
            yield f"z_sem_usage: {self.z_sem_usage:.3f}"
        for name, figures in self.shipped.items():
            listed = ", ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
            yield f"shipped {name}, on held-out cases of its own data: {listed}"
        yield from (f"{name:>16}: {path}" for name, path in self.paths.items())
        yield "   ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())

    def figures(self) -> dict[str, Any]:
        """All figures, and the files to look at."""
        return {
            "probes": self.probes,
            "reconstruction": self.reconstruction,
            "z_sem_usage": self.z_sem_usage,
            "seconds": {stage: round(seconds, 1) for stage, seconds in self.seconds.items()},
            "paths": {name: str(path) for name, path in self.paths.items()},
            "shipped": self.shipped,
        }

    def _probe_table(self) -> Table:
        from rich.table import Table

        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self.probes:
            rows.setdefault(row["target"], {})[row["features"]] = row
        table = Table(title="R2 of a linear probe on held-out patients, with its 95% interval")
        table.add_column("factor")
        names = list(dict.fromkeys(row["features"] for row in self.probes))
        for name in names:
            dims = next(row["dims"] for row in self.probes if row["features"] == name)
            table.add_column(f"{name} ({dims} dims)", justify="right")
        for target, row in rows.items():
            cells = (f"{row[n]['score']:.3f} ({row[n]['low']:.3f} to {row[n]['high']:.3f})" for n in names)
            table.add_row(target, *cells)
        return table

    def _reconstruction_table(self) -> Table:
        from rich.table import Table

        table = Table("decoded from", "MSE", "PSNR (dB)", "SSIM", title="Reconstruction of held-out patients")
        for mode, label in (("z_sem", "z_sem alone"), ("x_T", "z_sem and inverted x_T")):
            mse, psnr, ssim = (self.reconstruction[f"{metric}_{mode}"] for metric in ("mse", "psnr", "ssim"))
            table.add_row(label, f"{mse:.2e}", f"{psnr:.1f}", f"{ssim:.4f}")
        return table


@command
def demo(
    out: Path,
    *,
    overlay: str = "demo",
    num_patients: Annotated[int, Ge(20)] = 3000,
    size: Annotated[int, Ge(8)] = 48,
    num_reconstructions: Annotated[int, Ge(1)] = 32,
    minutes: Annotated[float, Gt(0), Le(100_000)] = 10.0,
    steps: Annotated[int, Ge(1)] | None = None,
    device: str | None = None,
    workers: Annotated[int, Ge(0)] | None = None,
    overrides: Overrides = NONE_GIVEN,
) -> DemoResult:
    """Train a small model on a virtual cohort, and show on held-out patients what it learned.

    The stages are: write the cohort, train, embed, reconstruct, embed with the shipped model of chest X-rays (which has
    never seen a brain), probe. Nothing is downloaded. A second call with the same folder resumes: complete stages are
    skipped.

    Args:
        out: Folder for the cohort, the model and all results.
        overlay: Name of the shipped configuration overlay to train with.
        num_patients: Patients of the virtual cohort.
        size: Pixels per side of its images; the model's image size is that of the overlay.
        num_reconstructions: Test cases to reconstruct.
        minutes: About how long the demo may take. On a slow or busy machine, it trains and reconstructs less.
        steps: Network evaluations for inversion and for decoding; by default the bundle's.
        device: Where to compute, e.g. ``cpu`` or ``cuda:1``; by default the GPU if there is one.
        workers: Processes that read scans; by default chosen by each stage.
        overrides: Values for keys of the training's configuration, e.g. ``max_epochs=2``.

    Returns:
        The figures, and the files to look at.

    Raises:
        ConfigError: no overlay has this name, or ``out`` holds a demo with other settings.
        MachineError: the package with the template (nilearn) is missing, or the disk is full.

    Example:
        >>> demo("out", overlay="no_such_overlay")
        Traceback (most recent call last):
        ...
        monai_diffae.errors.ConfigError: overlay: there is no 'no_such_overlay'; choose one of: ...
    """
    import torch

    from monai_diffae.apps.embedding.embed import embed
    from monai_diffae.apps.synthesis.reconstruct import reconstruct
    from monai_diffae.apps.training import demo_shipped, demo_stages
    from monai_diffae.apps.training.demo_budget import demo_budget
    from monai_diffae.data.samples import make_virtual_cohort

    overlay_file = demo_stages.find_overlay(overlay)
    seconds: dict[str, float] = {}
    model = out / "model"
    common = {"device": device, "workers": workers}
    with _timed("cohort", seconds):
        cohort = make_virtual_cohort(out / "cohort", num_patients=num_patients, size=size)
    with _timed("measure", seconds):
        budget = demo_budget(out / "budget.json", cohort, overlay_file, overrides, device, minutes, num_reconstructions)
    if budget.threads is not None:
        torch.set_num_threads(budget.threads)
    with _timed("train", seconds):
        demo_stages.train_once(model, cohort, overlay_file, {**budget.settings, **overrides}, device, workers)
    with _timed("embed", seconds):
        embedded = embed(model, cohort, out / "embeddings.parquet", **common)
    with _timed("reconstruct", seconds):
        reconstructed = reconstruct(
            model, cohort, out / "reconstructions", mode="both", steps=steps, limit=budget.num_reconstructions,
            split="test", **common,
        )  # fmt: skip
    with _timed("shipped", seconds):
        xray_model = demo_shipped.copy_once(out / "chest_xray", "chest_xray")
        others = {}
        if xray_model is not None:
            others["shipped chest_xray"] = embed(xray_model, cohort, out / "chest_xray.parquet", **common).path
    with _timed("probe", seconds):
        probes = demo_stages.probe_once(model, cohort, embedded.path, out / "probe.csv", workers, others)
    paths = {
        "mosaic": reconstructed.folder / "mosaic.png", "curves": model / "curves.png", "embeddings": embedded.path,
        "probes": out / "probe.csv", "MLflow database": model / "mlflow.db",
    }  # fmt: skip
    existing = {name: path for name, path in paths.items() if path.exists()}
    usage = demo_stages.last_usage(model / "curves.csv")
    return DemoResult(probes, reconstructed.means, usage, seconds, existing, demo_shipped.held_out_figures())


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - start
    logger.info("%s: %.1f s", stage, seconds[stage])
