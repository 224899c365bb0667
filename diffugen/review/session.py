"""Review in the FiftyOne App: put a run's queue into a dataset, open it, read the tags back as decisions.

Each image of the queue is a sample with its labels in one field a source: ``attention``, ``model``,
``human``. A person decides by tagging images ``accept_attention``, ``accept_model``, ``empty``, ``reject`` or
``edited`` (then the field ``human`` holds the right labels), or by tagging single labels of any source
``accept``. Labels that she changes before she accepts them count as she left them. An image on which she left
anything keeps its labels when the queue is pushed again.

Expects FiftyOne to be connected (`diffugen.review.database`); writes nothing into the run's ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from diffugen.errors import DiffugenError, StoreError
from diffugen.labels.shapes import iou_matrix
from diffugen.records import KINDS, SOURCES, Decision, Instances, LabelSet, content_id
from diffugen.review.database import environment
from diffugen.review.detections import to_detections, to_instances
from diffugen.review.queue import Entry, Queue, configured_classes, fingerprint, read_queue, same_outcome
from diffugen.review.tags import ACCEPT, TAG_OF, VERDICT_OF, Unclear, misspelt, verdict_of
from diffugen.run.store import RunStore

COLOURS = {
    "attention": "#ff8c1a",
    "model": "#3d9bff",
    "human": "#3cb44b",
    "rank": "#5c6670",
    "kinds": "#5c6670",
}
"""Of the App's fields."""
SAMPLES_A_BATCH = 100
APP_SECONDS = 300.0
SAME_OBJECT_IOU = 0.5
"""Two accepted labels of different sources that overlap more than this are one object."""

INSTRUCTIONS = """The review of {name} is open: {url}
  1. The view "queue" has {images} images, worst first. Attention labels are orange, model labels blue.
  2. Select images, press the tag button and tag them: accept_attention, accept_model, empty (nothing to label) or reject.
     To take single labels: open an image, click on them, and tag them: accept.
  3. {end}"""
WAITING = "Then press Ctrl-C here, or close the page: what is tagged is taken over, the rest waits for the next session."
NOT_WAITING = "What is tagged is taken over when the session ends."


# -------------------------------------------------------------------- push


