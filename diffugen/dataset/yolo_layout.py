"""Find the images and label files of a set in the YOLO-seg layout, whatever tool wrote it.

Knows ``data.yaml``, the ``classes.txt`` that Label Studio writes instead, and paths; does not open images or
label files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffugen.config.foreign import as_path, is_whole_text, parse_json, parse_yaml, read_text
from diffugen.dataset.files import IMAGE_SUFFIXES, SPLITS
from diffugen.errors import DiffugenError, brief

_NOTHING = ("", "~", "null", "Null", "NULL")
"""How a key is written that has no value."""

_MOST_BYTES = 64 << 20
"""The largest list of images."""

_CLASSES = "classes.txt"
"""Class names, one per line. Label Studio writes it instead of a ``data.yaml``, beside the folder ``images``;
other labelling tools leave such a file among the label files."""


@dataclass(frozen=True)
class Layout:
    """The contents of a ``data.yaml``.

    Attributes:
        file: The ``data.yaml``, or the ``classes.txt``.
        class_names: Class name of each class number.
        roots: Folders that its paths may be relative to, the likeliest first.
        parts: For each split, its image folders and list files as written.
    """

    file: Path
    class_names: Mapping[int, str]
    roots: tuple[Path, ...]
    parts: Mapping[str, tuple[str, ...]]

    def images(self, split: str | None = None) -> list[tuple[str, Path]]:
        """Return name and path of the images of a split, or of all splits, sorted by path without repeats.

        The name is the file name without its suffix, prefixed by the sub-folders of the image, if any.

        Raises:
            DiffugenError: The split does not exist, one of its folders or files is missing, a label file has
                no image, or there are no images.
        """
        if split is not None and split not in self.parts:
            raise DiffugenError(f"{self.file} has no split {split!r}; it has {', '.join(self.parts)}")
        names: dict[Path, str] = {}
        for part in [part for name in ([split] if split else self.parts) for part in self.parts[name]]:
            for image, name in _named(self._resolve(part)):
                names.setdefault(image, name)
        if not names:
            where = ", ".join(part for parts in self.parts.values() for part in parts)
            raise DiffugenError(
                f"{self.file}: no images in {where}; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
            )
        return [(name, image) for image, name in sorted(names.items())]

    def exists(self, split: str) -> bool:
        """Return whether the split is named, and its folders or files are there and list images."""
        try:
            return bool(self.images(split))
        except DiffugenError:
            return False

    def _resolve(self, part: str) -> Path:
        tried: list[Path] = [path for root in self.roots for path in candidates(root, part)]
        for path in tried:
            if path.exists():
                return path.absolute()
        places = ", ".join(str(path) for path in dict.fromkeys(tried))
        raise DiffugenError(f"{self.file} names {part!r}, which does not exist; tried {places}")


def read_layout(dataset: Path) -> Layout:
    """Read the ``data.yaml`` of a set.

    Args:
        dataset: Folder of the set, or its ``data.yaml``. ``path`` in it may be absolute, relative to the file
            or to the working directory, or absent. If nothing exists below it, for example because the set
            was moved, the folder of the file is used.

    Raises:
        DiffugenError: There is no such file, or it lacks class names or splits.
    """
    file, about = read_about(dataset)
    names = _class_names(file, about.get("names"))
    if "val" not in about and "validation" in about:
        about["val"] = about["validation"]
    parts = {
        split: tuple(str(as_path(part, f"{file}: {split}")) for part in as_list(about[split]))
        for split in SPLITS
        if about.get(split)
    }
    if not parts:
        raise DiffugenError(f"{file} names no images; expected one of the keys {', '.join(SPLITS)}")
    given = as_path(str(about.get("path") or "."), f"{file}: path")
    return Layout(file, names, tuple(dict.fromkeys((file.parent / given, given, file.parent))), parts)


def read_about(dataset: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of the ``data.yaml`` of a set, its plain values as the texts they are.

    A class may be called ``no`` or ``0x1F``; keys that are written without a value are left out. In Label
    Studio's layout, the folder ``images`` is the split ``train``.

    Raises:
        DiffugenError: There is none, or it is not a YAML mapping.
    """
    dataset = as_path(dataset, "the dataset")
    file = about_file(dataset) if dataset.is_dir() else dataset
    try:
        if file.name == _CLASSES:
            return file, {"names": read_text(file).rstrip().splitlines(), "train": "images"}
        about = parse_yaml(read_text(file), texts_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DiffugenError(
            f"no dataset at {dataset}: expected a data.yaml with 'train', 'val' and 'names' "
            f"({reason}){_nearby(dataset)}"
        ) from error
    if not isinstance(about, dict):
        raise DiffugenError(f"{file} is not a dataset: expected a mapping with 'train', 'val' and 'names'")
    return file, {key: value for key, value in about.items() if value not in _NOTHING}


def about_file(folder: Path) -> Path:
    """Return the path of the ``data.yaml`` of a set, or of the ``classes.txt`` if it has that instead."""
    usual, other = folder / "data.yaml", folder / _CLASSES
    return other if not usual.exists() and other.is_file() and (folder / "images").is_dir() else usual


def candidates(root: Path, part: str) -> Iterator[Path]:
    """Yield the possible locations of a path in ``data.yaml``; some exporters put ``../`` in front of it."""
    yield root / part
    if part.startswith("../"):
        yield root / part[3:]


def list_images(entry: Path) -> list[Path]:
    """Return the image files below a folder, except hidden ones, or those in a list file, sorted.

    Raises:
        DiffugenError: ``entry`` is a file that cannot be read as a list, the list names a missing file, or a
            name is not UTF-8.
    """
    if entry.is_dir():
        found = sorted(path for path in entry.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES)
        odd = next((path for path in found if not is_whole_text(str(path.relative_to(entry)))), None)
        if odd is not None:
            raise DiffugenError(f"the name of the image {str(odd)!a} is not UTF-8; rename it")
        return found
    try:
        lines = read_text(entry, _MOST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        raise DiffugenError(f"cannot read the list of images {entry}: {error}") from error
    images = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            images.append(entry.parent / as_path(line.strip(), f"{entry}, line {number}"))
            if not images[-1].is_file():
                raise DiffugenError(f"{entry}, line {number}: no image {images[-1]}")
    return sorted(images)


def label_of(image: Path) -> Path:
    """Return the path of an image's label file.

    It lies in ``labels`` where the image lies in ``images``, or else next to the image.
    """
    usual, beside = _swapped(image, "labels"), image.with_suffix(".txt")
    if usual is None or (not usual.parent.is_dir() and beside.is_file()):
        return beside
    return usual.with_suffix(".txt")


def sidecar_of(image: Path) -> Path | None:
    """Return the path of the sidecar file that `write_yolo` keeps for an image; None in other layouts."""
    swapped = _swapped(image, "instances")
    return swapped.with_suffix(".json") if swapped else None


def as_list(value: Any) -> list[Any]:
    """Return the value if it is a list, else a list of it."""
    return value if isinstance(value, list) else [value]


def _swapped(image: Path, folder: str) -> Path | None:
    """Return the path with its last folder ``images`` renamed; None if it has no such folder."""
    before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{before}{os.sep}{folder}{os.sep}{after}") if found else None


def _named(entry: Path) -> Iterator[tuple[Path, str]]:
    """Yield the images of a folder or list file with their names."""
    images = list_images(entry)
    base = entry
    if entry.is_dir():
        _check_labels(entry, images)
    elif images:
        base = Path(os.path.commonpath([image.parent for image in images]))
    for image in images:
        yield image, "-".join(image.relative_to(base).with_suffix("").parts)


def _check_labels(folder: Path, images: Sequence[Path]) -> None:
    """Check that each label file has an image; among the images, text files may be anything."""
    labels = label_of(folder / "any").parent
    if labels == folder or not labels.is_dir():
        return
    known = {label_of(image) for image in images}
    for label in sorted(labels.rglob("[!.]*.txt")):
        if label not in known and label.name != _CLASSES:
            raise DiffugenError(f"{label} has no image in {folder}; remove it or add its image")


def _class_names(file: Path, names: Any) -> dict[int, str]:
    try:
        found = {
            int(number): name
            for number, name in (dict(enumerate(names)) if isinstance(names, list) else names).items()
        }
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found or not all(isinstance(name, str) and name.strip() for name in found.values()):
        raise DiffugenError(
            f"{file} has no class names; expected 'names' as a list or as {{number: name}}, got "
            f"{brief(names)}"
        )
    return found


def _nearby(dataset: Path) -> str:
    """Return a hint at the dataset files in the folder, if there are any."""
    if not dataset.is_dir():
        return ""
    files = [*dataset.glob("*.y*ml"), *dataset.glob("*.json"), *dataset.glob("annotations/*.json")]
    others = [str(file) for file in sorted(files) if _describes_a_set(file)]
    return f"; did you mean {', or '.join(others[:3])}?" if others else ""


def _describes_a_set(file: Path) -> bool:
    """Return whether a file has the keys of a COCO file or of a ``data.yaml``; not if it is too large."""
    try:
        text = read_text(file)
        about = parse_json(text) if file.suffix == ".json" else parse_yaml(text, texts_only=True)
    except (OSError, ValueError):
        return False
    wanted = {"images", "annotations"} if file.suffix == ".json" else {"names"}
    return isinstance(about, dict) and wanted <= about.keys()
