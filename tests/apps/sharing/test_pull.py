"""`pull` gets what `push` has sent, refuses what differs from the list of checksums, and overwrites nothing."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import zipfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.pull import pull
from monai_diffae.apps.sharing.push import push
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, ScanError, UnsafeInputError

REPO = "owner/heads"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pushed(described: Path, hub: Any) -> Any:
    push(described, REPO, tag="v1", yes=True)
    return hub


@pytest.fixture
def archive(described: Path, tmp_path: Path) -> Path:
    push(described, str(tmp_path / "heads.zip"), yes=True)
    return tmp_path / "heads.zip"


def change(hub: Any, name: str, edit: Callable[[bytes], bytes]) -> None:
    files = dict(hub.sent(REPO))
    files[name] = edit(files[name])
    hub.add_commit(REPO, files)


def test_a_pulled_bundle_is_the_one_that_was_pushed(described: Path, pushed: Any, tmp_path: Path) -> None:
    result = pull(REPO, tmp_path / "copy", revision="v1")
    sent = {name: content for name, content in pushed.sent(REPO).items() if name not in ("README.md", ".gitattributes")}
    assert contents(tmp_path / "copy") == sent
    assert result.num_files == len(sent) - 1
    assert result.revision == pushed.repositories[REPO].tags["v1"]
    assert result.own_code == result.left_out == ()
    ours, theirs = (load_bundle(path, "cpu").network.state_dict() for path in (described, tmp_path / "copy"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "copy").stat().st_mode & 0o077 == (tmp_path / "copy" / "models").stat().st_mode & 0o077


def test_the_printed_command_pulls_it(described: Path, hub: Any, run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("push", described, REPO, "--yes")
    command = out.splitlines()[-1].partition(": ")[2].split()[1:]
    code, out, _ = run(*command)
    assert code == 0
    assert out.splitlines()[0] == "my_copy"
    assert "files, all with the listed sha256; revision " in out


def test_monai_downloads_it_too(pushed: Any, tmp_path: Path) -> None:
    import monai.bundle

    monai.bundle.download("heads", source="huggingface_hub", repo=REPO, version="v1", bundle_dir=tmp_path)
    assert (tmp_path / "heads" / "models" / "model.pt").read_bytes() == pushed.sent(REPO)["models/model.pt"]


@pytest.mark.parametrize("name", ["models/model.pt", "configs/train.json", "LICENSE"])
def test_a_changed_file_is_refused_and_nothing_is_kept(pushed: Any, tmp_path: Path, name: str) -> None:
    change(pushed, name, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=f"{name}: its sha256 is .* but SHA256SUMS has"):
        pull(REPO, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []
    pull(REPO, tmp_path / "copy", revision="v1")


def test_a_forged_list_is_noticed_by_the_checksum_of_the_author(described: Path, hub: Any, tmp_path: Path) -> None:
    told = push(described, REPO, yes=True).sha256
    change(hub, "SHA256SUMS", lambda content: content[:-30])
    with pytest.raises(ConfigError, match="sha256: SHA256SUMS has another checksum than"):
        pull(REPO, tmp_path / "copy", sha256=told)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (b"", "is not a list of SHA-256"),
        (b"\xff", "cannot be read"),
        (b"00  models/model.pt\n", "is not a list"),
        (b"0" * 64 + b"  \x1b[31mrun.py\n", "is not a list"),
        (b"0" * 64 + b"  configs/" + b"a" * 256 + b"\n", "is not a list"),
    ],
)
def test_a_damaged_list_is_refused(pushed: Any, tmp_path: Path, lines: bytes, error: str) -> None:
    change(pushed, "SHA256SUMS", lambda content: lines)
    with pytest.raises(ScanError, match=error):
        pull(REPO, tmp_path / "copy")


def test_a_listed_file_that_is_missing_is_refused(pushed: Any, tmp_path: Path) -> None:
    change(pushed, "SHA256SUMS", lambda content: content + b"0" * 64 + b"  models/fast_model.pt\n")
    with pytest.raises(ConfigError, match=r"^models/fast_model.pt: is listed in SHA256SUMS, but missing; ask"):
        pull(REPO, tmp_path / "copy")


def test_files_that_are_none_of_a_bundle_are_left_out(pushed: Any, tmp_path: Path) -> None:
    listed = ("scripts/run.py", "../up.json", "/etc/evil.json", "configs/../../up.json", "configs/.json/a.json")
    change(pushed, "SHA256SUMS", lambda content: content + b"".join(b"0" * 64 + f"  {n}\n".encode() for n in listed))
    result = pull(REPO, tmp_path / "copy")
    assert result.left_out == tuple(sorted(listed))
    assert "left out, as they are no files of a bundle: " in "\n".join(result.lines())
    assert not any("run.py" in path or ".." in path for _, path in pushed.requests)


def test_nothing_is_overwritten(pushed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    pull(REPO, folder)
    before = contents(folder)
    with pytest.raises(ConfigError, match="copy: the folder is not empty"):
        pull(REPO, folder)
    change(pushed, "LICENSE", lambda content: content + b"\n")
    with pytest.raises(ConfigError, match="LICENSE: its sha256"):
        pull(REPO, folder, overwrite=True)
    assert contents(folder) == before
    (folder / "LICENSE").unlink()
    pull(REPO, folder, revision="v1", overwrite=True)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["models/checkpoint.pt", "embeddings.parquet"])
def test_files_of_the_users_own_are_never_replaced(pushed: Any, tmp_path: Path, name: str) -> None:
    pull(REPO, tmp_path / "copy")
    (tmp_path / "copy" / name).touch()
    with pytest.raises(ConfigError, match=f"copy: holds files of your own, such as {name}; choose another folder"):
        pull(REPO, tmp_path / "copy", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    with pytest.raises(ConfigError, match="other: was not pulled, so it is not replaced"):
        pull(REPO, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "thesis.doc").exists()


def test_the_current_folder_is_refused(pushed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(REPO, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(ConfigError, match="out: is the current folder, which cannot be replaced; choose a new folder"):
        pull(REPO, ".", overwrite=True)


def test_a_pulled_file_that_was_changed_is_never_replaced(pushed: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    pull(REPO, folder)
    config = folder / "configs" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_epochs": 7}))
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"copy: configs/train.json was changed after the pull; choose another fol"):
        pull(REPO, folder, overwrite=True)
    assert contents(folder) == before


def test_code_of_a_bundle_is_told_and_runs_only_when_trusted(
    described: Path, hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push(described, REPO, yes=True)
    config = json.loads(hub.sent(REPO)["models/config.json"])
    config["imports"] = [*config.get("imports", []), "$__import__('pathlib').Path('ran').touch()"]
    before = hashlib.sha256(hub.sent(REPO)["models/config.json"]).hexdigest()
    change(hub, "models/config.json", lambda _: json.dumps(config).encode())
    after = hashlib.sha256(hub.sent(REPO)["models/config.json"]).hexdigest()
    change(hub, "SHA256SUMS", lambda content: content.replace(before.encode(), after.encode()))
    result = pull(REPO, tmp_path / "copy")
    assert any(part.startswith("models/config.json: expression") for part in result.own_code)
    assert "commands refuse to run it without --trust" in "\n".join(result.lines())
    with pytest.raises(UnsafeInputError, match="add --trust if you trust its author"):
        load_bundle(tmp_path / "copy", "cpu")
    assert not (tmp_path / "ran").exists()


def test_what_does_not_exist_is_one_line(pushed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(repo: str, **arguments: Any) -> str:
        with pytest.raises(DiffAEError) as caught:
            pull(repo, tmp_path / "copy", **arguments)
        return str(caught.value)

    assert message("owner/none").startswith("owner/none: is not on the hub, or your token may not read it")
    assert message(REPO, revision="v2") == "owner/heads: has no revision 'v2'; give a tag, branch or commit that it has"
    assert message("a/b/c") == "repo: 'a/b/c' cannot be a repository; write owner/name"
    pushed.repositories["owner/zoo"] = type(pushed.repositories[REPO])(private=False)
    pushed.add_commit("owner/zoo", {"models/model.pt": b""})
    assert message("owner/zoo").startswith("owner/zoo: has no SHA256SUMS, so monai-diffae push did not send it")
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    assert "your token may not read it" in message(REPO)


def test_a_zip_file_needs_no_hub(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    result = pull(str(archive), tmp_path / "copy", sha256=file_checksum(archive).upper())
    assert result.revision is None
    load_bundle(tmp_path / "copy", "cpu")
    with pytest.raises(ConfigError, match="sha256: heads.zip has another checksum than 0000"):
        pull(str(archive), tmp_path / "other", sha256="0" * 64)
    with pytest.raises(ConfigError, match="revision: a zip file has none"):
        pull(str(archive), tmp_path / "other", revision="v1")
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[hub\]'"):
        pull(REPO, tmp_path / "other")


def test_a_zip_file_may_have_a_folder_around_the_bundle(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "wrapped.zip", "w") as target:
        for name in source.namelist():
            target.writestr(f"heads/{name}", source.read(name))
        target.writestr("heads/../../evil.json", "{}")
    pull(str(tmp_path / "wrapped.zip"), tmp_path / "copy")
    assert contents(tmp_path / "copy").keys() >= {"LICENSE", "models/model.pt"}
    assert not list(tmp_path.parent.glob("evil.json"))


def test_damaged_zip_files_are_refused(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(flipped)
    for name in ("cut.zip", "flipped.zip"):
        with pytest.raises(DiffAEError, match="get it again"):
            pull(str(tmp_path / name), tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("models/model.pt", b"")
    with pytest.raises(ConfigError, match="other.zip: has no SHA256SUMS"):
        pull(str(tmp_path / "other.zip"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_wherever_a_zip_file_is_damaged_it_is_one_line(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for at in range(100, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with pytest.raises(DiffAEError):
            pull(str(tmp_path / "damaged.zip"), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_an_encrypted_zip_file_is_one_line(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    for start, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := content.find(start, at + 1)) >= 0:
            content[at + flags] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(ScanError, match="locked.zip: is encrypted; get one without a password"):
        pull(str(tmp_path / "locked.zip"), tmp_path / "copy")


def test_the_address_of_a_zip_file_needs_a_checksum(archive: Path, tmp_path: Path) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/heads.zip"
        with pytest.raises(ConfigError, match="sha256: is needed for an address"):
            pull(address, tmp_path / "copy")
        with pytest.raises(ConfigError, match="sha256: heads.zip has another checksum than 0000"):
            pull(address, tmp_path / "copy", sha256="0" * 64)
        with pytest.raises(MachineError, match=r"none.zip: cannot be downloaded \(HTTPError\)"):
            pull(address.replace("heads", "none"), tmp_path / "copy", sha256="0" * 64)
        pull(address, tmp_path / "copy", sha256=file_checksum(archive))
        server.shutdown()
    load_bundle(tmp_path / "copy", "cpu")
