"""How the code is laid out, and how many places a change touches: one column per repository, for before and after.

    python benchmarks/structure.py [REPOSITORY ...] [--json] [--no-timings]

Standard library only, and no file of the repository is imported, so that it runs on any commit (timings start the
command line in a process of its own).

**Functions.** Parameters are counted without ``self`` and ``cls``; ``*args`` and ``**kwargs`` count as one each, the
fields of a dataclass do not count. A function's length includes its docstring, not its decorators.

**Places to edit.** What a new option, command, network argument or solver costs is estimated from an existing one:
the places where its name is written by hand in the package, the configs and the documentation (tests apart). A place is

- a file of its own (``vary.py``, ``vary.json``),
- else a function or class of that name,
- else a line with the name: as an identifier or a string in Python, as part of a key or value in JSON, or as code
  (backticks, a code block, an option, an ``Args:`` entry) in Markdown and docstrings.

Comments, prose and the CHANGELOG do not count. Neither do generated files: those that ``.gitattributes`` marks
``linguist-generated``, and those of ``--generated``. The estimate has two errors. A line that computes with an old
option counts although a new one may not need it, and a line that only lists what is there does not count if it avoids
the name. Choose names that mean one thing only: ``spacing`` is also the distance between voxels.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

REPRESENTATIVES = {  # several names of one thing are separated by commas
    "decoding option": ["invert_steps", "invert_tolerance"],
    "command": ["vary,varying"],
    "network argument": ["z_grid", "num_heads"],
    "solver": ["unipc", "dpmpp_2m"],
}
HELP_OF = "reconstruct"
NUM_LISTED = 5


@dataclass(frozen=True)
class Repository:
    """A repository with one package: ``root`` holds the folder ``package``."""

    root: Path
    package: Path

    @property
    def program(self) -> str:
        """The name of the command line."""
        return self.package.name.replace("_", "-")

    @classmethod
    def at(cls, path: Path) -> Repository:
        """The repository of a root folder or of a package folder."""
        path = path.resolve()
        if (path / "__init__.py").is_file():
            return cls(path.parent, path)
        skipped = {"tests", "benchmarks", "docs"}
        packages = [p.parent for p in path.glob("*/__init__.py") if p.parent.name not in skipped]
        if len(packages) != 1:
            sys.exit(f"{path} has {len(packages)} packages; give the folder of one package")
        return cls(path, packages[0])

    def modules(self) -> list[Path]:
        """The Python files of the package."""
        return sorted(self.package.rglob("*.py"))

    def sources(self) -> list[Path]:
        """Package, configs and documentation: where a change is written by hand."""
        patterns = ["configs/**/*.json", "bundles/*/configs/**/*.json", "bundles/*/docs/*.md", "docs/**/*.md"]
        files = [*self.modules(), *self.package.rglob("*.json"), self.root / "README.md", self.root / "CONTRIBUTING.md"]
        files += [file for pattern in patterns for file in self.root.glob(pattern)]
        return sorted({file for file in files if file.is_file()})

    def generated(self) -> list[str]:
        """The patterns of ``.gitattributes`` for generated files."""
        attributes = self.root / ".gitattributes"
        lines = attributes.read_text(encoding="utf-8").splitlines() if attributes.is_file() else []
        words = [line.split() for line in lines if not line.startswith("#")]
        return [w[0] for w in words if {"linguist-generated", "linguist-generated=true"} & set(w[1:])]


def files_and_folders(repository: Repository) -> dict[str, Any]:
    """Files per folder and lines per file."""
    lines = {_name(repository, file): len(_text(file).splitlines()) for file in repository.modules()}
    folders = Counter(str(Path(name).parent) for name in lines)
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "files per folder": {**_summary(list(folders.values())), "most": dict(folders.most_common(NUM_LISTED))},
        "lines per file": {**_summary(list(lines.values())), "most": dict(Counter(lines).most_common(NUM_LISTED))},
    }


def functions(repository: Repository) -> dict[str, Any]:
    """Parameters and lengths of all functions and methods."""
    parameters: dict[str, int] = {}
    lengths = []
    for file in repository.modules():
        for name, node in _functions(ast.parse(_text(file))):
            parameters[f"{_name(repository, file)}:{name}"] = _num_parameters(node)
            lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
    most_first = Counter(parameters).most_common()
    return {
        "functions": len(lengths),
        "lines per function": _summary(lengths),
        "more than 6 parameters": {name: count for name, count in most_first if count > 6},
        "more than 12 parameters": {name: count for name, count in most_first if count > 12},
    }


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Qualified name and node of all functions below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            if not isinstance(child, ast.ClassDef):
                yield name, child
            yield from _functions(child, f"{name}.")
        else:
            yield from _functions(child, prefix)


def _num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p is not None]
    return len([name for name in names if name not in ("self", "cls")])


@dataclass(frozen=True)
class Name:
    """What to look for: the names of one thing, as patterns for code and for text."""

    names: tuple[str, ...]
    program: str
    is_verb: bool
    """True for commands, whose names are also words of the prose: strings then count as code only."""

    @property
    def word(self) -> str:
        """A pattern for the whole word, with ``_`` or ``-``."""
        return r"(?<!\w)(?:" + "|".join(re.escape(n).replace("_", "[_-]") for n in self.names) + r")(?!\w)"

    def is_in_prose(self, line: str) -> bool:
        """Whether a line of text has the word as code."""
        spans = [match[2] for match in re.finditer(r"(`+)(.+?)\1", line)]
        spans += re.findall(rf"--{self.word}|{self.program} {self.word}", line)
        return any(re.search(self.word, span) for span in spans)

    def is_in_docstring(self, line: str) -> bool:
        """As in prose, or in an example or an ``Args:`` entry."""
        code = [rf"^\s*(?:>>>|\.\.\.) .*{self.word}", rf"^\s*(?:\w+, )*{self.word}(?:, \w+)*:"]
        return self.is_in_prose(line) or any(re.search(pattern, line) for pattern in code)

    def is_in_string(self, line: str) -> bool:
        """Whether a line with a string of a program has the word; that of a command as code."""
        if not self.is_verb:
            return re.search(self.word, line) is not None
        return self.is_in_prose(line) or re.search(rf"[\"'#@%./]{self.word}[\"'#./]", line) is not None

    def is_in_json(self, line: str) -> bool:
        """Whether a line of JSON has the word in a key, a reference, a path or a value of its own."""
        return re.search(rf"(?<! ){self.word}", line) is not None

    def is_own_file(self, file: Path) -> bool:
        """Whether a file is named after it."""
        return file.stem.removeprefix("test_").replace("-", "_") in self.names


def places(file: Path, name: Name) -> list[int]:
    """The places of a file that write a name, each as its number of lines."""
    text = _text(file)
    if name.is_own_file(file):
        return [len(text.splitlines())]
    if not re.search(name.word, text):
        return []
    if file.suffix == ".py":
        return _places_in_python(text, name)
    is_hit = name.is_in_json if file.suffix == ".json" else name.is_in_prose
    is_code = False
    hits = 0
    for line in text.splitlines():
        if file.suffix == ".md" and line.lstrip().startswith("```"):
            is_code = not is_code
        hits += is_hit(line) or (is_code and re.search(name.word, line) is not None)
    return [1] * hits


def _places_in_python(text: str, name: Name) -> list[int]:
    tree = ast.parse(text)
    lines = text.splitlines()
    definitions: list[range] = []
    hits: set[int] = set()
    docstrings = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in name.names:
            first = min(n.lineno for n in (node, *node.decorator_list))
            definitions.append(range(first, (node.end_lineno or first) + 1))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_hit = name.is_in_docstring if id(node) in docstrings else name.is_in_string
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            hits.update(number for number in span if is_hit(lines[number - 1]))
        elif set(_identifiers(node)) & set(name.names):
            # an attribute's name is at its end, that of any other node at its beginning
            hits.add(getattr(node, "end_lineno" if isinstance(node, ast.Attribute) else "lineno"))
    outermost = [d for d in definitions if not any(d != o and d[0] in o for o in definitions)]
    single_lines = [number for number in hits if not any(number in definition for definition in outermost)]
    return [len(d) for d in outermost] + [1] * len(single_lines)


def _identifiers(node: ast.AST) -> Sequence[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.arg | ast.keyword):
        return [node.arg or ""]
    if isinstance(node, ast.alias):
        return [*node.name.split("."), node.asname or ""]
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")
    return []


def _docstrings(tree: ast.Module) -> set[int]:
    """The ids of strings that are statements: docstrings, of attributes too."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def places_to_edit(
    repository: Repository, representatives: dict[str, list[str]], generated: Sequence[str]
) -> dict[str, Any]:
    """Files, places and lines for each representative, and the same for the tests."""
    patterns = [*generated, *repository.generated()]
    files = [file for file in repository.sources() if not _matches(_name(repository, file), patterns)]
    tests = sorted((repository.root / "tests").rglob("*.py"))
    rows = {}
    for kind, things in representatives.items():
        for thing in things:
            name = Name(tuple(thing.split(",")), repository.program, kind == "command")
            edits = {_name(repository, file): places(file, name) for file in files}
            edits = {file: spans for file, spans in edits.items() if spans}
            test_edits = [spans for spans in (places(test, name) for test in tests) if spans]
            rows[f"{kind} `{name.names[0]}`"] = {
                "files": len(edits),
                "places": sum(map(len, edits.values())),
                "lines": sum(map(sum, edits.values())),
                "test files": len(test_edits),
                "test places": sum(map(len, test_edits)),
                "places by file": {file: len(spans) for file, spans in edits.items()},
            }
    return rows


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path relative to the root matches a pattern; one without a slash is for the file's name."""
    return any(fnmatch(path if "/" in p else Path(path).name, p.lstrip("/")) for p in patterns)


