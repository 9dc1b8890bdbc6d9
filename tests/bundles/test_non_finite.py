"""A gradient or weight that is not finite ends a training, and the last good checkpoint stays as it was."""

import functools
import json
import math
import operator
import time

import pytest
import torch
from ignite.engine import Events
from tiny_bundles import weights

from monai_diffae.bundle import init_bundle
from monai_diffae.engines import DiffusionTrainer
from monai_diffae.errors import DivergenceError

pytestmark = pytest.mark.goal(id="R8")

# 10 training images in batches of 2: 5 steps per epoch, 15 in all
RUN = {"max_epochs": 3, "batch_size": 2, "val_interval": 1, "report_every": 1, "warmup_steps": 2}


def poison(trainer, step, value=math.nan):
    """Make one number of one gradient NaN (or another value) in the backward pass of one step."""

    def change(gradient):
        if trainer.state.iteration != step:
            return None
        changed = gradient.clone()
        changed.flatten()[0] = value
        return changed

    list(trainer.network.parameters())[-1].register_hook(change)


def train(make_workflow, out, poisoned_step=None, save_at=None, value=math.nan, **overrides):
    workflow = make_workflow({**RUN, "output_dir": str(out), **overrides})
    trainer = workflow.parser.get_parsed_content("train#trainer")
    keeper = workflow.parser.get_parsed_content("train#checkpoint")
    if poisoned_step is not None:
        poison(trainer, poisoned_step, value)

    def save_soon():  # as the clock would
        keeper._saved_at = -1e9 if trainer.state.iteration == save_at else time.monotonic()

    trainer.add_event_handler(Events.ITERATION_STARTED, save_soon)
    try:
        workflow.run()
    except RuntimeError as error:  # MONAI's wrapping
        raise error.__cause__ or error from None
    return trainer


def saved_step(out):
    checkpoint = torch.load(out / "models" / "checkpoint.pt", weights_only=True)
    for state in (checkpoint["network"], checkpoint["ema"]["network"], weights(out)):
        assert all(weight.isfinite().all() for weight in state.values())
    return checkpoint["trainer"]["iteration"]


def test_the_command_ends_with_7_and_one_line_and_resumes(run, small_cohort, tiny_settings, tmp_path, monkeypatch):
    """The gradient of the last step is not finite, and no later loss shows it."""
    bundle = init_bundle(tmp_path / "bundle", "diffae_2d")
    file = bundle / "configs" / "train.json"
    config = json.loads(file.read_text())
    for key, value in {**tiny_settings, **RUN, "max_epochs": 2}.items():
        *sections, name = key.split("#")
        functools.reduce(operator.getitem, sections, config)[name] = value
    file.write_text(json.dumps(config))
    command = ("train", "--bundle", bundle, "--cohort", small_cohort)
    with monkeypatch.context() as patch:
        plain_run = DiffusionTrainer.run

        def poisoned_run(trainer):
            poison(trainer, 10)
            plain_run(trainer)

        patch.setattr(DiffusionTrainer, "run", poisoned_run)
        code, _, errors = run(*command)
    assert code == 7
    assert "Traceback" not in errors
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [errors.splitlines()[-1]]
    assert "the gradients are not finite at step 10" in errors
    assert "lower learning_rate" in errors
    assert "nan" not in errors.split("error: ")[0]  # not even validated with the bad weights
    assert saved_step(bundle) == 5
    code, _, errors = run(*command)
    assert (code, saved_step(bundle)) == (0, 10), errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "save_at", "kept", "value", "overrides"),
    [
        (7, 7, 5, -math.inf, {}),  # a save by the clock follows
        (9, None, 5, math.nan, {"accumulation_steps": 2}),  # steps 6+7, 8+9 and 10 are one update each
    ],
)
def test_a_training_resumes_from_before_a_bad_gradient(make_workflow, tmp_path, step, save_at, kept, value, overrides):
    train(make_workflow, tmp_path / "whole", **overrides)
    out = tmp_path / "out"
    with pytest.raises(DivergenceError, match=f"gradients are not finite at step {step} .*the last checkpoint is kept"):
        train(make_workflow, out, step, save_at, value, **overrides)
    assert saved_step(out) == kept
    train(make_workflow, out, **overrides)
    torch.testing.assert_close(weights(out), weights(tmp_path / "whole"), rtol=0, atol=0)
