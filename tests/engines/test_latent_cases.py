"""Latents of images: encoded once, saved under the name of what they are of, deleted at the end."""

import numpy as np
import pytest
import torch
from monai.networks.nets import AutoencoderKL

from monai_diffae.data import CachedCases
from monai_diffae.engines import LatentCases
from monai_diffae.errors import ConfigError, MachineError
from monai_diffae.networks import FirstStage

SHAPE = (1, 8, 8, 8)


def read(item):
    generator = torch.Generator().manual_seed(item["image"])
    return {"image": torch.rand(SHAPE, generator=generator) * 2 - 1}


class Counted(FirstStage):
    """A first stage that counts the images that it encodes."""

    encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        return super().encode(images)


@pytest.fixture
def first_stage():
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        3, channels=(4, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
        with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
    )  # fmt: skip
    stage = Counted(autoencoder).eval()
    stage.measure([read({"image": 0})["image"]])
    return stage


def dataset(first_stage, folder, numbers=(1, 2, 3)):
    items = [{"image": number, "id": f"case-{number}"} for number in numbers]
    return LatentCases(data=items, transform=read, cache_dir=folder, first_stage=first_stage, fingerprints=True)


def test_items_hold_the_latents_and_images_the_images(first_stage, tmp_path):
    cases = dataset(first_stage, tmp_path)
    plain = CachedCases([{"image": n, "id": f"case-{n}"} for n in (1, 2, 3)], read, fingerprints=True)
    for index in range(3):
        image = plain[index]["image"]
        assert torch.equal(cases.images()[index]["image"], image)
        assert torch.equal(cases[index]["image"], first_stage.encode(image[None])[0])
        assert cases[index]["id"] == cases.images()[index]["id"] == plain[index]["id"]
    assert [f.digest for f in cases.fingerprints or []] == [f.digest for f in plain.fingerprints or []]
    assert cases.contents == plain.contents


def test_each_image_is_encoded_once_until_image_or_weights_change(first_stage, tmp_path):
    expected = dataset(first_stage, tmp_path)[2]["image"]
    assert first_stage.encoded == 3
    again = dataset(first_stage, tmp_path, (4, 3))  # another split of the same training, or the next start of it
    assert torch.equal(again[1]["image"], expected)
    assert first_stage.encoded == 4
    first_stage.latent_std.mul_(2)
    assert torch.equal(dataset(first_stage, tmp_path)[2]["image"], expected / 2)
    assert first_stage.encoded == 7
    again.remove_latents()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(again[1]["image"], expected)


def test_only_saved_latents_are_deleted(first_stage, tmp_path):
    """The cache's folder may be one of the user, with a folder of this name."""
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "thesis.f32").write_text("of the user")
    for cases in (dataset(first_stage, tmp_path), dataset(None, tmp_path)):
        cases.prepare()
        cases.remove_latents()
        assert [file.name for file in (tmp_path / "latents").iterdir()] == ["thesis.f32"]


def test_latents_that_are_lost_or_cut_are_encoded_again(first_stage, tmp_path):
    """Another training may share the cache's folder and delete what it saved; a failing disk may cut a file."""
    expected = dataset(first_stage, tmp_path)[0]["image"]
    first, second, _ = sorted((tmp_path / "latents").glob("*.f32"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-4])
    assert torch.equal(dataset(first_stage, tmp_path)[0]["image"], expected)
    assert first_stage.encoded == 5


def test_without_a_first_stage_items_hold_images(tmp_path):
    cases = dataset(None, tmp_path / "cache")
    assert torch.equal(cases[0]["image"], read({"image": 1})["image"])
    assert cases.images() is cases
    assert not (tmp_path / "cache").exists()


def test_augmentation_is_refused(first_stage, tmp_path):
    with pytest.raises(ConfigError, match="cannot be augmented; set augmentation to null"):
        LatentCases(data=[], transform=read, random_transform=read, cache_dir=tmp_path, first_stage=first_stage)


def test_latents_that_are_not_kept_are_refused(first_stage, tmp_path):
    """Items would hold images, which the network takes for latents if it has as many channels."""
    with pytest.raises(ConfigError, match="cache is 'none', but cache_latents keeps latents; set cache to 'memory'"):
        LatentCases(data=[], transform=read, cache="none", cache_dir=tmp_path, first_stage=first_stage)


def test_a_folder_that_cannot_be_made_is_one_line(first_stage, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(MachineError, match="^cache_dir: cannot be written .*; choose another folder$"):
        dataset(first_stage, tmp_path / "cache").prepare()


def test_a_folder_in_which_no_file_can_be_made_is_one_line(first_stage, tmp_path):
    folder = tmp_path / "latents"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "no_folder" / "file")
    with pytest.raises(MachineError, match="^cache_dir: cannot be written .*; choose another folder$"):
        dataset(first_stage, tmp_path).prepare()


def test_saved_latents_are_float32(first_stage, tmp_path):
    dataset(first_stage, tmp_path).prepare()
    files = list((tmp_path / "latents").glob("*.f32"))
    assert len(files) == 3
    assert all(file.stat().st_size == np.prod(first_stage.latent_shape(SHAPE)) * 4 for file in files)
