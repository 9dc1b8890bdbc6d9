import logging

import pandas as pd
import pytest
from PIL import Image

from monai_diffae.bundle.last_metrics import last_usage
from monai_diffae.handlers import curves
from monai_diffae.pictures.curves import draw_curves


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


def test_each_row_of_the_curves_is_drawn_once(make_workflow, tmp_path, monkeypatch):
    drawn = []

    def draw(frame, path):
        drawn.append(frame["step"].tolist())
        draw_curves(frame, path)

    monkeypatch.setattr(curves, "draw_curves", draw)
    make_workflow({"max_epochs": 3, "val_interval": 2, "report_every": 1, "batch_size": 10}).run()
    # the second and the last epoch end with a validation, whose row comes after that of the training
    assert drawn == [[1], [1, 2, 2], [1, 2, 2, 3, 3]]
    assert (tmp_path / "out" / "curves.png").is_file()


def test_the_curves_have_a_panel_for_probes_if_there_are_any(tmp_path):
    frame = pd.DataFrame({"images_seen": [10, 20], "loss": [1.0, 0.5], "validation_loss": [None, 0.6]})
    draw_curves(frame, tmp_path / "without.png")
    for end, value in (("", 0.7), ("low_of_", 0.6), ("high_of_", 0.8)):
        frame[f"validation_{end}probe_age"] = [None, value]
    draw_curves(frame, tmp_path / "with.png")
    widths = [Image.open(tmp_path / name).width for name in ("without.png", "with.png")]
    assert widths == [1080, 1560]
