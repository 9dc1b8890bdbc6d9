"""R19: files of strangers run nothing when they are read; each is refused as unsafe, with exit code 5."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from monai_diffae.apps.synthesis.fit_direction import read_direction
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.samples import medmnist_to_cohort
from monai_diffae.data.tensor_files import read_torch_file
from monai_diffae.errors import CohortError, ConfigError, UnsafeInputError
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
    "generate BUNDLE OUT --num-images 1 --steps 1", "reconstruct BUNDLE COHORT OUT --limit 1 --decoder fast",
    "anomaly BUNDLE COHORT OUT --limit 1",
]  # fmt: skip
"""A command line for each way to use a model."""

TRAINS = [
    "train BUNDLE COHORT", "train OUT COHORT --start-from BUNDLE", "train-latent BUNDLE --embeddings EMBEDDINGS",
    "distill BUNDLE COHORT", "plan COHORT --bundle BUNDLE",
]  # fmt: skip
"""A command line for each command that runs a training's configuration."""


@pytest.fixture
def command(run, stranger, labelled, tmp_path):
    """Runs a command line with the stranger's bundle: the exit code and the errors."""
    words = {
        "BUNDLE": shutil.copytree(stranger, tmp_path / "bundle"), "COHORT": labelled.cohort, "OUT": tmp_path / "out",
        "EMBEDDINGS": labelled.embeddings,
    }  # fmt: skip

    def call(line):
        code, _, errors = run(*(words.get(word, word) for word in line.split()))
        assert not (stranger.parent / "proof").exists()
        return code, errors

    return call


@pytest.mark.parametrize("line", USES)
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
    with pytest.raises(ConfigError, match=r"^direction\.json: not a direction"):
        read_direction(file)
    header = deep.encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UnsafeInputError):
        read_official_weights(tmp_path / "w.safetensors")


def test_the_metadata_of_a_table_run_nothing(tmp_path):
    proof, file = tmp_path / "proof", tmp_path / "e.parquet"
    payload = pickle.dumps(Touch(proof))
    for protocol in ("arrow.py_extension_type", "pandas"):
        extension = {"ARROW:extension:name": protocol, "ARROW:extension:metadata": payload, "pickle": payload}
        fields = [pa.field("id", pa.string()), pa.field("z_000", pa.float64(), metadata=extension)]
        for key in ("monai_diffae", "PANDAS_ATTRS"):
            schema = pa.schema(fields, metadata={key: payload})
            pq.write_table(pa.table([["a"], [1.0]], schema=schema), file)
            if key == "monai_diffae":
                assert read_embeddings(file)["id"].tolist() == ["a"]
            else:
                with pytest.raises(CohortError):
                    read_embeddings(file)
    assert not proof.exists()


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    proof = tmp_path / "proof"
    np.savez(tmp_path / "medmnist.npz", train_images=np.array([Touch(proof)], dtype=object))
    with pytest.raises(UnsafeInputError):
        medmnist_to_cohort(tmp_path / "medmnist.npz", tmp_path / "cohort")
    assert not proof.exists()
