"""The script that measures the layout: exact figures on a package of a few lines, and a run on our own repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    "tiny_scans/__init__.py": "",
    "tiny_scans/cli.py": '''
"""Commands: blur, and what blurs."""

from torch import nn

from tiny_scans.filters.blur import blur as run


@register
def blur(path, *, max_width=1, b=2, c=3, d=4, e=5, f=6):
    run(path, max_width=max_width)


def help_text():
    print("--max-width", "tiny-scans blur", "scans that blur")


class Layer(nn.Module):
    def __init__(self, a, b, c, d, e, f): ...

    def forward(self, a, b, c, d, e, f, *args, **kwargs):
        def inner(a): ...
''',
    "tiny_scans/filters/__init__.py": "from tiny_scans.filters.blur import blur\n",
    "tiny_scans/filters/blur.py": '''
from dataclasses import dataclass


@dataclass
class Settings:
    """Widths.

    Args:
        max_width: prose about max_width.
        other: another max_width, `a` max_width `b`, but ``max_width`` here.
    """

    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    max_width: int  # max_width


def blur(path, max_width):
    return path.max_width
''',
    "configs/blur.json": '{\n    "max_width": 1\n}\n',
    "configs/all.json": '{\n    "filter#max_width": "of max_width",\n    "text": "a max_width"\n}\n',
    "docs/page.md": """
The max_width.

```bash
tiny-scans blur --max-width 3
```

`max_width` and the blur of `this` blur `is`.
""",
    "CHANGELOG.md": "`max_width`\n",
    "tests/test_blur.py": "def test(): ...\n",
    "tests/test_cli.py": "import pytest\n\nassert blur(max_width=1)\n",
}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.lstrip("\n"), encoding="utf-8")
    return tmp_path


def structure(*arguments: str | Path) -> str:
    command = [sys.executable, ROOT / "benchmarks" / "structure.py", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def measured(root: Path, *arguments: str | Path) -> dict:
    options = ["--no-timings", "--json", "--decoding-option", "max_width", "--command", "blur"]
    results = json.loads(structure(root, *options, *arguments))
    (result,) = results.values()
    return result


def test_files_and_functions(tiny):
    result = measured(tiny)
    assert result["files"] == 4
    assert result["files per folder"]["most"] == {"tiny_scans": 2, "tiny_scans/filters": 2}
    assert result["lines per file"]["largest"] == 23
    assert result["functions"] == 6
    assert result["lines per function"]["largest"] == 2  # without decorators
    assert result["more than 6 parameters"] == {
        "tiny_scans/cli.py:Layer.forward": 8,
        "tiny_scans/cli.py:blur": 7,
    }
    assert result["more than 12 parameters"] == {}


def test_places_of_an_option(tiny):
    places = measured(tiny)["places to edit"]["decoding option `max_width`"]
    assert places["places by file"] == {
        "configs/all.json": 1,  # prose in a value does not count
        "configs/blur.json": 1,
        "docs/page.md": 2,  # as code, not as prose
        "tiny_scans/cli.py": 3,  # signature, call, option
        "tiny_scans/filters/blur.py": 5,  # two lines of the docstring, field, signature, use
    }
    assert (places["files"], places["places"], places["lines"]) == (5, 12, 12)
    assert (places["test files"], places["test places"]) == (1, 1)


def test_places_of_a_command(tiny):
    places = measured(tiny)["places to edit"]["command `blur`"]
    assert places["places by file"] == {
        "configs/blur.json": 1,  # a file of its own
        "docs/page.md": 1,
        "tiny_scans/cli.py": 3,  # import, function with its decorator, string
        "tiny_scans/filters/__init__.py": 1,
        "tiny_scans/filters/blur.py": 1,
    }
    assert places["lines"] == 3 + 1 + (1 + 3 + 1) + 1 + 23
    assert (places["test files"], places["test places"]) == (2, 2)


def test_generated_files_do_not_count(tiny):
    def files(*arguments: str) -> set[str]:
        return set(measured(tiny, *arguments)["places to edit"]["command `blur`"]["places by file"])

    everything = files()
    assert everything - files("--generated", "configs/bl*.json") == {"configs/blur.json"}
    (tiny / ".gitattributes").write_text("# configs/*\n*.md text\n/configs/blur.json text linguist-generated=true\n")
    assert everything - files() == {"configs/blur.json"}
    assert everything - files("--generated", "page.md") == {"configs/blur.json", "docs/page.md"}


def test_table_has_a_column_per_repository(tiny):
    rows = structure(ROOT, tiny / "tiny_scans", "--no-timings", "--solver", "no_name").splitlines()
    assert {row.count("|") for row in rows if row.startswith("|")} == {4}
    assert "| places to edit, solver `no_name` | no such name | no such name |" in rows


def test_timings(tiny):
    (tiny / "tiny_scans" / "cli.py").write_text("print('help')\n")
    rows = structure(tiny, "--repeats", "1").splitlines()
    seconds = [float(row.split("|")[2]) for row in rows if "seconds" in row]
    assert len(seconds) == 4
    assert min(seconds) > 0


def test_own_repository_has_the_representatives():
    (result,) = json.loads(structure("--no-timings", "--json")).values()
    assert result["files"] > 100
    assert len(result["places to edit"]) >= 4
    for row in result["places to edit"].values():
        assert row["places"] > 0  # else a name has changed: change REPRESENTATIVES
        assert row["test places"] > 0


def test_folder_without_a_package_is_refused(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "structure.py", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert "0 packages" in result.stderr
