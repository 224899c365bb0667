"""Join runs of one configuration, made elsewhere, into one run.

Images with their heat maps, source images, label sets, every reviewer's decisions and dropped images are
taken. What describes the rounds of one run is not: results of stages, disagreements, decoders, detectors.

All checks come first. Then each page of images is written like generated ones: files, then rows, in one
transaction with the label sets of these images. So a killed merge continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diffugen.config.load import kept_config
from diffugen.config.sections import resumable_keys
from diffugen.errors import StoreError
from diffugen.run import codec
from diffugen.run.changes import differing_keys
from diffugen.run.files import acquire_lock, link_file, read_file, release_lock, sync_folder
from diffugen.run.ledger import LEDGER_NAME, explained
from diffugen.run.places import UNFINISHED
from diffugen.run.rows import audit_place
from diffugen.run.schema import WITH_JUDGED
from diffugen.run.store import RunStore

_PAGE = 200
_VOTE = ("image_id", "verdict", "instances", "reviewer", "round", "judged", "created_at")
_LABELS = ("image_id", "source", "method", "round", "instances", "objects", "created_at")
_IMAGE = ("id", "round", "record", "seconds", "bytes", "created_at")
_DROPPED = ("id", "round", "reason", "created_at")

Row = dict[str, Any]


@dataclass
class Merged:
    """What a merge added to a run.

    Attributes:
        images: Number of new images.
        known: Number of images that the run had already.
        without_files: Number of images that were left out because their files are missing.
        label_sets: Number of new label sets; those of people come from the decisions.
        decisions: Number of new decisions.
        dropped: Number of new dropped images.
    """

    images: int = 0
    known: int = 0
    without_files: int = 0
    label_sets: int = 0
    decisions: int = 0
    dropped: int = 0


def merge(
    folders: Sequence[Path], into: Path, on_progress: Callable[[float, int], None] = lambda done, total: None
) -> Merged:
    """Join runs into one, which is created if it does not exist; nothing is written unless all of them fit.

    Args:
        folders: The runs to take from; they stay as they are.
        into: The run to write.
        on_progress: Called with the number of images that are done, and of all images.

    Raises:
        StoreError: A folder is not a run, is named twice, is being written, has another configuration, or has
            an image of the same id with another record or other pixels; or the disk fails.
    """
    _check_folders(folders, into)
    with ExitStack() as stack:
        sources = [stack.enter_context(_unwritten(folder)) for folder in folders]
        total = sum(_count(source) for source in sources)
        if (into / LEDGER_NAME).is_file():
            target = stack.enter_context(RunStore.open(into))
            # A merge that was killed at its very beginning leaves a run without a configuration.
            begun = target.config is None and target.is_empty
            _check_configs(sources if begun else [target, *sources])
            _check_same(sources, target)
        else:
            _check_configs(sources)
            _check_same(sources, None)
            target = stack.enter_context(RunStore.create_or_open(into, config=None))
        if target.config is None:
            target.keep_config(sources[0].config)
        merged = Merged()
        for source in sources:
            _take_sources(source, target)
            for page in _pages(source.image_ids()):
                _take_images(source, target, page, merged)
                on_progress(merged.images + merged.known + merged.without_files, total)
            _take_decisions(source, target, merged)
            _take_dropped(source, target, merged)
        return merged


def _check_folders(folders: Sequence[Path], into: Path) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        real = folder.resolve()
        if real in seen:
            raise StoreError(f"{folder} and {seen[real]} are the same run; name it once")
        if real == into.resolve():
            raise StoreError(f"{folder} is also the run to merge into; leave it out of the runs to take from")
        seen[real] = folder


@contextmanager
def _unwritten(folder: Path) -> Iterator[RunStore]:
    """Open a run for reading, and keep others from writing it meanwhile."""
    with RunStore.open(folder, readonly=True) as store:
        try:
            lock = acquire_lock(folder)
        except OSError:  # a folder in which nobody here can write
            yield store
            return
        try:
            yield store
        finally:
            release_lock(folder, lock)


def _check_configs(stores: Sequence[RunStore]) -> None:
    first, *others = stores
    for other in others:
        if (first.config is None) != (other.config is None):
            without = first if first.config is None else other
            raise StoreError(
                f"run {without.folder} has no configuration, unlike the other runs; leave it out"
            )
        places = (f"in {first.folder}", f"in {other.folder}")
        differing = differing_keys(_config(first), _config(other), tuple(resumable_keys()), (), places)
        if differing:
            raise StoreError(
                f"runs {first.folder} and {other.folder} have different configurations:\n"
                + "\n".join(f"  - {line}" for line in differing)
                + "\nMerge only runs of the same configuration"
            )


def _config(store: RunStore) -> Mapping[str, Any]:
    """Return a run's configuration with today's keys, so that runs of two versions can be compared."""
    return {} if store.config is None else kept_config(store.config, str(store.folder / LEDGER_NAME)).dump()


def _check_same(sources: Sequence[RunStore], target: RunStore | None) -> None:
    """Check that images and source images of one id are the same everywhere."""
    seen = [] if target is None else [target]
    for source in sources:
        for image_id in source.image_ids():
            record = source.record(image_id)
            for other in seen:
                if not other.knows_image(image_id):
                    continue
                if other.record(image_id) != record:
                    raise StoreError(_unlike(image_id, "record", other, source))
                if _has_files(other, image_id) and _has_files(source, image_id):
                    _check_pixels(image_id, other.image_path(image_id), source.image_path(image_id))
        for path in _source_files(source):
            for other in seen:
                twin = other.folder / "sources" / path.name
                if twin.is_file():
                    _check_pixels(path.stem, twin, path)
        seen.append(source)


def _check_pixels(image_id: str, first: Path, second: Path) -> None:
    if first.samefile(second):
        return
    one, other = (read_file(image_id, path, lambda data: data) for path in (first, second))
    if one != other:
        pixels = [read_file(image_id, path, codec.rgb_from_png) for path in (first, second)]
        if pixels[0].shape != pixels[1].shape or (pixels[0] != pixels[1]).any():
            raise StoreError(
                f"image {image_id} has different pixels in {first} and {second}. The runs were made on "
                "different machines or with different models; leave one of them out"
            )


def _unlike(image_id: str, what: str, first: RunStore, second: RunStore) -> str:
    places = f"{first.folder} and {second.folder}"
    return f"image {image_id} has a different {what} in {places}; leave one of these runs out"


def _count(store: RunStore) -> int:
    row = store.ledger.one("SELECT count(*) FROM images")
    return int(row[0]) if row else 0


def _has_files(store: RunStore, image_id: str) -> bool:
    return store.image_path(image_id).is_file() and store.heat_maps_path(image_id).is_file()


def _source_files(store: RunStore) -> list[Path]:
    return sorted((store.folder / "sources").glob("[!.]*.png"))


def _pages(ids: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while page := list(islice(rest, _PAGE)):
        yield page


def _take_sources(source: RunStore, target: RunStore) -> None:
    unfinished = target.folder / "sources" / UNFINISHED
    with explained(target.folder):
        unfinished.mkdir(exist_ok=True)
        for path in _source_files(source):
            if not (target.folder / "sources" / path.name).is_file():
                link_file(path, target.folder / "sources" / path.name, unfinished)
        sync_folder(target.folder / "sources")


def _take_images(source: RunStore, target: RunStore, page: Sequence[str], merged: Merged) -> None:
    """Take a page of images with their label sets; of known images, only label sets of a new source."""
    new = []
    labels: list[Row] = []
    for image_id in page:
        if target.has_image(image_id):
            merged.known += 1
        elif _has_files(source, image_id):
            new.append(image_id)
        else:
            merged.without_files += 1
            continue
        labels += _missing_labels(source, target, image_id)
    with explained(target.folder):
        for image_id in new:
            target.image_files.link(image_id, source.image_path(image_id))
            target.heat_map_files.link(image_id, source.heat_maps_path(image_id))
        for files in (target.image_files, target.heat_map_files):
            files.sync(new)
    # OR IGNORE: an image whose row is there, but whose files were lost, has them again now.
    rows = [
        {**row, "audit": audit_place(image_id)}
        for image_id in new
        for row in _rows(source, "images", _IMAGE, "id", image_id)
    ]
    with target.ledger.transaction():
        target.ledger.write(_insert("images", (*_IMAGE, "audit")), rows)
        target.ledger.write(_insert("labels", _LABELS), labels)
    merged.images += len(new)
    merged.label_sets += len(labels)


def _missing_labels(source: RunStore, target: RunStore, image_id: str) -> list[Row]:
    # An older label set, put after a newer one of its source, would count as the newest.
    known = {row["source"] for row in _rows(target, "labels", _LABELS, "image_id", image_id)}
    rows = _rows(source, "labels", _LABELS, "image_id", image_id, "seq")
    return [row for row in rows if row["source"] not in known | {"human"}]


def _take_decisions(source: RunStore, target: RunStore, merged: Merged) -> None:
    """Take decisions, in the order in which they were made: the newest about an image counts."""
    for page in _pages(dict.fromkeys(one.image_id for one in source.votes())):
        changed: dict[str, list[Row]] = {}
        for image_id in page:
            if not target.knows_image(image_id):
                continue
            known = _votes(target, image_id)
            new = [row for row in _votes(source, image_id) if row not in known]
            if new:
                changed[image_id] = sorted(known + new, key=lambda row: str(row["created_at"]))
                merged.decisions += len(new)
        with target.ledger.transaction():
            for image_id, rows in changed.items():
                target.ledger.write("DELETE FROM decisions WHERE image_id = :id", [{"id": image_id}])
                target.ledger.write(_insert("decisions", _VOTE), rows)
            target.put_human_labels(changed)


def _votes(store: RunStore, image_id: str) -> list[Row]:
    columns = _VOTE if store.ledger.version >= WITH_JUDGED else tuple(one for one in _VOTE if one != "judged")
    return [
        {"judged": None, **row} for row in _rows(store, "decisions", columns, "image_id", image_id, "seq")
    ]


def _take_dropped(source: RunStore, target: RunStore, merged: Merged) -> None:
    ids = [str(image_id) for (image_id,) in source.ledger.all("SELECT id FROM dropped")]
    new = [one for one in ids if not target.is_dropped(one) and not target.knows_image(one)]
    rows = [row for image_id in new for row in _rows(source, "dropped", _DROPPED, "id", image_id)]
    with target.ledger.transaction():
        target.ledger.write(_insert("dropped", _DROPPED), rows)
    merged.dropped += len(new)


def _rows(
    store: RunStore, table: str, columns: Sequence[str], key: str, image_id: str, order: str = "rowid"
) -> list[Row]:
    """Return the rows of an image, oldest first."""
    order = "" if table == "dropped" else f"ORDER BY {order}"
    sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {key} = :id {order}"
    return [dict(zip(columns, row, strict=True)) for row in store.ledger.select(sql, id=image_id)]


def _insert(table: str, columns: Sequence[str]) -> str:
    return (
        f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) "
        f"VALUES ({', '.join(f':{name}' for name in columns)})"
    )
