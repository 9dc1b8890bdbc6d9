"""A gradient or weight that is not finite ends a training, and the last good checkpoint stays as it was."""

import functools
import json
import math
import operator

import pytest
import torch
from tiny_bundles import weights

from monai_diffae.bundle import init_bundle
from monai_diffae.engines import DiffusionTrainer

pytestmark = pytest.mark.goal(id="R8")

# 10 training images in batches of 2: 5 steps per epoch
RUN = {"max_epochs": 2, "batch_size": 2, "val_interval": 1, "report_every": 1, "warmup_steps": 2}


def poison(trainer, step):
    """Make one number of one gradient NaN in the backward pass of one step."""

    def change(gradient):
        if trainer.state.iteration != step:
            return None
        changed = gradient.clone()
        changed.flatten()[0] = math.nan
        return changed

    list(trainer.network.parameters())[-1].register_hook(change)


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
    for key, value in {**tiny_settings, **RUN}.items():
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