def push(
    store: RunStore,
    *,
    round: int | None = None,
    all_images: bool = False,
    method: str | None = None,
    class_names: Collection[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Any:
    """Put the review queue of a run into its FiftyOne dataset; again brings it up to date.

    Args:
        store: The run.
        round: Only images that this round generated; None for all.
        all_images: Whether images without a disagreement come along, outside the queue.
        method: As in `diffugen.review.queue.read_queue`.
        class_names: Likewise.
        on_progress: Called with images done and images in all.

    Returns:
        The dataset, ``fiftyone.Dataset``, named after the run's folder, with the saved views ``queue``, one
        for each kind, ``undecided`` and ``decided``.

    Raises:
        DiffugenError: The database holds another run's dataset of that name.
        StoreError: The run cannot be read.
    """
    queue = read_queue(store, round, method=method, class_names=class_names)
    dataset = _open_dataset(store)
    ids = list(queue.disagreements)
    if all_images:
        ids += [image_id for image_id in store.image_ids(round) if image_id not in queue.disagreements]
    _declare(dataset, [store.record(image_id).prompt.attributes for image_id in ids])
    _fill_dataset(dataset, queue, ids, on_progress)
    _save_views(dataset)
    return dataset


def dataset_name(folder: Path) -> str:
    """Return the name of a run's dataset: that of its folder, or a made-up one where that has no Latin letter
    or digit.
    """
    name = folder.resolve().name
    return name if re.search("[A-Za-z0-9]", name) else f"run-{content_id(name)}"


def _open_dataset(store: RunStore) -> Any:
    import fiftyone as fo

    name = dataset_name(store.folder)
    run = {"folder": str(store.folder.resolve()), "created_at": store.summary()["created_at"]}
    if not fo.dataset_exists(name):
        dataset = fo.Dataset(name, persistent=True)
        dataset.info = {"classes": []}
    else:
        dataset = fo.load_dataset(name)
        owner = dataset.info.get("run", {})
        if owner.get("created_at") != run["created_at"]:
            raise DiffugenError(
                f"the database holds a dataset {name!r} of {owner.get('folder', 'something that is no run')} "
                "already, which is "
                f"not {run['folder']}. Rename the folder of this run, or delete that dataset: fiftyone "
                f"datasets delete {name}"
            )
    dataset.info["run"] = run
    dataset.save()
    return dataset


def _declare(dataset: Any, attributes: Iterable[Any]) -> None:
    """Make all fields known, so that the App offers them before any image has a value there, and arrange
    them.
    """
    import fiftyone as fo

    from diffugen.labels.score import ScoreWeights

    text, whole, number = fo.StringField, fo.IntField, fo.FloatField
    known = dataset.get_field_schema(flat=True)

    def declare(name: str, kind: Any, **more: Any) -> None:
        if name not in known:
            dataset.add_sample_field(name, kind, **more)

    fields = {
        "rank": (whole, "place in the review queue; 1 is worst"),
        "severity": (number, "severity of the worst disagreement, 0 to 1"),
        "decision": (text, "what was decided and taken over"),
        "prompt": (text, "what the image was generated from"),
        "round": (whole, "the round that generated the image"),
        "task": (text, "how it was generated"),
        "image_id": (text, "its name in the run"),
    }
    for name, (kind, meaning) in fields.items():
        declare(name, kind, description=meaning)
    declare("kinds", fo.ListField, subfield=text, description="kinds of disagreement")
    for source in SOURCES:
        declare(source, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
        terms = [field.name for field in dataclasses.fields(ScoreWeights)] if source == "attention" else []
        for name in ("kind", "severity", "iou", *terms):
            declare(f"{source}.detections.{name}", text if name == "kind" else number)
    prompt_fields = sorted({_prompt_field(name) for values in attributes for name in values})
    for name in prompt_fields:
        declare(name, text)
    groups = {
        "tags": ["tags"],
        "labels": list(SOURCES),
        "review": ["rank", "kinds", "severity", "decision"],
        "generated from": ["prompt", *prompt_fields, "round", "task", "image_id"],
        "metadata": ["id", "filepath", "metadata", "created_at", "last_modified_at"],
    }
    look = dataset.app_config
    look.sidebar_groups = [
        fo.SidebarGroupDocument(name=name, paths=paths, expanded=name != "metadata")
        for name, paths in groups.items()
    ]
    look.active_fields = fo.ActiveFields(paths=["tags", *SOURCES, "rank", "kinds"], exclude=False)
    look.color_scheme = fo.ColorScheme(
        color_by="field",
        opacity=0.5,
        fields=[{"path": path, "fieldColor": colour} for path, colour in COLOURS.items()],
    )
    dataset.save()


def _prompt_field(attribute: str) -> str:
    return "prompt_" + re.sub("[^0-9A-Za-z_]", "_", attribute)


def _fill_dataset(
    dataset: Any, queue: Queue, ids: list[str], on_progress: Callable[[int, int], None]
) -> None:
    import fiftyone as fo

    known = dict(zip(*dataset.values(["image_id", "id"]), strict=True))
    # Images of an earlier queue stay, but no longer in it.
    dataset.set_values("rank", [None] * len(dataset))
    classes = {*dataset.info["classes"], *configured_classes(queue.store)}
    fresh: list[Any] = []
    on_progress(0, len(ids))
    for number, image_id in enumerate(ids, start=1):
        entry = queue.entry(image_id)
        path = str(queue.store.image_path(image_id).resolve())
        sample = dataset[known[image_id]] if image_id in known else fo.Sample(filepath=path)
        sample.filepath = path
        sample["rank"] = number if image_id in queue.disagreements else None
        _fill(sample, entry, queue.store.folder / "review" / "masks")
        classes.update(_class_names(entry))
        if image_id in known:
            sample.save()
        else:
            fresh.append(sample)
        if len(fresh) == SAMPLES_A_BATCH or number == len(ids):
            dataset.add_samples(fresh, progress=False)
            fresh = []
        on_progress(number, len(ids))
    dataset.info["classes"] = sorted(classes)
    dataset.save()


def _class_names(entry: Entry) -> set[str]:
    names = {phrase.class_name for phrase in entry.record.prompt.phrases if phrase.class_name}
    for labels in (entry.attention, entry.model):
        names.update(labels.instances.class_names if labels else ())
    return names


def _fill(sample: Any, entry: Entry, masks_folder: Path) -> None:
    import fiftyone as fo

    record = entry.record
    width, height = record.size_wh
    sample["metadata"] = fo.ImageMetadata(mime_type="image/png", width=width, height=height, num_channels=3)
    values = {
        "image_id": record.id,
        "prompt": record.prompt.text,
        "round": record.round,
        "task": record.task,
        "kinds": entry.kinds,
        "severity": entry.severity,
        **{_prompt_field(name): value for name, value in record.prompt.attributes.items()},
    }
    for name, value in values.items():
        sample[name] = value
    if not _is_touched(sample, record.size_wh):
        for source, labels in (("attention", entry.attention), ("model", entry.model)):
            _put_labels(sample, source, labels, entry, masks_folder)
    if entry.decision is not None:
        _carry_over(sample, entry, entry.decision, masks_folder)


def _put_labels(sample: Any, source: str, labels: LabelSet | None, entry: Entry, masks_folder: Path) -> None:
    """Fill a label field; where it holds these very labels, only what is said about them may change."""
    field = _value(sample, source)
    if field is None or labels is None or field["pushed"] != fingerprint(labels.instances):
        sample[source] = labels and _field(labels, entry, masks_folder)
        return
    field["method"] = labels.method
    for one, values in zip(
        field.detections, to_detections(labels, entry.disagreements, masks_folder), strict=True
    ):
        for name in ("kind", "severity", "iou"):
            one[name] = values.get(name)


def _field(labels: LabelSet, entry: Entry, masks_folder: Path) -> Any:
    """Return a label field that remembers what was put into it, so that a person's changes can be told."""
    import fiftyone as fo

    found = [fo.Detection(**values) for values in to_detections(labels, entry.disagreements, masks_folder)]
    return fo.Detections(detections=found, method=labels.method, pushed=fingerprint(labels.instances))


def _is_touched(sample: Any, size_wh: tuple[int, int]) -> bool:
    """Return whether a person left anything on an image: a verdict, a tag on a label, or other labels than it
    came with.
    """
    fields = [_value(sample, source) for source in SOURCES]
    return any(tag in VERDICT_OF for tag in sample.tags) or any(
        field is not None and (any(one.tags for one in field.detections) or not _is_as_pushed(field, size_wh))
        for field in fields
    )


def _is_as_pushed(field: Any, size_wh: tuple[int, int]) -> bool:
    try:
        return fingerprint(to_instances(field.detections, size_wh, None)) == field["pushed"]
    except (Unclear, AttributeError, KeyError):
        return False


def _value(sample: Any, name: str) -> Any:
    return sample[name] if sample.has_field(name) else None


def _detections(sample: Any, source: str) -> list[Any]:
    field = _value(sample, source)
    return [] if field is None else list(field.detections)


def _carry_over(sample: Any, entry: Entry, decision: Decision, masks_folder: Path) -> None:
    """Tag an image as the run knows it decided, unless a person has tagged it otherwise since."""
    try:
        tagged = _verdict(sample)
    except Unclear:
        return
    before = _value(sample, "decision")
    sample["decision"] = decision.verdict
    if tagged is not None and (tagged != before or tagged == decision.verdict):
        return
    verdict = decision.verdict
    labels = {"attention": entry.attention, "model": entry.model}.get(verdict)
    if decision.instances is not None and verdict in ("attention", "model"):
        # What was accepted then is not what stands there now.
        same = labels is not None and fingerprint(labels.instances) == fingerprint(decision.instances)
        verdict = verdict if same else "edited"
    if verdict == "edited" and decision.instances is not None:
        made = LabelSet(decision.image_id, "human", decision.instances, decision.reviewer, decision.round)
        sample["human"] = _field(made, entry, masks_folder)
    for source in SOURCES:
        for one in _detections(sample, source):
            one.tags = [tag for tag in one.tags if tag != ACCEPT]
    sample.tags = [*(tag for tag in sample.tags if tag not in VERDICT_OF), TAG_OF[verdict]]


def _is_decided() -> Any:
    """Return the expression that is true of samples with a verdict, clear or not."""
    from fiftyone import ViewField

    found = ViewField("tags").contains(list(VERDICT_OF))
    for source in SOURCES:
        found |= ViewField(f"{source}.detections").filter(ViewField("tags").contains(ACCEPT)).length() > 0
    return found


def _save_views(dataset: Any) -> None:
    from fiftyone import ViewField

    queue = dataset.exists("rank").sort_by("rank")
    views = {
        "queue": (queue, "all images of the queue, worst first"),
        "undecided": (queue.match(~_is_decided()), "the queue without what is tagged"),
        "decided": (dataset.match(_is_decided()).sort_by("rank"), "what is tagged"),
    }
    for kind in KINDS:
        views[kind] = (queue.match(ViewField("kinds").contains(kind)), f"the queue where something is {kind}")
    for name, (view, meaning) in views.items():
        dataset.save_view(name, view, description=meaning, overwrite=True)


# -------------------------------------------------------------------- pull


def pull(
    store: RunStore, dataset: Any, *, reviewer: str, round: int, notify: Callable[[str], None] = print
) -> list[Decision]:
    """Return what the tags in a dataset decide, where it is new or differs from what the run knows.

    The caller keeps them with ``store.add_decisions``. Images whose tags contradict each other, or whose
    labels cannot be taken, are told and left out; they stay as they are, to be mended in the next session.

    Args:
        store: The run.
        dataset: What :func:`push` returned.
        reviewer: Who decided.
        round: The round in which it was decided.
        notify: Called with a line for each thing that could not be taken.
    """
    dataset.reload()
    known = {one.image_id: one for one in store.decisions()}
    label_tags = [tag for source in SOURCES for tag in dataset.distinct(f"{source}.detections.tags")]
    for line in misspelt(dataset.distinct("tags"), label_tags):
        notify(line)
    decisions = []
    taken: dict[str, str] = {}
    for sample in dataset.match(_is_decided()).sort_by("rank").iter_samples():
        try:
            decision = _decision(store, sample, dataset.info["classes"], reviewer, round)
        except (Unclear, StoreError) as problem:
            notify(f"image {sample['image_id']} ({sample.filename}) is left undecided: {problem}")
            continue
        taken[sample.id] = decision.verdict
        before = known.get(decision.image_id)
        if before is None or not same_outcome(before, decision):
            decisions.append(decision)
    dataset.set_values("decision", taken, key_field="id")
    return decisions


def _verdict(sample: Any) -> str | None:
    return verdict_of(
        sample.tags, sum(ACCEPT in one.tags for source in SOURCES for one in _detections(sample, source))
    )


def _decision(store: RunStore, sample: Any, classes: Collection[str], reviewer: str, round: int) -> Decision:
    image_id, verdict = str(sample["image_id"]), str(_verdict(sample))
    size_wh = store.record(image_id).size_wh
    instances: Instances | None = None
    if verdict in ("attention", "model"):
        verdict, instances = _of_source(store, sample, verdict, size_wh, classes)
    elif verdict == "edited":
        instances = _edited(sample, size_wh, classes)
    elif verdict == "empty":
        instances = to_instances([], size_wh, classes)
    return Decision(image_id, verdict, instances, reviewer, round)


def _of_source(
    store: RunStore, sample: Any, source: str, size_wh: tuple[int, int], classes: Collection[str]
) -> tuple[str, Instances]:
    """Return the labels that one source is right with, and ``edited`` in the place of the source where a
    person changed them.
    """
    field = _value(sample, source)
    if field is None:
        raise Unclear(f"it has no {source} labels that could be right")
    instances = to_instances(field.detections, size_wh, classes)
    if not _is_as_pushed(field, size_wh):
        return "edited", instances
    # The run's own copy has the score terms as well.
    kept = store.labels(source, image_id=sample["image_id"])
    same = (one.instances for one in kept if fingerprint(one.instances) == field["pushed"])
    return source, next(same, instances)


def _edited(sample: Any, size_wh: tuple[int, int], classes: Collection[str]) -> Instances:
    """Return the single labels that were accepted; where there are none, all human labels.

    Raises:
        Unclear: There are neither, or the same object was accepted from two sources.
    """
    accepted = {
        source: [one for one in _detections(sample, source) if ACCEPT in one.tags] for source in SOURCES
    }
    if not any(accepted.values()):
        accepted = {"human": _detections(sample, "human")}
        if not accepted["human"]:
            raise Unclear(
                f"it is tagged {TAG_OF['edited']}, but its field human is empty. Nothing to label is the tag "
                "empty"
            )
    parts = [to_instances(found, size_wh, classes) for found in accepted.values()]
    for number, first in enumerate(parts):
        for second in parts[number + 1 :]:
            overlap = iou_matrix(first.rles, second.rles)
            if overlap.size and overlap.max() > SAME_OBJECT_IOU:
                raise Unclear(
                    "one object is accepted twice, from two sources; take the tag accept off one of them"
                )
    return to_instances([one for found in accepted.values() for one in found], size_wh, classes)


# -------------------------------------------------------------------- the App


def open_app(
    dataset: Any,
    *,
    address: str = "127.0.0.1",
    port: int = 5151,
    wait: bool = True,
    remote: bool = False,
    notify: Callable[[str], None] = print,
) -> Any:
    """Open the App on the queue; a browser too, where there is a display.

    Args:
        dataset: What :func:`push` returned.
        address: Where the App listens; other machines reach it only where this is not 127.0.0.1.
        port: Its port.
        wait: Whether to block until Ctrl-C, or until the page is closed, and to close the App then.
        remote: Whether the page is opened elsewhere, so that no browser is started.
        notify: Called with the address and what to do.

    Returns:
        The session, ``fiftyone.Session``; its ``close`` ends the App. Already closed where ``wait``.

    Raises:
        DiffugenError: The port is taken, the address is not this machine's, or the App does not start.
    """
    import webbrowser

    import fiftyone as fo

    _check_free(address, port)
    view = dataset.load_saved_view("queue")
    home = Path(dataset.info["run"]["folder"]) / "review" / "home"
    home.mkdir(parents=True, exist_ok=True)
    # The server would put a number for the user into her home.
    with environment({"HOME": str(home)}):
        _start_server(address, port)
    # Not launch_app, which prints an advertisement.
    session = fo.Session(dataset=dataset, view=view, address=address, port=port, remote=True)
    url = f"http://{address}:{port}"
    if not remote and _has_display():
        webbrowser.open(url)
    end = WAITING if wait else NOT_WAITING
    notify(INSTRUCTIONS.format(name=dataset.name, url=url, images=len(view), end=end))
    if wait:
        try:
            session.wait()
        except KeyboardInterrupt:
            pass
        finally:
            session.close()
    return session


def _start_server(address: str, port: int) -> None:
    """Start the App's server under FiftyOne's own care, which stops it with the last session on its port.

    FiftyOne itself gives up after a minute, too early on a machine that is busy with training, and not when
    the server has ended.
    """
    from fiftyone.core.service import ServerService, ServiceListenTimeout
    from fiftyone.core.session import session as sessions

    class Server(ServerService):
        def _wait_for_child_port(self, port: int | None = None, timeout: float = APP_SECONDS) -> int:
            deadline = time.monotonic() + timeout
            while self.child.is_running() and time.monotonic() < deadline:
                with contextlib.suppress(ServiceListenTimeout):
                    return super()._wait_for_child_port(port, timeout=1)
            raise ServiceListenTimeout("server", port)

    try:
        sessions._server_services[port] = Server(port, address=address, do_not_track=True)
    except ServiceListenTimeout as error:
        raise DiffugenError(
            f"the App's server does not come up on {address}:{port}. Try again when the machine is less "
            "busy, or review on a "
            "page: --review static"
        ) from error


def _check_free(address: str, port: int) -> None:
    """Refuse a port that is taken: FiftyOne would join whatever App answers there, of another run and
    database.
    """
    if not 0 < port < 65536:
        raise DiffugenError(f"port {port} is not between 1 and 65535; choose another with --port")
    try:
        with socket.socket() as probe:
            # A port in the pause after an App that just ended can be used again.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        raise DiffugenError(
            f"the App cannot listen on {address}:{port}: {error.strerror or error}. Choose another port with "
            "--port (or "
            "--address, if that is not an address of this machine), or end what uses it"
        ) from error


def _has_display() -> bool:
    return sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
