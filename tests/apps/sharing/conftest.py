"""A trained bundle as it is before it is sent, and what others get."""

import json
import shutil
import zipfile

import pytest

from monai_diffae.apps.sharing.push import push


@pytest.fixture(scope="session")
def described(tiny_bundle, tmp_path_factory):
    """A trained bundle whose documents describe it, with files that must stay at home."""
    bundle = shutil.copytree(tiny_bundle.directory, tmp_path_factory.mktemp("described") / "bundle")
    (bundle / "docs" / "README.md").write_text("# Virtual heads\n\nTrained on 12 virtual patients.\n")
    (bundle / "docs" / "data_license.txt").write_text("Virtual patients, free of any licence.\n")
    for name in (
        "mlflow.db", "embeddings.parquet", "pictures/mrdoe.png", "docs/mrdoe.png", "docs/mrdoe.json",
        "configs/mrdoe.json", "configs/logging.conf", "failures.csv", "models/mrdoe.pt", "models/training.json",
        "scripts/own.py", "configs/own.yaml", "configs/overlays/mrdoe.json",
    ):  # fmt: skip
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text('{"patient": "mrdoe"}')
    train = json.loads((bundle / "configs" / "train.json").read_text())
    train["dataset_dir"] = "/home/mrdoe/scans"
    train["mine"] = {"data": [{"image": "mrdoe/1.nii.gz"}]}
    (bundle / "configs" / "train.json").write_text(json.dumps(train))
    vary = json.loads((bundle / "configs" / "vary.json").read_text())
    (bundle / "configs" / "vary.json").write_text(json.dumps({**vary, "case": "mrdoe-1"}))
    return bundle


@pytest.fixture
def bundle(described, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(described, tmp_path / "bundle")


@pytest.fixture(scope="session")
def archive(described, tmp_path_factory):
    """The zip file that ``push`` makes of it."""
    path = tmp_path_factory.mktemp("archive") / "heads.zip"
    push(described, str(path), yes=True)
    return path


@pytest.fixture(scope="session")
def files(archive):
    """The files of the zip file."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}
