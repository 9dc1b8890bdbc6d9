import json

import pandas as pd
import pytest

from monai_diffae.apps.synthesis.direction_files import read_direction
from monai_diffae.apps.synthesis.edit import edit
from monai_diffae.apps.synthesis.fit_direction import fit_direction
from monai_diffae.apps.synthesis.generate import generate
from monai_diffae.apps.synthesis.grade import grade
from monai_diffae.errors import ConfigError


def test_a_damaged_direction_is_one_line(labelled, tmp_path):
    whole = labelled.direction.read_text()
    for name, content in {
        "half": whole[:100],
        "empty": "",
        "list": "[1]",
        "lacks": json.dumps({**json.loads(whole), "weight": None}),
    }.items():
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(ConfigError, match=f"^{name}.json: ") as caught:
            read_direction(tmp_path / f"{name}.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no\.json: there is no such file; make it with monai-diffae fit-direction"):
        read_direction(tmp_path / "no.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="^folder: is a folder; give the direction file in it"):
        read_direction(tmp_path / "folder")


def other_model(changed, table, fault):
    """Embeddings of another model: z_sem of other statistics, or of another size."""
    path = changed("other", z_000=3 * table["z_000"] + 1)
    other = pd.read_parquet(path)
    other.attrs["monai_diffae"]["made_from"]["model"] = "0" * 64
    (other.drop(columns="z_007") if fault == "size" else other).to_parquet(path)
    record = json.loads(path.with_suffix(".json").read_text())
    record["made_from"]["model"] = "0" * 64
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("use", ["grade", "edit", "generate"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [("statistics", "was fitted to another model"), ("size", "is for z_sem of 7 numbers, but this model has 8")],
)
def test_a_direction_of_another_model_is_refused(
    labelled, latent_bundle, table, changed, tmp_path, use, fault, message
):
    direction = tmp_path / "d.json"
    fitted = fit_direction(other_model(changed, table, fault), direction, target="wide").direction
    own = read_direction(labelled.direction).statistics
    assert fitted.statistics.std[0] == pytest.approx(3 * own.std[0], rel=1e-4)
    uses = {
        "grade": lambda: grade(labelled.embeddings, tmp_path / "out.csv", direction=direction),
        "edit": lambda: edit(labelled.bundle, labelled.cohort, tmp_path / "out", direction=direction, device="cpu"),
        "generate": lambda: generate(latent_bundle, tmp_path / "out", direction=direction, device="cpu"),
    }
    with pytest.raises(ConfigError, match=f"^direction 'wide': {message}"):
        uses[use]()
    assert not list(tmp_path.glob("out*"))
