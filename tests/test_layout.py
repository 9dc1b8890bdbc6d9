"""The layout that CONTRIBUTING.md describes: every room is named, functions stay small, no room grows."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import suite_limits

import monai_diffae

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_diffae"
MOST_PARAMETERS = 12

BUDGETS = {
    ".": (340, 6),
    "apps": (1_590, 10),
    "apps/embedding": (1_620, 8),
    "apps/evaluation": (2_860, 12),
    "apps/pages": (2_250, 12),
    "apps/sharing": (440, 5),
    "apps/study": (1_070, 7),
    "apps/synthesis": (2_750, 15),
    "apps/training": (2_390, 14),
    "bundle": (3_100, 12),
    "cli": (270, 3),
    "data": (7_750, 33),
    "diffusion": (1_450, 8),
    "engines": (1_420, 12),
    "explorer": (960, 7),
    "handlers": (1_630, 10),
    "inferers": (1_010, 7),
    "label": (1_930, 11),
    "latents": (4_120, 17),
    "metrics": (690, 7),
    "networks": (2_420, 13),
    "official": (620, 5),
    "pictures": (830, 5),
    "serving": (160, 4),
    "transforms": (1_300, 6),
}
"""Lines and files of each room, with a little slack. Who raises one says in the commit why the room is worth more."""

MOST_FILES = 16
"""Of a folder: whoever opens it should see at a glance where a thing lives."""

TEST_LINES = 30_600
TEST_FUNCTIONS = 1_400
TRAININGS = 48


def rooms() -> dict[str, list[Path]]:
    """The files of each room; the wings of ``apps`` are rooms of their own."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        *folders, _ = path.relative_to(PACKAGE).parts
        name = "/".join(folders[:2] if folders[:1] == ["apps"] else folders[:1]) or "."
        found.setdefault(name, []).append(path)
    return found


def count_lines(files: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def test_no_room_grows():
    sizes = {name: (count_lines(files), len(files)) for name, files in rooms().items()}
    assert sizes.keys() == BUDGETS.keys()
    assert {n: size for n, size in sizes.items() if size[0] > BUDGETS[n][0] or size[1] > BUDGETS[n][1]} == {}
    folders = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert {str(folder): number for folder, number in folders.items() if number > MOST_FILES} == {}


def test_the_tests_do_not_grow():
    assert count_lines((ROOT / "tests").rglob("*.py")) <= TEST_LINES
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


def test_every_public_package_says_what_is_public():
    packages = [path for path in PACKAGE.rglob("__init__.py") if path.parent.name not in ("cli", "apps")]
    assert [str(path) for path in packages if "__all__" not in path.read_text(encoding="utf-8")] == []


def test_every_name_of_the_public_door_opens():
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
    assert files_with(r"\"vary\"|\bvary\b:|synthesis\.vary\b|import vary\b") == {
        "apps/commands.py", "apps/synthesis/vary.py"
    }  # fmt: skip


def test_a_network_argument_is_one_place_per_network():
    def takes(node: ast.FunctionDef, argument: str) -> bool:
        return argument in {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}

    constructors = [name for name, node in functions() if node.name == "__init__" and takes(node, "z_grid")]
    assert sorted(re.findall(r"networks/(\w+)\.py", " ".join(constructors))) == ["denoising_unet", "semantic_encoder"]
    assert len(constructors) == 2
