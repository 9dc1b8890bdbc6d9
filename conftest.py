"""The plugins of the tests, and which modules of the package pytest imports to run their examples."""

import gc
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest_plugins = ["goal_table", "no_network", "zoo_table"]  # in tests/robustness and tests/zoo

LABEL = Path(__file__).parent / "monai_diffae" / "label"
WITHOUT_MONAI_LABEL = {"__init__.py", "app_folder.py", "ids.py", "label_app.py", "label_server.py", "logs.py"}

# MONAI Label is an extra with an environment of its own (`make test-label`)
collect_ignore = (
    []
    if find_spec("monailabel") is not None
    else [str(path) for path in LABEL.glob("*.py") if path.name not in WITHOUT_MONAI_LABEL]
)


USED_BY_TRAININGS = {"tiny_bundle", "tiny_bundle_3d", "tiny_settings", "small_cohort", "program", "start_program"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with trainings come first, so that no worker process has long tests left when the others are done."""
    training = {item.path for item in items if USED_BY_TRAININGS & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in training)


def pytest_collection_finish() -> None:
    """Garbage collection need not look again and again at what was imported, which lives as long as the tests run."""
    gc.collect()
    gc.freeze()
