"""DICOM radiographs to arrays; needs the extra `dicom` (pydicom)."""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from transferseg.errors import DataError, unknown_name
from transferseg.types import Array

#: Which values an image is read as: what a viewer shows, or all that is stored.
DicomValues: TypeAlias = Literal["window", "stored"]

_Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DicomHeader:
    """What a file says before its pixels.

    Attributes:
        size: height and width in pixels.
        patient: Patient ID, "" when there is none.
    """

    size: tuple[int, int]
    patient: str


def dicom_header(path: str | Path) -> DicomHeader:
    """Size and patient of a DICOM file, without reading its pixels.

    Raises:
        DataError: pydicom is not installed; a file that is missing, not DICOM, or has no image.
    """
    dataset = _open(path, ["Rows", "Columns", "PatientID"])
    size = _whole(dataset, "Rows", path), _whole(dataset, "Columns", path)
    return DicomHeader(size, str(dataset.get("PatientID") or ""))


def read_dicom(path: str | Path, *, values: DicomValues = "window") -> Array:
    """Read one greyscale image from a DICOM file, as bright as it is meant to be seen.

    The stored numbers (the lower `BitsStored` bits, signed or not) go through the modality look-up
    table or rescale slope and intercept, then through the first VOI look-up table or window; white
    is high, MONOCHROME1 is turned over. The result is stretched so that the darkest value that the
    file can show is 0 and the brightest is the dtype's largest: the image's own minimum and maximum
    play no part.

    Args:
        path: one frame, MONOCHROME1 or MONOCHROME2, up to 16 bits a pixel. Compressed files need
            pydicom's plugins (`pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg`).
        values: "window" as above (without a window: all of the rescaled range); "stored" leaves out
            rescaling and window, so that 0 to `2**BitsStored - 1` fill the range.

    Returns:
        (H, W): uint8 for up to 8 bits stored, uint16 else.

    Raises:
        DataError: pydicom is not installed; a file that is missing, not DICOM, damaged or in
            colour, has several frames or a compression without decoder; a window or
            look-up table that means nothing. The message names the file.

    Source: DICOM PS3.3, C.11.1 (modality look-up table) and C.11.2 (VOI, window functions).

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from pydicom import Dataset, FileMetaDataset
        >>> from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
        >>> header = Dataset()
        >>> header.file_meta = FileMetaDataset()
        >>> header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        >>> header.SOPClassUID = ComputedRadiographyImageStorage
        >>> header.set_pixel_data(np.array([[0, 4095]], np.uint16), "MONOCHROME1", 12)
        >>> path = Path(tempfile.mkdtemp()) / "x.dcm"
        >>> header.save_as(path, enforce_file_format=True)
        >>> read_dicom(path).tolist()
        [[65535, 0]]
    """
    if values not in get_args(DicomValues):
        raise DataError(unknown_name("values", values, get_args(DicomValues)))
    dataset = _open(path)
    bits, signed = _check_kind(dataset, path)
    # Everything is a function of the stored number: done once for each, not for each pixel.
    codes = np.arange(2**bits)
    numbers = np.where(codes < 2 ** (bits - 1), codes, codes - 2**bits) if signed else codes
    shown = _shown(dataset, numbers, path) if values == "window" else _stretched(numbers)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1.0 - shown
    dtype = np.uint8 if bits <= 8 else np.uint16
    table = np.rint(shown * np.iinfo(dtype).max).astype(dtype)
    pixels = _decoded(dataset, path)
    image: Array = table[pixels.astype(np.int32) & (2**bits - 1)]  # the bits above mean nothing
    return image


