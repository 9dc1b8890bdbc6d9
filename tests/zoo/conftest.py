"""Entries for the model zoo, of bundles with tiny weights and of those that are shipped with weights."""

from pathlib import Path

import pytest
from tiny_bundles import STORED, rewrite
from zoo_entry import write_zoo_entry

from monai_diffae.bundle.folders import names_with_weights

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "0.1.0"
collect_ignore_glob = ["unit_tests/*"]  # templates


def trained_bundle(folder, kind):
    """Make a bundle with tiny weights, whose documents describe them, or a shipped one with its weights."""
    from monai_diffae.bundle.folders import init_bundle

    if kind in names_with_weights():
        return init_bundle(folder, kind)
    stored = STORED / "first_stage" if kind == "autoencoder_kl_3d" else GOLDEN / kind.removeprefix("diffae_")
    bundle = init_bundle(folder, stored / "models" / "model.safetensors")
    if kind == "autoencoder_kl_3d":
        rewrite(bundle, dict, spacing_mm=[1.0, 1.0, 1.0])  # the voxels of small scans
    for name, before, after in (
        ("README.md", "The weights were trained by the user of this bundle", "The weights are of twelve pictures"),
        ("data_license.txt", "no data and no trained weights", "weights trained on pictures of formulas (CC0)"),
    ):
        file = bundle / "docs" / name
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))
    return bundle


@pytest.fixture(scope="session")
def entry(tmp_path_factory):
    """The zoo entry of a kind of bundle, under its own name; made once."""
    made = {}

    def get(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp("entry") / kind
            figures = None if kind in names_with_weights() else {"validation_loss": 0.1234, "z_sem_usage": 1.5}
            bundle = trained_bundle(tmp_path_factory.mktemp("zoo") / "bundle", kind)
            write_zoo_entry(bundle, kind, out, repo=f"owner/{kind}", figures=figures)
            made[kind] = out
        return made[kind]

    return get
