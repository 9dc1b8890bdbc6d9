"""The tasks on real scans: answers have the shape, affine and orientation of the scan, and the values of the bundle."""

import io
import json
import shutil
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from label_scans import direction_for, fill, some
from PIL import Image
from tiny_bundles import rewrite

from monai_diffae import EmbeddingIndex, embed, load_bundle, predict
from monai_diffae.apps.command import command
from monai_diffae.apps.study.predict import read_predictors, write_predictors
from monai_diffae.bundle import AnomalyDetector
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.scans import read_scan
from monai_diffae.errors import ConfigError
from monai_diffae.label.tasks import Request, check_keys, option_names, shown_options

SCAN = "hippocampus_001"
FROM_SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "client_id": "user-xyz"}
FROM_OHIF = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "restore_label_idx": False}


def in_native_space(response, source, folder):
    """The NIfTI image of an answer, whose shape and affine are those of the scan."""
    assert response.status_code == 200, response.text
    (folder / "answer.nii.gz").write_bytes(response.content)
    image, scan = nib.load(folder / "answer.nii.gz"), read_scan(source)
    assert image.shape == scan.array.shape[1:]
    np.testing.assert_array_equal(image.affine, scan.affine)
    return image


@pytest.mark.parametrize("id", [SCAN, "series-1"])
def test_maps_are_floats_in_the_space_of_the_scan(id, server_3d, tmp_path):
    trained, source = load_bundle(server_3d.app.folder.bundle, "cpu"), server_3d.studies.source[id]
    image = in_native_space(server_3d.infer("diffae_anomaly_map", id, "image"), source, tmp_path)
    assert image.get_data_dtype() == np.float32
    case = trained.open(source)
    anomaly = AnomalyDetector.load(trained)(case)
    np.testing.assert_allclose(image.get_fdata(), case.back_map(anomaly.map)[0], rtol=1e-5, atol=1e-5)
    figures = server_3d.infer("diffae_anomaly_map", id).json()
    assert figures["score"] == pytest.approx(anomaly.score)
    assert 0 < figures["p_value"] <= 1


def test_masks_are_label_maps_as_viewers_ask_for_them(server_3d, tmp_path):
    sizes = []
    for quantile in (0.5, 0.9, 0.99):
        response = server_3d.infer("diffae_anomaly", "series-1", "image", quantile=quantile, **FROM_OHIF)
        assert response.status_code == 200, response.text
        (tmp_path / "mask.nrrd").write_bytes(response.content)
        image, scan = sitk.ReadImage(str(tmp_path / "mask.nrrd")), read_scan(server_3d.studies.source["series-1"])
        assert image.GetSize() == scan.array.shape[1:]
        np.testing.assert_allclose(read_scan(tmp_path / "mask.nrrd").affine, scan.affine, atol=1e-5)
        assert image.GetPixelIDTypeAsString() == "8-bit unsigned integer"
        values = sitk.GetArrayFromImage(image)
        assert set(np.unique(values)) <= {0, 1}
        sizes.append(int(values.sum()))
    assert sizes[0] > sizes[1] > sizes[2] >= 0
    for quantile in (1.1, "x"):
        assert server_3d.infer("diffae_anomaly", "series-1", quantile=quantile).status_code == 400


def test_a_bundle_that_is_not_calibrated_says_what_to_do(serve, bundle_3d, studies_3d):
    server = serve(bundle_3d, studies_3d)
    file = server.app.folder.bundle / "models" / "anomaly.safetensors"
    content = file.read_bytes()
    file.unlink()
    refused = server.infer("diffae_anomaly", SCAN)
    assert refused.status_code == 400
    assert "run monai-diffae anomaly app-0/bundle SCANS OUT --calibrate-with NORMAL_SCANS" in refused.json()["detail"]
    file.write_bytes(content)  # the server need not be started again
    assert server.infer("diffae_anomaly", SCAN).status_code == 200


def test_x_T_reconstructs_the_scan_in_its_space(server_3d, tmp_path):
    source, errors = server_3d.studies.source[SCAN], {}
    for mode in ("x_T", "z_sem"):
        image = in_native_space(server_3d.infer("diffae_reconstruct", SCAN, "image", mode=mode), source, tmp_path)
        assert image.get_data_dtype() == np.float32
        scan = read_scan(source).array[0]
        inside = image.get_fdata() != scan.min()  # the model's field of view
        assert 0.05 < inside.mean() < 1
        errors[mode] = np.square(image.get_fdata() - scan)[inside].mean()
    assert errors["x_T"] < 0.1 * errors["z_sem"] < np.inf
    assert server_3d.infer("diffae_reconstruct", SCAN, mode="z_sem").json()["mse"] > 0


