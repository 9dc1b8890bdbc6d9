"""DICOM files of every kind, made with pydicom from a function of space."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = tuple(np.round(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 2)))[0].T.ravel(), 12))
ROWS, COLUMNS, SPACING = 14, 10, (0.75, 0.5)
"""The size of each plane, and the distance between rows and between columns in mm."""


def normal(orientation):
    return np.cross(orientation[:3], orientation[3:])


def positions(orientation=AXIAL, n=5, step=2.0, tilt=0.0):
    """Where n planes begin, in LPS; with ``tilt`` they move ``tilt`` mm along their columns from each to the next."""
    across = step * normal(orientation) + tilt * np.array(orientation[3:])
    return np.array([-31.5, 12.25, 40.0]) + np.arange(n)[:, None] * across


def points(position, orientation):
    """Where the voxels ``[rows, columns]`` of a plane lie, in LPS: the formula of DICOM PS3.3 C.7.6.2.1.1."""
    row, column = np.indices((ROWS, COLUMNS))
    along, down = np.array(orientation[:3]) * SPACING[1], np.array(orientation[3:]) * SPACING[0]
    return np.array(position) + column[..., None] * along + row[..., None] * down


def ramp(place):
    """A value for each point in space, whole numbers and different everywhere nearby."""
    return np.round(500 + place @ np.array([7.0, -3.0, 11.0]))


def make_plane(position, orientation=AXIAL, number=1, **tags):
    """One slice of :func:`ramp`; ``tags`` are set last, those that are None taken away.

    ``little_endian=False`` is no tag: the file is big-endian.
    """
    meta = FileMetaDataset()
    is_little = tags.pop("little_endian", True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    # pydicom 2 writes in this encoding, whatever the transfer syntax says
    encoding = {"is_implicit_VR": False, "is_little_endian": is_little}
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128), **encoding)
    stored = tags.pop("stored", None)
    pixels = ramp(points(position, orientation)) if stored is None else np.asarray(stored)
    fixed = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"1.2.3.{number}", "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.9", "Modality": "CT", "PatientName": "Planted^Name",
        "PatientID": "MRN-0042", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesNumber": 7,
        "InstanceNumber": number, "ImagePositionPatient": [f"{v:.10g}" for v in position],
        "ImageOrientationPatient": [f"{v:.12g}" for v in orientation], "PixelSpacing": list(SPACING),
        "SliceThickness": 1.5, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2], "Columns": pixels.shape[-1], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
        "PixelRepresentation": 1, "WindowCenter": 40, "WindowWidth": 400,
        "PixelData": pixels.astype(np.int16).tobytes(),
    }  # fmt: skip
    for keyword, value in {**fixed, **tags}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def save_planes(folder, places, orientation=AXIAL, change=lambda k, dataset: None, **tags):
    """A series whose files are named in an order of their own; ``change`` sees each slice before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(3).permutation(len(places))
    for k, place in enumerate(places):
        dataset = make_plane(place, orientation, k + 1, **tags)
        change(k, dataset)
        dataset.save_as(folder / f"{names[k]:03d}.dcm")
    return folder


def save_series(folder, n=5, uid="1.2.3", prefix="", patient="MRN-0042", suffix=".dcm", modality="CT"):
    """A series of 4 x 6 pixels, 2 mm apart, whose slice k has values from 100 k on; files are named backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        stored = np.arange(4 * 6).reshape(4, 6) + 100 * k
        tags = {
            "SeriesInstanceUID": uid,
            "SOPInstanceUID": f"{uid}.{k + 1}",
            "PatientID": patient,
            "Modality": modality,
        }
        plane = make_plane((0.0, 0.0, 2.0 * k), number=k + 1, stored=stored, **tags)
        plane.save_as(folder / f"{prefix}{n - k:03d}{suffix}")
    return folder


def save_enhanced(path, places, orientation=AXIAL, slopes=None):
    """An enhanced MR file with a frame of :func:`ramp` at each place."""
    pixels = np.stack([ramp(points(p, orientation)) for p in places])
    meta = {"Modality": "MR", "SOPClassUID": EnhancedMRImageStorage, "ImagePositionPatient": None}
    absent = dict.fromkeys(["ImageOrientationPatient", "PixelSpacing", "SliceThickness"])
    dataset = make_plane(places[0], orientation, stored=pixels, NumberOfFrames=len(places), **meta, **absent)
    dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[f"{v:.12g}" for v in orientation])]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=list(SPACING), SliceThickness=1.5)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k, place in enumerate(places):
        frame = _item(PlanePositionSequence=[_item(ImagePositionPatient=[f"{v:.10g}" for v in place])])
        slope = 1.0 if slopes is None else slopes[k]
        frame.PixelValueTransformationSequence = [_item(RescaleSlope=slope, RescaleIntercept=5, RescaleType="US")]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(path)
    return path


def _item(**tags):
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def misplaced(array, affine, *, intercept=0.0, where=None):
    """How far, at most, the values of ``[X, Y, Z]`` are from those of :func:`ramp` where the affine says they lie."""
    index = np.stack([*np.indices(array.shape), np.ones(array.shape)], axis=-1)
    place = (index @ affine.T)[..., :3] * [-1, -1, 1]  # RAS to LPS
    wrong = np.abs(array - ramp(place) - intercept)
    return float(wrong.max() if where is None else wrong[where].max())