def require_pydicom(path: str | Path) -> Any:  # noqa: ANN401 - a module
    """The module pydicom, which reading `path` needs.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataError(
            f"{path}: reading DICOM needs pydicom: pip install 'transferseg[dicom]'."
        ) from error
    return pydicom


def _open(path: str | Path, only: list[str] | None = None) -> Any:  # noqa: ANN401 - FileDataset
    """The whole file, or only some elements of its header."""
    pydicom = require_pydicom(path)
    try:
        return pydicom.dcmread(path, stop_before_pixels=only is not None, specific_tags=only)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except Exception as error:  # what pydicom raises on damage is not limited to its own errors
        raise DataError(f"{path}: not a DICOM file that can be read ({error}).") from error


def _whole(dataset: Any, keyword: str, path: str | Path) -> int:  # noqa: ANN401 - pydicom.Dataset
    value = dataset.get(keyword)
    if not isinstance(value, int) or value < 1:
        raise DataError(f"{path}: {keyword} is {value!r}; expected a DICOM file with an image.")
    return int(value)


def _check_kind(dataset: Any, path: str | Path) -> tuple[int, bool]:  # noqa: ANN401
    """Bits stored, and whether the numbers are signed, of an image of a readable kind."""
    kind = dataset.get("PhotometricInterpretation")
    frames, samples = dataset.get("NumberOfFrames") or 1, dataset.get("SamplesPerPixel") or 1
    if kind not in ("MONOCHROME1", "MONOCHROME2") or frames != 1 or samples != 1:
        raise DataError(
            f"{path}: {frames} frame(s) of {kind}, {samples} sample(s) a pixel; expected one frame "
            "of MONOCHROME1 or MONOCHROME2."
        )
    allocated, bits = (_whole(dataset, f"Bits{name}", path) for name in ("Allocated", "Stored"))
    high = dataset.get("HighBit", bits - 1)
    if allocated not in (8, 16) or bits > allocated or high != bits - 1:
        raise DataError(
            f"{path}: {bits} of {allocated} bits stored, the highest at {high}; expected up to 16, "
            "the highest one below their number."
        )
    return bits, dataset.get("PixelRepresentation") == 1


def _decoded(dataset: Any, path: str | Path) -> Array:  # noqa: ANN401
    try:
        pixels: Array = dataset.pixel_array
    except Exception as error:  # decoders are plugins, which raise what they like
        syntax = getattr(dataset.file_meta.get("TransferSyntaxUID"), "name", "unknown")
        reason = " ".join(str(error).split())  # it has line breaks
        raise DataError(
            f"{path}: the pixels (transfer syntax {syntax!r}) cannot be decoded: {reason} Fetch a "
            "damaged file again; a compressed one needs a plugin, such as pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg."
        ) from error
    return pixels


def _stretched(values: _Floats) -> _Floats:
    """Values as 0..1 between their smallest and their largest."""
    low, high = float(values.min()), float(values.max())
    stretched: _Floats = (values - low) / (high - low)
    return stretched


def _shown(dataset: Any, numbers: _Floats, path: str | Path) -> _Floats:  # noqa: ANN401
    """What a viewer shows for stored numbers, 0 (darkest) to 1."""
    from pydicom.pixels import apply_modality_lut

    try:
        values: _Floats = apply_modality_lut(numbers, dataset)
        if values.min() == values.max():
            raise ValueError(f"rescaling makes one value, {values.min():g}, of all")
        if not np.isfinite(values).all():
            raise ValueError("rescaling makes numbers that are not finite")
        if dataset.get("VOILUTSequence"):
            return _looked_up(values, dataset)
        center, width = (_first(dataset.get(f"Window{name}")) for name in ("Center", "Width"))
        if center is None or width is None:
            return _stretched(values)
        return _window(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    except Exception as error:  # tables of odd lengths, numbers that are none
        raise DataError(f"{path}: the grey scale of the file makes no sense: {error}.") from error


def _looked_up(values: _Floats, dataset: Any) -> _Floats:  # noqa: ANN401
    """The entries of the first VOI look-up table, to 0..1 of the bits that it declares."""
    from pydicom.pixels import apply_voi

    entries: _Floats = apply_voi(np.rint(values).astype(np.int64), dataset)
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    if entries.min() < 0 or entries.max() >= 2**bits:
        raise ValueError(
            f"the VOI look-up table has entries of {entries.min():g} to {entries.max():g}, but "
            f"declares {bits} bits"
        )
    return entries / (2.0**bits - 1)


def _first(value: Any) -> float | None:  # noqa: ANN401 - a number, several, or none
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, MutableSequence) else value)


def _window(values: _Floats, center: float, width: float, function: str) -> _Floats:
    """The window functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..1."""
    least = 1 if function == "LINEAR" else np.nextafter(0, 1)
    if not (math.isfinite(center) and math.isfinite(width) and width >= least):
        raise ValueError(f"a window of center {center:g}, width {width:g}, function {function}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"window function {function!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return np.greater(values, center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)
