"""What README and docs tell people to type exists and runs."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from monai_diffae import embed, export
from monai_diffae.bundle.config import model_config
from monai_diffae.cli import build_app, parse
from monai_diffae.diffusion.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "diffae_2d"
BUNDLES = [BUNDLE, ROOT / "bundles" / "diffae_3d"]
OTHERS = ("autoencoder_kl_3d", "chest_xray", "hippocampus", "lung_nodules")
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
    *(bundle / "docs" / "README.md" for bundle in [*BUNDLES, *(ROOT / "bundles" / name for name in OTHERS)]),
]  # fmt: skip


LONG = r"onnxruntime|mdae\.train|MonaiAlgo\(|mdae\.harmonize"
SKIPPED = {
    "(?i)nvflare|flwr": "needs the processes of a federation",
    r"push_to_hf_hub|site\.(train|get_data_stats)\(": "tests/bundles/test_monai_tools_page.py runs it",
    r"virtual/marked\.csv": "tests/apps/synthesis/test_explain.py runs it",
    "lifelines": "tests/apps/study/test_associate.py runs it",
    r"ray\.data": "tests/apps/test_clusters_page.py runs it",
    r'nibabel\.load\("scan\.nii\.gz"\)': "tests/apps/training/test_export.py runs it with a 3D bundle",
}


def blocks(language):
    found = []
    for page in PAGES:
        texts = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
        for number, text in enumerate(texts):
            marks = [pytest.mark.skip(reason=why) for pattern, why in SKIPPED.items() if re.search(pattern, text)]
            marks += [pytest.mark.slow] if re.search(LONG, text) else []
            found.append(pytest.param(text, id=f"{page.name}-{number}", marks=marks))
    return found


def commands(program):
    lines = [line for block in blocks("bash") for line in block.values[0].splitlines()]
    words = [shlex.split(re.sub(r"(^|\s)#.*", "", line)) for line in lines]  # shlex cuts ids such as a#b
    return [w for w in words if w and w[0] == program]


@pytest.mark.usefixtures("one_migration", "slow_machine")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, tiny_bundle, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(class_folders, tmp_path / "scans")
    code = code.replace("minutes=10", "minutes=1")
    (tmp_path / "my_bundle").symlink_to(tiny_bundle.directory)
    (tmp_path / "scan.nii").symlink_to(next((tiny_bundle.cohort.parent / "images").iterdir()))
    (tmp_path / "scan.png").symlink_to(next((tmp_path / "scans" / "small").iterdir()))
    if "exported/encoder.onnx" in code:
        pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `export`")
        export("my_bundle", "exported", format="onnx")
    if "results/embeddings.parquet" in code:
        made = embed("my_bundle", tiny_bundle.cohort, "results", device="cpu").path
        pd.read_parquet(made).rename(columns={"head_size": "age"}).to_parquet(made)
    before = dict(SOLVERS)
    try:
        exec(compile(code, "block", "exec"), {})
    finally:  # a page shows how to register a solver
        for name in SOLVERS.keys() - before.keys():
            del SOLVERS[name]


def test_commands_can_be_typed():
    everywhere = {"--json", "--quiet", "-q", "--debug", "--trust"}  # read before the command
    app = build_app()
    typed = {tuple(words) for words in commands("monai-diffae")}
    assert len(typed) > 100
    for _, *words in typed:
        parse(app, [word for word in words if word not in everywhere])


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    wanted = {words[1] for words in commands("make")}
    assert wanted
    assert wanted <= targets


def bundle_runs():
    """The bundle runs; tests/bundles/test_monai_tools_page.py runs MONAI's other commands."""
    words = [w for program in ("python", "torchrun") for w in commands(program)]
    return [w for w in words if "monai.bundle" in w and "run" in w]


def test_bundle_commands_name_files_that_ship():
    assert bundle_runs()
    for words in bundle_runs():
        # the bundle's own README is read in its folder
        files = re.findall(r"(configs/[\w/.]+\.json)", words[words.index("--config_file") + 1])
        assert files
        configs = {}
        for name in files:
            for path in [*(ROOT / "configs").glob(Path(name).name), *sorted((ROOT / "bundles").glob(f"*/{name}"))]:
                configs.update(json.loads(path.read_text(encoding="utf-8")))
        assert words[words.index("run") + 1] in configs
        keys = {w[2:] for w in words if w.startswith("--")} - {"config_file", "standalone"}
        assert {k for k in keys if "=" not in k} <= configs.keys()


def test_bundle_commands_set_what_a_config_leaves_open():
    for words in bundle_runs():
        first = re.findall(r"configs/\w+\.json", words[words.index("--config_file") + 1])[0]
        config = json.loads((BUNDLE / first).read_text(encoding="utf-8"))
        used = model_config(config, (words[words.index("run") + 1],))
        is_open = {key for key, value in used.items() if value == "???"}
        said = {w[2:] for w in words}
        assert is_open - said <= ({"dataset_dir"} if "embeddings" in said else set())


def test_the_slurm_script_can_be_read_and_runs_the_training_of_one_machine():
    scripts = [block.values[0] for block in blocks("bash") if block.values[0].startswith("#!")]
    (script,) = (text for text in scripts if "torchrun" in text)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    (line,) = (line for line in script.splitlines() if "torchrun" in line)
    runs = [" ".join(words[words.index("-m") :]) for words in commands("torchrun")]
    assert " ".join(shlex.split(line[line.index("-m ") :])).removesuffix("scans.csv") in {
        run.removesuffix("scans/") for run in runs
    }


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            # the picture is made by `make demo`
            if "://" not in target and not target.endswith(".png"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
