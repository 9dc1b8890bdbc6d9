"""Goal R21: names that are planted everywhere in a cohort are in no byte of what the commands write.

The labels of a table, which are all columns without a role, are the exception: commands copy them on purpose, into
tables of embeddings and pages. They must be nowhere else.
"""

import base64
import gzip
import hashlib
import io
import logging
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from dicom_files import make_plane
from PIL import Image
from tiny_bundles import TINY

from monai_diffae.data.cases import KEY_FILE
from monai_diffae.data.formats.dicom import hash_patient

pytestmark = pytest.mark.goal(id="R21")

NAMES = re.compile(rb"planted(?!note)\w*|mrn765\w*", re.IGNORECASE)
LABEL = re.compile(rb"plantednote", re.IGNORECASE)
TAGS = {
    "PatientName": "Plantedname^Jane", "PatientAddress": "Plantedstreet 1", "InstitutionName": "Plantedclinic",
    "ReferringPhysicianName": "Plantedphysician", "AccessionNumber": "Plantedaccess", "StudyID": "Plantedstudy",
    "StudyDescription": "Planteddescription", "SeriesDescription": "Plantedseries", "OtherPatientIDs": "Plantedother",
}  # fmt: skip
NUM_CASES = 18


def patient_id(number):
    return f"MRN765{number // 2:04d}"


def parts(content):
    """A file's bytes, and those of everything that is packed inside."""
    yield content
    yield content.replace(b"\0", b"")  # UTF-16
    for packed in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield from parts(base64.b64decode(packed))
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from parts(archive.read(name))
    elif content[:2] == b"\x1f\x8b":
        yield from parts(gzip.decompress(content))
    elif content[:4] == b"PAR1":
        yield str(pq.read_schema(io.BytesIO(content)).metadata).encode()
        table = pd.read_parquet(io.BytesIO(content))
        yield table.drop(columns="thumbnail", errors="ignore").to_csv().encode()
        for picture in table.get("thumbnail", []):
            yield from parts(picture)
    elif content[:4] == b"\x89PNG":
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            yield str(image.info).encode()


def found(folder, pattern):
    """What of a pattern is in the names and in the bytes of a folder's files."""
    hits = {}
    for file in folder.rglob("*"):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            contents = [name.encode(), *parts(file.read_bytes())]
            if matches := {match.lower() for content in contents for match in pattern.findall(content)}:
                hits[name] = matches
    return hits


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """DICOM files with planted tags, file names, folders, patients and labels; two scans per patient."""
    folder = tmp_path_factory.mktemp("data") / "Plantedfolder"
    rows, generator = [], np.random.default_rng(0)
    y, x = np.mgrid[:14, :10]
    for i in range(NUM_CASES):
        file = folder / "scans" / f"Plantedpatient{i // 2}" / f"Plantedfile{i}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        is_large = i % 4 > 1
        disk = (np.hypot(y - 7, x - 5) < (4.5 if is_large else 2.5)) * 400 + generator.integers(0, 200, (14, 10))
        tags = {**TAGS, "PatientID": patient_id(i), "Modality": "DX", "SOPInstanceUID": f"1.2.4.{i}"}
        make_plane((0.0, 0.0, 0.0), number=i + 1, stored=disk, **tags).save_as(file)
        split = "train" if i < 10 else "val" if i < 14 else "test"
        label = {"size": "large" if is_large else "small", "note": f"Plantednote {i}"}
        image = file.relative_to(folder).as_posix()
        rows.append({"id": f"case-{i}", "patient": f"Plantedpatient {i // 2}", "image": image, "split": split, **label})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


SETTINGS = {key: value for key, value in TINY.items() if key not in ("probe_interval", "mlflow", "check_memory")} | {
    "val_interval": 1, "report_every": 1, "num_pictures": 2
}  # fmt: skip


def look_around(exploration, file):
    """Ask the page of ``explore`` for everything about the first case, and write the answers to a file."""
    from starlette.testclient import TestClient

    from monai_diffae.explorer.app import build_app

    headers = {"authorization": "Bearer t"}
    client = TestClient(build_app(exploration, "t", 8765), base_url="http://127.0.0.1:8765", headers=headers)
    pages = ("/", "/api/overview", "/api/outliers", "/api/cases/0", "/api/cases/0/scan", "/api/cases/0/thumbnail.png")
    answers = [client.get(page).content for page in pages]
    recipe = {"case": 0, "components": {"1": 1.0}}
    answers.append(client.post("/api/image?window=w&quality=full", json=recipe).content)
    file.write_bytes(b"\n".join(answers))
    exploration.close()


