"""Read and write the files of a dataset, in a folder that appears complete or not at all.

Knows images, names and splits; does not know label formats (`diffugen.dataset.yolo`,
`diffugen.dataset.coco`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffugen.errors import DiffugenError, StoreError, counted
from diffugen.labels import shapes
from diffugen.records import Instances
from diffugen.run.spool import Names

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff")

OnMistake = Callable[[DiffugenError], None]
"""Called with what is wrong with an image or its labels; the image is then left out."""

Item = tuple[str, NDArray[np.uint8], Instances]
"""Name of an image (file name without suffix), its pixels, uint8 (H, W, 3) RGB, and the objects in it."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which becomes ``folder`` on success and is removed on failure.

    Raises:
        StoreError: ``folder`` is in use or cannot be written.
    """
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is in use; remove it or choose another folder for the dataset")
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted call
    try:
        with writing(partial):
            partial.mkdir(parents=True)
        yield partial
        with writing(folder):
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_plan(splits: Mapping[str, Iterable[Item]], class_names: Sequence[str]) -> dict[str, int]:
    """Check splits and class names, and return the number of each class.

    Raises:
        DiffugenError: A split is unknown, there are none, or class names are missing or repeated.
    """
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown or not splits:
        raise DiffugenError(
            f"splits are {', '.join(SPLITS)}; give one or more of them, not {', '.join(splits) or 'none'}"
        )
    if not class_names or len(set(class_names)) < len(class_names):
        raise DiffugenError(f"a dataset needs class names without repeats; got {list(class_names)}")
    return {name: number for number, name in enumerate(class_names)}


def checked(items: Iterable[Item], numbers: Mapping[str, int], names: Names) -> Iterator[Item]:
    """Check items one by one, and yield them without their empty masks.

    Args:
        items: Items of one split; read once.
        numbers: Number of each class name.
        names: Names used so far, in all splits; updated.

    Raises:
        DiffugenError: A name is not a valid file name or occurs twice, an image is not uint8 RGB of the size
            of its labels, or a class is unknown.
    """
    for name, image, instances in items:
        _check_item(name, image, instances, numbers)
        if not names.add(name):
            raise DiffugenError(
                f"image {name!r} occurs twice in the dataset; use each image once, in one split"
            )
        yield name, image, instances.take(np.flatnonzero(shapes.areas(instances.rles)).tolist())


def strays(folder: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """Return what a user has to know about images that do not lie in a set's folder: nothing, or one note.

    A set may refer to any file that the user can read, by its path or through a link, and what is read gets
    into a run and its exports.
    """
    home = folder.resolve()
    away = [file for file in files if not file.resolve().is_relative_to(home)]
    if not away:
        return ()
    return (f"{counted(len(away), 'image')} outside the folder {folder}, such as {away[0].resolve()}",)


SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats whose grey pixels have at most 16 bits, although some Pillow versions hold them in 32."""


def without_mistakes(readers: Iterable[Callable[[], Item]], on_mistake: OnMistake | None) -> Iterator[Item]:
    """Yield the items that can be read.

    Args:
        readers: Each reads an item, or raises a DiffugenError that says what is wrong with it.
        on_mistake: Takes these errors; None raises the first.
    """
    for read in readers:
        try:
            item = read()
        except DiffugenError as error:
            if on_mistake is None:
                raise
            on_mistake(error)
        else:
            yield item


def read_image(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of an image file, uint8 (H, W, 3) RGB, with its EXIF orientation applied.

    Of 16 bits per channel, the higher 8 are kept, as OpenCV does; transparency is ignored.

    Raises:
        DiffugenError: The file cannot be read, or has pixels of an unknown range.
    """
    from PIL import Image, ImageOps

    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
                grey = (np.asarray(turned) >> 8).astype(np.uint8)  # Pillow would cut them off at 255
                return np.repeat(grey[..., None], 3, axis=2)
            if turned.mode in ("I", "F"):
                kind = {"I": "32-bit integers", "F": "floating-point numbers"}[turned.mode]
                raise ValueError(f"its pixels are {kind} of unknown range; save it with 8 or 16 bits")
            return np.array(turned.convert("RGB"), dtype=np.uint8)
    except Exception as error:  # Pillow raises many unrelated exceptions for damaged files
        # Ultralytics lets Pillow try one more format, whose package is missing as a rule.
        unknown = any("identify" in str(one) for one in (error, error.__context__))
        why = "it is no image, or of an unknown format" if unknown else error
        raise DiffugenError(
            f"cannot read the image {path} ({why}); replace it, or remove it and its labels"
        ) from error


def is_turned(path: Path) -> bool:
    """Return whether an image's EXIF data swaps its width and height."""
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) >= 5


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 (H, W, 3) RGB pixels as PNG."""
    from PIL import Image

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, with line endings unchanged."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a StoreError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write {path}: {reason}; free space or choose another folder") from error


def _check_item(
    name: str, image: NDArray[np.uint8], instances: Instances, numbers: Mapping[str, int]
) -> None:
    if not name or Path(name).name != name or name.startswith("."):
        raise DiffugenError(f"{name!r} cannot be the name of an image file; use letters, digits, '-' and '_'")
    width, height = instances.size_wh
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise DiffugenError(
            f"image {name!r} is {image.dtype} {image.shape}; its labels need uint8 (H, W, 3) = "
            f"{(height, width, 3)}"
        )
    unknown = sorted(set(instances.class_names) - set(numbers))
    if unknown:
        raise DiffugenError(
            f"image {name!r} has labels of {', '.join(map(repr, unknown))}, not among the classes "
            f"{', '.join(numbers)}; add the class or leave the labels out"
        )
