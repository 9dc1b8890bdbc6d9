"""The layout that CONTRIBUTING.md describes: every room is named, functions stay small, no room grows much."""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import suite_limits

import monai_diffae
from monai_diffae.apps.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_diffae"
MOST_PARAMETERS = 12

BUDGETS = {
    ".": (1.5, 35),
    "apps": (12, 90),
    "apps/embedding": (13.5, 30),
    "apps/evaluation": (27, 68),
    "apps/pages": (19, 62),
    "apps/sharing": (3, 8),
    "apps/study": (11.5, 21),
    "apps/synthesis": (22.5, 65),
    "apps/training": (16.5, 51),
    "bundle": (22.5, 141),
    "cli": (2, 5),
    "data": (61.5, 340),
    "diffusion": (8.5, 50),
    "engines": (9, 46),
    "explorer": (7.5, 28),
    "handlers": (11.5, 45),
    "inferers": (6, 25),
    "label": (14, 54),
    "latents": (31.5, 130),
    "metrics": (4.5, 30),
    "networks": (15, 55),
    "official": (4, 20),
    "pictures": (8, 30),
    "serving": (1, 12),
    "transforms": (9.5, 28),
}
"""Tokens of code (docstrings and comments do not count), in thousands, and public names of each room."""

SLACK = 1.1
"""A room may grow by a tenth. Who raises a budget says in the commit why the room is worth more."""

MOST_FILES = 16
"""Of a folder: whoever opens it should see at a glance where a thing lives."""

TEST_TOKENS = 322  # thousands
TEST_FUNCTIONS = 1_440
TRAININGS = 48


def rooms() -> dict[str, list[Path]]:
    """The files of each room; the wings of ``apps`` are rooms of their own."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        *folders, _ = path.relative_to(PACKAGE).parts
        name = "/".join(folders[:2] if folders[:1] == ["apps"] else folders[:1]) or "."
        found.setdefault(name, []).append(path)
    return found


def count_tokens(path: Path) -> int:
    texts = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = [each.value for owner in owners for each in owner.body if isinstance(each, ast.Expr)]
    lines = {node.lineno for node in docs if isinstance(node, ast.Constant)}
    with path.open("rb") as stream:
        tokens = [*tokenize.tokenize(stream.readline)]
    return sum(
        token.type in texts and not (token.type == tokenize.STRING and token.start[0] in lines) for token in tokens
    )


def public_names(path: Path) -> list[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assigned = [node.targets[0] for node in body if isinstance(node, ast.Assign)]
    names += [target.id for target in assigned if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def test_no_room_grows_by_more_than_a_tenth():
    sizes = {
        name: (sum(map(count_tokens, files)) / 1000, sum(len(public_names(path)) for path in files))
        for name, files in rooms().items()
    }
    assert sizes.keys() == BUDGETS.keys()
    large = {n: size for n, size in sizes.items() if any(a > SLACK * b for a, b in zip(size, BUDGETS[n], strict=True))}
    assert large == {}
    folders = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert {str(folder): number for folder, number in folders.items() if number > MOST_FILES} == {}


def test_the_tests_do_not_grow():
    assert sum(map(count_tokens, (ROOT / "tests").rglob("*.py"))) <= TEST_TOKENS * 1000
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert sum(len(re.findall(r"^ *def test_", text, flags=re.M)) for text in texts) <= TEST_FUNCTIONS
    assert sum(suite_limits.TRAININGS.values()) <= TRAININGS
    assert [file for file in suite_limits.TRAININGS if not (ROOT / file).is_file()] == []


def test_contributing_names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    wings = {path.parent.name for path in (PACKAGE / "apps").glob("*/__init__.py")}
    assert {name for name in rooms | wings if f"`{name}/`" not in text} == set()


@cache
def functions() -> list[tuple[str, ast.FunctionDef]]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def test_no_function_has_more_parameters_than_contributing_allows():
    def count(node: ast.FunctionDef) -> int:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return sum(argument.arg not in ("self", "cls") for argument in arguments)

    assert [name for name, node in functions() if count(node) > MOST_PARAMETERS] == []


def test_every_name_of_the_public_door_opens():
    assert {command.function for command in COMMANDS} <= {*monai_diffae.__all__}
    assert [name for name in monai_diffae.__all__ if not hasattr(monai_diffae, name)] == []


def files_with(pattern: str) -> set[str]:
    """Files of the package whose code or docstrings contain a word."""
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    return {str(path.relative_to(PACKAGE)) for path, text in texts.items() if re.search(pattern, text)}


def test_a_decoding_option_is_a_field_and_an_argument_of_the_inferer():
    """Then the command line, the bundle runs, the call of the inferer and the record of a result have it."""
    from dataclasses import fields
    from inspect import signature

    from monai_diffae import Decoding, DiffusionAutoencoderInferer, DiffusionSchedule
    from monai_diffae.bundle.loading import inferer_settings

    names = {field.name for field in fields(Decoding)}
    assert names <= signature(DiffusionAutoencoderInferer).parameters.keys()
    assert names <= inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule())).keys()


def test_a_solver_is_a_function_and_a_name():
    assert files_with(r"\bdpmpp_2m\b") == {"diffusion/solvers.py", "diffusion/settings.py"}


def test_a_command_is_a_file_and_a_line():
    files = files_with(r"\blist_scans\b")
    assert files == {"apps/commands.py", "apps/training/list_scans.py"}


def test_a_network_argument_is_one_place_per_network():
    def takes(node: ast.FunctionDef, argument: str) -> bool:
        return argument in {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}

    constructors = [name for name, node in functions() if node.name == "__init__" and takes(node, "z_grid")]
    assert sorted(re.findall(r"networks/(\w+)\.py", " ".join(constructors))) == ["denoising_unet", "semantic_encoder"]
    assert len(constructors) == 2
