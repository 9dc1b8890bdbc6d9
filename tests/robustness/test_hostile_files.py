"""R19: files of strangers run nothing when they are read; each is refused as unsafe, with exit code 5."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.bundle import AnomalyDetector, load_bundle, load_latent
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.samples import medmnist_to_cohort
from monai_diffae.data.tensor_files import read_torch_file
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, UnsafeInputError
from monai_diffae.handlers.checkpoint import read_checkpoint
from monai_diffae.official.checkpoint_files import read_weights as read_official_weights

pytestmark = pytest.mark.goal(id="R19")


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def resource(proof, path):
    """A pickle in a zip, as torch writes it, that imports by opcodes put together by hand."""
    line = f"touch {proof}".encode()
    with zipfile.ZipFile(path, "w") as archive:
        code = b"\x80\x02cposix\nsystem\nX" + len(line).to_bytes(4, "little") + line + b"\x85R."
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")


CODE = {
    "zip": lambda proof, path: torch.save({"a": Touch(proof)}, path),
    "legacy": lambda proof, path: torch.save({"a": Touch(proof)}, path, _use_new_zipfile_serialization=False),
    "pickle": lambda proof, path: path.write_bytes(pickle.dumps({"a": Touch(proof)})),
    "opcodes": resource,
}
BOMBS = {
    "meta": lambda proof, path: torch.save({"a": torch.zeros(3, device="meta")}, path),
    "expanded": lambda proof, path: torch.save({"a": torch.zeros(1).expand(1 << 40)}, path),
}


def test_a_file_that_would_run_code_is_unsafe(tmp_path):
    path, proof = tmp_path / "model.pt", tmp_path / "proof"
    for name, make in {**CODE, **BOMBS}.items():
        make(proof, path)
        for read in (lambda: read_torch_file(path, "cannot be read"), lambda: read_checkpoint(path, set())):
            with pytest.raises(UnsafeInputError, match=r"^model\.pt: ") as error:
                read()
            assert "\n" not in str(error.value)
            assert len(str(error.value)) <= 200
        for suffix in (".ckpt", ".pkl", ".onnx", ".safetensors") if name in CODE else ():
            with pytest.raises(UnsafeInputError):
                read_official_weights(Path(shutil.copy(path, tmp_path / f"latent{suffix}")))
        assert not proof.exists(), name


LOADED = {
    "anomaly.safetensors": AnomalyDetector.load,
    "latent_model.safetensors": lambda trained: load_latent(trained.folder),
    "fast_model.safetensors": lambda trained: load_bundle(trained.folder, "cpu", {"inferer#decoder": "fast"}),
    "model.safetensors": lambda trained: load_bundle(trained.folder),
}


def test_a_pickle_in_place_of_a_model_file_is_damaged(fast_bundle, tmp_path):
    proof, bundle = tmp_path / "proof", Path(shutil.copytree(fast_bundle, tmp_path / "bundle"))
    trained = load_bundle(bundle, "cpu")
    for name, load in LOADED.items():
        file = bundle / "models" / name
        whole = file.read_bytes()
        for make in (CODE | BOMBS).values():
            make(proof, file)
            with pytest.raises(ScanError, match=f"^{name}: is damaged"):
                load(trained)
        file.write_bytes(whole)
    assert not proof.exists()


def test_the_file_for_monais_tools_is_not_read(tiny_bundle, tmp_path):
    proof, bundle = tmp_path / "proof", Path(shutil.copytree(tiny_bundle.directory, tmp_path / "bundle"))
    CODE["zip"](proof, bundle / "models" / "model.pt")
    with pytest.raises(ConfigError, match=r"^model\.pt: another program has written it"):
        load_bundle(bundle, "cpu")
    with zipfile.ZipFile(bundle / "models" / "model.pt", "a") as archive:
        archive.comment = b"monai_diffae"  # as if it were ours
    assert load_bundle(bundle, "cpu").z_channels == 8
    assert not proof.exists()


# -- the folder of a stranger: commands that use a model read the files of models, and nothing else of it --------------


@pytest.fixture(scope="module")
def stranger(fast_bundle, tmp_path_factory):
    """A trained bundle of which everything but the files of models would write the file ``proof`` beside it."""
    bundle = Path(shutil.copytree(fast_bundle, tmp_path_factory.mktemp("stranger") / "bundle"))
    proof = bundle.parent / "proof"
    touch = f"__import__('pathlib').Path({str(proof)!r}).touch()"
    code = {"in_channels": f"${touch} or 1", "columns": f"${touch}", "patient_pattern": f"${touch}"}
    for file in (bundle / "configs").glob("*.json"):
        content = json.loads(file.read_text()) | code
        for name in ("imports", "initialize"):
            content[name] = [f"${touch}", *content.get(name, [])]
        file.write_text(json.dumps(content))
    for name in ("wave.py", "configs/wave.py", "scripts/__init__.py", "torch.py"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text(f"open({str(proof)!r}, 'w')")
    for name in ("model.pt", "checkpoint.pt", "latent_checkpoint.pt", "fast_checkpoint.pt"):
        CODE["zip"](proof, bundle / "models" / name)
    with zipfile.ZipFile(bundle / "models" / "model.pt", "a") as archive:
        archive.comment = b"monai_diffae"
    return bundle


USES = [
    "info BUNDLE", "init OUT --bundle BUNDLE", "label-app OUT --bundle BUNDLE", "embed BUNDLE COHORT OUT",
    "generate BUNDLE OUT --num-images 1 --steps 1",
]  # fmt: skip
MORE_USES = [
    "reconstruct BUNDLE COHORT OUT --limit 1 --decoder fast", "vary BUNDLE COHORT OUT --case mni-000000 --steps 1",
    "interpolate BUNDLE COHORT OUT --start mni-000000 --end mni-000001 --num-images 3 --steps 1",
    "traverse BUNDLE EMBEDDINGS OUT --num-components 1 --steps 1",
    "combine BUNDLE COHORT OUT --case mni-000000 --blend mni-000001 --steps 1",
    "edit BUNDLE COHORT OUT --direction DIRECTION --limit 1 --steps 1", "anomaly BUNDLE COHORT OUT --limit 1",
    "diagnose BUNDLE COHORT OUT --limit 2 --num-levels 2", "calibrate BUNDLE COHORT --limit 2 --draws 1",
    "evaluate OUT --bundle BUNDLE --cohort COHORT --limit 2 --steps 1 --draws 1 --num-images 0",
    "neighbors EMBEDDINGS OUT --bundle BUNDLE --cohort COHORT --cases mni-000000 --reconstruction-error",
    "report BUNDLE OUT", "export BUNDLE OUT --format ts",
]  # fmt: skip
"""A command line for each command that uses a model."""

TRAINS = [
    "train BUNDLE COHORT", "train BUNDLE COHORT OUT --overrides max_epochs=1", "train BUNDLE COHORT --minutes 1",
    "train OUT COHORT --start-from BUNDLE", "train-latent BUNDLE COHORT", "train-latent BUNDLE --embeddings EMBEDDINGS",
    "distill BUNDLE COHORT", "plan COHORT --bundle BUNDLE",
]  # fmt: skip
"""A command line for each command that runs a training's configuration."""


