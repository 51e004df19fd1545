"""A folder of images in, a folder of masks out."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from transferseg.errors import DataError, TrainingError, TransfersegError, some, unknown_name
from transferseg.spec import ModelSpec
from transferseg.training.atomic import write_bytes, writing
from transferseg.training.inference import Inference, PredictOptions
from transferseg.training.predict import Postprocess, mask_of
from transferseg.training.views import Viewer

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: What happens to an image that cannot be predicted: told at the end, or raised at once.
OnError: TypeAlias = Literal["report", "raise"]
#: A folder, a file, a glob pattern, or files.
Source: TypeAlias = str | PathLike[str] | Iterable[str | PathLike[str]]


@dataclass(frozen=True)
class FolderReport:
    """What `predict_folder` did, image by image; an image's name is its path without suffix.

    Attributes:
        target: the folder of the masks.
        written: images whose masks are new.
        skipped: images whose masks were there already.
        failed: image -> why it has none.

    Example:
        >>> print(FolderReport(Path("out"), ("a", "b"), (), {"c": "c.png: not an image."}))
        2 images predicted into out, 0 were there already, 1 failed:
          c: c.png: not an image.
    """

    target: Path
    written: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]

    def __str__(self) -> str:
        line = (
            f"{len(self.written)} images predicted into {self.target}, {len(self.skipped)} were "
            f"there already, {len(self.failed)} failed"
        )
        reasons = [f"  {name}: {reason}" for name, reason in self.failed.items()]
        return "\n".join([f"{line}:" if reasons else f"{line}.", *reasons])


def predict_folder(
    model: nn.Module,
    source: Source,
    target: str | PathLike[str],
    *,
    overlays: str | PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_error: OnError = "report",
    progress: bool = True,
    postprocess: Postprocess | None = None,
    **options: Unpack[PredictOptions],
) -> FolderReport:
    """Write the masks of many image files, each in its image's own height and width.

    `source/a/1.jpg` becomes `target/a/1.png`, a grey PNG whose values are the classes' numbers: 0
    and 1 of a binary model, class indices of a multiclass one (16 bits from 257 classes on). A
    multilabel model writes one such file of 0 and 1 a class, `target/CLASS/a/1.png`: each of these
    folders is what `ImageMaskFolder` reads. Every file is written whole or not at all. Inputs are
    never overwritten: a target that would is refused before anything is read.

    Args:
        model: a segmentation model with its `.spec`.
        source: a folder, which is walked with all folders below it (other files than images, and
            what lies in `target` and `overlays`, are passed over); a glob pattern such as
            `videos/**/*.png`, whose names begin behind the last folder without wildcard; or files,
            whose names begin behind the last folder that all of them are in.
        target: where masks are written.
        overlays: where pictures of each image with its mask are written as well, under the same
            names.
        resume: leave out images all of whose files are there. Only that they are there is looked
            at: not whether this model, with these options, made them.
        overwrite: replace files that are there.
        on_error: "report": an image that cannot be read or predicted has no mask, the others go on,
            and a warning and the report name it at the end; "raise": the first one ends the run.
        progress: show a progress bar.
        postprocess: see `predict`.
        **options: the other options of `predict`.

    Returns:
        What was written, skipped and failed.

    Raises:
        TrainingError: the target would overwrite an image or is no folder, or files are there and
            neither `resume` nor `overwrite` is given; a file that cannot be written (a full disk);
            an unknown option; a model without a spec.
        DataError: no such folder, no image in it, two images of one name; with `on_error="raise"`
            the first image that cannot be predicted.

    Example:
        >>> import tempfile
        >>> from transferseg.spec import InputSpec
        >>> model = nn.Conv2d(1, 1, 1)
        >>> model.spec = ModelSpec("unet", "none", ["lesion"], "binary", input=InputSpec(1))
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "images" / "a").mkdir(parents=True)
        >>> Image.new("L", (40, 32)).save(root / "images" / "a" / "1.jpg")
        >>> report = predict_folder(model, root / "images", root / "masks", progress=False)
        >>> from transferseg.data import read_mask
        >>> report.written, read_mask(root / "masks" / "a" / "1.png").shape
        (('a/1',), (32, 40))
    """
    viewer = Viewer(model, Inference.of(options))
    if on_error not in get_args(OnError):
        raise TrainingError(unknown_name("on_error", str(on_error), get_args(OnError)))
    decided = partial(mask_of, spec=viewer.spec, postprocess=postprocess)
    layout = _Layout.of(Path(target), None if overlays is None else Path(overlays), viewer.spec)
    images = _images(source, layout)
    _check_files(layout, images, resume=resume, overwrite=overwrite)
    skipped = tuple(name for name in images if resume and layout.is_done(name))
    done = set(skipped)
    wanted = {name: path for name, path in images.items() if name not in done}
    again = f"predict the folder again with {'overwrite' if overwrite else 'resume'}=True"
    written: list[str] = []
    failed: dict[str, str] = {}
    outcomes = viewer.outcomes(wanted.values())
    with tqdm(total=len(wanted), desc="predict", unit="image", disable=not progress) as bar:
        for (name, path), outcome in zip(wanted.items(), outcomes, strict=True):
            if not isinstance(outcome, TransfersegError):
                mask = decided(outcome)
                with writing("the mask or its picture", layout.masks(name)[0], then=again):
                    layout.write(name, path, mask)
                written.append(name)
            elif on_error == "raise":
                named = str(path) in str(outcome)
                raise outcome if named else type(outcome)(f"{path}: {outcome}") from outcome
            else:
                failed[name] = str(outcome)
            bar.update()
    if failed:
        former = [name for name in failed if layout.masks(name)[0].exists()]
        kept = f" Masks of a former run are still there: {some(former)}." if former else ""
        warnings.warn(
            f"{len(failed)} of {len(wanted)} images have no {'new ' if former else ''}mask: "
            f"{some(failed)}; the report's `failed` says why.{kept}",
            stacklevel=2,
        )
    return FolderReport(layout.target, tuple(written), skipped, failed)


@dataclass(frozen=True)
class _Layout:
    """Which files an image's results are.

    Attributes:
        target: folder of the masks.
        overlays: folder of the pictures, or None.
        spec: of the model.
        folders: below `target`, one a class of a multilabel model, else the target itself.
    """

    target: Path
    overlays: Path | None
    spec: ModelSpec
    folders: tuple[str, ...]

    @classmethod
    def of(cls, target: Path, overlays: Path | None, spec: ModelSpec) -> _Layout:
        folders: tuple[str, ...] = (".",)
        if spec.mode == "multilabel":
            folders = tuple(re.sub(r"[^\w ()+.-]|^\.+", "_", name) for name in spec.classes)
        return cls(target, overlays, spec, folders)

    def masks(self, name: str) -> list[Path]:
        return [self.target / folder / f"{name}.png" for folder in self.folders]

    def overlay(self, name: str) -> list[Path]:
        return [] if self.overlays is None else [self.overlays / f"{name}.png"]

    def files(self, name: str) -> list[Path]:
        return [*self.masks(name), *self.overlay(name)]

    def is_done(self, name: str) -> bool:
        return all(file.exists() for file in self.files(name))

    def write(self, name: str, image: Path, mask: NDArray[Any]) -> None:
        planes = mask.transpose(2, 0, 1) if self.spec.mode == "multilabel" else [mask]
        for file, plane in zip(self.masks(name), planes, strict=True):
            encoded = io.BytesIO()
            Image.fromarray(plane).save(encoded, format="PNG")
            write_bytes(file, encoded.getvalue(), shared=True)
        for file in self.overlay(name):
            self._draw(file, image, mask)

    def _draw(self, file: Path, image: Path, mask: NDArray[Any]) -> None:
        from transferseg.data.images import read_image
        from transferseg.plots import PALETTE, overlay, save

        classes = self.spec.classes
        colours = [PALETTE[number % len(PALETTE)] for number in range(len(classes))]
        save(overlay(read_image(image), mask, classes=classes, colours=colours), file)


def _images(source: Source, layout: _Layout) -> dict[str, Path]:
    """Image files by name."""
    from transferseg.data.readers.folders import files_by_id, list_images

    own = [folder.resolve() for folder in (layout.target, layout.overlays) if folder is not None]
    if not isinstance(source, str | PathLike) or Path(source).is_file():
        files = [source] if isinstance(source, str | PathLike) else list(source)
        paths = [Path(file).absolute() for file in files]
        if not paths:
            raise DataError("no image files were given.")
        return files_by_id(Path(os.path.commonpath([path.parent for path in paths])), paths)
    folder, pattern = _split(Path(source))
    found = list_images(folder, pattern or "*", recursive=not pattern)
    if folder.resolve() in own:
        raise TrainingError(
            f"{folder} is the folder of the images, where masks would lie among them; write them "
            "to another folder, which may be inside it."
        )
    images = {name: path for name, path in found.items() if not {*path.resolve().parents} & {*own}}
    if not images:
        raise DataError(f"{source}: all of its images lie in the folders that are written to.")
    return images


def _split(source: Path) -> tuple[Path, str]:
    """The folder that names begin behind, and the glob pattern of what is in it ("" for all)."""
    if source.is_dir():
        return source, ""
    parts = source.parts
    first = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
    return Path(*parts[:first]), "/".join(parts[first:])


def _check_files(
    layout: _Layout, images: Mapping[str, Path], *, resume: bool, overwrite: bool
) -> None:
    """Refuse what is no folder or would overwrite an image, or anything else unless told to."""
    if resume and overwrite:
        raise TrainingError("resume=True keeps the files that are there; leave out overwrite=True.")
    for folder in filter(None, (layout.target, layout.overlays)):
        nearest = next((path for path in (folder, *folder.parents) if path.exists()), None)
        if nearest is not None and not nearest.is_dir():
            raise TrainingError(
                f"{nearest} is a file, and {folder} is to be a folder; take another."
            )
    files = [file for name in images for file in layout.files(name)]
    inputs = {path.resolve() for path in images.values()}
    lost = [str(file) for file in files if file.resolve() in inputs]
    if lost:
        raise TrainingError(f"the masks would overwrite images: {some(lost)}; take another target.")
    if len(set(files)) != len(files):
        raise TrainingError(
            f"overlays, or classes of like names ({some(layout.folders)}), would be written into "
            "the same files as masks; take another folder for overlays."
        )
    there = [] if resume or overwrite else [str(file) for file in files if file.exists()]
    if there:
        raise TrainingError(
            f"already there: {some(there)}; give resume=True to keep them and go on, "
            "overwrite=True to replace them, or another target."
        )
