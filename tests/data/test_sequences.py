"""Sequences and masks of real patients, kept in the layouts of hospitals and challenges, are the same cases."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dicom_files import make_plane
from scan_files import save_nifti, shared
from scipy.ndimage import binary_erosion
from tiny_bundles import TINY

from monai_diffae.bundle.loading import load_untrained
from monai_diffae.data.cases import Case, assign_splits
from monai_diffae.data.cohort_split import ModelImages, split_cohort
from monai_diffae.data.cohorts import read_cohort
from monai_diffae.data.inspection.listing import list_cases, write_listing
from monai_diffae.data.scans import on_grid, read_scan
from monai_diffae.data.sequences import choose_sequences
from monai_diffae.errors import CohortError, ScanError
from monai_diffae.transforms import ReadScand

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module", params=["made", "lgg_mri_128"])
def patients(request):
    """Three sequences ``[X, Y, Z, 3]`` and a lesion mask for each of six patients."""
    if request.param == "made":
        random = np.random.default_rng(0)
        images = {f"CS{k}": random.integers(1, 200, (16, 18, 6, 3), dtype=np.uint8) for k in range(6)}
        return {name: (image, (image[..., 1] > 180).astype(np.uint8)) for name, image in images.items()}
    folder = shared(request.param)
    files = sorted((folder / "imagesTr").iterdir())[:6]
    found = {}
    for file in files:
        paths = file, folder / "labelsTr" / file.name
        image, mask = (read_scan(path).array[:, 24:104:4, 24:104:4, 5:13] for path in paths)
        name = "".join(file.name.split("_")[1:3])
        found[name] = np.moveaxis(image, 0, -1).astype(np.uint8), mask[0].astype(np.uint8)
    return found


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_nifti(path, array, AFFINE)


def save_all(patients, image, mask):
    """Write a file per sequence, and the mask, whose names are patterns of the patient ``p`` and the sequence ``k``."""
    for name, (sequences, lesion) in patients.items():
        for k in range(3):
            save(image(name, k), sequences[..., k])
        save(mask(name), lesion)


def write_msd(root, patients):
    for name, (sequences, lesion) in patients.items():
        save(root / "imagesTr" / f"{name}.nii.gz", sequences)
        save(root / "labelsTr" / f"{name}.nii.gz", lesion)
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "T1", "1": "FLAIR", "2": "T1c"}}))


def write_nnunet(root, patients):
    save_all(patients, lambda p, k: root / f"imagesTr/{p}_000{k}.nii.gz", lambda p: root / f"labelsTr/{p}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR", "2": "T1c"}}))


def write_brats(root, patients):
    ends = ("t1", "flair", "t1c")
    save_all(patients, lambda p, k: root / p / f"{p}-{ends[k]}.nii.gz", lambda p: root / p / f"{p}-seg.nii.gz")


def write_folders(root, patients):
    names = ("T1", "FLAIR", "T1c")
    save_all(patients, lambda p, k: root / p / f"{names[k]}.nii.gz", lambda p: root / p / "lesion.nii.gz")


def write_bids(root, patients):
    ends = ("T1w", "FLAIR", "ce-gd_T1w")
    save_all(
        patients,
        lambda p, k: root / f"sub-{p}/anat/sub-{p}_{ends[k]}.nii.gz",
        lambda p: root / f"derivatives/lesions/sub-{p}/anat/sub-{p}_label-lesion_mask.nii.gz",
    )


def write_datalist(root, patients):
    save_all(patients, lambda p, k: root / f"files/{p}_{k}.nii.gz", lambda p: root / f"masks/{p}.nii.gz")
    entries = [{"image": [f"files/{p}_{k}.nii.gz" for k in range(3)], "label": f"masks/{p}.nii.gz"} for p in patients]
    (root / "datalist.json").write_text(json.dumps(entries))


def write_dicom(root, patients):
    for name, (sequences, _) in patients.items():
        for k in range(3):
            folder = root / name / f"series{k}"
            folder.mkdir(parents=True)
            uid = f"1.2.{ord(name[-1])}.{k}"
            tags = {"PatientID": name, "StudyInstanceUID": f"1.9.{name[2:].encode().hex()[:4]}", "Modality": "MR"}
            tags |= {"SeriesInstanceUID": uid, "SeriesDescription": ("T1", "FLAIR", "T1c")[k]}
            for z in range(sequences.shape[2]):
                stored = sequences[:, ::-1, z, k].T.astype(np.int16)
                tags |= {"stored": stored, "SOPInstanceUID": f"{uid}.{z}"}
                make_plane((0.0, 0.0, 3.0 * z), number=z + 1, **tags).save_as(folder / f"{z}.dcm")


LAYOUTS = {
    "msd": (write_msd, ("T1", "FLAIR", "T1c")),
    "nnunet": (write_nnunet, ("T1", "FLAIR", "T1c")),
    "brats": (write_brats, ("t1", "flair", "t1c")),
    "folders": (write_folders, ("T1", "FLAIR", "T1c")),
    "bids": (write_bids, ("T1w", "FLAIR", "ce-gd_T1w")),
    "datalist": (write_datalist, ("channel0", "channel1", "channel2")),
    "dicom": (write_dicom, ("T1", "FLAIR", "T1c")),
}


@pytest.fixture(scope="module")
def layouts(patients, tmp_path_factory):
    """The cohort of each layout, by its name: a folder or a datalist."""
    root = tmp_path_factory.mktemp("layouts")
    for name, (write, _) in LAYOUTS.items():
        (root / name).mkdir()
        write(root / name, patients)
    return {name: root / name / ("datalist.json" if name == "datalist" else "") for name in LAYOUTS}


def rows(cases, sequences):
    """Each case's patient and voxels, by its id without BIDS' ``sub-``."""
    return {
        case.id.removeprefix("sub-"): (
            case.patient.removeprefix("sub-"),
            [read_scan(case.sequences[name]).array[0].tolist() for name in sequences],
            case.mask and read_scan(case.mask).array[0].tolist(),
        )
        for case in cases
    }


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "dicom"])
def test_the_layouts_have_the_same_rows(layouts, patients, layout, tmp_path):
    sequences = LAYOUTS[layout][1]
    expected = {
        name: (name, [image[..., k].tolist() for k in range(3)], mask.tolist())
        for name, (image, mask) in patients.items()
    }
    listing = list_cases(layouts[layout])
    assert rows(listing.cases, sequences) == expected
    assert rows(read_cohort(layouts[layout]), sequences) == expected
    assert rows(read_cohort(write_listing(listing, tmp_path / "scans.csv")), sequences) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_patient_is_in_two_of_the_same_splits(layouts, patients, layout):
    names = LAYOUTS[layout][1]
    for seed in range(50):
        cohort = split_cohort(
            layouts[layout], 3, images=ModelImages(names), val_fraction=0.3, test_fraction=0.3, seed=seed
        )
        ids = sorted({case.patient for case in cohort.cases})
        drawn = assign_splits([Case(i, {}, i) for i in ids], val_fraction=0.3, test_fraction=0.3, seed=seed)
        assert {case.patient: case.split for case in cohort.cases} == {case.patient: case.split for case in drawn}
        assert len(ids) == len(cohort.cases) == len(patients)


def test_series_of_a_study_are_sequences_of_a_patient(layouts, patients):
    cases = list_cases(layouts["dicom"]).cases
    found = [[read_scan(case.sequences[name]).array.sum() for name in LAYOUTS["dicom"][1]] for case in cases]
    assert found == [[image[..., k].sum() for k in range(3)] for image, _ in patients.values()]


def test_z_sem_is_the_same_to_the_bit(layouts):
    model = load_untrained("diffae_2d", "cpu", {**TINY, "in_channels": 3}, seed=1)
    codes = []
    for layout in ("msd", "nnunet", "brats", "folders"):
        cases, _ = choose_sequences(read_cohort(layouts[layout]), LAYOUTS[layout][1])
        codes.append([model.open(list(map(str, case.images["image"])), slice=4).z_sem for case in cases])
    assert all(torch.equal(torch.cat(code), torch.cat(codes[0])) for code in codes)


PATIENTS = ("11", "12", "13")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p1/T1", "p2/T1", "p2/FLAIR", "p3/T1"], {"p1": ["T1"], "p2": ["FLAIR", "T1"], "p3": ["T1"]}),
        (["p1_T1", "p2_T1", "p2_FLAIR", "p3_T1"], {"p1": ["T1"], "p2": ["FLAIR", "T1"], "p3": ["T1"]}),
        (["T1/p1", "T1/p2", "FLAIR/p1", "FLAIR/p2_FLAIR"], {"p1": ["FLAIR", "T1"], "p2": ["FLAIR", "T1"]}),
        (
            ["sub-1_T1w", "sub-1_FLAIR", "extra/p2_CT", "extra/p2_MR_T1", "extra/p2_MR_T2"],
            {"sub-1": ["FLAIR", "T1w"], "p2": ["CT", "MR_T1", "MR_T2"]},
        ),
        (["p1/p1_T1w", "p1/p1_FLAIR", "p1/p1_x"], {"p1": ["FLAIR", "T1w", "x"]}),
        (["p1", "p1_T1", "p1_FLAIR"], {"p1": ["image", "FLAIR", "T1"]}),
        (["p1/mri/orig", "p1/mri/T1", "p1/mri/aparc+aseg", "p1/mri/filled"], {"mri": ["T1", "orig"]}),
        (["T1_p0", "T1_p1", "ct_p0", "ct_p1"], {"p0": ["T1", "ct"], "p1": ["T1", "ct"]}),
        (["benign/Ann T1", "benign/Bob FLAIR", "malignant/Cy T1"], {"Ann T1": [], "Bob FLAIR": [], "Cy T1": []}),
    ],
)  # fmt: skip
def test_odd_folders(scans, names, expected):
    cases = list_cases(scans(*(f"{name}.nii.gz" for name in names))).cases
    assert {case.id: [*case.sequences] for case in cases} == expected


@pytest.mark.parametrize(
    "names",
    [
        ("site1_0001", "site1_0002", "site2_0001"), ("p1_2019", "p1_2020", "p2_2019", "p2_2020"),
        [f"grade{grade}/{name}" for grade in range(5) for name in ("ann", "bob")],
    ],
)  # fmt: skip
def test_counters_and_people_are_no_sequences(scans, names):
    cases = list_cases(scans(*(f"{name}.nii.gz" for name in names))).cases
    assert [case.id for case in cases] == [*names]
    assert not any(case.sequences for case in cases)


def test_timepoints_of_brats_are_of_one_patient(scans):
    names = [f"BraTS-GLI-00001-00{k}/BraTS-GLI-00001-00{k}-{s}.nii.gz" for k in (0, 1) for s in ("t1n", "t2f")]
    assert [case.patient for case in read_cohort(scans(*names))] == ["BraTS-GLI-00001"] * 2


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}", "{}_mask"), ("{}", "masks/{}"), ("T1/{}", "masks/{}"), ("imagesTr/{}_0000", "labelsTr/{}"),
        ("volume-{}", "segmentation-{}"), ("{}/ct", "{}/mask"), ("{}_image", "{}_label"),
    ],
)  # fmt: skip
def test_each_mask_is_its_scans(scans, image, mask):
    folder = scans(*(f"{name.format(p)}.nii.gz" for p in PATIENTS for name in (image, mask)))
    cases = list_cases(folder).cases
    assert [case.mask for case in cases] == [folder / f"{mask.format(p)}.nii.gz" for p in PATIENTS]


def test_masks_without_scans_and_scans_without_masks_are_counted(scans):
    listing = list_cases(scans("p1.nii", "p1_mask.nii", "p2.nii", "p9_mask.nii"))
    assert [case.id for case in listing.cases] == ["p1", "p2"]
    assert "1 of 2 scans without a mask" in listing.notes
    assert any(note.startswith("masks are left out") and "1, e.g. p9_mask" in note for note in listing.notes)


def test_a_mask_beside_sequences_is_found_by_its_values(tmp_path):
    for p in PATIENTS:
        for name in ("t2", "adc", "t2_tumor_reader1"):
            lesion = np.pad(np.full((2, 2, 2), p != "13", np.uint8), 2)  # the last patient has none
            save(tmp_path / p / f"{name}.nii.gz", lesion if "tumor" in name else None)
    listing = list_cases(tmp_path)
    found = [([*case.sequences], case.mask.name) for case in listing.cases]
    assert found == [(["adc", "t2"], "t2_tumor_reader1.nii.gz")] * 3
    assert any(note.startswith("t2_tumor_reader1: its voxels") for note in listing.notes)


def test_a_mask_named_after_a_scan_comes_before_others_in_its_folder(scans):
    (case,) = list_cases(scans("sub/b.nii", "sub/b_mask.nii", "sub/a2_mask.nii")).cases
    assert case.mask.name == "b_mask.nii"


def test_numbers_of_4d_files_are_no_channels(tmp_path):
    for n in range(3):
        save(tmp_path / f"BRATS_000{n}.nii.gz", np.ones((4, 4, 4, 4)))
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": dict(enumerate("abcd"))}))
    assert [[*case.sequences] for case in list_cases(tmp_path).cases] == [[*"abcd"]] * 3


def test_scans_without_named_sequences_are_taken_for_the_only_one(scans, caplog):
    cases = read_cohort(scans("p1.nii", "p2.nii"))
    assert choose_sequences(cases, ["image"]) == (cases, [])
    assert choose_sequences(cases, ["FLAIR"]) == (cases, [])
    assert "each one is taken for FLAIR" in caplog.text
    with pytest.raises(CohortError, match="no case has FLAIR"):
        choose_sequences(cases, ["FLAIR", "T1"])


def test_a_sequence_that_is_given_twice_is_refused(scans):
    with pytest.raises(CohortError, match="FLAIR is given twice"):
        choose_sequences(read_cohort(scans("p1_T1.nii", "p1_FLAIR.nii")), ["FLAIR", "flair"])


def test_a_volume_without_a_mask_in_any_slice_is_a_failure(tmp_path):
    for p in PATIENTS:
        save(tmp_path / f"{p}.nii", None)
        save(tmp_path / f"{p}_mask.nii", np.full((5, 6, 7), p != "11", np.uint8))
    (tmp_path / "12_mask.nii").write_bytes(b"x")
    cohort = split_cohort(tmp_path, images=ModelImages(region="mask"))
    assert [failure.case_id for failure in cohort.failures] == ["11", "12"]


def test_a_case_without_a_sequence_is_a_failure(scans):
    cases = read_cohort(scans("p1/T1.nii", "p2/T1.nii", "p2/FLAIR.nii"))
    chosen, failures = choose_sequences(cases, ["flair", "T1"])
    assert [case.id for case in chosen] == ["p2"]
    assert [(each.case_id, each.reason) for each in failures] == [
        ("p1", "has no FLAIR; add its file, or choose other sequences")
    ]


def test_a_time_series_is_refused(tmp_path):
    path = save(tmp_path / "bold.nii.gz", np.random.default_rng(0).random((4, 4, 4, 40)))
    with pytest.raises(ScanError, match="a time series of 40 volumes; choose one of them, with #channel=0"):
        read_scan(path)


def modalities():
    folder = shared("sts_ct_pet_mr")
    return [folder / "STS_001" / f"{name}_image.nii.gz" for name in ("CT", "PET", "MR_T1")]


def test_sequences_are_resampled_to_the_first_as_simpleitk_does():
    sitk = pytest.importorskip("SimpleITK")
    files = modalities()
    images = ReadScand("image", 3, 3)({"image": list(map(str, files))})["image"].numpy()
    target, *others = (sitk.ReadImage(str(file), sitk.sitkFloat32) for file in files)
    assert np.array_equal(images[0], sitk.GetArrayFromImage(target).T)
    for image, other in zip(images[1:], others, strict=True):
        # SimpleITK continues an image by half a voxel beyond the centres of its outermost ones
        expected = sitk.GetArrayFromImage(sitk.Resample(other, target, sitk.Transform(), sitk.sitkLinear, -1e6)).T
        within = binary_erosion(expected > -1e5, iterations=4)
        assert within.mean() > 0.2
        assert np.abs(image - expected)[within].max() < 1e-3 * np.ptp(expected[within])


def test_other_grids_are_refused_on_request_or_if_they_lie_outside(tmp_path):
    ct, pet, _ = map(read_scan, modalities())
    with pytest.raises(
        ScanError, match=r"its size or position is not that of the first image \(41 x 43 x 59, 198 x 202 x 59\)"
    ):
        on_grid("pet.nii.gz", pet, ct, "refuse")
    far = pet.affine + np.eye(4, k=3) * 9000
    with pytest.raises(ScanError, match="it lies outside of the first image"):
        on_grid("pet.nii.gz", replace(pet, affine=far), ct)


def test_folders_with_the_same_files_are_cases(scans):
    names = [f"{patient}/{name}.nii" for patient in ("ann", "bob") for name in ("T1", "ax_FLAIR", "sag_FLAIR")]
    cases = list_cases(scans(*names)).cases
    assert [(case.id, sorted(case.sequences)) for case in cases] == [
        (patient, ["T1", "ax_FLAIR", "sag_FLAIR"]) for patient in ("ann", "bob")
    ]
