"""A made-up world of chest radiographs: masks, boxes and findings of one scene, on the fly.

Nothing here is anatomy to learn medicine from. It is what tests, examples and studies need: images
in which left and right, overlapping structures, thin devices, patients with several images, and a
second scanner exist, and in which every kind of annotation is exactly consistent with the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from transferseg.data.boxes import Box, masks_from_boxes
from transferseg.data.samples import SMALLEST_SIDE, Sample, check_index
from transferseg.errors import DataError, unknown_name
from transferseg.types import Array, TargetMode

Domain = Literal["a", "b"]
SyntheticTask = Literal["segment", "boxes", "classify", "images"]

#: Classes of the masks. They overlap: opacities lie in lungs, lungs reach behind the heart.
SYNTHETIC_CLASSES: Final = ("Right Lung", "Left Lung", "Heart", "Opacity", "Device")

#: Findings of the label vector.
SYNTHETIC_FINDINGS: Final = ("Opacity", "Device", "Enlarged Heart")

#: Heart width over chest width (both lungs) from which a heart counts as enlarged.
ENLARGED: Final = 0.5

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class _Anatomy:
    """What a patient keeps from image to image, in units of half the image side."""

    body: float  # half width of the trunk
    lungs: tuple[tuple[float, float, float, float], ...]  # centre x, y, half width, half height
    domes: tuple[float, float]  # height of the two halves of the diaphragm
    heart: tuple[float, float, float, float]
    ribs: tuple[float, float]  # number and phase


@dataclass(frozen=True)
class _Scene:
    """The structures of one image: shapes as masks (H, W), and what shades them, as planes."""

    masks: dict[str, NDArray[np.bool_]]
    opacities: tuple[NDArray[np.bool_], ...]
    density: Plane


def _anatomy(rng: Generator) -> _Anatomy:
    middle, height = rng.normal(0, 0.02), rng.uniform(0.52, 0.62)
    lungs = tuple(
        (
            middle + side * rng.uniform(0.35, 0.41),
            rng.uniform(-0.12, -0.04),
            rng.uniform(0.27, 0.33),
            height + rng.normal(0, 0.015),
        )
        for side in (-1, 1)
    )
    right_dome = rng.uniform(0.22, 0.34)
    size = rng.choice([rng.uniform(0.24, 0.31), rng.uniform(0.38, 0.47)], p=[0.7, 0.3])
    heart = (middle + 0.1 + 0.3 * (size - 0.28), rng.uniform(0.14, 0.22), size, 0.22 + 0.25 * size)
    return _Anatomy(
        body=rng.uniform(0.8, 0.92),
        lungs=lungs,
        domes=(right_dome, right_dome + rng.uniform(0.04, 0.1)),
        heart=heart,
        ribs=(rng.uniform(8.0, 10.5), rng.uniform(0, 2 * np.pi)),
    )


def _grid(size: int, rng: Generator) -> tuple[Plane, Plane]:
    """Coordinates x, y from -1 to 1, slightly turned, moved and scaled: how the patient stands."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    angle, scale = rng.normal(0, 0.04), rng.uniform(0.95, 1.08)
    shift = rng.normal(0, 0.03, 2)
    x, y = (line[None, :] - shift[0]) * scale, (line[:, None] - shift[1]) * scale
    cosine, sine = np.cos(angle), np.sin(angle)
    return (
        (cosine * x + sine * y).astype(np.float32),
        (cosine * y - sine * x).astype(np.float32),
    )


def _cloud(size: int, cells: int, rng: Generator) -> Plane:
    """Smooth noise of about -1..1: random values at `cells` x `cells` points, interpolated."""
    at = (np.arange(size) + 0.5) / size * (cells - 1)
    near = np.abs(at[:, None] - np.arange(cells)[None, :])
    weights = np.where(near < 1, 1 - near * near * (3 - 2 * near), 0.0)
    cloud: Plane = (weights @ rng.uniform(-1, 1, (cells, cells)) @ weights.T).astype(np.float32)
    return cloud


def _edge(field: NDArray[np.floating[Any]], width: float) -> Plane:
    """1 well inside (field below 0), 0 outside, a soft step of the given width."""
    soft: Plane = 0.5 - 0.5 * np.tanh(field.astype(np.float32) / np.float32(width))
    return soft


def _lung(x: Plane, y: Plane, shape: tuple[float, float, float, float], dome: float) -> Plane:
    """Below 0 inside a lung: an egg, narrow at the top, cut by the dome of the diaphragm."""
    centre_x, centre_y, half_width, half_height = shape
    v = (y - centre_y) / half_height
    u = (x - centre_x) / (half_width * (1.0 + 0.22 * np.clip(v, -1, 1)))
    egg = u * u + v * v * np.where(v > 0, 0.5, 1.0) - 1.0
    cut = (y - dome - 1.1 * (x - centre_x) ** 2) / half_height
    field: Plane = np.maximum(egg, 2.0 * cut).astype(np.float32)
    return field


