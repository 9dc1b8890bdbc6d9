"""The plugins of the tests, and which modules of the package pytest imports to run their examples."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

pytest_plugins = ["goal_table", "no_network", "suite_limits"]  # in tests/robustness

LABEL = Path(__file__).parent / "monai_diffae" / "label"
WITHOUT_MONAI_LABEL = {"__init__.py", "label_app.py", "label_server.py"}

os.environ["HF_HUB_DISABLE_XET"] = "1"  # its storage is not part of the stub of the hub

collect_ignore_glob = ["tests/zoo/unit_tests/*"]  # templates

# MONAI Label is an extra with an environment of its own (`make test-label`)
collect_ignore = (
    []
    if find_spec("monailabel") is not None
    else [str(path) for path in LABEL.glob("*.py") if path.name not in WITHOUT_MONAI_LABEL]
)


def pytest_collection_finish() -> None:
    """Garbage collection need not look again and again at what was imported, which lives as long as the tests run."""
    gc.collect()
    gc.freeze()
