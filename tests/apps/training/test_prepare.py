"""Scans that are prepared once: by parts, read by embeddings and trainings instead of the scans."""

import pandas as pd
import pytest
import torch
from tiny_bundles import TINY

import monai_diffae as mdae
from monai_diffae.data.embeddings import read_embeddings, z_matrix
from monai_diffae.errors import ConfigError, MachineError

READS = "reading and preprocessing"


@pytest.fixture
def prepared(tiny_bundle, tmp_path):
    folder = tmp_path / "prepared"
    for part in ("2/2", "1/2"):
        notes = mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, folder, part=part).notes
        assert notes == [f"part {part} is prepared; when all are, run the command without --part"]
    return folder


def test_parts_make_the_cache_that_an_embedding_reads(tiny_bundle, prepared, tmp_path, caplog):
    caplog.set_level("INFO", logger="monai_diffae")
    result = mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, prepared)
    assert (result.num_cases, result.num_failed) == (len(pd.read_csv(tiny_bundle.cohort)), 0)
    assert f"--cache_dir {prepared}" in result.next[0]
    parts = sorted(prepared.glob("*.safetensors"))
    assert len(parts) == 2
    tables = [
        mdae.embed(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / name, cache_dir=folder, device="cpu").path
        for name, folder in (("without", None), ("with", prepared))
    ]
    without, with_it = (z_matrix(read_embeddings(table)) for table in tables)
    assert (without == with_it).all()
    assert READS not in caplog.text
    assert sorted(prepared.glob("*.safetensors")) == parts


def test_a_damaged_image_is_found_and_other_files_are_left_alone(tiny_bundle, prepared):
    part = min(prepared.glob("*.safetensors"))
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with pytest.raises(MachineError):
        mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, prepared)
    for other in (tiny_bundle.directory, tiny_bundle.cohort):
        with pytest.raises(ConfigError, match="^out: .* holds other files"):
            mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, other)


def test_an_embedding_adds_what_the_cache_lacks(tiny_bundle, tmp_path):
    for folder in (tmp_path / "once", tmp_path / "again"):
        mdae.embed(tiny_bundle.directory, tiny_bundle.cohort, folder, cache_dir=tmp_path / "cache", device="cpu")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def test_a_cache_also_serves_an_encoder_that_sees_another_image(tiny_bundle, tmp_path):
    model = mdae.init(tmp_path / "model", bundle="chest_xray").path
    with_it, without = (
        mdae.embed(model, tiny_bundle.cohort, tmp_path / name, cache_dir=folder, device="cpu").path
        for name, folder in (("with", tmp_path / "cache"), ("without", None))
    )
    assert (z_matrix(read_embeddings(with_it)) == z_matrix(read_embeddings(without))).all()


@pytest.mark.slow
def test_a_training_reads_the_cache_and_leaves_it(small_cohort, tmp_path, caplog):
    caplog.set_level("INFO", logger="monai_diffae")
    weights = []
    for name in ("without", "with"):
        mdae.init(tmp_path / name, bundle="diffae_2d")
        keys = TINY if name == "without" else {**TINY, "cache_dir": str(tmp_path / "cache")}
        if name == "with":
            mdae.prepare(tmp_path / name, small_cohort, tmp_path / "cache", **TINY)
            caplog.clear()
        mdae.train(tmp_path / name, small_cohort, **keys)
        weights.append(torch.load(tmp_path / name / "models" / "model.pt", weights_only=True))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert READS not in caplog.text
    assert (tmp_path / "cache").is_dir()
    assert not (tmp_path / "without" / "cache").exists()
    mdae.init(tmp_path / "other", bundle="diffae_2d")
    with pytest.raises(ConfigError, match="values of train#preprocessing"):
        mdae.train(tmp_path / "other", small_cohort, overrides={**keys, **OTHER})


def test_images_that_the_network_cannot_use_are_refused_before_scans_are_read(tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="^image_size"):
        mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, tmp_path / "prepared", image_size=[33, 33])
    assert not (tmp_path / "prepared").exists()


OTHER = {"train#preprocessing": {"_target_": "Compose", "transforms": ["@preprocessing"]}}


def test_a_cache_of_another_preprocessing_is_refused(tiny_bundle, prepared):
    with pytest.raises(ConfigError, match="^prepared: holds scans that were .* values of percentiles"):
        mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, prepared, percentiles=[1, 99])
    with pytest.raises(ConfigError, match="^train#preprocessing: prepare reads all splits alike"):
        mdae.prepare(tiny_bundle.directory, tiny_bundle.cohort, prepared, **OTHER)