def test_an_edit_follows_a_stored_direction_of_this_model(serve, bundle_3d, bundle_2d, studies_3d, tmp_path):
    server = serve(bundle_3d, studies_3d)
    folder, source = server.app.folder, studies_3d.source[SCAN]
    refused = server.infer("diffae_edit", SCAN)
    assert (refused.status_code, "fit-direction" in refused.json()["detail"]) == (400, True)
    direction = direction_for(folder.bundle)
    (folder.directions / "age.json").write_text(json.dumps(direction.to_json()))
    (folder.path / "secret.json").write_text(json.dumps(direction.to_json()))
    assert server.client.get("/info/").json()["models"]["diffae_edit"]["config"]["direction"] == ["age"]
    quick = {"max_evaluations": 4}
    prediction = server.infer("diffae_edit", SCAN, direction="age", strength=2, **quick).json()["prediction"]
    moved = np.subtract(prediction["edited"], prediction["scan"])
    np.testing.assert_allclose(moved, 2 * direction.std * direction.slope, rtol=1e-4)
    edited, unchanged, decoded = (
        in_native_space(server.infer("diffae_edit", SCAN, "image", **params, **quick), source, tmp_path).get_fdata()
        for params in ({"strength": 2}, {"strength": 0, "detail": "own"}, {"strength": 0, "detail": "model"})
    )
    scan = read_scan(source).array[0]
    np.testing.assert_array_equal(unchanged, scan)
    assert (decoded != scan).any()
    assert (edited != scan).any()
    (folder.directions / "other.json").write_text(json.dumps(direction_for(bundle_2d).to_json()))
    for name in ("../secret", "/etc/passwd", "secret"):
        response = server.infer("diffae_edit", SCAN, direction=name)
        assert (response.status_code, response.json()["detail"][:11]) == (400, "direction: ")
    assert "another model" in server.infer("diffae_edit", SCAN, direction="other").json()["detail"]


def test_codes_are_those_of_the_bundle(server_3d):
    trained = load_bundle(server_3d.app.folder.bundle, "cpu")
    for id in (SCAN, "series-1"):
        answer = server_3d.infer("diffae_encode", id).json()
        z_sem = trained.open(server_3d.studies.source[id]).z_sem
        np.testing.assert_array_equal(np.float32(answer["z_sem"]), z_sem.numpy())
        assert (answer["slices"], answer["model"]) == ([None], trained.sha256)


def test_labels_are_those_of_predict(serve, bundle_3d, volumes, tmp_path):
    server = serve(bundle_3d, fill(tmp_path / "studies", some(volumes, 2)))
    bundle, cohort = server.app.folder.bundle, tmp_path / "scans.csv"
    rewrite(bundle, data={})  # so wide features can be fitted to any cohort
    labels = {"age": [k * k for k in range(len(volumes))], "sex": ["fm"[k % 2] for k in range(len(volumes))]}
    pd.DataFrame({"id": volumes.keys(), "image": volumes.values(), **labels}).to_csv(cohort, index=False)
    assert "predictor.safetensors" in server.infer("diffae_predict", SCAN).json()["detail"]
    for features in ("z", "wide"):
        table = embed(bundle, cohort, tmp_path / features, features=features, device="cpu")
        options = {"labelled": Path(table), "targets": ["age", "sex"], "device": "cpu"}
        predicted = predict(bundle, cohort, tmp_path / f"predicted_{features}", **options)
        shutil.copy(predicted.predictor, server.app.folder.predictor)
        answer = server.infer("diffae_predict", SCAN).json()
        expected = pd.read_csv(predicted.predictions).set_index("id").loc[SCAN]
        assert answer["sex"] == [expected["sex"]]
        for name in ("age", "age_low", "age_high", "sex_f"):
            assert answer[name] == [pytest.approx(expected[name], rel=1e-4)]
    path = server.app.folder.predictor
    fitted, origin = read_predictors(path)
    write_predictors(path, fitted, {**origin, "model": "0" * 64})
    assert "another model" in server.infer("diffae_predict", SCAN).json()["detail"]


def test_neighbors_are_the_nearest_of_the_datastore(server_3d):
    indexed = EmbeddingIndex(server_3d.app.folder.index).read(load_bundle(server_3d.app.folder.bundle, "cpu"))
    z = (indexed.z_sem - indexed.z_sem.mean(axis=0)) / indexed.z_sem.std(axis=0)
    distances = np.linalg.norm(z - z[indexed.ids.index(SCAN)], axis=1)
    expected = [indexed.ids[i] for i in np.argsort(distances)[1:]]
    neighbors = server_3d.infer("diffae_neighbors", SCAN, k=2).json()["neighbors"]
    assert [each["id"] for each in neighbors] == expected[:2]
    np.testing.assert_allclose([each["distance"] for each in neighbors], np.sort(distances)[1:3], rtol=1e-4)
    assert len(server_3d.infer("diffae_neighbors", SCAN, k=100).json()["neighbors"]) == 3
    assert server_3d.infer("diffae_neighbors", SCAN, k=0).status_code == 400
    nearest = server_3d.upload("diffae_neighbors", server_3d.studies.source[SCAN]).json()["neighbors"][0]
    assert (nearest["id"], nearest["distance"]) == (SCAN, pytest.approx(0, abs=1e-6))


