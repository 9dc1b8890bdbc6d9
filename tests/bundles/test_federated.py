"""A bundle as a site of a federation, through MONAI's client: what is trained from, what is sent, and who resumes."""

import copy
import math
import pickle
import shutil
from functools import partial

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.errors import ConfigError

NAMES = ("Zebra", "Quagga", "north_hospital", "secret_label")
SITE = ["configs/train.json", "configs/overlays/federated.json"]


@pytest.fixture(scope="module")
def cohort(small_cohort, tmp_path_factory):
    """The table of a hospital whose ids, patients, files, folders and labels have names that nobody else may see."""
    folder = tmp_path_factory.mktemp("north_hospital")
    table = pd.read_csv(small_cohort)
    for number, image in enumerate(table["image"]):
        shutil.copyfile(small_cohort.parent / image, folder / f"Quagga_{number}.nii")
    names = {"image": [f"Quagga_{n}.nii" for n in range(len(table))], "id": [f"Zebra_{n}" for n in range(len(table))]}
    table = table.assign(**names, patient=names["id"], secret_label=range(len(table)))
    table.to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture
def make_site(cohort, tiny_settings, tmp_path, monkeypatch):
    """Makes MONAI's client of a site, initialised; with the same name, it is the same site in a new process."""
    monkeypatch.chdir(tmp_path)  # MONAI reads the configuration once before it sets bundle_root

    def make(name="north", files=SITE, local_epochs=1, **values):
        bundle = tmp_path / name
        if not bundle.exists():
            init_bundle(bundle, "diffae_2d")
        settings = {**tiny_settings, "dataset_dir": str(cohort), "report_every": 1, "warmup_steps": 0, **values}
        if files == SITE:
            settings = {"num_rounds": 3, **settings}
            del settings["mlflow"]  # the overlay has it
        site = MonaiAlgo(
            str(bundle), local_epochs, send_weight_diff=False, config_train_filename=files,
            train_kwargs=settings, config_evaluate_filename=files, eval_kwargs=dict(settings),
        )  # fmt: skip
        site.initialize({ExtraItems.CLIENT_NAME: name})
        return site

    return make


def initial_weights(site):
    generator = torch.Generator().manual_seed(1)
    state = copy.deepcopy(site.trainer.network.state_dict())
    return {key: value + 0.01 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def trained_round(site, weights):
    site.train(ExchangeObject(weights=weights))
    return copy.deepcopy(site.get_weights().weights)


def distance(first, second):
    return sum(float((first[key] - second[key]).square().sum()) for key in first) ** 0.5


assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)


def halved(weights):
    return {key: value / 2 for key, value in weights.items()}


def learning_rates(folder):
    return pd.read_csv(folder / "curves.csv")["learning_rate"].dropna().tolist()


def test_a_site_trains_from_the_weights_of_the_server_and_sends_only_weights_and_metrics(make_site, tmp_path):
    """The second round is one of a restarted process, from the first round's weights halved."""
    site = make_site()
    weights = initial_weights(site)
    keeper = site.train_workflow.parser.get_parsed_content("train#checkpoint")
    at_start = []
    site.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: at_start.append(copy.deepcopy(keeper.ema.network.state_dict()))
    )
    metrics = site.evaluate(ExchangeObject(weights=weights)).metrics
    own = trained_round(site, weights)
    assert_equal(at_start[0], weights)  # the average begins with them, too
    sent = site.get_weights()
    site.evaluate(sent)  # its own weights, which share the network's memory
    assert {key: value.shape for key, value in sent.weights.items()} == {k: v.shape for k, v in weights.items()}
    assert {value.dtype for value in sent.weights.values()} == {torch.float32}
    assert {str(key): type(value) for key, value in sent.statistics.items()} == dict.fromkeys(
        ["rank", "current_epoch", "current_iteration", "total_epochs", "total_iterations", "num_executed_iterations"],
        int,
    )
    assert sent.optim is None
    assert sent.metrics is None
    assert metrics.keys() == {"loss", "loss_other_z_sem", "z_sem_usage"}
    assert all(isinstance(value, float) for value in metrics.values())
    everything = pickle.dumps([dict(sent), metrics])
    assert [name for name in (*NAMES, str(site.bundle_root)) if name.encode() in everything] == []
    site = make_site()
    update = trained_round(site, halved(own))
    site.train(site.get_weights())  # MONAI's client keeps them, and sends the difference
    assert_equal(site.global_weights, update)
    site.send_weight_diff = True
    trained = site.trainer.network.state_dict()
    assert_equal(site.get_weights().weights, {key: trained[key] - value for key, value in update.items()})
    assert 0 < distance(update, halved(own)) < 0.3 * distance(update, own)
    per_round = site.trainer.state.epoch_length
    assert site.get_weights().statistics["num_executed_iterations"] == per_round
    cosine = [1e-3 * (1 + math.cos(math.pi * step / (3 * per_round))) / 2 for step in range(1, 3 * per_round + 1)]
    assert learning_rates(tmp_path / "north") == pytest.approx(cosine)  # one schedule over all rounds


@pytest.mark.slow
def test_a_restarted_client_continues_as_if_it_had_never_stopped(make_site, tmp_path):
    steady, restarted = make_site("steady"), make_site("restarted")
    first = initial_weights(steady)
    for site in (steady, restarted):
        trained_round(site, first)
    given = halved(first)
    expected = trained_round(steady, given)
    restarted = make_site("restarted")
    assert_equal(trained_round(restarted, given), expected)
    models = [torch.load(tmp_path / site / "models/model.pt", weights_only=True) for site in ("steady", "restarted")]
    assert_equal(*models)
    assert learning_rates(tmp_path / "steady") == learning_rates(tmp_path / "restarted")


@pytest.mark.slow
def test_a_round_too_many_is_refused_instead_of_training_nothing(make_site):
    site = make_site(num_rounds=1)
    weights = trained_round(site, initial_weights(site))
    with pytest.raises(ConfigError, match=r"^lr_schedule: 'cosine' ends at step \d+ with a learning rate of 0"):
        trained_round(site, weights)
    site = make_site("south", files=["configs/train.json"])
    weights = trained_round(site, initial_weights(site))
    with pytest.raises(ConfigError, match=r"add configs/overlays/federated\.json and set num_rounds"):
        trained_round(site, weights)
