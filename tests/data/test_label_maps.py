"""Label maps beside images: by name, and never all scans of a folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_diffae.data.label_maps import find_label_maps


@pytest.mark.parametrize(
    ("images", "label_maps"),
    [
        (["BraTS_001/BraTS_001_t1", "BraTS_001/BraTS_001_flair"], ["BraTS_001/BraTS_001_seg"]),
        (["imagesTr/a_0000", "imagesTs/b_0000"], ["labelsTr/a", "labelsTs/b"]),
        (["benign/benign (1)", "benign/benign (2)"], ["benign/benign (1)_mask", "benign/benign (2)_mask_1"]),
        (["patient001_frame01", "patient001_4d"], ["patient001_frame01_gt"]),
        (["case_1/imaging", "case_2/imaging"], ["case_1/segmentation", "case_2/segmentation"]),
        (["s0001/ct"], ["s0001/segmentations/liver", "s0001/segmentations/spleen"]),
        (["COVID/images/1", "Normal/images/1"], ["COVID/masks/1", "Normal/masks/1"]),
        (
            ["sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_label-x_T2w"],
            ["derivatives/sub-01/anat/sub-01_dseg", "derivatives/sub-01/anat/sub-01_desc-brain_mask",
             "derivatives/sub-01/anat/sub-01_label-GM_probseg"],
        ),
        (["images/ISIC_1", "images/ISIC_2"], ["truth/ISIC_1_segmentation", "truth/ISIC_2_segmentation"]),
        (["a", "other_labels/c", "predictions/a", "lungmask", "with_mask/b", "a_masked"], []),
        (["mask_study_1", "mask_study_2"], []),
        ([], ["a_seg", "b_seg"]),
        ([], ["labels/a", "labels/b"]),
    ],
)  # fmt: skip
def test_label_maps_are_told_from_images(images, label_maps):
    expected = set(label_maps) if images else set()
    assert find_label_maps([*images, *label_maps]) == expected


def test_a_label_map_needs_its_image():
    assert find_label_maps(["a", "b_seg"]) == set()
    assert find_label_maps(["a/x", "b/y_seg"]) == set()


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "images", "masks", "labels", "a_seg", "sub-1_mask", "mask"]), min_size=1, max_size=3)
    .map("/".join),
    min_size=1, unique=True,
)  # fmt: skip


@given(NAMES)
def test_some_scans_always_remain(names):
    assert find_label_maps(names) < set(names)
