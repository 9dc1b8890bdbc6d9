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
from zoo_entry import LARGEST_FILE

from monai_diffae.bundle.folders import names_with_weights

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = HERE / "metadata_rules.json"
FAST = ("diffae_2d", "autoencoder_kl_3d")
OTHERS = ("diffae_3d", *names_with_weights())
KINDS = [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
ALL = pytest.mark.parametrize("kind", KINDS)
HEADINGS = (
    "### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**", "#### **Preprocessing**",
    "## **Performance**", "## **System Configuration**", "## **Limitations**", "## **References**",
)  # fmt: skip


def read(path):
    return json.loads(path.read_text())


@ALL
def test_the_files_metadata_and_documents_fulfil_the_rules(entry, kind, tmp_path):
    bundle = entry(kind) / "models" / kind
    for name in ("LICENSE", "configs/metadata.json", "models/model.pt", "configs/inference.json", "configs/train.json"):
        assert (bundle / name).is_file()
    assert max(path.stat().st_size for path in entry(kind).rglob("*") if path.is_file()) <= LARGEST_FILE
    shutil.copy(RULES, tmp_path / "schema.json")  # MONAI downloads the schema unless the file exists
    verify_metadata(str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    metadata, readme = read(bundle / "configs" / "metadata.json"), (bundle / "docs" / "README.md").read_text()
    jsonschema.validate(metadata, read(RULES))
    assert metadata["version"] in metadata["changelog"]
    positions = [readme.index(heading) for heading in HEADINGS]
    assert positions == sorted(positions)
    performance = readme.partition("## **Performance**")[2].partition("\n## ")[0]
    assert metadata["eval_metrics"]
    for name, value in metadata["eval_metrics"].items():
        assert f"| {name} | {value:.4g} |" in performance
    licence = (bundle / "docs" / "data_license.txt").read_text()
    assert ("CC BY" if kind in names_with_weights() else "CC0") in licence
    assert "no trained weights" not in licence


@ALL
def test_the_entry_for_weights_on_the_hub(entry, kind):
    folder = entry(kind) / "hf_models" / kind
    assert {path.name for path in folder.iterdir()} == {"LICENSE", "README.md", "metadata.json"}
    metadata = read(folder / "metadata.json")
    jsonschema.validate(metadata, read(RULES))
    assert metadata["huggingface_url"] == f"https://huggingface.co/owner/{kind}"
    assert metadata["schema"].endswith("/meta_schema_hf_20250321.json")
    assert metadata["version"] in metadata["changelog"]


@ALL
@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", "_dist"])
def test_the_zoos_unit_test_passes(entry, kind, suffix, monkeypatch):
    """As the zoo's runner does it: the module is loaded by its name from its folder, and runs beside ``models``."""
    monkeypatch.chdir(entry(kind))
    monkeypatch.syspath_prepend(entry(kind) / "ci" / "unit_tests")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes that it starts
    tests = unittest.TestLoader().loadTestsFromNames([f"test_{kind}{suffix}"])
    result = unittest.TextTestRunner(stream=io.StringIO()).run(tests)
    assert result.testsRun
    assert "".join(text for _, text in [*result.errors, *result.failures]) == ""
