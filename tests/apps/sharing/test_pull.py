"""`pull` gets what `push` has sent, refuses what differs from the list of checksums, and overwrites nothing."""

import functools
import json
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hub_stub import Repository
from tiny_bundles import contents

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.pull import pull
from monai_diffae.apps.sharing.push import push
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, DiffAEError, MachineError, ScanError

REPO = "owner/heads"


@pytest.fixture
def pushed(files, hub):
    """The hub with the files of the bundle, which has the tag v1."""
    hub.repositories[REPO] = Repository(private=True)
    hub.repositories[REPO].tags["v1"] = hub.add_commit(REPO, {**files, ".gitattributes": b""})
    return hub


def change(hub, name, edit):
    files = dict(hub.sent(REPO))
    files[name] = edit(files[name])
    hub.add_commit(REPO, files)


def test_a_bundle_that_is_pushed_and_pulled_is_the_same(described, hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("push", described, REPO, "--yes")
    command = out.splitlines()[-1].partition(": ")[2].split()[1:]
    code, out, _ = run(*command)  # the line that was printed
    assert code == 0
    assert out.splitlines()[0] == "my_copy"
    assert "files, all with the listed sha256; revision " in out
    copy = tmp_path / "my_copy"
    left_out = ("README.md", ".gitattributes")
    assert contents(copy) == {name: content for name, content in hub.sent(REPO).items() if name not in left_out}
    ours, theirs = (load_bundle(path, "cpu").network.state_dict() for path in (described, copy))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert copy.stat().st_mode & 0o077 == (copy / "models").stat().st_mode & 0o077


def test_a_changed_file_is_refused_and_nothing_is_kept(pushed, tmp_path):
    name = "models/model.pt"
    change(pushed, name, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ConfigError, match=f"{name}: its sha256 is .* but SHA256SUMS has"):
        pull(REPO, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if path.name != "hf"] == []
    assert pull(REPO, tmp_path / "copy", revision="v1").revision == pushed.repositories[REPO].tags["v1"]


def test_a_forged_list_is_noticed_by_the_checksum_of_the_author(described, hub, tmp_path):
    told = push(described, REPO, yes=True).sha256
    change(hub, "SHA256SUMS", lambda content: content[:-30])
    with pytest.raises(ConfigError, match="sha256: SHA256SUMS has another checksum than"):
        pull(REPO, tmp_path / "copy", sha256=told)


@pytest.mark.parametrize("lines", [b"", b"\xff", b"0" * 64 + b"  \x1b[31mrun.py\n"])
def test_a_damaged_list_is_refused(pushed, tmp_path, lines):
    change(pushed, "SHA256SUMS", lambda content: lines)
    with pytest.raises(ScanError, match="is not a list of SHA-256|cannot be read"):
        pull(REPO, tmp_path / "copy")


def test_the_list_may_name_what_is_no_file_of_a_bundle_but_nothing_that_is_missing(pushed, tmp_path):
    listed = ("scripts/run.py", "../up.json", "/etc/evil.json", "configs/../../up.json", "configs/.json/a.json")
    change(pushed, "SHA256SUMS", lambda content: content + b"".join(b"0" * 64 + f"  {n}\n".encode() for n in listed))
    result = pull(REPO, tmp_path / "copy")
    assert result.left_out == tuple(sorted(listed))
    assert "left out, as they are no files of a bundle: " in "\n".join(result.lines())
    assert not any("run.py" in path or ".." in path for _, path in pushed.requests)
    change(pushed, "SHA256SUMS", lambda content: content + b"0" * 64 + b"  models/fast_model.pt\n")
    with pytest.raises(ConfigError, match=r"^models/fast_model.pt: is listed in SHA256SUMS, but missing; ask"):
        pull(REPO, tmp_path / "other")


def test_a_pulled_folder_is_overwritten_only_if_asked_and_only_by_complete_bundles(pushed, tmp_path):
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


@pytest.mark.parametrize("name", ["models/checkpoint.pt", "embeddings.parquet", "models/.secret", "scans"])
def test_files_of_the_users_own_are_never_replaced(archive, tmp_path, name):
    copy = tmp_path / "copy"
    pull(str(archive), copy)
    if name == "scans":
        (tmp_path / "scans").mkdir()
        (copy / name).symlink_to(tmp_path / "scans")
    else:
        (copy / name).touch()
    with pytest.raises(ConfigError, match=f"copy: holds files of your own, such as {name}; choose another folder"):
        pull(str(archive), copy, overwrite=True)


def test_folders_that_are_not_replaced(archive, tmp_path, monkeypatch):
    def refused(out, message):
        with pytest.raises(ConfigError, match=message):
            pull(str(archive), out, overwrite=True)

    folder = tmp_path / "copy"
    pull(str(archive), folder)
    for name, target in (("link", folder), ("broken", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(target)
        refused(tmp_path / name, f"out: {name} is a link, which would be replaced")
        assert (tmp_path / name).is_symlink()
    config = folder / "configs" / "train.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_epochs": 7}))
    before = contents(folder)
    refused(folder, r"copy: configs/train.json was changed after the pull; choose another fol")
    assert contents(folder) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    refused(tmp_path / "other", "other: was not pulled, so it is not replaced")
    assert (tmp_path / "other" / "thesis.doc").exists()
    monkeypatch.chdir(folder)
    refused(".", "out: is the current folder, which cannot be replaced; choose a new folder")


def test_what_does_not_exist_is_one_line(pushed, tmp_path, monkeypatch):
    def message(repo, **arguments):
        with pytest.raises(DiffAEError) as caught:
            pull(repo, tmp_path / "copy", **arguments)
        return str(caught.value)

    assert message("owner/none").startswith("owner/none: is not on the hub, or your token may not read it")
    assert message(REPO, revision="v2") == "owner/heads: has no revision 'v2'; give a tag, branch or commit that it has"
    pushed.repositories["owner/zoo"] = Repository(private=False)
    pushed.add_commit("owner/zoo", {"models/model.pt": b""})
    assert message("owner/zoo").startswith("owner/zoo: has no SHA256SUMS, so monai-diffae push did not send it")
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    assert "your token may not read it" in message(REPO)


def test_a_zip_file_needs_no_hub(archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = pull(str(archive), tmp_path / "copy", sha256=file_checksum(archive).upper())
    assert result.revision is None
    load_bundle(tmp_path / "copy", "cpu")
    with pytest.raises(ConfigError, match="sha256: heads.zip has another checksum than 0000"):
        pull(str(archive), tmp_path / "other", sha256="0" * 64)
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[hub\]'"):
        pull(REPO, tmp_path / "other")


def test_the_address_of_a_zip_file_needs_a_checksum(archive, tmp_path):
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
