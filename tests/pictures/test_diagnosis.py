import pandas as pd
from matplotlib.figure import Figure

from monai_diffae.pictures import draw_diagnosis


def test_a_ratio_of_1_looks_like_1(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure) or save(figure, *a, **k))
    stability = pd.DataFrame({"change": ["noise"], "ratio": [0.1], "ratio_90": [0.2], "rank_1": [1.0]})
    for ratios in ([1 + 1.6e-5, 1 + 2e-6], [0.9, 1.6]):
        losses = {"timestep": [250, 750], "loss_own": [1.0, 1.0], "loss_mean": ratios, "loss_other": ratios}
        levels = pd.DataFrame({**losses, "z_sem_usage": ratios, "z_sem_usage_mean": ratios})
        draw_diagnosis(levels, stability, tmp_path / "diagnosis.png")
    flat, steep = (figure.axes[1] for figure in drawn)
    assert flat.get_ylim() == (0.99, 1.05)
    assert flat.yaxis.get_major_formatter().get_offset() == ""
    assert "1.00" in [label.get_text() for label in flat.get_yticklabels()]
    lowest, highest = steep.get_ylim()
    assert lowest < 0.9
    assert highest > 1.6
