import numpy as np

from monai_diffae.pictures.probes import calibration_bins


def test_equal_predictions_of_a_number_are_one_calibration_point():
    truth = np.arange(40.0)
    predicted, mean = calibration_bins(np.full(40, 5.0), truth, is_class=False)
    assert (predicted.tolist(), mean.tolist()) == ([5.0], [19.5])
    predicted, mean = calibration_bins(truth, truth, is_class=False)
    assert len(predicted) > 1
    np.testing.assert_allclose(predicted, mean)
