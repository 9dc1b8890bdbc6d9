import logging

import pytest

from monai_diffae.bundle.last_metrics import last_usage


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])  # WARNING: what --quiet sets
def test_a_training_warns_once_at_its_end(make_workflow, tmp_path, caplog, level):
    with caplog.at_level(level, "monai_diffae"):
        workflow = make_workflow({"max_epochs": 2, "val_interval": 1})
        workflow.run()
    usage = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["z_sem_usage"]
    assert usage < 1.02
    warnings = [record.message for record in caplog.records if "hardly uses z_sem" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"z_sem_usage {usage:.3f}: ")
    assert last_usage(tmp_path / "out") == usage
