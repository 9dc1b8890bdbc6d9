"""Fixtures that several test files share."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_bundles import TINY, copy_tiny, rewrite, shake, tiny_cohort

RANDOM = "MONAI_DIFFAE_TESTS_RANDOM_KEYS"


@pytest.fixture(scope="session", autouse=True)
def shared_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One key for the hashes of patients, so that tables can be equal; and slow things are done once, or in part.

    A few light files do not wait for the import of MONAI.
    """
    from monai_diffae.data import cases

    with pytest.MonkeyPatch.context() as patch:
        secret = cases._new_secret
        patch.setattr(cases, "_new_secret", lambda: secret() if RANDOM in os.environ else "0123456789abcdef" * 2)
        if "monai.bundle" in sys.modules:
            _search_for_components_once(patch)
            _draw_curves_once(patch, tmp_path_factory.mktemp("curves"))
        if {"monai.bundle", "monai_diffae.latents.probing.evaluation"} & sys.modules.keys():
            # probes with few labels are the means of 3 draws of patients, not of 20: each fits dozens of models
            patch.setattr("monai_diffae.latents.probing.nested._DRAWS", 3)
        yield


@pytest.fixture
def random_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder has a random key for the hashes of patients, as outside the tests."""
    monkeypatch.setenv(RANDOM, "1")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The images that a test draws with torch are the same in every run."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def _search_for_components_once(patch: pytest.MonkeyPatch) -> None:
    """MONAI (1.6.1) lists the classes of all its modules again for each parser of a configuration."""
    from monai.bundle import ComponentLocator

    search = ComponentLocator._find_classes_or_functions
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}

    def search_once(self: ComponentLocator, modnames: Sequence[str] | str) -> dict[str, list[str]]:
        key = tuple(modnames)
        if key not in found:
            found[key] = search(self, modnames)
        return found[key]

    patch.setattr(ComponentLocator, "_find_classes_or_functions", search_once)


def _draw_curves_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Trainings draw their curves once for each set of columns, and copy this picture later: matplotlib is slow."""
    from monai_diffae.handlers import progress

    draw, drawn = progress.draw_curves, dict[tuple[str, ...], Path]()

    def draw_once(frame: Any) -> SimpleNamespace:
        columns = tuple(frame.columns)
        if columns not in drawn:
            drawn[columns] = folder / str(len(drawn))
            for suffix in (".png", ".svg"):
                draw(frame).savefig(drawn[columns].with_suffix(suffix))
        return SimpleNamespace(savefig=lambda path: shutil.copyfile(drawn[columns].with_suffix(path.suffix), path))

    patch.setattr(progress, "draw_curves", draw_once)


