"""What the model zoo checks of a bundle, as far as it can be checked without a network."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

import monai_diffae
from monai_diffae.bundle.config import check_config, model_config
from monai_diffae.bundle.decoding import inferer_settings

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "diffae_2d"
IN_3D = ROOT / "bundles" / "diffae_3d"
BOTH = pytest.mark.parametrize("bundle", [BUNDLE, IN_3D], ids=lambda p: p.name)
UNTRAINED = pytest.mark.parametrize(  # those with weights take their configurations from these
    "bundle", sorted(file.parents[1] for file in ROOT.glob("bundles/*/configs/train.json")), ids=lambda p: p.name
)
ALL = pytest.mark.parametrize("bundle", sorted((ROOT / "bundles").iterdir()), ids=lambda p: p.name)
# latent_space is for volumes and a first stage: test_latent_space.py
OVERLAYS = sorted(path for path in (ROOT / "configs").glob("*.json") if path.stem != "latent_space")
# of MONAI's meta_schema_20240725
REQUIRED = {
    "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
    "description", "authors", "copyright", "network_data_format",
}  # fmt: skip
TENSOR = {"type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list}


def read(path):
    return json.loads(path.read_text())


def config(*files):
    parser = ConfigParser()
    parser.read_config([str(f) for f in files])
    merged = parser.get()
    merged.pop("_meta_", None)
    return merged


@ALL
def test_metadata_has_what_the_schema_wants(bundle):
    meta = read(bundle / "configs" / "metadata.json")
    assert meta.keys() >= REQUIRED
    assert re.search(r"/meta_schema_\d{8}\.json$", meta["schema"])
    assert meta["version"] in meta["changelog"]
    assert meta["version"] == monai_diffae.__version__
    pins = [meta["monai_version"], meta["pytorch_version"], meta["numpy_version"]]
    assert all(re.fullmatch(r"\d+(\.\d+)+", p) for p in pins)
    assert meta["supported_apps"] == {}
    for tensor in (meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]):
        assert all(isinstance(tensor[key], kind) for key, kind in TENSOR.items())


@ALL
def test_required_packages_are_those_of_the_package(bundle):
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[0].lower()
    required = read(bundle / "configs" / "metadata.json")["required_packages_version"]
    assert required.pop("monai-diffae") == f">={monai_diffae.__version__}"
    for name, versions in required.items():
        assert f'"{name.lower()}{versions}"' in declared


@pytest.mark.parametrize(
    ("bundle", "divisors", "size"), [(BUNDLE, [16, 16], (16, 48)), (IN_3D, [16, 8, 16], (32, 24, 16))], ids=["2d", "3d"]
)
def test_network_gives_what_the_metadata_says(bundle, divisors, size):
    form = read(bundle / "configs" / "metadata.json")["network_data_format"]
    assert form["inputs"]["image"]["spatial_shape"] == [f"{d}*n" for d in divisors]
    parser = ConfigParser(config(bundle / "configs" / "train.json"))
    network = parser.get_parsed_content("network_def").eval()
    assert list(network.size_divisors) == divisors
    image = torch.rand(1, form["inputs"]["image"]["num_channels"], *size)
    with torch.no_grad():
        pred = network(image)
    assert pred.shape == (1, form["outputs"]["pred"]["num_channels"], *size)
    assert str(pred.dtype) == "torch." + form["outputs"]["pred"]["dtype"]


@BOTH
def test_training_and_inference_describe_the_same_model_and_data(bundle):
    train, infer = read(bundle / "configs" / "train.json"), read(bundle / "configs" / "inference.json")
    # workers: the commands choose their number, a training has the bundle's
    ours = {"imports", "output_dir", "initialize", "run", "batch_size", "workers"}
    differ = {key for key in train.keys() & infer.keys() if train[key] != infer[key]}
    assert differ <= ours
    assert model_config(train).keys() <= infer.keys()
    of_slices = {"slice_axis", "slice_range", "slice_step"} if bundle == BUNDLE else {"spacing_mm"}
    assert {"cohort", "columns", "encoder_key", *of_slices} <= infer.keys()


def test_both_bundles_differ_only_in_what_3d_needs():
    """A change to one of them is meant for the other too."""
    names = {bundle: sorted(p.name for p in (bundle / "configs").iterdir()) for bundle in (BUNDLE, IN_3D)}
    assert names[BUNDLE] == names[IN_3D]
    other = {
        "imports", "slice_axis", "slice_range", "slice_step", "spacing_mm", "spatial_dims", "image_size", "batch_size",
        "val_batch_size", "num_pictures", "z_grid", "strides", "diffusion", "cohort", "preprocessing", "augmentation",
    }  # fmt: skip
    for name in set(names[BUNDLE]) - {"metadata.json"}:
        flat, volume = read(BUNDLE / "configs" / name), read(IN_3D / "configs" / name)
        volume = json.loads(json.dumps(volume).replace(IN_3D.name, BUNDLE.name))
        differ = {key for key in flat.keys() | volume.keys() if flat.get(key) != volume.get(key)}
        sizes = {"batch_size", "val_batch_size"} if name == "distill.json" else set()
        assert differ <= (other if name in ("train.json", "inference.json", "evaluate.json") else sizes)
    two, three = (read(bundle / "configs" / "train.json") for bundle in (BUNDLE, IN_3D))
    assert two["network_def"] == three["network_def"]
    schedules = two["diffusion"], three["diffusion"]
    assert {
        key for key in schedules[0].keys() | schedules[1].keys() if schedules[0].get(key) != schedules[1].get(key)
    } == {"timestep_shift"}


def test_the_inferer_of_the_inference_config_is_usable():
    parser = ConfigParser(config(BUNDLE / "configs" / "inference.json"))
    settings = parser.get_parsed_content("inferer")
    assert inferer_settings(settings) == {
        "solver": "adams", "steps": 20, "invert_steps": 20, "inversion": "implicit", "spacing": "logsnr",
        "invert_tolerance": 0.001, "clip_range": [-1, 1], "decoder": "exact",
    }  # fmt: skip
    parser.update({"inferer#steps": 4, "inferer#invert_steps": 4, "device": "cpu"})
    inferer, network = parser.get_parsed_content("inferer"), parser.get_parsed_content("network").eval()
    assert inferer.clip_range == (-1, 1)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z_sem = inferer.encode(images, network)
    assert z_sem.shape == (2, 128)
    x_T = inferer.invert(images, network, z_sem)
    assert x_T.shape == images.shape
    made = inferer.decode(z_sem, x_T, network)
    torch.testing.assert_close(inferer.reconstruct(images, network, mode="x_T"), made)
    from_noise = inferer.reconstruct(images, network, mode="z_sem", x_T=torch.ones_like(images))
    assert from_noise.shape == images.shape
    assert not torch.allclose(from_noise, made)


@pytest.mark.parametrize(
    ("bundle", "overlay"),
    [(BUNDLE, overlay) for overlay in OVERLAYS if read(overlay).get("spatial_dims", 2) == 2]
    + [(IN_3D, overlay) for overlay in OVERLAYS if read(overlay).get("spatial_dims", 3) == 3],
    ids=lambda p: p.stem,
)
def test_overlays_use_known_keys(bundle, overlay):
    assert len(overlay.read_text().splitlines()) < 40
    merged = config(bundle / "configs" / "train.json", overlay)
    check_config(merged)
    assert not set(read(bundle / "configs" / "train.json")) - set(merged)


@pytest.mark.parametrize("overlay", ["medmnist", "ct", "volumes_mr", "paper_64"])
def test_overlays_build_a_network_for_their_size(overlay):
    parser = ConfigParser(config(BUNDLE / "configs" / "train.json", ROOT / "configs" / f"{overlay}.json"))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert all(s % d == 0 for s, d in zip(parser.get("image_size"), network.size_divisors, strict=True))


@pytest.mark.parametrize(
    ("bundle", "overlays"),
    [
        (BUNDLE, []),
        (BUNDLE, ["encoder_view"]),
        (IN_3D, []),
        (IN_3D, ["embed_volumes"]),
        (IN_3D, ["encoder_view_3d"]),
    ],
    ids=["2d", "2d-encoder_view", "3d", "3d-embed_volumes", "3d-encoder_view_3d"],
)
def test_augmentation_moves_along_every_axis(bundle, overlays):
    """MONAI applies a single number to the first axis alone."""
    files = [ROOT / "configs" / f"{overlay}.json" for overlay in overlays]
    parser = ConfigParser(config(bundle / "configs" / "train.json", *files))
    transforms, dims = parser.get("augmentation#transforms"), parser.get("spatial_dims")
    affine = [t["_target_"] for t in transforms].index("RandAffined")
    for key, length in (("translate_range", dims), ("scale_range", dims), ("rotate_range", 2 * dims - 3)):
        ranges = ensure_tuple(parser.get_parsed_content(f"augmentation#transforms#{affine}#{key}"))
        assert len(ranges) == length
        assert min(ranges) > 0


@UNTRAINED
def test_multi_gpu_overlay_uses_known_keys(bundle):
    merged = config(bundle / "configs" / "train.json", bundle / "configs" / "multi_gpu_train.json")
    check_config(merged)
    assert len(merged["imports"]) == 2 + len(read(bundle / "configs" / "train.json")["imports"])
    assert merged["train"]["trainer"]["network"]["network"] == "@network"


def test_encoder_sees_another_view(tiny_bundle):
    parser = ConfigParser(config(BUNDLE / "configs" / "train.json", ROOT / "configs" / "encoder_view.json"))
    parser.update({"dataset_dir": str(tiny_bundle.cohort), "image_size": [16, 16], "output_dir": "."})
    item = parser.get_parsed_content("train#dataset")[0]
    assert item["encoder_image"].shape == item["image"].shape == (1, 16, 16)
    assert any(not torch.equal(i["image"], i["encoder_image"]) for i in parser.get_parsed_content("train#dataset"))
    item = parser.get_parsed_content("validate#dataset")[0]
    assert torch.equal(item["image"], item["encoder_image"])


@pytest.mark.parametrize("name", ["train", "validate"])
def test_an_encoder_with_an_image_of_its_own_trains_without_the_settings_of_its_training(tiny_bundle, name):
    """As in a bundle that was sent: its train.json has the model's values, but not the overlay's augmentation."""
    overlay = read(ROOT / "configs" / "encoder_view.json")
    parser = ConfigParser(config(BUNDLE / "configs" / "train.json"))
    parser.get("preprocessing")["transforms"].extend(overlay["+preprocessing#transforms"])
    values = {"dataset_dir": str(tiny_bundle.cohort), "image_size": [16, 16], "output_dir": "."}
    parser.update({**values, "encoder_key": overlay["encoder_key"]})
    for item in parser.get_parsed_content(f"{name}#dataset"):
        assert torch.equal(item["image"], item["encoder_image"])


def test_inference_lists_bad_scans_and_continues(tiny_bundle, tmp_path):
    table = pd.read_csv(tiny_bundle.cohort)
    table["image"] = [str(tiny_bundle.cohort.parent / image) for image in table["image"]]
    table.loc[0, "image"] = str(tmp_path / "broken.nii")
    (tmp_path / "broken.nii").write_bytes(b"no scan")
    table.to_csv(tmp_path / "cohort.csv", index=False)
    root, out = tiny_bundle.directory, tmp_path / "out"
    files = [str(root / "configs" / "inference.json"), str(root / "models" / "config.json")]
    workflow = ConfigWorkflow(files, str(root / "configs" / "metadata.json"), logging_file=False, workflow_type="infer")
    values = {"bundle_root": str(root), "dataset_dir": str(tmp_path / "cohort.csv"), "output_dir": str(out)}
    workflow.parser.update({**values, "device": "cpu", "inferer#steps": 2})
    workflow.initialize()
    workflow.run()
    assert "broken.nii" in (out / "failures.csv").read_text()
    assert len(list((out / "x_T").glob("*.nii.gz"))) == len(table) - 1


@pytest.mark.parametrize("mode", ["x_T", "z_sem"])
def test_inference_with_the_trained_models_config(tiny_bundle, tmp_path, mode):
    root = tiny_bundle.directory
    files = [str(root / "configs" / "inference.json"), str(root / "models" / "config.json")]
    workflow = ConfigWorkflow(files, str(root / "configs" / "metadata.json"), logging_file=False, workflow_type="infer")
    out = tmp_path / "out"
    values = {"bundle_root": str(root), "dataset_dir": str(tiny_bundle.cohort), "output_dir": str(out)}
    workflow.parser.update({**values, "mode": mode, "split": "test", "device": "cpu", "inferer#steps": 2})
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    table = tiny_bundle.cohort.read_text().splitlines()
    names = {line.split(",")[0] + ".nii.gz" for line in table if ",test," in line}
    assert names
    assert {p.name for p in (out / mode).iterdir()} == names
