import sys

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import JPEGLSLossless, RLELossless

from transferseg.data.dicom import dicom_header, read_dicom
from transferseg.errors import DataError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 4096, (6, 8), dtype=np.uint16)


def full_range(values, bits=12):
    """What 0 .. 2**bits - 1 become when they fill 16 bits."""
    return np.rint(np.asarray(values) / (2**bits - 1) * 65535).astype(np.uint16)


def table(first, bits, values):
    entry = Dataset()
    entry.LUTDescriptor = [len(values), first, bits]
    entry.add_new("LUTData", "US", values)
    entry.ModalityLUTType = "US"
    return [entry]


@pytest.mark.parametrize("values", ["stored", "window"])
def test_the_stored_bits_fill_the_range(save_dicom, values):
    image = read_dicom(save_dicom("x.dcm", NOISE), values=values)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, full_range(NOISE))
    small = NOISE.astype(np.uint8)
    image = read_dicom(save_dicom("y.dcm", small, bits=8), values=values)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, small)
    signed = NOISE.astype(np.int16) - 2048
    image = read_dicom(save_dicom("z.dcm", signed), values=values)
    np.testing.assert_array_equal(image, full_range(NOISE))


def test_bits_above_the_stored_mean_nothing(save_dicom):
    with_overlay = (NOISE | np.uint16(0x9000)).astype("<u2")
    path = save_dicom("x.dcm", NOISE, PixelData=with_overlay.tobytes())
    np.testing.assert_array_equal(read_dicom(path), full_range(NOISE))
    signed = (NOISE.astype(np.int16) - 2048).astype("<i2").view("<u2") & 0x0FFF  # no sign above
    path = save_dicom("y.dcm", NOISE, PixelData=signed.tobytes(), PixelRepresentation=1)
    np.testing.assert_array_equal(read_dicom(path), full_range(NOISE))


@pytest.mark.parametrize("values", ["stored", "window"])
def test_monochrome1_is_turned_over(save_dicom, values):
    window = {"WindowCenter": 2000, "WindowWidth": 900}
    plain = read_dicom(save_dicom("x.dcm", NOISE, **window), values=values)
    turned = read_dicom(save_dicom("y.dcm", NOISE, kind="MONOCHROME1", **window), values=values)
    assert len(np.unique(plain)) > 8
    np.testing.assert_array_equal(turned, 65535 - plain)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [None, (1, 0), (0.5, -300), (3, 7)])
def test_windows_are_those_of_pydicom(save_dicom, function, rescale):
    slope, intercept = rescale or (1, 0)
    elements = {"WindowCenter": 1900.5 * slope + intercept, "WindowWidth": 2401 * slope}
    elements |= {} if function is None else {"VOILUTFunction": function}
    if rescale:
        elements |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
    path = save_dicom("x.dcm", NOISE, **elements)
    dataset = pydicom.dcmread(path)
    shown = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    expected = (shown - intercept) / (4095 * slope) * 65535
    image = read_dicom(path)
    assert len(np.unique(image)) > 8
    np.testing.assert_allclose(image, expected, atol=0.51)
    np.testing.assert_array_equal(read_dicom(path, values="stored"), full_range(NOISE))


def test_a_window_by_hand(save_dicom):
    stored = [[999, 1000, 1001, 1002, 1003, 1004, 1005]]
    options = {"WindowCenter": [1002.5, 7], "WindowWidth": [5, 9]}  # the first counts
    image = read_dicom(save_dicom("x.dcm", np.array(stored, np.uint16), **options))
    assert image.tolist() == [[0, 0, 16384, 32768, 49151, 65535, 65535]]
    options = {"WindowCenter": 1002, "WindowWidth": 1}
    image = read_dicom(save_dicom("x.dcm", np.array(stored, np.uint16), **options))
    assert image.tolist() == [[0, 0, 0, 65535, 65535, 65535, 65535]]


def test_a_negative_slope_turns_over(save_dicom):
    path = save_dicom("x.dcm", NOISE, RescaleSlope=-2, RescaleIntercept=5000)
    np.testing.assert_array_equal(read_dicom(path), 65535 - full_range(NOISE))


def test_look_up_tables(save_dicom):
    stored = np.array([[0, 1, 2, 3, 200]], np.uint8)
    modality = table(0, 8, [0, 10, 20, 40])
    path = save_dicom("x.dcm", stored, bits=8, ModalityLUTSequence=modality)
    assert read_dicom(path).tolist() == [[0, 64, 128, 255, 255]]  # the last entry goes on
    voi = table(9, 12, [4095, 819, 0])
    path = save_dicom("y.dcm", stored, bits=8, ModalityLUTSequence=modality, VOILUTSequence=voi)
    assert read_dicom(path).tolist() == [[255, 51, 0, 0, 0]]  # of 0, 10, 20, 40, 40