def _device(x: Plane, y: Plane, size: int, rng: Generator) -> NDArray[np.bool_]:
    """A line from the neck down into the heart, one to a few pixels wide."""
    start, bend, end = rng.uniform(-0.25, 0.3), rng.normal(0, 0.15), rng.uniform(-0.05, 0.35)
    top, bottom = -1.2, rng.uniform(-0.1, 0.45)
    t = np.clip((y - top) / (bottom - top), 0, 1)
    line = start * (1 - t) + end * t + bend * 4 * t * (1 - t) * t
    width = max(0.016, 1.5 / size)
    shown: NDArray[np.bool_] = (np.abs(x - line) < width) & (y < bottom)
    return shown


def _opacities(
    x: Plane, y: Plane, lungs: tuple[Plane, Plane], anatomy: _Anatomy, rng: Generator
) -> tuple[list[NDArray[np.bool_]], Plane]:
    """Opacity masks, cut to their lung, and the shade that they add."""
    rough = _cloud(len(x), 9, rng)
    patchy = 1.0 + 0.35 * _cloud(len(x), 13, rng)
    masks, shade = [], np.zeros_like(x)
    for _ in range(int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))):
        side = int(rng.integers(2))
        centre_x, centre_y, half_width, half_height = anatomy.lungs[side]
        u = (x - centre_x - rng.uniform(-0.5, 0.5) * half_width) / rng.uniform(0.11, 0.24)
        v = (y - centre_y - rng.uniform(-0.5, 0.4) * half_height) / rng.uniform(0.11, 0.26)
        field = np.maximum(u * u + v * v - 1.0 + 0.6 * rough, 4 * lungs[side]).astype(np.float32)
        mask = field < 0
        if mask.any():
            masks.append(mask)
            shade += rng.uniform(0.1, 0.22) * patchy * _edge(field, 0.6)
    return masks, shade


def _scene(anatomy: _Anatomy, size: int, rng: Generator) -> _Scene:
    x, y = _grid(size, rng)
    right, left = (
        _lung(x, y, shape, dome) for shape, dome in zip(anatomy.lungs, anatomy.domes, strict=True)
    )
    heart_x, heart_y, heart_width, heart_height = anatomy.heart
    tilted = x - heart_x - 0.25 * (y - heart_y)
    heart = (tilted / heart_width) ** 2 + ((y - heart_y) / heart_height) ** 2 - 1.0
    opacities, shade = _opacities(x, y, (right, left), anatomy, rng)
    device = np.zeros(x.shape, dtype=bool)
    if rng.random() < 0.4:
        device = _device(x, y, size, rng)

    inside = _edge(np.minimum(right, left), 0.1)
    shoulders = np.abs(x) / anatomy.body
    slope = np.minimum(-1.0 - y + 0.42 * shoulders**2, shoulders - 0.28)  # shoulders and neck
    trunk = np.maximum(shoulders**4 - 1.0, slope)
    spine = np.exp(-((x / 0.09) ** 2)) * (0.85 + 0.15 * np.cos(22 * y))
    number, phase = anatomy.ribs
    ribs = np.clip(np.cos(number * 2.4 * (y + 0.7 * x * x - 0.25 * np.abs(x)) + phase), 0.4, 1)
    density = _edge(trunk, 0.12) * (
        0.5
        + 0.1 * (1 - shoulders**2)
        + 0.12 * spine
        + 0.13 * (ribs - 0.4) * (0.35 + 0.65 * inside)
        - 0.36 * inside
        + 0.24 * _edge(heart, 0.15) * (0.4 + 0.6 * inside)
        + 0.03 * _cloud(size, 24, rng)
    )
    density = density + shade + 0.25 * device
    masks = {
        "Right Lung": right < 0,
        "Left Lung": left < 0,
        "Heart": heart < 0,
        "Opacity": np.logical_or.reduce(opacities) if opacities else np.zeros(x.shape, dtype=bool),
        "Device": device,
    }
    return _Scene(masks, tuple(opacities), density.astype(np.float32))


def _exposed(density: Plane, domain: Domain, rng: Generator) -> NDArray[np.uint8]:
    """The film: what a scanner makes of densities. Domain b has its own curve, noise, polarity."""
    from scipy.ndimage import gaussian_filter

    size = len(density)
    values = np.clip(density * rng.uniform(0.95, 1.1) + rng.normal(0, 0.02), 0, 1)
    if domain == "a":
        noise = 0.02
        values = gaussian_filter(values, 0.5 * size / 128)
    else:
        noise = 0.045
        values = gaussian_filter(values**0.65, 1.1 * size / 128)
        line = np.linspace(-1, 1, size, dtype=np.float32) ** 2
        values = 1.0 - values * (1.0 - 0.15 * (line[:, None] + line[None, :]))
    values = values + noise * rng.standard_normal(values.shape, dtype=np.float32)
    film: NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return film


