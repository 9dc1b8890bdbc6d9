"""MONAI's own export commands on the three bundles: what docs/monai_tools.md says of them."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, onnx_export

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL = {"base_channels": 4, "channel_mult": [1, 2], "z_channels": 4}
SIZES = {
    "diffae_2d": (SMALL, (1, 1, 16, 16), (2, 1, 32, 16)),
    "diffae_3d": (SMALL, (1, 1, 16, 16, 16), (2, 1, 16, 24, 16)),
    "autoencoder_kl_3d": ({"network_def#autoencoder#channels": [8, 8, 8]}, (1, 1, 8, 8, 8), (2, 1, 8, 8, 12)),
}


def prepared(name, tmp_path):
    """A bundle's network with random weights, and the arguments of an export of it."""
    settings, shape, _ = SIZES[name]
    configs = BUNDLES / name / "configs"
    parser = ConfigParser()
    parser.read_config(configs / "inference.json")
    parser.update(settings)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    arguments = {
        "net_id": "network_def", "filepath": str(tmp_path / "exported"), "ckpt_file": str(tmp_path / "model.pt"),
        "meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json"),
        "use_trace": name == "autoencoder_kl_3d", "input_shape": shape, **settings,
    }  # fmt: skip
    return network, arguments


@pytest.mark.parametrize("name", SIZES)
def test_ckpt_export_gives_what_the_network_gives(name, tmp_path):
    """TorchScript: our networks are scripted; MONAI's AutoencoderKL can only be traced."""
    network, arguments = prepared(name, tmp_path)
    ckpt_export(**arguments)
    exported = torch.jit.load(tmp_path / "exported.ts")
    images = torch.rand(SIZES[name][2]) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(exported(images), network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_onnx_export_gives_what_the_network_gives(name, tmp_path):
    """The file takes one image of one size."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `export`")
    network, arguments = prepared(name, tmp_path)
    onnx_export(**arguments)
    session = onnxruntime.InferenceSession(tmp_path / "exported", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert taken.shape == list(SIZES[name][1])
    images = torch.rand(SIZES[name][1]) * 2 - 1
    (made,) = session.run(None, {taken.name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(made), network(images), rtol=1e-4, atol=1e-5)


def test_ckpt_export_cannot_script_monais_autoencoder(tmp_path):
    """If this fails, MONAI has mended it, and docs/monai_tools.md can say so."""
    _, arguments = prepared("autoencoder_kl_3d", tmp_path)
    with pytest.raises(Exception, match="checkpoint|AutoencoderKL|script|annotation"):
        ckpt_export(**arguments | {"use_trace": False})