def timings(repository: Repository, repeats: int) -> dict[str, float]:
    """Seconds of fresh processes, medians."""
    cli = ["-m", f"{repository.package.name}.cli"]
    programs = {
        "python -c pass": ["-c", "pass"],
        f"import {repository.package.name}": ["-c", f"import {repository.package.name}"],
        f"{repository.program} --help": [*cli, "--help"],
        f"{repository.program} {HELP_OF} --help": [*cli, HELP_OF, "--help"],
    }
    environment = {**os.environ, "PYTHONPATH": str(repository.root)}
    environment.pop("PYTHONSAFEPATH", None)
    medians = {}
    for name, arguments in programs.items():
        seconds = []
        for _ in range(repeats + 1):  # the first one writes byte code and fills the cache of the disk
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], cwd=repository.root, env=environment, check=True, capture_output=True
            )
            seconds.append(time.perf_counter() - start)
        medians[name] = round(statistics.median(seconds[1:]), 3)
    return medians


def measure(
    repository: Repository, representatives: dict[str, list[str]], generated: Sequence[str] = (), repeats: int = 0
) -> dict[str, Any]:
    """Everything of one repository; timings only with ``repeats``."""
    return {
        **files_and_folders(repository),
        **functions(repository),
        "places to edit": places_to_edit(repository, representatives, generated),
        "seconds": timings(repository, repeats) if repeats else {},
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with one column per repository, and lists of what is largest."""
    columns = {label: _rows(result) for label, result in results.items()}
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | {' | '.join(rows.get(name, '') for rows in columns.values())} |" for name in names]
    for label, result in results.items():
        lists = {
            "Largest folders (files)": result["files per folder"]["most"],
            "Longest files (lines)": result["lines per file"]["most"],
            "Functions with more than 6 parameters": result["more than 6 parameters"],
        }
        for title, entries in lists.items():
            text = ", ".join(f"{name} {count}" for name, count in entries.items())
            lines += ["", f"**{title}, {label}**: {text or 'none'}"]
    return "\n".join(lines)


def _rows(result: dict[str, Any]) -> dict[str, str]:
    """The cells of a table's column."""
    rows = {name: f"{result[name]:,}" for name in ("files", "lines")}
    for name in ("files per folder", "lines per file", "lines per function"):
        summary = result[name]
        rows[f"{name}: median / 90th percentile / most"] = (
            f"{summary['median']:g} / {summary['90th percentile']:g} / {summary['largest']}"
        )
    rows["functions"] = f"{result['functions']:,}"
    for name in ("more than 6 parameters", "more than 12 parameters"):
        rows[f"functions with {name}"] = str(len(result[name]))
    for name, row in result["places to edit"].items():
        edits = f"{row['places']} in {row['files']} files, {row['lines']} lines"
        tests = f"tests: {row['test places']} in {row['test files']} files"
        rows[f"places to edit, {name}"] = f"{edits}; {tests}" if row["places"] else "no such name"
    return rows | {f"`{name}`, seconds": f"{seconds:.3f}" for name, seconds in result["seconds"].items()}


def _summary(values: Sequence[int]) -> dict[str, float]:
    """Median, 90th percentile and largest of numbers."""
    ninetieth = statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else max(values)
    return {"median": statistics.median(values), "90th percentile": round(ninetieth, 1), "largest": max(values)}


def _name(repository: Repository, file: Path) -> str:
    return file.relative_to(repository.root).as_posix()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    for kind, names in REPRESENTATIVES.items():
        option = f"--{kind.replace(' ', '-')}"
        parser.add_argument(option, nargs="+", default=names, metavar="NAME[,ALIAS]", help=f"default: {names}")
    parser.add_argument("--generated", nargs="*", default=[], metavar="PATTERN", help="generated files, not counted")
    parser.add_argument("--no-timings", action="store_true", help="start no processes")
    parser.add_argument("--repeats", type=int, default=5, help="processes per timing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    arguments = parser.parse_args()
    representatives = {kind: getattr(arguments, kind.replace(" ", "_")) for kind in REPRESENTATIVES}
    repeats = 0 if arguments.no_timings else arguments.repeats
    results = {}
    for path in arguments.repository:
        repository = Repository.at(path)
        results[repository.root.name] = measure(repository, representatives, arguments.generated, repeats)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


if __name__ == "__main__":
    main()
