"""R19: files of strangers run nothing when they are read; each is refused as unsafe, with exit code 5."""

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

from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.bundle import AnomalyDetector, load_bundle, load_latent
from monai_diffae.data.embeddings import read_embeddings
from monai_diffae.data.medmnist import medmnist_to_cohort
from monai_diffae.data.torch_files import read_torch_file
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, UnsafeInputError
from monai_diffae.handlers.checkpoint_file import read_checkpoint
from monai_diffae.label.app_folder import AppFolder, make_app_folder
from monai_diffae.official.checkpoint_files import read_weights as read_official_weights

pytestmark = pytest.mark.goal(id="R19")


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


class Opens:
    """The same with a function of Python, which torch names otherwise."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


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
    "zip of a builtin": lambda proof, path: torch.save({"a": Opens(proof)}, path),
    "zip beside weights": lambda proof, path: torch.save({"a": torch.zeros(2), "b": [Touch(proof)]}, path),
    "legacy": lambda proof, path: torch.save({"a": Touch(proof)}, path, _use_new_zipfile_serialization=False),
    "pickle": lambda proof, path: path.write_bytes(pickle.dumps({"a": Touch(proof)})),
    "pickle protocol 2": lambda proof, path: path.write_bytes(pickle.dumps({"a": Touch(proof)}, protocol=2)),
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
    path.write_bytes(pickle.dumps({"a": Touch(proof)}, protocol=0))  # torch does not write such files
    with pytest.raises((ScanError, UnsafeInputError), match=r"^model\.pt: "):
        read_torch_file(path, "cannot be read")
    assert not proof.exists()


def test_each_model_file_of_a_bundle_is_refused_with_5(fast_bundle, tmp_path, run):
    proof = tmp_path / "proof"
    bundle = Path(shutil.copytree(fast_bundle, tmp_path / "bundle"))
    trained = load_bundle(bundle, "cpu")
    for make in (CODE["zip"], CODE["legacy"], BOMBS["expanded"]):
        make(proof, bundle / "models" / "anomaly.pt")
        for load in (AnomalyDetector.load, AnomalyDetector.load_if_usable):
            with pytest.raises(UnsafeInputError):
                load(trained)
        make(proof, bundle / "models" / "latent_model.pt")
        with pytest.raises(UnsafeInputError):
            load_latent(bundle, "cpu")
        make(proof, bundle / "models" / "fast_model.pt")
        with pytest.raises(UnsafeInputError):
            load_bundle(bundle, "cpu", {"inferer#decoder": "fast"})
    CODE["zip"](proof, bundle / "models" / "model.pt")
    code, _, error = run("info", bundle)
    assert (code, error.startswith("error: model.pt: ")) == (5, True)
    assert not proof.exists()


def test_json_nested_too_deep_is_one_line(tiny_bundle, tmp_path):
    deep = '{"a":' * 100_000
    file = tmp_path / "direction.json"
    file.write_text(deep)
    with pytest.raises(ConfigError, match=r"^direction\.json: is not a direction"):
        read_direction(file)
    bundle = Path(shutil.copytree(tiny_bundle.directory, tmp_path / "bundle"))
    (bundle / "models" / "config.json").write_text(deep)
    with pytest.raises(ConfigError, match=r"^bundle: config\.json cannot be read"):
        load_bundle(bundle, "cpu")
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


@pytest.fixture
def app(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return make_app_folder(tmp_path / "app", tiny_bundle.directory, refer=False)


def test_the_code_of_an_app_is_that_of_label_app_or_refused(app, tmp_path, run):
    app.check_code()
    main = app.main.read_text()
    app.main.write_text(f"{main}\nopen({str(tmp_path / 'proof')!r}, 'w')\n")
    with pytest.raises(UnsafeInputError, match=r"^app: 'main\.py' is code that label-app did not write"):
        app.check_code()
    assert run("label-server", app.path, tmp_path)[0] == 5
    app.main.write_text(main)
    (app.path / "cucim").mkdir()
    (app.path / "cucim" / "clara.py").write_text("")
    with pytest.raises(UnsafeInputError, match=r"'cucim/clara\.py'"):
        app.check_code()
    assert not (tmp_path / "proof").exists()
    app.settings_file.write_text('{"bundle": "b", "code": "$1"}')
    with pytest.raises(ConfigError, match=r"^settings\.json: "):
        AppFolder(app.path).settings()
