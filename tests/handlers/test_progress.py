import logging

import pytest

from monai_diffae.handlers.progress import warn_if_unused


@pytest.mark.parametrize(("usage", "is_bad"), [(0.98, True), (1.00001, True), (1.0199, True), (1.02, False)])
def test_below_a_usage_of_1_02_the_decoder_does_not_use_z_sem(caplog, usage, is_bad):
    warn_if_unused(usage)
    lines = [f"z_sem_usage {usage:.3f}: the decoder does not use z_sem yet; train longer, or see docs/neighbors.md"]
    assert [record.message for record in caplog.records] == (lines if is_bad else [])


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])  # WARNING: what --quiet sets
def test_a_training_warns_once_at_its_end(make_workflow, caplog, level):
    with caplog.at_level(level, "monai_diffae"):
        workflow = make_workflow({"max_epochs": 2, "val_interval": 1})
        workflow.run()
    usage = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["z_sem_usage"]
    assert usage < 1.02
    warnings = [record.message for record in caplog.records if "does not use z_sem" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"z_sem_usage {usage:.3f}: ")
