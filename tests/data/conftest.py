"""Small data sets in their published layouts, written where a test asks for them."""

import csv

import numpy as np
import pytest
from PIL import Image


def write_table(path, columns, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def rgba_crop(drawn, colour=(200, 30, 90)):
    """A mask crop as published: coloured on black, alpha 255 everywhere."""
    pixels = np.zeros((*drawn.shape, 4), np.uint8)
    pixels[drawn] = (*colour, 0)
    pixels[..., 3] = 255
    return pixels


STRUCTURE = ("#", "Class", "Filename", "Image", "Mask", "Top", "Left", "Width", "Height")
METADATA = ("patientid", "offset", "finding", "filename")


class CCXSTree:
    """Three images (RGB, L, RGBA) of two patients; two crops of one class; one bare tag."""

    def __init__(self, root):
        self.root = root
        (root / "images").mkdir()
        (root / "masks").mkdir()
        rng = np.random.default_rng(0)
        self.images = {
            "a.jpeg": rng.integers(0, 256, (40, 50, 3), dtype=np.uint8),
            "b.png": rng.integers(0, 256, (60, 36), dtype=np.uint8),
            "c.png": rng.integers(0, 256, (33, 34, 4), dtype=np.uint8),
        }
        for name, pixels in self.images.items():
            Image.fromarray(pixels).save(root / "images" / name)
        self.metadata = [
            {"patientid": "2", "filename": "a.jpeg"},
            {"patientid": "10", "filename": "b.png"},
            {"patientid": "2", "filename": "c.png"},
            {"patientid": "9", "filename": "not-in-the-set.png"},
        ]
        self.rows = []
        block = np.ones((4, 6), bool)
        corner = np.zeros((5, 5), bool)
        corner[0, 0] = True
        self.add("Right Lung", "a.jpeg", block, 2, 3)
        self.add("Right Lung", "a.jpeg", block, 4, 5)
        self.add("Left Lung", "a.jpeg", corner, 35, 45)
        self.add("Nosogastric Tube", "b.png", corner, 55, 31)
        self.add("Cardiomediastinum", "c.png", np.ones((33, 34), bool), 0, 0)
        self.add("Monitoring Probes", "c.png", None, 0, 0)
        self.write()

    def add(self, name, image, drawn, top, left):
        mask = ""
        height, width = self.images[image].shape[:2]
        if drawn is not None:
            height, width = drawn.shape
            mask = f"masks/hash_{len(self.rows)}.png"
            Image.fromarray(rgba_crop(drawn)).save(self.root / mask)
        self.rows.append(
            {"#": len(self.rows) + 1, "Class": f"COVID-19 {name}", "Filename": image,
             "Image": "images/hashed.jpg", "Mask": mask, "Top": top, "Left": left,
             "Width": width, "Height": height}
        )  # fmt: skip

    def write(self):
        write_table(self.root / "structure.csv", STRUCTURE, self.rows)
        write_table(self.root / "metadata.csv", METADATA, self.metadata)


@pytest.fixture
def ccxs_tree(tmp_path):
    return CCXSTree(tmp_path)


@pytest.fixture
def write_csv():
    return write_table


@pytest.fixture
def save(tmp_path):
    """Write pixels to a file below the test's folder, making folders on the way."""

    def write(name, pixels, mode=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(pixels))
        (image.convert(mode) if mode else image).save(path)
        return path

    return write


@pytest.fixture
def save_dicom(tmp_path):
    """Write pixels to a DICOM file below the test's folder, with further elements by keyword."""
    from pydicom import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

    def write(name, pixels, *, bits=12, kind="MONOCHROME2", **elements):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = ComputedRadiographyImageStorage
        dataset.set_pixel_data(np.asarray(pixels), kind, bits)
        dataset.SOPInstanceUID = "1.2.3"  # else made at random: any digits may be in it
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def truncate():
    """Cut the second half off a file."""

    def cut(path):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return path

    return cut
