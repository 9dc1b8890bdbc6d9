"""The layout that CONTRIBUTING.md describes: tests mirror the package, every room is named, functions stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monai_diffae

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monai_diffae"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))
MOST_PARAMETERS = 12


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_is_tested_by_a_file_of_its_name_or_says_where(module: Path) -> None:
    own = ROOT / "tests" / module.relative_to(PACKAGE).with_name(f"test_{module.stem.lstrip('_')}.py")
    elsewhere = re.search(r"^# tested in (\S+)$", module.read_text(encoding="utf-8"), flags=re.M)
    assert own.is_file() or elsewhere, f"add {own.relative_to(ROOT)}, or a line '# tested in tests/...'"
    if elsewhere:
        assert not own.is_file()
        assert (ROOT / elsewhere[1]).exists()


def test_contributing_names_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    wings = {path.parent.name for path in (PACKAGE / "apps").glob("*/__init__.py")}
    assert {name for name in rooms | wings if f"`{name}/`" not in text} == set()


def functions() -> list[tuple[str, ast.FunctionDef]]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def test_no_function_has_more_parameters_than_contributing_allows() -> None:
    def count(node: ast.FunctionDef) -> int:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return sum(argument.arg not in ("self", "cls") for argument in arguments)

    assert [name for name, node in functions() if count(node) > MOST_PARAMETERS] == []


def test_every_public_package_says_what_is_public() -> None:
    packages = [path for path in PACKAGE.rglob("__init__.py") if path.parent.name not in ("cli", "apps")]
    assert [str(path) for path in packages if "__all__" not in path.read_text(encoding="utf-8")] == []


def test_the_public_door_opens_without_torch_and_monai() -> None:
    code = """
import sys, monai_diffae
heavy = {"torch", "monai", "pandas", "numpy", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_name_of_the_public_door_opens() -> None:
    assert [name for name in monai_diffae.__all__ if not hasattr(monai_diffae, name)] == []


def test_the_help_of_every_command_loads_neither_torch_nor_monai() -> None:
    code = """
import sys
from monai_diffae.cli import build_app
build_app()
heavy = {"torch", "monai", "pandas", "pydantic"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# -- CONTRIBUTING.md says how few places an addition needs -------------------------------------------------------------


def files_with(pattern: str) -> set[str]:
    """Files of the package whose code or docstrings contain a word."""
    texts = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    return {str(path.relative_to(PACKAGE)) for path, text in texts.items() if re.search(pattern, text)}


def test_a_decoding_option_is_a_field_and_an_argument_of_the_inferer() -> None:
    """Then the command line, the bundle runs, the call of the inferer and the record of a result have it."""
    from dataclasses import fields
    from inspect import signature

    from monai_diffae.apps.settings import Decoding
    from monai_diffae.bundle.decoding import inferer_settings
    from monai_diffae.diffusion import DiffusionSchedule
    from monai_diffae.inferers import DiffusionAutoencoderInferer

    names = {field.name for field in fields(Decoding)}
    assert names <= signature(DiffusionAutoencoderInferer).parameters.keys()
    assert names <= inferer_settings(DiffusionAutoencoderInferer(DiffusionSchedule())).keys()


def test_a_solver_is_a_function_and_a_name() -> None:
    assert files_with(r"\bdpmpp_2m\b") == {"diffusion/solvers.py", "diffusion/names.py"}


def test_a_command_is_a_module_and_two_lines() -> None:
    elsewhere = files_with(r"\"vary\"|import vary\b|\(\"vary\"")
    assert elsewhere == {"apps/commands.py", "__init__.py"}


def test_a_network_argument_is_one_place_per_network() -> None:
    def takes(node: ast.FunctionDef, argument: str) -> bool:
        return argument in {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}

    constructors = [name for name, node in functions() if node.name == "__init__" and takes(node, "z_grid")]
    assert sorted(re.findall(r"networks/(\w+)\.py", " ".join(constructors))) == ["denoising_unet", "semantic_encoder"]
    assert len(constructors) == 2