@pytest.fixture
def command(run, stranger, labelled, tmp_path):
    """Runs a command line with the stranger's bundle: the exit code and the errors."""
    words = {
        "BUNDLE": shutil.copytree(stranger, tmp_path / "bundle"), "COHORT": labelled.cohort, "OUT": tmp_path / "out",
        "EMBEDDINGS": labelled.embeddings, "DIRECTION": labelled.direction,
    }  # fmt: skip

    def call(line):
        code, _, errors = run(*(words.get(word, word) for word in line.split()))
        assert not (stranger.parent / "proof").exists()
        return code, errors

    return call


@pytest.mark.parametrize("line", [*USES, *(pytest.param(line, marks=pytest.mark.slow) for line in MORE_USES)])
def test_a_command_that_uses_a_model_runs_nothing_else_of_its_folder(command, line):
    code, errors = command(line)
    assert code == 0, errors


@pytest.mark.parametrize("line", TRAINS)
def test_a_command_that_trains_refuses_code_with_5(command, line):
    code, errors = command(line)
    assert (code, "is not trusted to use" in errors) == (5, True), errors


def test_json_nested_too_deep_is_one_line(tmp_path):
    deep = '{"a":' * 100_000
    file = tmp_path / "direction.json"
    file.write_text(deep)
    with pytest.raises(ConfigError, match=r"^direction\.json: is no direction"):
        read_direction(file)
    header = deep.encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnsafeInputError):
        read_official_weights(tmp_path / "w.safetensors")


def test_the_metadata_of_a_table_run_nothing(tmp_path):
    proof = tmp_path / "proof"
    payload = pickle.dumps(Touch(proof))
    for protocol in ("arrow.py_extension_type", "arrow.json", "pandas"):
        field = pa.field("z_000", pa.float64(), metadata={
            "ARROW:extension:name": protocol, "ARROW:extension:metadata": payload, "pickle": payload,
        })  # fmt: skip
        columns = [pa.array(["a"]), pa.array([1.0])]
        schema = pa.schema(
            [pa.field("id", pa.string()), field], metadata={"PANDAS_ATTRS": payload, "monai_diffae": payload}
        )
        pq.write_table(pa.table(columns, schema=schema), tmp_path / "e.parquet")
        try:
            table = read_embeddings(tmp_path / "e.parquet")
        except DiffAEError:
            continue
        assert isinstance(table, pd.DataFrame)
    assert not proof.exists()


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    proof = tmp_path / "proof"
    np.savez(tmp_path / "medmnist.npz", train_images=np.array([Touch(proof)], dtype=object))
    with pytest.raises(UnsafeInputError):
        medmnist_to_cohort(tmp_path / "medmnist.npz", tmp_path / "cohort")
    assert not proof.exists()