@pytest.fixture(scope="module")
def written(cohort, small_pages, measured_by, tmp_path_factory):
    """The folder of what the commands write and log, and of what the page of ``explore`` answers."""
    import monai_diffae as diffae
    from monai_diffae.apps.settings import Decoding, Reading, Run
    from monai_diffae.apps.training.speed import Speed
    from monai_diffae.engines.memory import run_memory
    from monai_diffae.explorer.exploration import Caller, open_exploration

    out = tmp_path_factory.mktemp("out")
    log, logger = logging.FileHandler(out / "log.txt"), logging.getLogger("monai_diffae")
    level = logger.level
    logging.getLogger().addHandler(log)  # of MONAI and MLflow, too
    logger.setLevel(logging.INFO)
    bundle = diffae.init(out / "bundle").folder
    diffae.train(bundle, cohort, overrides=SETTINGS)
    embedded = diffae.embed(bundle, cohort, out / "embedded", map_columns=True, device="cpu").path
    diffae.embed(bundle, cohort, out / "as_csv" / "embeddings.csv", device="cpu")
    diffae.reconstruct(bundle, cohort, out / "reconstructed", limit=2, steps=2, device="cpu")
    diffae.evaluate(out / "evaluated", bundle=bundle, cohort=cohort, limit=3, steps=[2], draws=1, device="cpu")
    diffae.label_app(out / "app", bundle=bundle)
    caller = Caller(bundle, cohort, embedded, Decoding(steps=2), Reading(), Run(device="cpu"))
    look_around(open_exploration(caller, out / "explored", (), 2), out / "answers")
    diffae.report(bundle, out / "report", cohort=cohort, targets=["size"], embed=True, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        measured_by(patch, run_memory, lambda config, device, items, size: Speed(8.0, size))
        diffae.start(cohort, out / "started", minutes=0.5, targets=["size"], device="cpu", yes=True)
    logging.getLogger().removeHandler(log)
    logger.setLevel(level)
    lines = (out / "log.txt").read_text().splitlines(keepends=True)
    assert any("Plantedfolder" in line for line in lines)  # report and start show the commands that get the cohort
    (out / "log.txt").write_text("".join(line for line in lines if not line.startswith("$ monai-diffae ")))
    return out


def test_names_are_in_no_byte_of_embeddings_and_reconstructions(tiny_bundle, cohort, tmp_path, caplog):
    import monai_diffae as diffae

    caplog.set_level(logging.INFO)
    bundle, options = tiny_bundle.directory, {"device": "cpu", "workers": 0}
    diffae.embed(bundle, cohort, tmp_path / "embedded", map_columns=True, **options)
    diffae.reconstruct(bundle, cohort, tmp_path / "reconstructed", limit=2, steps=2, **options)
    listed = diffae.list_scans(cohort.parent / "scans", tmp_path / "private" / "scans.csv", ids="hashed").path
    assert listed.read_text().count("Plantedfile") == NUM_CASES  # it tells which scan is which
    diffae.embed(bundle, listed, tmp_path / "hashed", **options)
    shutil.rmtree(listed.parent)
    (tmp_path / "log.txt").write_text(caplog.text)
    assert found(tmp_path, NAMES) == {}
    assert set(found(tmp_path, LABEL)) == {"embedded/embeddings.parquet"}


@pytest.mark.slow
def test_names_are_in_no_byte_of_what_commands_write(written, record_property):
    hits = found(written, NAMES)
    # a cohort table must name its files; start shows the commands that were given the cohort
    assert hits.pop("started/scans.csv")
    for name in ("started/index.html", "started/steps.json"):
        assert hits.pop(name) <= {b"plantedfolder"}
    assert hits == {}
    record_property("figure", f"0 planted names in {sum(file.is_file() for file in written.rglob('*'))} files")


@pytest.mark.slow
def test_labels_are_in_tables_and_pages_only_and_no_hash_or_key_of_a_patient_is_anywhere(written):
    allowed = re.compile(
        r"(.*/)?(embeddings\.(parquet|csv)|scans\.csv|predictions\.csv|neighbors\.csv)|answers|.*\.html"
    )
    assert [name for name in found(written, LABEL) if not allowed.fullmatch(name)] == []
    names = [f"Plantedpatient {i}" for i in range(NUM_CASES // 2)] + [patient_id(i) for i in range(NUM_CASES)]
    hashes = {hash_patient(name) for name in names} | {hash_patient(hash_patient(name)) for name in names}
    for text in [*names, *map(hash_patient, names)]:
        hashes |= {hashlib.new(kind, text.encode()).hexdigest()[:12] for kind in ("sha256", "sha1", "md5")}
    assert found(written, re.compile("|".join(hashes).encode())) == {}
    (secret,) = {file.read_bytes().strip() for file in written.rglob(KEY_FILE)}  # the tests share one
    assert {Path(name).name for name in found(written, re.compile(secret))} == {KEY_FILE}
