"""A copy of a real DICOM series with a bright ball in it, and without its patient."""

import numpy as np
import pydicom
from pydicom.uid import generate_uid


def plant_lesion(source, target, radius_mm=5.0):
    """Copy a series of parallel slices, with the series' largest value in a ball; return the new SeriesInstanceUID.

    The middle planes, which viewers show first, cut the ball, but its center is half a radius beside each of them: a
    mask that is flipped along an axis does not lie on it.
    """
    target.mkdir(parents=True)
    slices = [pydicom.dcmread(file) for file in source.glob("*.dcm")]
    normal = np.cross(slices[0].ImageOrientationPatient[:3], slices[0].ImageOrientationPatient[3:])
    slices.sort(key=lambda one: float(np.dot(normal, one.ImagePositionPatient)))
    volume = np.stack([one.pixel_array for one in slices])
    distance = np.linalg.norm(np.subtract(slices[0].ImagePositionPatient, slices[1].ImagePositionPatient))
    spacing = [distance, *(float(value) for value in slices[0].PixelSpacing)]
    brightest = int(np.percentile(volume, 99))
    volume[ball(volume.shape, spacing, radius_mm)] = brightest
    study, series = generate_uid(), generate_uid()
    for number, (one, pixels) in enumerate(zip(slices, volume, strict=True)):
        one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID = study, series, generate_uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PatientName, one.PatientID, one.SeriesDescription = "", "PLANTED", "planted lesion"
        one.InstanceNumber = number + 1
        one.WindowCenter, one.WindowWidth = float(brightest) / 2, float(brightest)
        one.PixelData = pixels.astype(one.pixel_array.dtype).tobytes()
        one.save_as(target / f"{number}.dcm")
    return str(series)


def ball(shape, spacing_mm, radius_mm):
    """A ball half a radius beside the middle of a grid, along each axis, as a mask."""
    grid = np.indices(shape)
    offset = [(axis - n // 2) * mm - radius_mm / 2 for axis, n, mm in zip(grid, shape, spacing_mm, strict=True)]
    return np.sqrt(np.square(offset).sum(0)) <= radius_mm
