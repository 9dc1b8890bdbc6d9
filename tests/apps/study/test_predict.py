"""``predict``: labels of new scans, from labelled ones or from the file of a fitted model."""

import pandas as pd
import pytest

from monai_diffae import predict
from monai_diffae.apps.study.predict import read_predictors
from monai_diffae.errors import ConfigError


@pytest.fixture(scope="module")
def predicted(labelled, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted")
    targets = ["wide", "ventricles"]
    return predict(labelled.bundle, labelled.cohort, out, labelled=labelled.embeddings, targets=targets, device="cpu")


def test_each_scan_has_a_class_with_probabilities_and_a_number_with_an_interval(predicted):
    rows = pd.read_csv(predicted.predictions)
    of_class = ["wide", "wide_no", "wide_yes", "wide_doubt"]
    assert list(rows) == ["id", *of_class, *(f"ventricles{end}" for end in ("", "_low", "_high", "_doubt"))]
    assert (rows["wide_no"] + rows["wide_yes"]).to_numpy() == pytest.approx(1)
    assert ((rows["wide_yes"] > 0.5) == (rows["wide"] == "yes")).all()
    assert rows["ventricles"].between(rows["ventricles_low"], rows["ventricles_high"]).all()
    assert rows["wide_doubt"].str.startswith("is a labelled scan").all()
    assert predicted.doubts["wide"] == {"unlike the labelled scans": 0, "is a labelled scan": len(rows)}
    assert 0 <= predicted.scores["wide"]["low"] <= predicted.scores["wide"]["score"] <= 1
    assert any("wide: expect AUROC" in note for note in predicted.notes)


def test_the_file_of_a_predictor_predicts_the_same(predicted, labelled, tmp_path):
    again = predict(labelled.bundle, labelled.cohort, tmp_path, labelled=predicted.predictor, device="cpu")
    pd.testing.assert_frame_equal(pd.read_csv(again.predictions), pd.read_csv(predicted.predictions))
    one = predict(
        labelled.bundle, labelled.cohort, tmp_path, labelled=predicted.predictor, targets=["wide"], overwrite=True
    )
    assert list(one.scores) == ["wide"]
    with pytest.raises(ConfigError, match="^targets: predictor.safetensors has no 'age'"):
        predict(labelled.bundle, labelled.cohort, tmp_path / "no", labelled=predicted.predictor, targets=["age"])
    again.predictor.write_bytes(predicted.predictor.read_bytes()[:-1] + b"?")  # in a number
    with pytest.raises(ConfigError, match="is damaged"):
        read_predictors(again.predictor)


def test_another_model_or_preprocessing_is_refused(predicted, labelled, tiny_bundle, tmp_path):
    with pytest.raises(ConfigError, match="^labelled: predictor.safetensors is of another model"):
        predict(tiny_bundle.directory, labelled.cohort, tmp_path / "other", labelled=predicted.predictor)
    with pytest.raises(ConfigError, match="^labelled: predictor.safetensors is of scans that were preprocessed"):
        predict(
            labelled.bundle,
            labelled.cohort,
            tmp_path / "changed",
            labelled=predicted.predictor,
            overrides={"percentiles": [5, 95]},
            device="cpu",
        )