def test_pictures_stay_upright_and_have_masks_as_png(serve, bundle_2d, studies_2d):
    server = serve(bundle_2d, studies_2d)
    id, source = next(iter(studies_2d.source.items()))
    response = server.infer("diffae_reconstruct", id, "image", mode="x_T")
    assert response.headers["content-type"] == "image/png"
    answer = np.asarray(Image.open(io.BytesIO(response.content)), float)
    scan = read_scan(source).array[0]
    assert answer.shape == scan.shape
    correlation, transposed = (np.corrcoef(a.ravel(), scan.ravel())[0, 1] for a in (answer, answer.T))
    assert correlation > 0.8 > transposed
    mask = server.infer("diffae_anomaly", id, "image", result_extension=".png")
    assert (mask.status_code, mask.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(mask.content)).size == scan.shape[::-1]
    assert server.infer("diffae_anomaly_map", id, "image", result_extension=".png").status_code == 400
    assert server.infer("diffae_anomaly_map", id, "image", result_extension=".nrrd").status_code == 200


def test_the_slices_of_a_volume_have_a_code_each_and_become_a_volume_again(serve, bundle_2d, studies_3d, tmp_path):
    server = serve(bundle_2d, studies_3d)
    answer = server.infer("diffae_encode", SCAN).json()
    assert len(answer["z_sem"]) == len(answer["slices"]) > 5
    one = server.infer("diffae_encode", SCAN, slice=answer["slices"][3]).json()
    assert one["z_sem"] == [answer["z_sem"][3]]
    for number, status in ((1000, 422), (-1, 400)):
        assert server.infer("diffae_encode", SCAN, slice=number).status_code == status
    in_native_space(server.infer("diffae_reconstruct", SCAN, "image"), studies_3d.source[SCAN], tmp_path)


def batch(server, model, **params):
    return server.client.post(f"/batch/infer/{model}?run_sync=true", json=params)


def test_batches_are_of_images_of_the_datastore(server_3d):
    assert batch(server_3d, "diffae_encode", images=["series-1"]).json().keys() == {"series-1"}
    assert len(batch(server_3d, "diffae_encode", max_batch_size=2).json()) == 2
    assert len(batch(server_3d, "diffae_encode", max_batch_size=-1).json()) == 4
    assert batch(server_3d, "diffae_encode", max_batch_size=True).status_code == 400
    unknown = batch(server_3d, "diffae_encode", images=["unknown"]).json()["unknown"]
    assert "no image with this id" in unknown["error"]
    assert batch(server_3d, "diffae_encode", label_tag="../../x").status_code == 400


def test_one_broken_image_does_not_end_a_batch_and_masks_become_labels(serve, bundle_3d, studies_3d):
    (studies_3d.folder / "empty.nii.gz").write_bytes(b"")
    server = serve(bundle_3d, studies_3d)
    stock = {"device": "cuda", "multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True,
             "label_tag": "original", "max_workers": 1, "max_batch_size": 0}  # fmt: skip
    results = batch(server, "diffae_anomaly", **stock).json()  # what MONAI Label sends by default
    assert results.keys() == {*studies_3d.source, "empty"}
    assert "the file is empty" in results["empty"]["error"]
    assert all(results[id]["tag"] == "original" for id in studies_3d.source)
    status = server.client.get("/info/").json()["datastore"]
    assert (status["label_tags"], status["completed"]) == ({"original": 4}, 0)


@command
def task(request, *, mode: Literal["fast", "exact"] = "exact", seed: int = 0, limit: int | None = None):
    """A task."""


def test_options_are_the_keyword_arguments_and_what_viewers_send(server_3d):
    assert option_names(task) == ["mode", "seed", "limit"]
    assert shown_options(task) == {"mode": ["exact", "fast"], "seed": 0}
    for sent in (FROM_SLICER, FROM_OHIF, {"label_info": [{"name": "a", "idx": 1}], "label_prompt": [1]}, {"seed": 3}):
        check_keys({"model": "task", "image": "a", **sent}, {"seed"})
    with pytest.raises(ConfigError, match=r"^params: 'result_write_to_file' is unknown; use seed$"):
        check_keys({"result_write_to_file": 1}, {"seed"})
    for suffix in (".exe", "/../x.nii"):
        answer = server_3d.infer("diffae_anomaly_map", SCAN, result_extension=suffix)
        assert (answer.status_code, answer.json()["detail"][:18]) == (400, "result_extension: ")


def test_a_case_is_opened_with_the_sequences_beside_it(sequences, tmp_path):
    trained, cases = load_bundle(sequences.bundle, "cpu"), read_cohort(sequences.cohort)[:2]
    for number, case in enumerate(cases):
        for name, file in case.sequences.items():
            shutil.copy(file, tmp_path / f"p{number}_{name}.nii.gz")
    opened = Request(str(tmp_path / "p1_FLAIR.nii.gz"), "", None, trained, None).open()
    np.testing.assert_array_equal(opened.images, trained.open([*cases[1].sequences.values()]).images)
