"""The served bundle: loaded once, again when its weights change, and for one thread at a time."""

import shutil
import threading
import time

import pytest
import torch

pytest.importorskip("monailabel", reason="MONAI Label is not installed")

from monai_diffae.errors import BusyError, ConfigError, DiffAEError
from monai_diffae.label.served_model import ServedModel


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle.directory, tmp_path / "bundle", ignore=shutil.ignore_patterns("cache"))


def change_weights(bundle):
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name] = state[name] + 1
    torch.save(state, path)


def test_a_bundle_is_loaded_once(bundle):
    served = ServedModel(bundle, "cpu")
    with served.in_use() as first:
        pass
    with served.in_use() as second:
        assert second is first


def test_new_weights_are_used_at_the_next_request(bundle):
    served = ServedModel(bundle, "cpu")
    with served.in_use() as before:
        pass
    change_weights(bundle)
    with served.in_use() as after:
        assert after.sha256 != before.sha256
        pairs = zip(before.network.parameters(), after.network.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_weights_that_vanish_are_reported_and_the_bundle_is_served_when_they_are_back(bundle):
    served = ServedModel(bundle, "cpu")
    (bundle / "models" / "model.pt").rename(bundle / "away.pt")
    with pytest.raises(ConfigError, match=r"no models/model\.pt"), served.in_use():
        pass
    (bundle / "away.pt").rename(bundle / "models" / "model.pt")
    with served.in_use() as trained:
        assert trained.sha256


def test_weights_of_another_network_are_refused(bundle):
    served = ServedModel(bundle, "cpu")
    torch.save({"layer.weight": torch.ones(2, 2)}, bundle / "models" / "model.pt")
    with pytest.raises(DiffAEError, match="weights do not fit"), served.in_use():
        pass
    with pytest.raises(DiffAEError, match="weights do not fit"):
        ServedModel(bundle, "cpu")


def test_a_bundle_with_several_images_per_case_is_refused(bundle):
    import json

    config = bundle / "models" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "image_keys": ["image", "t2"]}))
    with pytest.raises(ConfigError, match="MONAI Label has one image per id"):
        ServedModel(bundle, "cpu")


def test_one_request_at_a_time_uses_it(bundle):
    served = ServedModel(bundle, "cpu")
    inside, most = [], []

    def use():
        with served.in_use():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_a_request_during_a_publication_is_to_be_sent_again(bundle):
    (bundle / "models" / "anomaly.pt").unlink()
    served = ServedModel(bundle, "cpu")
    with served.in_use() as trained:
        with pytest.raises(ConfigError, match="calibrate"):
            served.detector(trained)
        change_weights(bundle)
        with pytest.raises(BusyError, match="send the request again"):
            served.detector(trained)
