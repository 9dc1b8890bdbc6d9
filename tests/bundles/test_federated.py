"""A bundle as a site of a federation, through MONAI's client: what is trained from, what is sent, and who resumes."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch.nn.utils import vector_to_parameters

from monai_diffae.bundle.folders import init_bundle
from monai_diffae.errors import ConfigError
from monai_diffae.handlers import CheckpointKeeper

NAMES = ("Zebra", "Quagga", "north_hospital", "secret_label")
SITE = ["configs/train.json", "configs/federated.json"]


@pytest.fixture(scope="module")
def cohort(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def make_site(cohort: Path, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes MONAI's client of a site, initialised; with the same name, it is the same site in a new process."""
    monkeypatch.chdir(tmp_path)  # MONAI reads the configuration once before it sets bundle_root

    def make(name: str = "north", files: list[str] = SITE, local_epochs: int = 1, **values: Any) -> MonaiAlgo:
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


def initial_weights(site: MonaiAlgo) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = copy.deepcopy(site.trainer.network.state_dict())
    return {key: value + 0.01 * torch.randn(value.shape, generator=generator) for key, value in state.items()}


def trained_round(site: MonaiAlgo, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    site.train(ExchangeObject(weights=weights))
    return copy.deepcopy(site.get_weights().weights)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return sum(float((first[key] - second[key]).square().sum()) for key in first) ** 0.5


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value / 2 for key, value in weights.items()}


def learning_rates(folder: Path) -> list[float]:
    return pd.read_csv(folder / "curves.csv")["learning_rate"].dropna().tolist()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("files", [SITE, ["configs/train.json"]], ids=["federated", "train alone"])
def test_an_update_follows_global_weights_that_were_halved(make_site: Any, files: list[str], restarted: bool) -> None:
    values = {} if files == SITE else {"lr_schedule": "constant"}
    site = make_site(files=files, **values)
    own = trained_round(site, initial_weights(site))
    site = make_site(files=files, **values) if restarted else site
    update = trained_round(site, halved(own))
    assert 0 < distance(update, halved(own)) < 0.3 * distance(update, own)


def test_weights_that_a_client_writes_through_data_are_kept_by_a_restarted_site(make_site: Any) -> None:
    """Some federated clients use ``vector_to_parameters`` instead of ``load_state_dict``."""
    own = trained_round(make_site(), initial_weights(make_site("other")))
    network = (site := make_site()).trainer.network
    given = {name: weight.detach() / 2 for name, weight in own.items() if name in dict(network.named_parameters())}
    vector_to_parameters(torch.cat([weight.flatten() for weight in given.values()]), network.parameters())
    site.trainer.state.max_epochs = site.trainer.state.epoch + 1  # as MONAI's client does
    site.trainer.run()
    update = {name: weight.detach() for name, weight in network.named_parameters()}
    assert 0 < distance(update, given) < 0.3 * distance(update, own)


def test_only_weights_and_their_metrics_leave_a_site(make_site: Any) -> None:
    site = make_site()
    weights = initial_weights(site)
    metrics = site.evaluate(ExchangeObject(weights=weights)).metrics
    trained_round(site, weights)
    sent = site.get_weights()
    assert {key: value.shape for key, value in sent.weights.items()} == {k: v.shape for k, v in weights.items()}
    assert {value.dtype for value in sent.weights.values()} == {torch.float32}
    assert {type(value) for value in sent.statistics.values()} == {int}
    assert {str(key) for key in sent.statistics} == {
        "rank", "current_epoch", "current_iteration", "total_epochs", "total_iterations", "num_executed_iterations"
    }  # fmt: skip
    assert sent.optim is None
    assert sent.metrics is None
    assert metrics.keys() == {"loss", "loss_other_z_sem", "z_sem_usage"}
    assert all(isinstance(value, float) for value in metrics.values())
    everything = pickle.dumps([dict(sent), metrics])
    assert [name for name in (*NAMES, str(site.bundle_root)) if name.encode() in everything] == []


def test_a_restarted_client_goes_on_as_if_it_had_never_stopped(make_site: Any, tmp_path: Path) -> None:
    steady, restarted = make_site("steady"), make_site("restarted")
    first = initial_weights(steady)
    for site in (steady, restarted):
        trained_round(site, first)
    given = halved(first)
    expected = trained_round(steady, given)
    restarted = make_site("restarted")
    assert_equal(trained_round(restarted, given), expected)
    models = [
        torch.load(tmp_path / name / "models" / "model.pt", weights_only=True) for name in ("steady", "restarted")
    ]
    assert_equal(*models)
    assert restarted.get_weights().statistics["num_executed_iterations"] == len(learning_rates(tmp_path / "steady")) / 2
    assert learning_rates(tmp_path / "steady") == learning_rates(tmp_path / "restarted")


def test_a_killed_round_is_repeated_from_its_first_step(make_site: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(engine: Any) -> None:
        if engine.state.epoch == 3:
            raise Killed

    site = make_site(local_epochs=2, num_rounds=2)
    weights = trained_round(site, initial_weights(site))
    site.trainer.add_event_handler(Events.EPOCH_COMPLETED, kill)
    with pytest.raises(Killed):
        trained_round(site, weights)
    site = make_site(local_epochs=2, num_rounds=2)
    trained_round(site, weights)
    rates = learning_rates(tmp_path / "north")
    per_epoch = site.trainer.state.epoch_length
    assert site.get_weights().statistics["num_executed_iterations"] == 2 * per_epoch
    assert site.trainer.state.epoch == 4
    assert len(rates) == 4 * per_epoch
    assert rates == sorted(rates, reverse=True)


def test_one_schedule_spans_all_rounds_and_a_round_too_many_is_refused(make_site: Any, tmp_path: Path) -> None:
    site = make_site()
    weights = initial_weights(site)
    for _ in range(3):
        weights = trained_round(site, weights)
    num_steps = 3 * site.trainer.state.epoch_length
    cosine = [1e-3 * (1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(1, num_steps + 1)]
    assert learning_rates(tmp_path / "north") == pytest.approx(cosine)
    with pytest.raises(
        ConfigError, match=r"^lr_schedule: 'cosine' ends at step \d+ with a learning rate of 0, but the"
    ):
        trained_round(site, weights)


def test_without_the_overlay_a_second_round_is_refused_instead_of_training_nothing(make_site: Any) -> None:
    site = make_site(files=["configs/train.json"])
    weights = trained_round(site, initial_weights(site))
    with pytest.raises(ConfigError, match=r"in federated training, add configs/federated\.json and set num_rounds"):
        trained_round(site, weights)


def test_the_number_of_rounds_must_be_given(make_site: Any) -> None:
    with pytest.raises(RuntimeError) as caught:  # MONAI's wrapping
        make_site(num_rounds="???")
    assert str(caught.value.__cause__) == "num_rounds: is required; give it a value"


def test_the_average_begins_with_the_given_weights(make_site: Any) -> None:
    site = make_site()
    keeper: CheckpointKeeper = site.train_workflow.parser.get_parsed_content("train#checkpoint")
    weights = initial_weights(site)
    at_start = []
    site.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: at_start.append(copy.deepcopy(keeper.ema.network.state_dict()))
    )
    trained_round(site, weights)
    assert_equal(at_start[0], weights)


def test_given_weights_and_start_from_exclude_each_other(make_site: Any, tiny_bundle: Any) -> None:
    site = make_site(start_from=str(tiny_bundle.directory))
    with pytest.raises(ConfigError, match=r"^start_from: has no effect, because a program has set the weights; omit"):
        trained_round(site, initial_weights(site))