@pytest.fixture(autouse=True)
def one_level_of_logging() -> Iterator[None]:
    """MONAI's runs apply the bundle's ``logging.conf`` to the whole process."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@dataclass(frozen=True)
class TinyBundle:
    """A bundle trained for a few steps on a virtual cohort: ``directory`` is the bundle, ``cohort`` its table."""

    directory: Path
    cohort: Path


@pytest.fixture
def tiny_settings() -> dict[str, Any]:
    """``TINY``, for tests that train a bundle of their own."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A trained 2D bundle without a checkpoint: 12 virtual patients of 16 x 16, weights that know nothing."""
    root = tmp_path_factory.mktemp("tiny")
    return TinyBundle(copy_tiny(root / "bundle", "2d"), tiny_cohort(root / "cohort", "2d"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The same bundle for a test that changes it."""
    return copy_tiny(tmp_path / "bundle", "2d")


@pytest.fixture(scope="session")
def trained(tiny_bundle: TinyBundle) -> Any:
    """The tiny bundle, loaded."""
    from monai_diffae.bundle.loading import load_bundle

    return load_bundle(tiny_bundle.directory, "cpu")


@dataclass(frozen=True)
class Labelled:
    """The shaken tiny bundle, its cohort with a label of two classes, ``wide``, embeddings, and a direction for it."""

    bundle: Path
    cohort: Path
    embeddings: Path
    direction: Path


@pytest.fixture(scope="session")
def labelled(tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A bundle whose decoder uses z_sem, the embedded cohort, and a direction for a label of two classes."""
    import pandas as pd

    from monai_diffae import embed, fit_direction

    root = tmp_path_factory.mktemp("labelled")
    bundle = copy_tiny(root / "bundle", "2d_all", ignore=("latent*", "fast*"))
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    for _, rows in table.groupby("split"):
        order = rows["ventricles"].rank()
        table.loc[rows.index, "wide"] = (order > len(rows) / 2).map({True: "yes", False: "no"})
    table.to_csv(root / "cohort.csv", index=False)
    embedded = embed(bundle, root / "cohort.csv", root / "embedded", device="cpu").path
    fit_direction(embedded, root / "wide.json", target="wide")
    return Labelled(bundle, root / "cohort.csv", embedded, root / "wide.json")


@pytest.fixture(scope="session")
def tiny_bundle_3d(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A 3D bundle without a checkpoint: 7 virtual patients of 16 x 16 x 16, weights shaken."""
    root = tmp_path_factory.mktemp("tiny_3d")
    return TinyBundle(copy_tiny(root / "bundle", "3d"), tiny_cohort(root / "cohort", "3d"))


@pytest.fixture(scope="session")
def latent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of ``labelled`` with a latent DDIM, trained for two short epochs."""
    return copy_tiny(tmp_path_factory.mktemp("with_latent") / "bundle", "2d_all", ignore=("fast*",))


@pytest.fixture(scope="session")
def fast_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, also with a fast decoder of 2 steps."""
    return copy_tiny(tmp_path_factory.mktemp("with_fast") / "bundle", "2d_all")


@pytest.fixture(scope="session")
def one_migration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New databases of MLflow are copies of one, because MLflow creates them by dozens of migrations."""
    import sqlite3
    from contextlib import closing

    from mlflow.store.db import utils
    from sqlalchemy import Engine, create_engine

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    utils._initialize_tables(create_engine(f"sqlite:///{file}"))

    def copy(engine: Engine) -> None:
        with closing(sqlite3.connect(file)) as template, closing(sqlite3.connect(str(engine.url.database))) as new:
            template.backup(new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of 16 virtual patients of 16 x 16: 10 for training, 3 for validation, 3 for test."""
    from monai_diffae.data.samples import make_virtual_cohort

    folder = tmp_path_factory.mktemp("small") / "cohort"
    return make_virtual_cohort(folder, num_patients=16, size=16, val_fraction=0.2, test_fraction=0.2)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with 15 pictures of 16 x 16 each: noisy disks, ``small`` and ``large``."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("classes") / "scans"
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    for name, radius in (("small", 3.0), ("large", 6.0)):
        (folder / name).mkdir(parents=True)
        for number in range(15):
            disk = (np.hypot(x, y) < radius) * 180 + generator.uniform(0, 60, (16, 16))
            Image.fromarray(disk.astype(np.uint8)).save(folder / name / f"{name} ({number}).png")
    return folder


@pytest.fixture(scope="session")
def make_workflow_anywhere(small_cohort: Path) -> Callable[..., Any]:
    """Builds the workflow of the 2D training bundle, tiny, with overrides ``{id: value}``; they name ``output_dir``."""
    import warnings

    from monai.bundle import ConfigWorkflow

    root = Path(__file__).parents[1] / "bundles" / "diffae_2d"

    def make(overrides: dict[str, Any] | None = None, initialize: bool = True) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            workflow = ConfigWorkflow(str(root / "configs" / "train.json"), logging_file=False, workflow_type="train")
        values = {"bundle_root": str(root), "dataset_dir": str(small_cohort)}
        workflow.parser.update({**TINY, **values, **(overrides or {})})
        if initialize:
            workflow.initialize()
        return workflow

    return make


@pytest.fixture
def make_workflow(make_workflow_anywhere: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The same, with ``tmp_path / "out"`` as the output folder."""

    def make(overrides: dict[str, Any] | None = None, initialize: bool = True) -> Any:
        return make_workflow_anywhere({"output_dir": str(tmp_path / "out"), **(overrides or {})}, initialize)

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[..., tuple[Any, str, str]]:
    """Runs the program in this process: (exit code, standard output, standard error).

    The report of a test that fails shows what was printed.
    """
    from monai_diffae import cli

    def call(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        request.node.add_report_section(
            "call", " ".join(["monai-diffae", *map(str, arguments[:1])]), captured.out + captured.err
        )
        return ended.value.code or 0, captured.out, captured.err

    return call


class Terminal(io.StringIO):
    """What a user types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Sets what the user answers on a terminal; None: there is no terminal."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO() if text is None else Terminal(text))


@pytest.fixture(scope="session")
def measured_by() -> Callable[..., None]:
    """Replaces the measurements of memory and speed, which take seconds."""

    def replace(patch: pytest.MonkeyPatch, run_memory: Callable[..., Any], measure_speed: Callable[..., Any]) -> None:
        for place in ("engines.memory.run_memory", "apps.training.speed.run_memory"):
            patch.setattr(f"monai_diffae.{place}", run_memory)
        patch.setattr("monai_diffae.apps.training.speed.measure_speed", measure_speed)

    return replace


@pytest.fixture(scope="module")
def slow_machine(measured_by: Callable[..., None]) -> Iterator[None]:
    """A machine on which one minute suffices for a few steps only, and whose memory suffices for everything."""
    from monai_diffae.apps.training.speed import Speed
    from monai_diffae.engines.memory import Memory

    with pytest.MonkeyPatch.context() as patch:
        measured_by(patch, lambda *_: Memory(0, 0, 0, 0), lambda config, device, items, size: Speed(8.0, size))
        patch.setattr("monai_diffae.apps.training.train._LEAST_USED", 0)  # else, it would train for a minute
        yield


@pytest.fixture(scope="module")
def small_pages() -> Iterator[None]:
    """Pages with few pictures, and an evaluation of a second or two."""
    from monai_diffae.apps.pages.data import PageSize

    few = PageSize((2, 3), 2, 0, num_codes=10, num_reconstructed=(2, 1), num_edited=2, num_samples=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_diffae.apps.pages.data.SIZE", few)
        yield


@pytest.fixture
def fail_to_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Sets what happens when a file is saved, such as the error of a full disk."""

    def fail(error: BaseException) -> None:
        def fsync(_: int) -> None:
            raise error

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training or publication does not wait 10 s for another one to end."""
    monkeypatch.setattr("monai_diffae.bundle.folders._PATIENCE_S", 0.1)


@pytest.fixture
def start_program() -> Iterator[Callable[..., Any]]:
    """Runs the program in forks of this process, which a test can kill: ``start_program(*arguments, output=file)``."""
    from forked_program import programs

    with programs() as start:
        yield start


@pytest.fixture(scope="session", params=["colour", "two_modalities"])
def unusual(
    request: pytest.FixtureRequest, tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory
) -> Labelled:
    """A bundle of colour pictures, or one whose encoder sees another image than the decoder draws; both untrained."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    root = tmp_path_factory.mktemp(request.param)
    colour = request.param == "colour"
    rng = np.random.default_rng(0)
    splits = ["train"] * 8 + ["val"] * 2
    table = pd.DataFrame({"id": [f"case-{i}" for i in range(10)], "wide": ["no", "yes"] * 5, "split": splits})
    for key in ("image",) if colour else ("image", "encoder_image"):
        table[key] = [f"{key}_{i}.png" for i in range(10)]
        for file in table[key]:
            pixels = rng.integers(256, size=(20, 24, 3) if colour else (20, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(root / file)
    table.to_csv(root / "cohort.csv", index=False)
    bundle = Path(shutil.copytree(tiny_bundle.directory, root / "bundle", ignore=shutil.ignore_patterns("cache")))
    second = {"image_keys": ["image", "encoder_image"], "encoder_key": "encoder_image"}
    description = {"in_channels": 3, "colour": "rgb"} if colour else second
    return _embedded(bundle, root / "cohort.csv", **description)


def _embedded(bundle: Path, cohort: Path, **description: Any) -> Labelled:
    """A bundle that gets an untrained network of this description, the embedded cohort, and a direction."""
    import torch

    from monai_diffae import embed, fit_direction
    from monai_diffae.bundle.loading import load_bundle, untrained_network

    torch.manual_seed(0)
    network = untrained_network({**load_bundle(bundle, "cpu").config, **description})
    rewrite(bundle, lambda _: network.state_dict(), **description)
    shake(bundle)
    embedded = embed(bundle, cohort, bundle.parent / "embedded", device="cpu").path
    fit_direction(embedded, bundle.parent / "wide.json", target="wide")
    return Labelled(bundle, cohort, embedded, bundle.parent / "wide.json")


SEQUENCES = ("T1", "FLAIR", "T1c")


@pytest.fixture(scope="session")
def sequences(tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A bundle of three MR sequences, which are files of their own; untrained."""
    import numpy as np

    from monai_diffae.data import write_scan

    root = tmp_path_factory.mktemp("sequences")
    rng = np.random.default_rng(0)
    entries: list[dict[str, Any]] = []
    for i in range(10):
        files = [f"{name}_{i}.nii.gz" for name in SEQUENCES]
        for file in files:
            write_scan(root / file, rng.integers(256, size=(1, 20, 24)), dtype=np.uint8)
        entries.append({"id": f"case-{i}", "image": files, "wide": ["no", "yes"][i % 2]})
    cohort = root / "cohort.json"
    cohort.write_text(
        json.dumps(
            {
                "channel_names": {str(k): name for k, name in enumerate(SEQUENCES)},
                "training": entries[:8],
                "validation": entries[8:],
            }
        )
    )
    bundle = Path(shutil.copytree(tiny_bundle.directory, root / "bundle", ignore=shutil.ignore_patterns("cache")))
    return _embedded(bundle, cohort, in_channels=3, sequences=list(SEQUENCES))


CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser() -> Any:
    """Debian's Chromium without a window, for tests with the marker ``browser``."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # the sandbox needs rights that a container's root does not have; only pages of this machine are opened
        yield driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])


@pytest.fixture
def open_page(browser: Any) -> Any:
    """Opens an address in a new window; at the end, nothing may have been written to the console."""
    contexts, written = [], []

    def open_window(url: str, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: written.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: written.append(f"error: {error}"))
        page.goto(url)
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert written == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A stub of the Hugging Face Hub, as ``HF_ENDPOINT`` and with a token; an empty cache."""
    from hub_stub import TOKEN, HubStub

    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    server = HubStub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address)  # that of functions such as MONAI calls
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
