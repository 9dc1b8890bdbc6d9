"""`push` sends the files of a model and no other; `pull` makes a bundle of them that works as the author's does."""

import functools
import json
import multiprocessing
import re
import shutil
import signal
import sys
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import torch
from forked_program import die_at_call
from hub_stub import Repository
from tiny_bundles import TINY, TINY_3D, TINY_KL, contents, copy_tiny, rewrite, tiny_cohort

from monai_diffae import embed, generate, load_bundle, pull, push, train, trusting
from monai_diffae.bundle import load_first_stage
from monai_diffae.bundle.folders import NOTE, init_bundle
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import DiffAEError, MachineError, UnsafeInputError

REPO = "owner/heads"
CARD, LICENCE = "docs/README.md", "docs/data_license.txt"


def describe(bundle):
    """Write the documents of a trained bundle."""
    (bundle / CARD).write_text("# Virtual heads\n\nTrained on 12 virtual patients.\n")
    (bundle / LICENCE).write_text("Virtual patients, free of any licence.\n")
    return bundle


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A bundle with all models whose documents describe it, and with files that must stay at home."""
    bundle = describe(copy_tiny(tmp_path_factory.mktemp("described") / "bundle", "2d_all"))
    for name in ("mlflow.db", "pictures/mrdoe.png", "docs/mrdoe.png", "models/encoder.pt2", "configs/own.json"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text('{"patient": "mrdoe"}')
    (bundle / "models" / "metrics.json").write_text('{"loss": 1, "note": "mrdoe"}')
    return bundle


@pytest.fixture
def bundle(described, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(described, tmp_path / "bundle")


@pytest.fixture(scope="module")
def archive(described, tmp_path_factory):
    """The zip file that ``push`` makes of it."""
    path = tmp_path_factory.mktemp("archive") / "heads.zip"
    push(described, str(path), yes=True)
    return path


def error_of(function, *arguments, **options):
    with pytest.raises(DiffAEError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_private_repository_gets_the_files_of_the_model_in_one_commit_and_no_other(described, hub):
    result = push(described, REPO, tag="v1", yes=True)
    assert hub.repositories[REPO].private
    sent = hub.sent(REPO, "v1")
    models = {f"models/{name}" for name in (
        "model.safetensors", "latent_model.safetensors", "fast_model.safetensors", "metrics.json"
    )}  # fmt: skip
    assert result.sent.keys() == models | {CARD, LICENCE, "LICENSE"}
    assert sent.keys() == {*result.sent, "README.md", ".gitattributes"}
    assert {name: len(sent[name]) for name in result.sent} == result.sent
    assert not [name for name, content in sent.items() if b"mrdoe" in content]
    assert json.loads(sent["models/metrics.json"]).keys() == {"loss", "loss_other_z_sem", "z_sem_usage"}
    assert sent["README.md"].startswith(b"---\nlibrary_name: monai\n")
    assert b"# Virtual heads" in sent["README.md"]
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1
    assert result.sha256 == file_checksum(described / "models" / "model.safetensors")
    assert "repo: 'heads' is no repository" in error_of(push, described, "heads", yes=True)
    assert "'v1' already" in error_of(push, described, REPO, tag="v1", yes=True)  # a tag is never moved
    assert hub.repositories[REPO].tags == {"v1": result.revision}


def test_the_list_is_shown_and_without_an_answer_nothing_is_sent(described, hub, run, typed):
    typed(None)
    code, out, error = run("push", described, REPO)
    assert (code, out) == (2, "")
    *listed, stay, last = error.splitlines()
    assert last == "error: nothing was sent, as there is no terminal to ask whether to send these files; add --yes"
    assert any(line.endswith(" kB  models/model.safetensors") for line in listed)
    assert listed[-1].endswith(f" kB  in all, to {REPO} (new, private)")
    assert stay.startswith("not sent: ")
    for answer, is_sent in (("n", False), ("y", True)):
        typed(f"{answer}\n")
        assert bool(push(described, REPO).sent) == is_sent == (REPO in hub.repositories)


def test_a_public_repository_and_a_wrong_token_are_refused_and_no_token_shown(described, hub, run, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    hub.repositories[REPO] = Repository(private=False)
    hub.add_commit(REPO, {})
    assert "everybody can see this repository; add public" in error_of(push, described, REPO, yes=True)
    code, *sent = run("push", described, REPO, "--public", "--yes", "--json", "--debug")
    assert code == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    code, *refused = run("push", described, "owner/other", "--yes")
    assert code == 2
    assert "owner/other: is not on the hub, has no such revision, or your token may not use it" in refused[1]
    assert "hf_" not in "".join([*sent, *refused, caplog.text])


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        (CARD, b"x" * 200_001, f"{CARD}: is no text in UTF-8 of at most 200 kB"),
        (CARD, b"The bundle has no weights.", f"{CARD}: says nothing about the trained weights"),
        (CARD, NOTE.encode(), f"{CARD}: is about earlier weights"),
        (CARD, b"Say here\nwhich scans", f"{CARD}: replace each 'Say here which' by the organ"),
        (CARD, None, f"{CARD}: says nothing about the trained weights"),
        (LICENCE, b"no data and no trained weights.", f"{LICENCE}: is about no weights"),
        ("models/model.safetensors", None, "bundle: there is no models/model.safetensors; train the bundle first"),
        ("models/model.safetensors", b"12345678", "model.safetensors: is damaged"),
        ("models/latent_model.safetensors", b"12345678", "latent_model.safetensors: is damaged"),
    ],
)
def test_what_cannot_be_sent_is_one_line(bundle, tmp_path, name, content, error):
    (bundle / name).unlink()
    if content is not None:
        (bundle / name).write_bytes(content)
    assert error_of(push, bundle, str(tmp_path / "out.zip"), yes=True).startswith(error)
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("name", ["latent", "fast"])
def test_a_model_of_another_autoencoder_is_neither_sent_nor_got(bundle, archive, tmp_path, name):
    shutil.copy(copy_tiny(tmp_path / "other", "2d") / "models" / "model.safetensors", bundle / "models")
    for file in {"latent_model.safetensors", "fast_model.safetensors"} - {f"{name}_model.safetensors"}:
        (bundle / "models" / file).unlink()
    assert "belongs to another autoencoder" in error_of(push, bundle, str(tmp_path / "out.zip"), yes=True)
    with zipfile.ZipFile(tmp_path / "forged.zip", "w") as forged:
        for file in (bundle / "models").glob("*.safetensors"):
            forged.write(file, f"models/{file.name}")
    message = error_of(pull, str(tmp_path / "forged.zip"), tmp_path / "copy")
    assert message.startswith(f"models/{name}_model.safetensors: belongs to another model")


def test_errors_are_one_line(described, hub, tmp_path, monkeypatch):
    assert "owner/he ads: is not on the hub" in error_of(push, described, "owner/he ads", yes=True)
    (tmp_path / "out.zip").touch()
    assert "out.zip: exists already" in error_of(push, described, str(tmp_path / "out.zip"), yes=True)
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match="owner/heads: the hub cannot be reached"):
        push(described, REPO, yes=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match=r"pip install 'monai-diffae\[hub\]', or use a .zip file"):
        pull(REPO, tmp_path / "copy")


def test_a_bundle_that_is_pushed_and_pulled_is_the_same(described, hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("push", described, REPO, "--yes")
    code, out, _ = run(*out.splitlines()[-1].partition(": ")[2].split()[1:])  # the line that was printed
    copy = tmp_path / "my_copy"
    assert (code, out.splitlines()[0]) == (0, "my_copy")
    got = contents(copy)
    sent = hub.sent(REPO)
    assert {name: got[name] for name in sent if name in got} == {n: c for n, c in sent.items() if n in got}
    assert sent.keys() - got.keys() == {"README.md", ".gitattributes"}
    assert not (copy / "configs" / "own.json").exists()
    assert json.loads(got["configs/metadata.json"])["eval_metrics"] == json.loads(got["models/metrics.json"])
    assert generate(copy, tmp_path / "made", num_images=1, device="cpu", decoder="fast").folder.is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert copy.stat().st_mode & 0o077 == (copy / "models").stat().st_mode & 0o077


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cohort", "settings"),
    [("2d_all", "2d", TINY), ("3d", "3d", TINY_3D), ("3d_on_latents", "kl", TINY_3D), ("first_stage", "kl", TINY_KL)],
)
def test_a_pulled_model_gives_the_same_z_sem_and_can_be_trained(kind, cohort, settings, tmp_path):
    bundle, scans = describe(copy_tiny(tmp_path / "bundle", kind)), tiny_cohort(tmp_path / "cohort", cohort)
    if kind == "3d_on_latents":  # stored before a description named the weights of its first stage
        rewrite(bundle, dict, first_stage_sha256=load_first_stage(bundle).description["weights_sha256"])
    push(bundle, str(tmp_path / "sent.zip"), yes=True)
    copy = pull(str(tmp_path / "sent.zip"), tmp_path / "copy").folder
    if kind != "first_stage":
        tables = [pd.read_parquet(embed(b, scans, tmp_path / f"z_{b.name}", device="cpu").path) for b in (bundle, copy)]
        pd.testing.assert_frame_equal(*tables)
        assert load_bundle(copy, "cpu").config == load_bundle(bundle, "cpu").config
    before = torch.load(copy / "models" / "model.pt", weights_only=True)
    of_the_run = ("max_epochs", "batch_size", "val_batch_size", "num_pictures", "mlflow", "device", "check_memory")
    train(copy, scans, overrides={key: settings[key] for key in of_the_run if key in settings})
    after = torch.load(copy / "models" / "model.pt", weights_only=True)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_later_model_replaces_all_files_and_the_revision_and_checksum_that_the_author_told_get_the_first(
    bundle, hub, tmp_path
):
    first = push(bundle, REPO, tag="v1", yes=True)
    shutil.copy(copy_tiny(tmp_path / "other", "2d") / "models" / "model.safetensors", bundle / "models")
    for name in ("latent", "fast"):
        (bundle / "models" / f"{name}_model.safetensors").unlink()
    push(bundle, REPO, yes=True)
    assert {name for name in hub.sent(REPO) if name.startswith("models/")} == {
        "models/model.safetensors", "models/metrics.json"
    }  # fmt: skip
    message = error_of(pull, REPO, tmp_path / "copy", sha256=first.sha256)
    assert message.startswith(f"sha256: model.safetensors has another than {first.sha256[:12]}")
    assert not (tmp_path / "copy").exists()
    result = pull(REPO, tmp_path / "copy", revision="v1", sha256=first.sha256.upper())
    assert (result.revision, result.sha256) == (first.revision, first.sha256)
    assert error_of(pull, REPO, tmp_path / "a", revision="v2").startswith("owner/heads: is not on the hub, has no such")
    assert error_of(pull, "owner/none", tmp_path / "a").startswith("owner/none: is not on the hub, has no such")
    hub.add_commit(REPO, {"models/model.pt": b""})
    assert error_of(pull, REPO, tmp_path / "a").startswith("owner/heads: has no models/model.safetensors, so monai-")


def test_the_address_of_a_zip_file_needs_a_checksum(archive, tmp_path):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    sha256 = file_checksum(archive)  # of all its files: the latent DDIM and the card could be forged, too
    assert "revision: a zip file has none" in error_of(pull, str(archive), tmp_path / "copy", revision="v1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/heads.zip"
        assert "sha256: is needed for an address" in error_of(pull, address, tmp_path / "copy")
        assert "has another than 0000" in error_of(pull, address, tmp_path / "copy", sha256="0" * 64)
        with pytest.raises(MachineError, match=r"none.zip: cannot be downloaded \(HTTPError\)"):
            pull(address.replace("heads", "none"), tmp_path / "copy", sha256="0" * 64)
        pull(address, tmp_path / "copy", sha256=sha256)
        server.shutdown()
    load_bundle(tmp_path / "copy", "cpu")


def test_only_an_unchanged_folder_of_an_earlier_pull_is_replaced(archive, tmp_path, monkeypatch):
    copy, link = tmp_path / "copy", tmp_path / "link"
    again = functools.partial(error_of, pull, str(archive), overwrite=True)
    pull(str(archive), copy)
    assert "copy: the folder is not empty" in error_of(pull, str(archive), copy)
    pull(str(archive), copy, overwrite=True)
    before = contents(copy)
    assert "has another than 0000" in again(copy, sha256="0" * 64)
    assert contents(copy) == before
    link.symlink_to(copy)
    assert "link: is not replaced, as it is a link" in again(link)
    for name in ("models/checkpoint.pt", "configs/train.json", "scans.csv"):
        (copy / name).write_text("mine")
        assert re.match(f"copy: is not replaced, as '{name}' in it is your own or has changed", again(copy))
        (copy / name).write_bytes(before[name]) if name in before else (copy / name).unlink()
    (copy / ".pulled.json").unlink()
    assert "copy: is not replaced, as it was not pulled" in again(copy)
    monkeypatch.chdir(copy)
    assert "is a link or the current folder" in again(".")


def _killed(function, *arguments):
    """A process that is killed when it has filled its folder half."""
    die_at_call(6)
    function(*arguments)


@pytest.mark.parametrize("exists", [False, True])
def test_the_same_command_works_after_a_kill(archive, tmp_path, exists):
    for number, (function, source) in enumerate(((pull, str(archive)), (init_bundle, "diffae_2d"))):
        out = tmp_path / str(number) / "copy"
        out.mkdir(parents=True) if exists else out.parent.mkdir()
        arguments = (source, out) if function is pull else (out, source)
        process = multiprocessing.get_context("fork").Process(target=_killed, args=(function, *arguments))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert [path.name[:5] for path in (out if exists else out.parent).iterdir()] == [".tmp-"]
        function(*arguments)
        assert (out / "configs" / "train.json").is_file()
        assert not list((tmp_path / str(number)).rglob(".tmp-*"))


@pytest.mark.parametrize("kind", ["2d", "3d_on_latents"])
def test_code_of_the_author_is_told_and_not_run(kind, tmp_path):
    bundle = describe(copy_tiny(tmp_path / "bundle", kind))
    transforms = load_bundle(bundle, "cpu").config["preprocessing"]
    rewrite(bundle, dict, preprocessing={"_target_": "acme.Crop", "transforms": transforms})
    assert "--trust" in error_of(push, bundle, str(tmp_path / "a.zip"), yes=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(bundle / "models" / "model.safetensors", "models/model.safetensors")
    result = pull(str(tmp_path / "a.zip"), tmp_path / "copy")
    assert result.own_code == ["acme.Crop"]
    assert "only run with --trust: acme.Crop" in "\n".join(result.lines())
    assert "acme.Crop" not in (result.folder / "configs" / "train.json").read_text()
    with pytest.raises(UnsafeInputError, match="not trusted to use the target 'acme.Crop'"):
        load_bundle(result.folder, "cpu")
    with trusting():
        pull(str(tmp_path / "a.zip"), tmp_path / "copy", overwrite=True)
    assert "acme.Crop" in (result.folder / "configs" / "train.json").read_text()
