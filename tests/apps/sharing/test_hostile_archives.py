"""Whatever an archive holds: `pull` makes a bundle with configurations of this package, or refuses it in one line."""

import zipfile
from contextlib import suppress

import pytest
from complaints import write_unchecked
from tiny_bundles import STORED

from monai_diffae import load_bundle, pull
from monai_diffae.bundle.folders import init_bundle
from monai_diffae.bundle.model_file import read_model
from monai_diffae.bundle.parser import read_config
from monai_diffae.errors import DiffAEError, UnsafeInputError

MODEL = "models/model.safetensors"
STORED_MODEL = STORED / "2d" / MODEL
FILES = {MODEL: STORED_MODEL.read_bytes(), "docs/README.md": b"# Heads\n"}


@pytest.fixture
def pull_archive(tmp_path):
    """Writes files into an archive and pulls it."""

    def call(files):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return pull(str(tmp_path / "a.zip"), tmp_path / "copy")

    return call


def forged(tmp_path, values):
    """The content of a model's file with other values in its description."""
    model = read_model(STORED_MODEL)
    write_unchecked(tmp_path / "forged", model, {**model.description, **values})
    return (tmp_path / "forged").read_bytes()


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


NAMES = [
    "/tmp/evil.json", "../evil.json", "configs/../a.json", "configs/../../evil.json", "C:\\evil.json", "NUL",
    "configs\\evil.json", "Models/model.safetensors", "models/MODEL.safetensors", "./models/latent_model.safetensors",
    "models//fast_model.safetensors", f"configs/{'a' * 200}.json", "configs/\u202enosj.json", "configs/train.json",
    "configs/inference.json", "configs/logging.conf", ".git/hooks/post-checkout", "scripts/run.py", "models/run.so",
    "models/model.pt", "models/checkpoint.pt", "models/anomaly.safetensors", "models/metrics.json", "README.md",
]  # fmt: skip


def test_only_the_files_of_a_model_are_used(pull_archive, tmp_path):
    before = set(tmp_path.parent.rglob("*"))
    own = init_bundle(tmp_path / "own", STORED_MODEL)
    pull_archive({**dict.fromkeys(NAMES, b'{"evil": 1}'), **FILES, "models/": b""})
    copy = tmp_path / "copy"
    unused = {"models/metrics.json", "models/anomaly.safetensors", ".pulled.json"}
    assert names_in(copy) - unused == names_in(own) - unused
    assert not [name for name in names_in(copy) if b"evil" in (copy / name).read_bytes()]
    for name in (name for name in names_in(own) if name.startswith("configs/")):
        assert (copy / name).read_bytes() == (own / name).read_bytes()
    new = set(tmp_path.parent.rglob("*")) - before
    assert new <= {tmp_path / "a.zip", own, copy, *own.rglob("*"), *copy.rglob("*")}


@pytest.mark.goal(id="R15")
@pytest.mark.parametrize("name", [MODEL, "notes.txt"])
def test_an_archive_that_explodes_is_refused(pull_archive, tmp_path, name):
    with pytest.raises(UnsafeInputError, match=r"a.zip: would be more than 20 times as large when it is unpacked"):
        pull_archive(FILES | {name: bytes(120_000_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("content", [b"x" * 200_001, b"\x1b[31mred", b"M\xfcller", b"\0"])
def test_a_document_is_a_short_text(pull_archive, tmp_path, content):
    with pytest.raises(UnsafeInputError, match=r"docs/data_license.txt: is no text"):
        pull_archive(FILES | {"docs/data_license.txt": content})
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive_is_one_line(pull_archive, tmp_path):
    pull_archive(FILES)
    content, path = (tmp_path / "a.zip").read_bytes(), tmp_path / "damaged.zip"
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(100, len(content), 2000)]
    for damaged in (content[: len(content) // 2], b"", *flipped):
        path.write_bytes(damaged)
        with suppress(DiffAEError):
            pull(str(path), tmp_path / "other")
            pytest.fail("it was taken")
        assert not (tmp_path / "other").exists()


# What a description refers to is built when the training's formulas are evaluated, or when the model is loaded.
RUNS = {"_target_": "os.mkdir", "path": "ran"}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"z_channels": "$__import__('os').mkdir('ran')"}, "which a model file never holds"),
        ({"spatial_dims": 7}, "there is no 'diffae_7d'"),
        ({"image_size": {"a": 1}, "channel_mult": 3}, "its description does not fit configs/train.json"),
    ],
)
def test_a_description_that_is_none_is_refused(pull_archive, tmp_path, monkeypatch, values, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffAEError, match=error):
        pull_archive({**FILES, MODEL: forged(tmp_path, values)})
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "forged"}


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": "@augmentation", "recipe": {"augmentation": RUNS}},
        {"image_size": "@own", "own": RUNS},
        {"network_def": 3, "preprocessing": None},
        {"recipe": {"train#trainer#_target_": "os.mkdir", "augmentation#_target_": "os.mkdir"}},
        {"output_dir": "elsewhere", "overwrite": True, "imports": ["os"], "percentiles": 3},
    ],
)
def test_no_description_runs_code_or_sets_where_a_training_writes(pull_archive, tmp_path, monkeypatch, values):
    monkeypatch.chdir(tmp_path)
    pull_archive({MODEL: forged(tmp_path, values)})
    config = read_config(tmp_path / "copy" / "configs" / "train.json").get()  # which checks its code
    recipe = read_config(init_bundle(tmp_path / "own") / "configs" / "train.json").get()
    for key in ("train", "validate", "output_dir", "overwrite", "imports", "initialize", "run"):
        assert config[key] == recipe[key]
    with suppress(DiffAEError):
        load_bundle(tmp_path / "copy", "cpu")
    assert not (tmp_path / "ran").exists()
