"""docs/monai_tools.md: each command of the page works on a trained bundle of each kind.

The commands run in this process as in ``python -m monai.bundle``, because importing MONAI takes longer than most of
them.
"""

import re
import shlex
import shutil
import threading
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fire
import pytest
import torch
from zoo_entry import write_zoo_entry

PAGE = (Path(__file__).parents[2] / "docs" / "monai_tools.md").read_text(encoding="utf-8")
RULES = Path(__file__).parents[1] / "zoo" / "metadata_rules.json"
KINDS = ("diffae_2d", "diffae_3d", "autoencoder_kl_3d")
PROGRAM = "python -m monai.bundle "


def tools():
    return re.findall(r"^\| `([^`]+)`", PAGE, flags=re.M)


def commands():
    """The words of each command, by its tool and whether it is for a first stage only."""
    lines = [line for line in PAGE.splitlines() if line.startswith(PROGRAM)]
    words = [shlex.split(line.removeprefix(PROGRAM)) for line in lines]
    return {(tool(each), "my_first_stage/" in " ".join(each)): each for each in words}


def tool(words):
    return f"run {words[1]}" if words[0] == "run" else words[0]


def python_tools():
    return [name for name in tools() if any(name in block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S))]


def cases():
    for name in [name for name, is_first_stage in commands() if not is_first_stage]:
        for kind in KINDS:
            is_quick = kind == "diffae_2d" and name in ("verify_metadata", "verify_net_in_out")
            yield pytest.param(name, kind, id=f"{name}-{kind}", marks=[] if is_quick else [pytest.mark.slow])


@pytest.fixture(scope="module")
def file_server(tmp_path_factory):
    """The address where the files of the tests' folders can be had."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path_factory.getbasetemp())
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def write_entry(bundle, out, address):
    """An entry for the zoo, whose weights are large files."""
    for name in ("README.md", "data_license.txt"):
        (bundle / "docs" / name).write_text("Trained on virtual patients.\n")
    write_zoo_entry(bundle, bundle.name, out, repo="owner/my-model", figures=None, address=address, largest_file=50_000)


@pytest.fixture(scope="module")
def workplace(request, tmp_path_factory, file_server):
    """A folder with a trained bundle of a kind, an entry of it for the zoo and scans, as the page names them."""
    made = {}

    def get(kind):
        if kind not in made:
            fixture = {"diffae_2d": "tiny_bundle", "diffae_3d": "tiny_bundle_3d", "autoencoder_kl_3d": "first_stage"}
            trained = request.getfixturevalue(fixture[kind])
            bundle = getattr(trained, "directory", trained)
            made[kind] = tmp_path_factory.mktemp(kind)
            name = "my_first_stage" if kind == "autoencoder_kl_3d" else "my_bundle"
            shutil.copytree(bundle, made[kind] / name, ignore=shutil.ignore_patterns("cache", ".lock"))
            write_entry(made[kind] / name, made[kind] / "zoo", f"{file_server}/{made[kind].name}/{name}")
            (made[kind] / "scans").mkdir()
            for image in sorted((bundle.parent / "cohort" / "images").iterdir())[:4]:
                (made[kind] / "scans" / image.name).symlink_to(image)
            shutil.copy(RULES, made[kind] / "schema.json")  # MONAI downloads it unless the file exists
        return made[kind]

    return get


@pytest.mark.parametrize(("name", "kind"), cases())
def test_a_command_works(name, kind, workplace, monkeypatch):
    if name == "trt_export" and torch.cuda.is_available():
        pytest.skip("the page has the result without a GPU")
    monkeypatch.chdir(workplace(kind))
    import monai.bundle.__main__ as program

    is_first_stage = kind == "autoencoder_kl_3d"
    words = commands().get((name, is_first_stage)) or commands()[name, False]
    if is_first_stage:
        words = [word.replace("my_bundle", "my_first_stage") for word in words]
    fails = pytest.raises(Exception, match="Cannot find any GPU devices") if name == "trt_export" else nullcontext()
    with fails:
        fire.Fire(vars(program), command=words)


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("kind", KINDS)
def test_python_tools_work(kind, workplace, monkeypatch):
    monkeypatch.chdir(workplace(kind))
    name = "my_first_stage" if kind == "autoencoder_kl_3d" else "my_bundle"
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(block.replace("my_bundle", name), "block", "exec"), {})


def test_every_tool_of_the_table_has_a_command_and_every_command_a_row():
    assert set(tools()) == {name for name, _ in commands()} | set(python_tools())
