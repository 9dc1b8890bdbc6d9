"""The checks of MONAI's model zoo: on bundles with weights, and on copies with tiny weights (``make zoo-check``).

``tests/bundles/test_monai_tools_page.py`` runs those that are commands of MONAI.
"""

import io
import json
import shutil
import unittest
from pathlib import Path

import jsonschema
import pytest
from monai.bundle import verify_metadata
from tiny_bundles import STORED, rewrite
from zoo_entry import LARGEST_FILE, write_zoo_entry

from monai_diffae.bundle.folders import init_bundle, names_with_weights

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = ROOT / "tests" / "golden" / "0.1.0"
RULES = HERE / "metadata_rules.json"
FAST = ("diffae_2d", "autoencoder_kl_3d")
OTHERS = ("diffae_3d", *names_with_weights())
KINDS = [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
HEADINGS = (
    "### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**", "#### **Preprocessing**",
    "## **Performance**", "## **System Configuration**", "## **Limitations**", "## **References**",
)  # fmt: skip


def trained_bundle(folder, kind):
    """Make a bundle with tiny weights, whose documents describe them, or a shipped one with its weights."""
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


@pytest.fixture(scope="module", params=KINDS)
def entry(request, tmp_path_factory):
    """The zoo entry of a kind of bundle, in a folder of its name."""
    kind, out = request.param, tmp_path_factory.mktemp("entry") / request.param
    figures = None if kind in names_with_weights() else {"validation_loss": 0.1234, "z_sem_usage": 1.5}
    bundle = trained_bundle(tmp_path_factory.mktemp("zoo") / "bundle", kind)
    write_zoo_entry(bundle, kind, out, repo=f"owner/{kind}", figures=figures)
    return out


def read(path):
    return json.loads(path.read_text())


def test_the_files_metadata_and_documents_fulfil_the_rules(entry, tmp_path):
    kind, bundle = entry.name, entry / "models" / entry.name
    for name in ("LICENSE", "configs/metadata.json", "models/model.pt", "configs/inference.json", "configs/train.json"):
        assert (bundle / name).is_file()
    assert max(path.stat().st_size for path in entry.rglob("*") if path.is_file()) <= LARGEST_FILE
    shutil.copy(RULES, tmp_path / "schema.json")  # MONAI downloads the schema unless the file exists
    verify_metadata(str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    metadata, readme = read(bundle / "configs" / "metadata.json"), (bundle / "docs" / "README.md").read_text()
    positions = [readme.index(heading) for heading in HEADINGS]
    assert positions == sorted(positions)
    performance = readme.partition("## **Performance**")[2].partition("\n## ")[0]
    assert metadata["eval_metrics"]
    for name, value in metadata["eval_metrics"].items():
        assert f"| {name} | {value:.4g} |" in performance
    licence = (bundle / "docs" / "data_license.txt").read_text()
    assert ("CC BY" if kind in names_with_weights() else "CC0") in licence
    assert "no trained weights" not in licence
    on_the_hub = entry / "hf_models" / kind
    assert {path.name for path in on_the_hub.iterdir()} == {"LICENSE", "README.md", "metadata.json"}
    for_the_hub = read(on_the_hub / "metadata.json")
    jsonschema.validate(for_the_hub, read(RULES))
    assert for_the_hub["huggingface_url"] == f"https://huggingface.co/owner/{kind}"
    assert for_the_hub["schema"].endswith("/meta_schema_hf_20250321.json")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "_dist"])
def test_the_zoos_unit_test_passes(entry, suffix, monkeypatch):
    """As the zoo's runner does it: the module is loaded by its name from its folder, and runs beside ``models``."""
    monkeypatch.chdir(entry)
    monkeypatch.syspath_prepend(entry / "ci" / "unit_tests")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that it starts
    tests = unittest.TestLoader().loadTestsFromNames([f"test_{entry.name}{suffix}"])
    result = unittest.TextTestRunner(stream=io.StringIO()).run(tests)
    assert result.testsRun
    assert "".join(text for _, text in [*result.errors, *result.failures]) == ""
