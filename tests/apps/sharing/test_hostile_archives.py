"""Whatever an archive or a list of checksums holds: `pull` writes files of a bundle into its folder, or refuses."""

import hashlib
import json
import stat
import zipfile
from contextlib import suppress

import pytest

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.pull import pull
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, UnsafeInputError


def listed(files, more=""):
    """The files with a list of their checksums."""
    lines = [f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in files.items() if n != "SHA256SUMS"]
    return {**files, "SHA256SUMS": ("".join(lines) + more).encode()}


@pytest.fixture
def pull_archive(tmp_path):
    """Writes files into an archive and pulls it; names of its folder must not be used for anything else."""

    def call(files):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return pull(str(tmp_path / "a.zip"), tmp_path / "copy")

    return call


OUTSIDE = {
    "absolute": ["/tmp/evil.json"],
    "parent": ["../evil.json", "configs/../a.json", "configs/../../evil.json"],
    "windows": ["C:\\evil.json", "configs\\evil.json", "NUL", "configs/NUL", "configs/a.json:evil", "configs/a.json."],
    "upper case twin": ["configs/TRAIN.json", "Models/model.pt", "models/Model.pt"],
    "unicode": [
        "configs/tra\u0131n.json",
        "configs/train\u200b.json",
        "configs/e\u0301.json",
        "configs/\u202enosj.json",
    ],
    "long": [f"configs/{'a' * 200}.json", f"configs/{'a/' * 60}a.json"],
    "hidden": ["configs/.json", ".git/hooks/post-checkout", "configs/..json"],
    "code": ["scripts/run.py", "hubconf.py", "configs/run.py", "models/run.so", "models/checkpoint.pt", "mlflow.db"],
    "slashes": ["configs//a.json", "./configs/a.json"],
}


@pytest.mark.parametrize("names", OUTSIDE.values(), ids=list(OUTSIDE))
def test_only_files_of_a_bundle_are_written(files, pull_archive, tmp_path, names):
    before, copy = set(tmp_path.parent.rglob("*")), tmp_path / "copy"
    with suppress(DiffAEError):
        pull_archive(listed({**files, **dict.fromkeys(names, b"{}")}))
    got = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert got in (files.keys(), set())
    assert set(tmp_path.parent.rglob("*")) - before <= {tmp_path / "a.zip", copy, *copy.rglob("*")}


def test_a_folder_around_the_bundle_and_files_in_the_places_of_folders_are_ignored(files, pull_archive, tmp_path):
    around = {f"heads/{name}": content for name, content in listed(files).items()}
    pull_archive({**around, "heads/../../evil.json": b"{}", "heads/configs": b"", "heads/models/": b""})
    assert {
        str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*") if p.is_file()
    } == files.keys()
    assert not list(tmp_path.parent.glob("evil.json"))


def test_code_of_a_bundle_is_told_and_runs_only_when_trusted(files, pull_archive, tmp_path):
    config = json.loads(files["models/config.json"])
    config["imports"] = [f"$__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"]
    result = pull_archive(listed({**files, "models/config.json": json.dumps(config).encode()}))
    assert any(part.startswith("models/config.json: expression") for part in result.own_code)
    assert "commands refuse to run it without --trust" in "\n".join(result.lines())
    with pytest.raises(UnsafeInputError, match="add --trust if you trust its author"):
        load_bundle(tmp_path / "copy", "cpu")
    assert not (tmp_path / "ran").exists()


def test_an_archive_without_weights_configuration_or_list_is_refused(files, pull_archive):
    for lacking in (["models/model.pt"], ["models/config.json", "configs/train.json"]):
        with pytest.raises(ConfigError, match=f"lists no {lacking[0]}"):
            pull_archive(listed({name: content for name, content in files.items() if name not in lacking}))
    with pytest.raises(ConfigError, match="has no SHA256SUMS"):
        pull_archive({name: content for name, content in files.items() if name != "SHA256SUMS"})


def test_a_list_with_a_name_twice_or_with_too_many_is_refused(files, pull_archive):
    for more in ("".join(f"{'0' * 64}  configs/{i}.json\n" for i in range(20_000)), f"{'0' * 64}  models/model.pt\n"):
        with pytest.raises(ScanError, match="SHA256SUMS: is not a list"):
            pull_archive(listed(files, more))


@pytest.mark.goal(id="R15")
@pytest.mark.parametrize("name", ["models/model.pt", "notes.txt"])
def test_an_archive_that_explodes_is_refused(files, pull_archive, tmp_path, name):
    with pytest.raises(UnsafeInputError, match=r"a.zip: would be more than 20 times as large when it is unpacked"):
        pull_archive(listed(files) | {name: bytes(120_000_000)})
    assert not (tmp_path / "copy").exists()


def test_a_link_in_an_archive_is_no_link(files, tmp_path):
    link = zipfile.ZipInfo("configs/vary2.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in listed({**files, link.filename: b"/etc/passwd"}).items():
            archive.writestr(link if name == link.filename else name, content)
    pull(str(tmp_path / "a.zip"), tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_a_file_that_is_in_the_archive_twice_has_its_listed_checksum(archive, tmp_path):
    (tmp_path / "a.zip").write_bytes(archive.read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as changed, pytest.warns(UserWarning, match="Duplicate name"):
        changed.writestr("configs/train.json", b"{}")
    with pytest.raises(ConfigError, match="configs/train.json: its sha256 is"):
        pull(str(tmp_path / "a.zip"), tmp_path / "copy")


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def test_a_damaged_archive_is_one_line(archive, tmp_path):
    content, path = archive.read_bytes(), tmp_path / "damaged.zip"
    places = range(100, len(content), len(content) // 10)
    for damaged in (content[: len(content) // 2], *(flipped(content, at) for at in places)):
        path.write_bytes(damaged)
        with pytest.raises(DiffAEError) as caught:
            pull(str(path), tmp_path / "copy")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "copy").exists()