def box_of(mask: Array) -> tuple[int, int, int, int]:
    """The box (x1, y1, x2, y2) around a mask's foreground; x2 and y2 are one past the last pixel.

    Raises:
        DataError: a mask without foreground.

    Example:
        >>> box_of(np.array([[0, 0, 0], [0, 1, 1]]))
        (1, 1, 3, 2)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise DataError("a mask without foreground has no box.")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class SyntheticRadiographs:
    """A reader of made-up radiographs, each drawn from (seed, patient, image) when it is read.

    The four tasks and the two domains show the same scenes: image i of one seed has one mask, one
    set of boxes and one label, and its mask is the same in both domains. Groups carry the seed, so
    scenes of another seed are other patients and a shared scene is found by a leak check.

    Args:
        n: number of images. The first images do not depend on it.
        size: side in pixels, from 32.
        seed: of the world.
        domain: "a", or "b": another scanner (contrast curve, blur, noise, shaded corners, and
            bright where "a" is dark).
        task: "segment" (multilabel masks of `SYNTHETIC_CLASSES`), "boxes" (binary masks of filled
            opacity boxes, as box annotations give them), "classify" (label vectors of
            `SYNTHETIC_FINDINGS`), "images" (nothing but images).
        channels: 1 gives (H, W), 3 gives (H, W, 3) with equal channels.

    Attributes:
        classes, mode: of the task.
        ids: "scene-00000" and so on.
        groups: patients of one to three images, whose anatomy is the same.

    Raises:
        DataError: a number or a name that does not exist.

    Example:
        >>> world = SyntheticRadiographs(3, size=64, seed=1)
        >>> world[0].image.shape, world[0].mask.shape, world.classes[:2]
        ((64, 64), (64, 64, 5), ('Right Lung', 'Left Lung'))
    """

    def __init__(
        self,
        n: int,
        *,
        size: int = 128,
        seed: int = 0,
        domain: Domain = "a",
        task: SyntheticTask = "segment",
        channels: int = 1,
    ) -> None:
        for kind, name, options in (
            ("domain", domain, get_args(Domain)), ("task", task, get_args(SyntheticTask))
        ):  # fmt: skip
            if name not in options:
                raise DataError(unknown_name(kind, str(name), options))
        if n < 1 or size < SMALLEST_SIDE or seed < 0 or channels not in (1, 3):
            raise DataError(
                f"expected n from 1, size from {SMALLEST_SIDE}, seed from 0 and channels 1 or 3; "
                f"got n={n}, size={size}, seed={seed}, channels={channels}."
            )
        self.size, self.seed, self.channels = size, seed, channels
        self.domain: Domain = domain
        self.task: SyntheticTask = task
        self.classes: tuple[str, ...] = {
            "segment": SYNTHETIC_CLASSES,
            "boxes": ("Opacity",),
            "classify": SYNTHETIC_FINDINGS,
            "images": (),
        }[task]
        self.mode: TargetMode = "binary" if task == "boxes" else "multilabel"
        self._patients = _patients_of(n, seed)
        self.ids = tuple(f"scene-{index:05d}" for index in range(n))
        self.groups = tuple(f"world-{seed}-patient-{patient:05d}" for patient in self._patients)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        scene = self._scene(index)
        film = _exposed(scene.density, self.domain, default_rng((self.seed, index, 2)))
        image = film if self.channels == 1 else np.repeat(film[..., None], 3, axis=-1)
        mask: Array | None = None
        label: Array | None = None
        if self.task == "segment":
            planes = [scene.masks[name] for name in SYNTHETIC_CLASSES]
            mask = np.stack(planes, axis=-1).astype(np.uint8)
        elif self.task == "boxes":
            mask = masks_from_boxes(
                _opacity_boxes(scene), film.shape, classes=self.classes, mode=self.mode
            )
        elif self.task == "classify":
            label = _findings(scene)
        return Sample(image, mask, label, self.ids[index], self.groups[index])

    def boxes(self, index: int) -> tuple[Box, ...]:
        """The boxes of an image's opacities."""
        return _opacity_boxes(self._scene(index))

    def _scene(self, index: int) -> _Scene:
        patient = self._patients[check_index(index, len(self))]
        anatomy = _anatomy(default_rng((self.seed, patient, 0)))
        return _scene(anatomy, self.size, default_rng((self.seed, index, 1)))


def _opacity_boxes(scene: _Scene) -> tuple[Box, ...]:
    sides = map(box_of, scene.opacities)
    return tuple(Box(x1, y1, x2 - x1, y2 - y1, "Opacity") for x1, y1, x2, y2 in sides)


def _patients_of(n: int, seed: int) -> tuple[int, ...]:
    """The patient of each image: one to three images in a row, the same whatever `n` is."""
    counts = default_rng((seed, 3)).integers(1, 4, size=n)
    return tuple(np.repeat(np.arange(n), counts)[:n].tolist())


def _findings(scene: _Scene) -> NDArray[np.float32]:
    heart = box_of(scene.masks["Heart"])
    chest = box_of(scene.masks["Right Lung"] | scene.masks["Left Lung"])
    enlarged = (heart[2] - heart[0]) > ENLARGED * (chest[2] - chest[0])
    present = (scene.masks["Opacity"].any(), scene.masks["Device"].any(), enlarged)
    return np.array(present, dtype=np.float32)
