"""`push` sends what is on its list and nothing else, and never without being told to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_diffae import load_bundle
from monai_diffae.apps.sharing.model_card import model_card
from monai_diffae.apps.sharing.push import push
from monai_diffae.bundle.sent_copy import copy_for_others
from monai_diffae.errors import ConfigError, MachineError

REPO = "owner/heads"


def copied(described: Path, folder: Path) -> Path:
    return shutil.copytree(described, folder)


def test_a_private_repository_gets_the_listed_files_and_no_other(described: Path, hub: Any) -> None:
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
    assert hub.repositories[REPO].tags == {"v1": result.revision}
    assert sent["README.md"].startswith(b"---\nlibrary_name: monai\n")
    assert b"# Virtual heads" in sent["README.md"]


def test_all_files_arrive_in_one_commit(described: Path, hub: Any) -> None:
    push(described, REPO, yes=True)
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1


def test_the_copy_works_alone(described: Path, tmp_path: Path) -> None:
    copy_for_others(described, tmp_path / "copy")
    ours, theirs = (load_bundle(path, "cpu").network.state_dict() for path in (described, tmp_path / "copy"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    train = json.loads((tmp_path / "copy" / "configs" / "train.json").read_text())
    assert train["dataset_dir"] == "???"
    assert "mine" not in train


def test_a_latent_ddim_is_sent_without_its_checkpoint(described: Path, latent_bundle: Path, tmp_path: Path) -> None:
    bundle = copied(described, tmp_path / "bundle")
    shutil.copytree(latent_bundle / "models", bundle / "models", dirs_exist_ok=True)
    sent = copy_for_others(bundle, tmp_path / "copy").sizes
    assert sent.keys() >= {"models/latent_model.pt", "models/latent_config.json"}
    assert not any("checkpoint" in name for name in sent)
    shutil.copy2(described / "models" / "model.pt", bundle / "models")
    with pytest.raises(ConfigError, match=r"latent_model.pt: belongs to another model than models/model.pt"):
        copy_for_others(bundle, tmp_path / "other")


def test_the_list_is_shown_and_without_a_terminal_nothing_is_sent(
    described: Path, hub: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, out, error = run("push", described, REPO)
    assert code == 2
    assert out == ""
    *listed, last = error.splitlines()
    assert last == "error: nothing was sent, as there is no terminal to ask whether to send these files; add --yes"
    assert any(line.endswith(" kB  models/model.pt") for line in listed)
    assert any(line.endswith(f" kB  in all, to {REPO} (new, private)") for line in listed)
    assert listed[-1].startswith("not sent: ")
    assert listed[-1].endswith(" more")
    assert hub.repositories == {}


@pytest.mark.parametrize(("answer", "is_sent"), [("", False), ("n", False), ("y", True)])
def test_it_asks(described: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, answer: str, is_sent: bool) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    result = push(described, REPO)
    assert bool(result.sent) == is_sent == (REPO in hub.repositories)
    assert next(result.lines()).startswith("owner/heads: " if is_sent else "nothing was sent")


def test_a_public_repository_is_refused_without_public(described: Path, hub: Any) -> None:
    push(described, REPO, public=True, yes=True)
    assert not hub.repositories[REPO].private
    with pytest.raises(ConfigError, match="everybody can see this repository; add public"):
        push(described, REPO, yes=True)
    push(described, REPO, public=True, yes=True)
    assert len(hub.repositories[REPO].commits) == 3


def test_a_tag_is_never_moved(described: Path, hub: Any) -> None:
    push(described, REPO, tag="v1", yes=True)
    before = dict(hub.repositories[REPO].tags)
    with pytest.raises(ConfigError, match="tag: owner/heads has 'v1' already"):
        push(described, REPO, tag="v1", yes=True)
    assert hub.repositories[REPO].tags == before


def test_the_token_is_shown_nowhere(
    described: Path, hub: Any, run: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    code, out, error = run("push", described, REPO, "--yes", "--json", "--debug")
    assert code == 0
    figures = json.loads(out)
    assert figures["revision"] in hub.repositories[REPO].commits
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    refused = run("push", described, "owner/other", "--yes")
    assert refused[0] == 2
    assert "owner/other: your token may not do this; log in with a token" in refused[2]
    assert "hf_" not in out + error + caplog.text + refused[1] + refused[2]


@pytest.mark.parametrize("name", ["README.md", "data_license.txt"])
def test_documents_that_deny_the_weights_are_refused(described: Path, tmp_path: Path, name: str) -> None:
    bundle = copied(described, tmp_path / "bundle")
    shutil.copy2(Path(__file__).parents[3] / "bundles" / "diffae_2d" / "docs" / name, bundle / "docs")
    with pytest.raises(ConfigError, match=f"docs/{name}: says nothing about the trained weights"):
        push(bundle, str(tmp_path / "out.zip"), yes=True)


def test_weights_with_something_else_are_refused(described: Path, tmp_path: Path) -> None:
    bundle = copied(described, tmp_path / "bundle")
    torch.save({"weight": torch.zeros(2), "patient": "mrdoe"}, bundle / "models" / "model.pt")
    with pytest.raises(ConfigError, match=r"model.pt: is not a state dict of weights"):
        copy_for_others(bundle, tmp_path / "copy")


def test_a_bundle_with_a_pattern_for_patients_can_be_used_by_others(
    described: Path, tiny_bundle: Any, tmp_path: Path
) -> None:
    from monai_diffae import embed

    bundle = copied(described, tmp_path / "bundle")
    for name, values in (("models/config.json", {}), ("configs/train.json", {"start_from": "../mrdoe"})):
        config = json.loads((bundle / name).read_text())
        (bundle / name).write_text(json.dumps({**config, "patient_pattern": "(mrdoe.)", **values}))
    copy_for_others(bundle, tmp_path / "copy")
    sent = [json.loads((tmp_path / "copy" / name).read_text()) for name in ("models/config.json", "configs/train.json")]
    assert [config["patient_pattern"] for config in sent] == [None, None]
    assert sent[1]["start_from"] is None
    embed(tmp_path / "copy", tiny_bundle.cohort, tmp_path / "embedded", device="cpu")


def test_links_to_folders_are_not_followed(described: Path, tmp_path: Path) -> None:
    bundle = copied(described, tmp_path / "bundle")
    (tmp_path / "scans").mkdir()
    (bundle / "docs" / "scans").symlink_to(tmp_path / "scans")
    (bundle / "docs" / "loop").symlink_to(bundle / "docs")
    (bundle / "docs" / "broken").symlink_to(tmp_path / "nothing")
    assert copy_for_others(bundle, tmp_path / "copy").sizes.keys() >= {"docs/README.md"}
    assert not any(path.is_dir() for path in (tmp_path / "copy" / "docs").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("configs/distill.json", b"{broken", "distill.json: cannot be read; repair or remove it"),
        ("configs/distill.json", b"\xff\xfe", "distill.json: cannot be read; repair or remove it"),
        ("configs/distill.json", b"[]", "distill.json: cannot be read; repair or remove it"),
        ("docs/README.md", b"M\xfcller", "docs/README.md: is not UTF-8 text; save it as UTF-8"),
        ("models/fast_config.json", b"[]", "fast_model.pt: belongs to another model than models/model.pt"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    described: Path, tmp_path: Path, name: str, content: bytes, error: str
) -> None:
    bundle = copied(described, tmp_path / "bundle")
    (bundle / "models" / "fast_model.pt").touch()
    (bundle / name).write_bytes(content)
    with pytest.raises(ConfigError, match=error):
        copy_for_others(bundle, tmp_path / "copy")


def test_weights_that_would_run_code_are_refused(described: Path, tmp_path: Path) -> None:
    from monai_diffae.errors import UnsafeInputError

    bundle = copied(described, tmp_path / "bundle")
    torch.save({"a": Path}, bundle / "models" / "model.pt")
    with pytest.raises(UnsafeInputError):
        push(bundle, str(tmp_path / "out.zip"), yes=True)


def test_errors_are_one_line(described: Path, hub: Any, tmp_path: Path) -> None:
    for repo in ("heads", "a/b/c", "owner/he ads"):
        with pytest.raises(ConfigError, match="cannot be a repository; write owner/name"):
            push(described, repo, yes=True)
    (tmp_path / "out.zip").touch()
    with pytest.raises(ConfigError, match="out.zip: exists already"):
        push(described, str(tmp_path / "out.zip"), yes=True)
    with pytest.raises(ConfigError, match="tag: a zip file has none"):
        push(described, str(tmp_path / "new.zip"), tag="v1", yes=True)


def test_a_hub_that_cannot_be_reached_is_one_line(described: Path, hub: Any) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match="owner/heads: the hub cannot be reached"):
        push(described, REPO, yes=True)


def test_without_huggingface_hub_a_line_says_what_to_install(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[hub\]', or use a .zip file"):
        push(described, REPO, yes=True)


def test_a_header_of_its_own_stays() -> None:
    card = "---\nlicense: mit\n---\n# Mine\n"
    assert model_card(card) == card


def test_sha256sum_checks_the_copy(described: Path, tmp_path: Path) -> None:
    copy_for_others(described, tmp_path / "copy")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "copy", check=True)
