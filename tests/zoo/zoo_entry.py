"""Write entries for MONAI's model zoo, with weights in it and on the Hugging Face Hub: ``make zoo-entry``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from monai_diffae.bundle import init_bundle, layout
from monai_diffae.data.atomic import write_json
from monai_diffae.data.fingerprints import file_checksum
from monai_diffae.errors import DiffAEError

LARGEST_FILE = 25_000_000  # bytes; the zoo takes no larger files
HUB_SCHEMA = "meta_schema_hf_20250321.json"
UNIT_TESTS = Path(__file__).parent / "unit_tests"
PERFORMANCE = "## **Performance**\n"


def write_zoo_entry(
    bundle: Path, name: str, out: Path, *, repo: str, figures: Mapping[str, float] | None, address: str | None = None,
    largest_file: int = LARGEST_FILE,
) -> None:  # fmt: skip
    """Write both entries and the tests; larger files are only named in ``large_files.yml``, at an address."""
    target = out / "models" / name
    init_bundle(target, bundle / "models" / layout.MODEL)  # the package's configurations with the model's values
    for file in (layout.MODEL_CARD, layout.DATA_LICENSE, f"{layout.CONFIGS}/{layout.METADATA}"):
        shutil.copyfile(bundle / file, target / file)
    sizes = {str(path.relative_to(target)): path.stat().st_size for path in target.rglob("*") if path.is_file()}
    metadata = _read(target / "configs" / "metadata.json")
    readme = (target / "docs" / "README.md").read_text(encoding="utf-8")
    if figures is not None:
        metadata["eval_metrics"] = dict(figures)
        rows = "".join(f"| {key} | {value:.4g} |\n" for key, value in figures.items())
        readme = readme.replace(PERFORMANCE, f"{PERFORMANCE}| figure | value |\n|---|---|\n{rows}\n", 1)
    write_json(target / "configs" / "metadata.json", metadata)
    (target / "docs" / "README.md").write_text(readme, encoding="utf-8")
    _name_large_files(target, [file for file, size in sizes.items() if size > largest_file], address)
    _write_hub_entry(target, out / "hf_models" / name, metadata, repo, readme)
    (out / "ci" / "unit_tests").mkdir(parents=True)
    for suffix in ("", "_dist"):
        text = (UNIT_TESTS / f"template{suffix}.py").read_text(encoding="utf-8").replace("BUNDLE_NAME", name)
        (out / "ci" / "unit_tests" / f"test_{name}{suffix}.py").write_text(text, encoding="utf-8")


def _name_large_files(target: Path, names: list[str], address: str | None) -> None:
    if not names:
        return
    if address is None:
        sys.exit(f"{names[0]}: is too large for the zoo; give --address, where it can be had")
    entries = [
        {
            "path": name, "url": f"{address.rstrip('/')}/{name}", "hash_val": file_checksum(target / name),
            "hash_type": "sha256",
        }
        for name in names
    ]  # fmt: skip
    (target / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False))
    for name in names:
        (target / name).unlink()


def _write_hub_entry(target: Path, folder: Path, metadata: Mapping[str, Any], repo: str, readme: str) -> None:
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_bytes((target / "LICENSE").read_bytes())
    (folder / "README.md").write_text(readme, encoding="utf-8")
    hub = {
        "schema": f"{metadata['schema'].rpartition('/')[0]}/{HUB_SCHEMA}",
        "huggingface_model_id": repo,
        "huggingface_url": f"https://huggingface.co/{repo}",
    }
    write_json(folder / "metadata.json", {**metadata, **hub})


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a trained bundle")
    parser.add_argument("--name", required=True, help="the zoo's name of the bundle")
    parser.add_argument("--repo", required=True, help="repository on the Hugging Face Hub, as owner/name")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--figures", type=Path,
        help="JSON file of figures; default: those in its metadata.json, or without any, its models/metrics.json",
    )  # fmt: skip
    parser.add_argument("--address", help="where files above 25 MB can be had")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out.name}: exists; choose a new folder")
    has_figures = bool(_read(given.bundle / "configs" / "metadata.json")["eval_metrics"])
    figures: dict[str, float] | None = None
    if given.figures or not has_figures:
        values = _read(given.figures or given.bundle / "models" / "metrics.json")
        figures = {key: value for key, value in values.items() if isinstance(value, int | float)}
    try:
        write_zoo_entry(given.bundle, given.name, given.out, repo=given.repo, figures=figures, address=given.address)
    except DiffAEError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