def test_a_compressed_file_with_a_decoder(save_dicom):
    path = save_dicom("x.dcm", NOISE)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), full_range(NOISE))


def test_a_compressed_file_without_a_decoder(save_dicom):
    path = save_dicom("x.dcm", NOISE)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = encapsulate([b"\0" * 16])
    dataset.save_as(path)
    with pytest.raises(DataError, match=r"x\.dcm: the pixels .*JPEG-LS Lossless.*pip install py"):
        read_dicom(path)
    assert dicom_header(path).size == (6, 8)  # no pixels, no decoder


def test_the_header(save_dicom):
    assert dicom_header(save_dicom("x.dcm", NOISE)).patient == ""
    header = dicom_header(save_dicom("x.dcm", NOISE, PatientID="ec89415d1"))
    assert (header.size, header.patient) == ((6, 8), "ec89415d1")
    path = save_dicom("y.dcm", NOISE, PatientID="Müller", SpecificCharacterSet="ISO_IR 192")
    assert dicom_header(path).patient == "Müller"


@pytest.mark.parametrize("entry", [5000, 4096, 65535])
def test_look_up_tables_keep_to_their_bits(save_dicom, entry):
    stored = np.array([[0, 1, 2]], np.uint16)
    path = save_dicom("x.dcm", stored, VOILUTSequence=table(0, 12, [0, 4095, entry]))
    match = rf"x\.dcm: the grey scale .* entries of 0 to {entry}, but declares 12 bits"
    with pytest.raises(DataError, match=match):
        read_dicom(path)


@pytest.mark.filterwarnings("ignore")  # pydicom on numbers that are none
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("number", [b"7771", b"7772", b"7773", b"7774"])
@pytest.mark.parametrize("text", [b"nan ", b"inf ", b"-inf"])
def test_numbers_that_are_none(save_dicom, function, number, text):
    """In the window or the rescaling of the header, in the place of digits."""
    numbers = {"WindowCenter": 7771, "WindowWidth": 7772, "RescaleSlope": 7773,
               "RescaleIntercept": 7774, "VOILUTFunction": function}  # fmt: skip
    path = save_dicom("x.dcm", NOISE, **numbers)
    content = path.read_bytes()
    assert content.count(number) == 1
    path.write_bytes(content.replace(number, text))
    with pytest.raises(DataError, match=r"x\.dcm: the grey scale of the file makes no sense"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("elements", "match"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0}, r"x\.dcm: the grey scale .*width 0"),
        (
            {"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"},
            r"window function 'CUBIC'; expected LINEAR",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "rescaling makes one value, 5, of all"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "1 frame.* of PALETTE COLOR"),
        ({"NumberOfFrames": 2}, r"2 frame\(s\) of MONOCHROME2"),
        ({"HighBit": 15}, "12 of 16 bits stored, the highest at 15"),
        ({"BitsStored": 17, "HighBit": 16}, "17 of 16 bits stored"),
        ({"BitsAllocated": 32}, "12 of 32 bits stored"),
        ({"BitsStored": None}, "BitsStored is None"),
        ({"PixelData": b"\0\0"}, r"x\.dcm: the pixels .* cannot be decoded: .*Fetch"),
    ],
)
def test_what_is_not_read_says_so(save_dicom, elements, match):
    path = save_dicom("x.dcm", NOISE, **elements)
    with pytest.raises(DataError, match=match):
        read_dicom(path)


def test_other_files_are_named(save_dicom, save, truncate, tmp_path):
    with pytest.raises(DataError, match=r"gone\.dcm: the file does not exist"):
        read_dicom(tmp_path / "gone.dcm")
    png = save("a.dcm.png", NOISE.astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.dcm\.png: not a DICOM file"):
        dicom_header(png)
    colour = save_dicom("rgb.dcm", np.zeros((4, 4, 3), np.uint8), bits=8, kind="RGB")
    with pytest.raises(DataError, match=r"rgb\.dcm: .* of RGB, 3 sample"):
        read_dicom(colour)
    with pytest.raises(DataError, match=r"cut\.dcm"):
        read_dicom(truncate(save_dicom("cut.dcm", np.zeros((64, 64), np.uint16))))
    no_image = save_dicom("report.dcm", NOISE, Rows=None)
    with pytest.raises(DataError, match=r"report\.dcm: Rows is None"):
        dicom_header(no_image)
    with pytest.raises(DataError, match=r"unknown values 'windows'.*Did you mean 'window'"):
        read_dicom(no_image, values="windows")


def test_without_pydicom_the_extra_is_named(save_dicom, monkeypatch):
    path = save_dicom("x.dcm", NOISE)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"x\.dcm: .*pip install 'transferseg\[dicom\]'"):
        read_dicom(path)
