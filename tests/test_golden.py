"""Stored bundles of every released version (``make golden``) still give the same z_sem."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from golden_bundles import GOLDEN, VERSIONS, difference_from_stored, write_golden_scans

from monai_diffae import embed

BUNDLES = [folder / kind for folder in VERSIONS for kind in ("2d", "3d")]

pytestmark = pytest.mark.goal(id="R28")


def embed_again(bundle: Path, folder: Path) -> float:
    scans = write_golden_scans(folder / "scans", int(bundle.name[0]))
    return difference_from_stored(bundle, embed(bundle, scans, folder / "out", device="cpu").path)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_bundle_of_a_release_embeds_as_it_did(bundle, tmp_path, record_property):
    """To 1e-5 of the standard deviation of z_sem, since other processors round differently."""
    difference = embed_again(bundle, tmp_path)
    record_property("figure", f"{bundle.parent.name} {bundle.name}: z_sem differs by {difference:.1e} SD")
    assert difference <= 1e-5


@pytest.mark.slow
def test_make_golden_stores_bundles_that_embed_again(tmp_path):
    command = [sys.executable, str(GOLDEN / "make_golden.py"), str(tmp_path / "next")]
    subprocess.run(command, check=True, timeout=300)
    for kind in ("2d", "3d"):
        bundle = tmp_path / "next" / kind
        assert sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) < 250_000
        assert embed_again(bundle, tmp_path / kind) == 0
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1
    assert "stored bundles never change" in again.stderr
