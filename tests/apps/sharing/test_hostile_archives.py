"""Whatever an archive or a list of checksums holds: `pull` writes files of a bundle into its folder, or refuses."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from monai_diffae.apps.sharing.pull import pull
from monai_diffae.apps.sharing.push import push
from monai_diffae.errors import ConfigError, DiffAEError, ScanError, UnsafeInputError

Files = dict[str, bytes]


@pytest.fixture(scope="session")
def files(described: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("archive") / "heads.zip"
    push(described, str(path), yes=True)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def listed(files: Files, more: str = "") -> Files:
    lines = [f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in files.items() if n != "SHA256SUMS"]
    return {**files, "SHA256SUMS": ("".join(lines) + more).encode()}


def write(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {other: content for other, content in files.items() if other != name}


def added(*names: str) -> Callable[[Files], Files]:
    return lambda files: {**files, **dict.fromkeys(names, b"{}")}


OUTSIDE = {
    "absolute": added("/tmp/evil.json"),
    "parent": added("../evil.json", "configs/../a.json", "configs/../../evil.json"),
    "windows": added("C:\\evil.json", "configs\\evil.json"),
    "upper case twin": added("configs/TRAIN.json", "Models/model.pt", "models/Model.pt"),
    "unicode twin": added("configs/tra\u0131n.json", "configs/train\u200b.json", "configs/\uff54rain.json"),
    "combining": added("configs/e\u0301.json", "configs/\u00e9.json"),
    "right to left": added("configs/\u202enosj.a.json"),
    "long name": added(f"configs/{'a' * 200}.json"),
    "deep": added(f"configs/{'a/' * 60}a.json"),
    "hidden": added("configs/.json", ".git/hooks/post-checkout", "configs/.a.json"),
    "code": added("scripts/run.py", "hubconf.py", "configs/run.py", "models/run.so"),
    "checkpoint": added("models/checkpoint.pt", "mlflow.db"),
    "space": added("configs/a b.json"),
    "stream": added("configs/a.json:evil"),
    "final dot": added("configs/a.json."),
    "device": added("NUL", "configs/NUL"),
    "dots": added("configs/..json", "configs/....json"),
    "double slash": added("configs//a.json", "./configs/a.json"),
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=list(OUTSIDE))
def test_only_files_of_a_bundle_are_written(files: Files, tmp_path: Path, change: Callable[[Files], Files]) -> None:
    archive, copy = write(tmp_path / "a.zip", listed(change(files))), tmp_path / "copy"
    before = set(tmp_path.parent.rglob("*"))
    with suppress(DiffAEError):
        pull(str(archive), copy)
    got = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert got in (files.keys(), set())
    assert set(tmp_path.parent.rglob("*")) - before <= {copy, *copy.rglob("*")}


@pytest.mark.parametrize("lacking", ["models/model.pt", "SHA256SUMS"])
def test_an_archive_without_weights_or_list_is_refused(files: Files, tmp_path: Path, lacking: str) -> None:
    changed = without(lacking)(files)
    archive = write(tmp_path / "a.zip", listed(changed) if lacking != "SHA256SUMS" else changed)
    with pytest.raises(ConfigError, match=r"lists no models/model.pt|has no SHA256SUMS"):
        pull(str(archive), tmp_path / "copy")


def test_a_configuration_is_needed(files: Files, tmp_path: Path) -> None:
    changed = without("configs/train.json")(without("models/config.json")(files))
    with pytest.raises(ConfigError, match=r"lists no models/config.json"):
        pull(str(write(tmp_path / "a.zip", listed(changed))), tmp_path / "copy")


def test_a_name_that_is_listed_twice_is_refused(files: Files, tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", listed(files, f"{'0' * 64}  models/model.pt\n"))
    with pytest.raises(ScanError, match="SHA256SUMS: is not a list"):
        pull(str(archive), tmp_path / "copy")


def test_a_list_of_many_files_is_refused(files: Files, tmp_path: Path) -> None:
    many = "".join(f"{'0' * 64}  configs/{i}.json\n" for i in range(20_000))
    with pytest.raises(ScanError, match="SHA256SUMS: is not a list"):
        pull(str(write(tmp_path / "a.zip", listed(files, many))), tmp_path / "copy")


@pytest.mark.parametrize("name", ["models/model.pt", "SHA256SUMS", "notes.txt"])
def test_an_archive_that_explodes_is_refused(files: Files, tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / "a.zip", listed({**files, "x.txt": b""}) | {name: bytes(120_000_000)})
    with pytest.raises(UnsafeInputError, match=r"a.zip: would be more than 20 times as large when it is unpacked"):
        pull(str(archive), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_size_that_is_no_size_is_one_line(files: Files, tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.zip", listed(files)).read_bytes())
    at = content.find(b"PK\x01\x02")
    for size in (0, 1, 2**31):
        content[at + 24 : at + 28] = size.to_bytes(4, "little")
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(DiffAEError):
            pull(str(tmp_path / "a.zip"), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_a_link_in_an_archive_is_no_link(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("configs/vary2.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    changed = listed({**files, link.filename: b"/etc/passwd"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in changed.items():
            archive.writestr(link if name == link.filename else name, content)
    pull(str(path), tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_a_file_that_is_in_the_archive_twice_has_its_listed_checksum(files: Files, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", listed(files))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("configs/train.json", b"{}")
    with pytest.raises(ConfigError, match="configs/train.json: its sha256 is"):
        pull(str(path), tmp_path / "copy")


def test_files_in_the_places_of_folders_are_ignored(files: Files, tmp_path: Path) -> None:
    pull(str(write(tmp_path / "a.zip", listed(files) | {"configs": b"", "models/": b""})), tmp_path / "copy")
    assert (tmp_path / "copy" / "configs").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_as_out_is_refused(files: Files, tmp_path: Path, overwrite: bool) -> None:
    archive = write(tmp_path / "a.zip", listed(files))
    pull(str(archive), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "to_empty").symlink_to(tmp_path / "empty")
    for name in ("link", "broken", "to_empty"):
        with pytest.raises(ConfigError, match=f"out: {name} is a link, which would be replaced"):
            pull(str(archive), tmp_path / name, overwrite=overwrite)
        assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("name", ["scans", ".notes", "models/.secret"])
def test_own_links_and_hidden_files_are_never_replaced(files: Files, tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / "a.zip", listed(files))
    pull(str(archive), tmp_path / "copy")
    if name == "scans":
        (tmp_path / "copy" / name).symlink_to(shutil.copytree(tmp_path / "copy", tmp_path / "scans"))
    else:
        (tmp_path / "copy" / name).touch()
    with pytest.raises(ConfigError, match=f"copy: holds files of your own, such as {name}"):
        pull(str(archive), tmp_path / "copy", overwrite=True)
