"""`push` sends what is on its list and nothing else, and never without being told to."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hub_stub import Repository

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.pull import pull
from monai_diffae.apps.sharing.push import push
from monai_diffae.bundle.checksums import checksum
from monai_diffae.bundle.sent_copy import copy_for_others
from monai_diffae.data.file_checksums import file_checksum
from monai_diffae.errors import ConfigError, DiffAEError, MachineError

REPO = "owner/heads"


def test_a_private_repository_gets_the_listed_files_in_one_commit_and_no_other(described, hub):
    result = push(described, REPO, tag="v1", yes=True)
    assert hub.repositories[REPO].private
    sent = hub.sent(REPO, "v1")
    assert sent.keys() - result.sent.keys() == {".gitattributes"}
    assert {name: len(sent[name]) for name in result.sent} == result.sent
    assert result.sent.keys() >= {
        "LICENSE", "README.md", "SHA256SUMS", "docs/README.md", "docs/data_license.txt", "models/model.pt",
        "models/config.json", "configs/metadata.json", "configs/train.json", "configs/inference.json",
        "configs/embed.json",
    }  # fmt: skip
    assert not [name for name, content in sent.items() if b"mrdoe" in content or "mrdoe" in name]
    assert {name.rpartition(".")[2] for name in result.sent} == {"LICENSE", "SHA256SUMS", "md", "txt", "json", "pt"}
    assert [name for name in sent if name.endswith(".pt")] == ["models/model.pt"]
    assert sent["README.md"].startswith(b"---\nlibrary_name: monai\n")
    assert b"# Virtual heads" in sent["README.md"]
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1
    # a tag is never moved
    assert hub.repositories[REPO].tags == {"v1": result.revision}
    with pytest.raises(ConfigError, match="tag: owner/heads has 'v1' already"):
        push(described, REPO, tag="v1", yes=True)
    assert hub.repositories[REPO].tags == {"v1": result.revision}


def test_the_copy_works_alone(described, tmp_path):
    copy_for_others(described, tmp_path / "copy")
    ours, theirs = (load_bundle(path, "cpu").network.state_dict() for path in (described, tmp_path / "copy"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for line in (tmp_path / "copy" / "SHA256SUMS").read_text().splitlines():  # as sha256sum --check reads it
        sha256, name = line.split("  ")
        assert file_checksum(tmp_path / "copy" / name) == sha256


def test_a_latent_ddim_is_sent_if_it_is_of_this_model(bundle, latent_bundle, tmp_path):
    model = (bundle / "models" / "model.pt").read_bytes()
    shutil.copytree(latent_bundle / "models", bundle / "models", dirs_exist_ok=True)
    (bundle / "models" / "latent_checkpoint.pt").touch()
    sent = copy_for_others(bundle, tmp_path / "copy").sizes
    assert sent.keys() >= {"models/latent_model.pt", "models/latent_config.json"}
    assert not any("checkpoint" in name for name in sent)
    (bundle / "models" / "model.pt").write_bytes(model)
    with pytest.raises(ConfigError, match=r"latent_model.pt: belongs to another model than models/model.pt"):
        copy_for_others(bundle, tmp_path / "other")


def test_the_list_is_shown_and_without_a_terminal_nothing_is_sent(described, hub, run, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, out, error = run("push", described, REPO)
    assert (code, out) == (2, "")
    *listed, last = error.splitlines()
    assert last == "error: nothing was sent, as there is no terminal to ask whether to send these files; add --yes"
    assert any(line.endswith(" kB  models/model.pt") for line in listed)
    assert any(line.endswith(f" kB  in all, to {REPO} (new, private)") for line in listed)
    assert listed[-1].startswith("not sent: ")
    assert hub.repositories == {}


@pytest.mark.parametrize(("answer", "is_sent"), [("", False), ("n", False), ("y", True)])
def test_it_asks(described, hub, monkeypatch, answer, is_sent):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    result = push(described, REPO)
    assert bool(result.sent) == is_sent == (REPO in hub.repositories)
    assert next(result.lines()).startswith("owner/heads: " if is_sent else "nothing was sent")


def test_a_public_repository_is_refused_without_public(described, hub):
    hub.repositories[REPO] = Repository(private=False)
    hub.add_commit(REPO, {})
    with pytest.raises(ConfigError, match="everybody can see this repository; add public"):
        push(described, REPO, yes=True)
    push(described, REPO, public=True, yes=True)
    assert "models/model.pt" in hub.sent(REPO)


def test_the_token_is_shown_nowhere(described, hub, run, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    code, out, error = run("push", described, REPO, "--yes", "--json", "--debug")
    assert code == 0
    assert json.loads(out)["revision"] in hub.repositories[REPO].commits
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    refused = run("push", described, "owner/other", "--yes")
    assert refused[0] == 2
    assert "owner/other: your token may not do this; log in with a token" in refused[2]
    assert "hf_" not in out + error + caplog.text + refused[1] + refused[2]


def test_links_to_folders_are_not_followed(bundle, tmp_path):
    (tmp_path / "scans").mkdir()
    (bundle / "docs" / "scans").symlink_to(tmp_path / "scans")
    (bundle / "docs" / "loop").symlink_to(bundle / "docs")
    assert copy_for_others(bundle, tmp_path / "copy").sizes.keys() >= {"docs/README.md"}
    assert not any(path.is_dir() for path in (tmp_path / "copy" / "docs").iterdir())


SHIPPED = Path(__file__).parents[3] / "bundles" / "diffae_2d" / "docs" / "README.md"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("docs/README.md", b"M\xfcller", "docs/README.md: is not UTF-8 text; save it as UTF-8"),
        ("docs/README.md", SHIPPED.read_bytes(), "docs/README.md: says nothing about the trained weights"),
    ],
)
def test_files_that_cannot_be_sent_are_one_line(bundle, tmp_path, name, content, error):
    (bundle / name).write_bytes(content)
    with pytest.raises(ConfigError, match=error):
        push(bundle, str(tmp_path / "out.zip"), yes=True)
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("content", [{"a": Path}, {"weight": torch.zeros(2), "patient": "mrdoe"}])
def test_weights_with_something_else_are_refused(bundle, tmp_path, content):
    torch.save(content, bundle / "models" / "model.pt")
    with pytest.raises(DiffAEError, match=r"model.pt: "):
        push(bundle, str(tmp_path / "out.zip"), yes=True)


def test_errors_are_one_line(described, hub, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be a repository; write owner/name"):
        push(described, "owner/he ads", yes=True)
    (tmp_path / "out.zip").touch()
    with pytest.raises(ConfigError, match="out.zip: exists already"):
        push(described, str(tmp_path / "out.zip"), yes=True)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match="owner/heads: the hub cannot be reached"):
        push(described, REPO, yes=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[hub\]', or use a .zip file"):
        push(described, REPO, yes=True)


# -- networks that `export` wrote into the bundle ----------------------------------------------------------------------


def add_network(bundle, **record):
    path = bundle / "models" / "encoder.pt2"
    path.write_bytes(b"graph")
    networks = {"encoder.pt2": {"sha256": file_checksum(path), "bytes": 5, "inputs": {"image": ["batch"]}}}
    made_from = {"model": checksum(bundle), "format": "pt2"}
    text = json.dumps({"networks": networks, "made_from": made_from, "mine": "mrdoe", **record})
    (bundle / "models" / "networks.json").write_text(text)


def test_a_network_of_these_weights_is_sent_and_pulled(bundle, tmp_path):
    add_network(bundle)
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    pull(str(tmp_path / "sent.zip"), tmp_path / "copy")
    assert (tmp_path / "copy" / "models" / "encoder.pt2").read_bytes() == b"graph"
    sent, own = (
        json.loads((folder / "models" / "networks.json").read_text()) for folder in (tmp_path / "copy", bundle)
    )
    assert sent == {name: value for name, value in own.items() if name != "mine"}
    (bundle / "models" / "encoder.pt2").write_bytes(b"another")  # without a record
    assert "models/encoder.pt2" not in push(bundle, str(tmp_path / "without.zip"), yes=True).sent


def test_a_network_of_other_weights_is_refused(bundle, tmp_path):
    add_network(bundle, made_from={"model": "0" * 64})
    with pytest.raises(ConfigError, match=r"encoder.pt2: is a network of other weights than models/model.pt; exp"):
        push(bundle, str(tmp_path / "sent.zip"), yes=True)
