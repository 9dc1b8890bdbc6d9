import io
import logging
from types import SimpleNamespace

import pandas as pd
from PIL import Image
from rich.console import Console

from monai_diffae.bundle.model_file import read_description
from monai_diffae.handlers import TrainingProgress, curves
from monai_diffae.pictures.curves import draw_curves


def test_a_training_draws_each_row_of_its_curves_once_and_warns_once_at_its_end(
    make_workflow, tmp_path, caplog, monkeypatch
):
    drawn = []

    def draw(frame, path):
        drawn.append(frame["step"].tolist())
        path.write_bytes(b"")

    monkeypatch.setattr(curves, "draw_curves", draw)
    with caplog.at_level(logging.WARNING, "monai_diffae"):  # what --quiet sets
        workflow = make_workflow({"max_epochs": 3, "val_interval": 2, "report_every": 1, "batch_size": 10})
        workflow.run()
    # the second and the last epoch end with a validation, whose row comes after that of the training
    assert drawn == [[1], [1, 2, 2], [1, 2, 2, 3, 3]]
    usage = workflow.parser.get_parsed_content("validate#evaluator").state.metrics["z_sem_usage"]
    assert usage < 1.02
    (warning,) = [record.message for record in caplog.records if "hardly uses z_sem" in record.message]
    assert warning.startswith(f"z_sem_usage {usage:.3f}: ")
    assert read_description(tmp_path / "out" / "models" / "model.safetensors")["figures"]["z_sem_usage"] == usage
    assert "twins" not in caplog.text


def test_the_curves_have_a_panel_for_probes_if_there_are_any(tmp_path):
    frame = pd.DataFrame({"images_seen": [10, 20], "loss": [1.0, 0.5], "validation_loss": [None, 0.6]})
    draw_curves(frame, tmp_path / "without.png")
    for end, value in (("", 0.7), ("low_of_", 0.6), ("high_of_", 0.8)):
        frame[f"validation_{end}probe_age"] = [None, value]
    draw_curves(frame, tmp_path / "with.png")
    widths = [Image.open(tmp_path / name).width for name in ("without.png", "with.png")]
    assert widths == [1080, 1560]


def test_a_usage_that_is_not_defined_says_why():
    shown, metrics = io.StringIO(), {"loss": 0.5, "z_sem_usage": float("nan")}
    progress = TrainingProgress(console=Console(file=shown))
    progress._show_validation(SimpleNamespace(state=SimpleNamespace(metrics=metrics)))
    assert shown.getvalue() == "validation: loss 0.5  z_sem_usage not defined, as there is no other image\n"
