"""Find the images and label files of a set in the YOLO-seg layout, whoever wrote it.

Knows ``data.yaml`` and paths; opens neither images nor label files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffugen.dataset.files import IMAGE_SUFFIXES, SPLITS
from diffugen.errors import DiffugenError

_NO_LABELS = ("classes.txt",)
"""Text files that labelling tools leave among the labels."""


@dataclass(frozen=True)
class Layout:
    """What a ``data.yaml`` says.

    Attributes:
        file: The ``data.yaml``.
        class_names: From class number to name.
        roots: Where the paths in it may begin, the likeliest first.
        parts: From ``train``, ``val`` or ``test`` to its image folders and list files, as they are written.
    """

    file: Path
    class_names: Mapping[int, str]
    roots: tuple[Path, ...]
    parts: Mapping[str, tuple[str, ...]]

    def images(self, split: str | None = None) -> list[tuple[str, Path]]:
        """Return name and path of each image of a split, or of all splits, each image once, in the order of
        the paths.

        The name is the file's without its ending; of an image in a sub-folder, with the folders in front of
        it.

        Raises:
            DiffugenError: If there is no such split, a folder or file that it names is missing, a label file
                belongs to no image, or there are no images at all.
        """
        if split is not None and split not in self.parts:
            raise DiffugenError(f"{self.file} has no split {split!r}; it has {', '.join(self.parts)}")
        found: dict[Path, str] = {}
        for part in [part for name in ([split] if split else self.parts) for part in self.parts[name]]:
            for image, name in _named(self._resolve(part)):
                found.setdefault(image, name)
        if not found:
            where = ", ".join(part for parts in self.parts.values() for part in parts)
            raise DiffugenError(
                f"{self.file}: no images in {where}; image files end in {', '.join(IMAGE_SUFFIXES)}"
            )
        return [(name, image) for image, name in sorted(found.items())]

    def _resolve(self, part: str) -> Path:
        tried: list[Path] = [path for root in self.roots for path in candidates(root, part)]
        for path in tried:
            if path.exists():
                return path.absolute()
        places = ", ".join(str(path) for path in dict.fromkeys(tried))
        raise DiffugenError(f"{self.file} names {part!r}, which does not exist; looked for {places}")


def read_layout(dataset: Path) -> Layout:
    """Read the ``data.yaml`` of a set.

    Args:
        dataset: The set's folder, or its ``data.yaml``. ``path`` in it may be absolute, relative to the file
            or to the working folder, or absent; where nothing is found below it, as when the set was moved,
            the file's folder counts.

    Raises:
        DiffugenError: If there is no such file, or it lacks class names or splits.
    """
    file, about = read_about(dataset)
    names = _class_names(file, about.get("names"))
    if "val" not in about and "validation" in about:
        about["val"] = about["validation"]
    parts = {split: tuple(map(str, as_list(about[split]))) for split in SPLITS if about.get(split)}
    if not parts:
        raise DiffugenError(f"{file} names no images; expected one of the keys {', '.join(SPLITS)}")
    given = Path(str(about.get("path") or "."))
    return Layout(file, names, tuple(dict.fromkeys((file.parent / given, given, file.parent))), parts)


def read_about(dataset: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of a set's ``data.yaml``.

    Raises:
        DiffugenError: If there is none, or it is no YAML mapping.
    """
    file = dataset / "data.yaml" if dataset.is_dir() else dataset
    try:
        about = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DiffugenError(
            f"no dataset at {dataset}: expected a data.yaml with 'train', 'val' and 'names' "
            f"({reason}){_nearby(dataset)}"
        ) from error
    if not isinstance(about, dict):
        raise DiffugenError(f"{file} is no dataset: expected a mapping with 'train', 'val' and 'names'")
    return file, about


def candidates(root: Path, part: str) -> Iterator[Path]:
    """Yield where a path of ``data.yaml`` can lie: below the root, and without ``../`` in front, as exporters
    write it.
    """
    yield root / part
    if part.startswith("../"):
        yield root / part[3:]


def list_images(entry: Path) -> list[Path]:
    """Return the image files below a folder, hidden ones apart, or those that a list file names, sorted.

    Raises:
        DiffugenError: If ``entry`` is a file that cannot be read as a list, or the list names a missing file.
    """
    if entry.is_dir():
        return sorted(path for path in entry.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)
    try:
        lines = entry.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiffugenError(f"cannot read the list of images {entry}: {error}") from error
    images = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            images.append(entry.parent / line.strip())
            if not images[-1].is_file():
                raise DiffugenError(f"{entry}, line {number}: no image {images[-1]}")
    return sorted(images)


def label_of(image: Path) -> Path:
    """Return where an image's label file lies: where the last folder ``images`` of its path is ``labels``, or
    beside it.
    """
    return (_swapped(image, "labels") or image).with_suffix(".txt")


def exact_of(image: Path) -> Path | None:
    """Return where `diffugen.dataset.yolo.write_yolo` keeps the exact objects of an image; None outside such
    a set.
    """
    swapped = _swapped(image, "instances")
    return swapped.with_suffix(".json") if swapped else None


def as_list(value: Any) -> list[Any]:
    """Return a list of one, unless the value is a list."""
    return value if isinstance(value, list) else [value]


def _swapped(image: Path, folder: str) -> Path | None:
    """The path with another name for its last folder ``images``; None if it has none."""
    before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{before}{os.sep}{folder}{os.sep}{after}") if found else None


def _named(entry: Path) -> Iterator[tuple[Path, str]]:
    """The images of a folder or list file with their names."""
    images = list_images(entry)
    base = entry
    if entry.is_dir():
        _check_labels(entry, images)
    elif images:
        base = Path(os.path.commonpath([image.parent for image in images]))
    for image in images:
        yield image, "-".join(image.relative_to(base).with_suffix("").parts)


def _check_labels(folder: Path, images: Sequence[Path]) -> None:
    """Check that each label file belongs to an image; where they lie among the images, text files can be
    anything.
    """
    labels = label_of(folder / "any").parent
    if labels == folder or not labels.is_dir():
        return
    known = {label_of(image) for image in images}
    for label in sorted(labels.rglob("[!.]*.txt")):
        if label not in known and label.name not in _NO_LABELS:
            raise DiffugenError(f"{label} has no image in {folder}; remove it or put its image there")


def _class_names(file: Path, names: Any) -> dict[int, str]:
    try:
        found = {
            int(number): str(name)
            for number, name in (dict(enumerate(names)) if isinstance(names, list) else names).items()
        }
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found:
        raise DiffugenError(
            f"{file} has no class names; expected 'names' as a list or as {{number: name}}, got {names!r}"
        )
    return found


def _nearby(dataset: Path) -> str:
    """A hint at what the folder holds instead."""
    if not dataset.is_dir():
        return ""
    others = sorted([*dataset.glob("*.y*ml"), *dataset.glob("*.json"), *dataset.glob("annotations/*.json")])
    return f"; did you mean {', or '.join(map(str, others[:3]))}?" if others else ""
