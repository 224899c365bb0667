"""A queue goes into a real FiftyOne dataset; a person's tags and edits come back as decisions."""

from __future__ import annotations

import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from diffugen.errors import DiffugenError
from diffugen.labels.shapes import decode
from diffugen.records import KINDS, Decision, LabelSet
from diffugen.review import detections
from diffugen.review.app import _browser
from diffugen.review.guard import POLICY
from diffugen.review.queue import read_queue
from diffugen.review.schema import dataset_name
from diffugen.review.session import Takeover, open_app, push
from diffugen.run.store import RunStore
from tests.support import run_for_review as made


@pytest.fixture
def run(store: RunStore, connected: str) -> Iterator[RunStore]:
    """The run of six images; its dataset is deleted afterwards."""
    import fiftyone as fo

    yield store
    if fo.dataset_exists(dataset_name(store.folder)):
        fo.delete_dataset(dataset_name(store.folder))


def sample_of(dataset: Any, rank: int) -> Any:
    return dataset.match({"rank": rank}).first()


def tag(dataset: Any, rank: int, *tags: str) -> None:
    """What the App's tag button does with a selected image."""
    dataset.select([sample_of(dataset, rank).id]).tag_samples(list(tags))


def tag_label(dataset: Any, rank: int, source: str, index: int, name: str = "accept") -> None:
    """What the App's tag button does with a selected label."""
    found = sample_of(dataset, rank)[source].detections[index]
    dataset.select_labels(ids=[found.id], fields=source).tag_labels(name, label_fields=source)


def pulled(store: RunStore, dataset: Any) -> tuple[list[Decision], list[str]]:
    told: list[str] = []
    return Takeover(store, dataset, reviewer="anna", round=3, notify=told.append)(), told


def content(dataset: Any) -> list[dict[str, Any]]:
    """All samples without their times."""
    found = [sample.to_dict(include_private=True) for sample in dataset.sort_by("image_id")]
    return [{key: value for key, value in one.items() if key != "last_modified_at"} for one in found]


# -------------------------------------------------------------------- push


def test_push_fills_fields_and_views(run: RunStore) -> None:
    dataset = push(run)
    assert (dataset.name, dataset.persistent, len(dataset)) == ("piano run", True, 5)
    views = {name: dataset.load_saved_view(name).values("rank") for name in dataset.list_saved_views()}
    assert views == {
        "queue": [1, 2, 3, 4, 5],
        "undecided": [1, 2, 3, 4, 5],
        "decided": [],
        "audit": [],
        "overlooked": [1, 5],
        "spurious": [2],
        "swapped": [3],
        "badly_located": [4],
    }
    assert set(KINDS) < set(views)
    sample = sample_of(dataset, 3)
    record = run.record(made.image_id(2))
    assert sample.filepath == str(run.image_path(record.id).resolve())
    assert (sample.metadata.width, sample.metadata.height) == (40, 24)
    values = [
        "image_id",
        "prompt",
        "prompt_weather",
        "round",
        "task",
        "kinds",
        "severity",
        "decision",
        "human",
    ]
    assert [sample[name] for name in values] == [
        record.id,
        record.prompt.text,
        "Regen, völlig nass",
        0,
        "txt2img",
        ["swapped"],
        0.76,
        None,
        None,
    ]
    (found,) = sample.attention.detections
    assert [
        found[name] for name in ("label", "confidence", "index", "kind", "severity", "box_size", "contrast")
    ] == ["piano", 0.4, 0, "swapped", 0.76, 1 / 3, 0.4]
    assert sample_of(dataset, 1).attention.detections == []


@pytest.mark.parametrize("limit", [detections.IN_DATABASE_BYTES, 0], ids=["database", "files"])
def test_masks_are_the_same_after_push_and_pull(
    run: RunStore, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detections, "IN_DATABASE_BYTES", limit)
    dataset = push(run)
    assert bool(list(run.folder.glob("review/masks/*.png"))) == (limit == 0)
    for rank in range(1, 6):
        tag(dataset, rank, "accept_model" if rank % 2 else "accept_attention")
    decisions, told = pulled(run, dataset)
    assert told == []
    for rank, (image_id, decision) in enumerate(
        zip(read_queue(run).disagreements, decisions, strict=True), start=1
    ):
        entry = read_queue(run).entry(image_id)
        expected = made.sure(entry.model if rank % 2 else entry.attention)
        assert (decision.image_id, decision.verdict) == (image_id, expected.source)
        assert (decision.reviewer, decision.round) == ("anna", 3)
        instances = made.sure(decision.instances)
        assert instances.class_names == expected.instances.class_names
        assert instances.scores.tobytes() == expected.instances.scores.tobytes()
        assert instances.terms == expected.instances.terms
        for found, rle in zip(instances.rles, expected.instances.rles, strict=True):
            np.testing.assert_array_equal(decode(found), decode(rle))


def test_pushing_twice_changes_nothing(run: RunStore) -> None:
    before = content(push(run))
    dataset = push(run)
    assert content(dataset) == before
    assert len(dataset.list_saved_views()) == 8


def test_what_a_person_left_survives_another_push(run: RunStore) -> None:
    dataset = push(run)
    tag(dataset, 1, "accept_model", "blurred")
    tag_label(dataset, 2, "attention", 1)
    changed = sample_of(dataset, 3)
    changed.model.detections[0].label = "person"
    changed.save()
    before = {sample["image_id"]: sample.to_dict() for sample in dataset}
    newer = made.instances_of(("car", made.box_mask(0, 0, 3, 3), 0.9))
    ids = [made.image_id(number) for number in (5, 1, 2, 3, 0)]
    run.put_labels(LabelSet(name, "model", newer, "model-2") for name in ids)
    run.put_disagreements(0, reversed(list(run.disagreements())))
    dataset = push(run)
    after = {sample["image_id"]: sample.to_dict() for sample in dataset}
    assert [sample["image_id"] for sample in dataset.load_saved_view("queue")] == list(reversed(ids))
    for number, (image_id, touched) in enumerate(zip(ids, [True, True, True, False, False], strict=True)):
        assert after[image_id]["tags"] == (["accept_model", "blurred"] if number == 0 else [])
        same = after[image_id]["model"] == before[image_id]["model"]
        assert same == touched, image_id
    assert after[ids[1]]["attention"]["detections"][1]["tags"] == ["accept"]


def test_images_whose_disagreements_are_gone_leave_the_queue(run: RunStore) -> None:
    push(run)
    kept = [one for one in run.disagreements() if one.image_id != made.image_id(2)]
    run.put_disagreements(0, kept)
    dataset = push(run)
    assert len(dataset) == 5
    outside = dataset.match({"image_id": made.image_id(2)}).first()
    assert outside.rank is None
    assert dataset.load_saved_view("queue").values("rank") == [1, 2, 3, 4]
    outside.tags = ["reject"]
    outside.save()
    ((found,), told) = pulled(run, dataset)
    assert (found.image_id, found.verdict, told) == (made.image_id(2), "reject", [])
    assert dataset.load_saved_view("decided").values("image_id") == [made.image_id(2)]


def test_a_new_round_joins_the_queue(run: RunStore) -> None:
    push(run)
    run.close()
    with made.make_run(run.folder, (6, 7), round=1) as store:
        dataset = push(store)
    assert len(dataset) == 7
    assert dataset.load_saved_view("queue").values("round") == [1, 0, 1, 0, 0, 0, 0]


def test_a_dataset_of_another_run_is_left_alone(run: RunStore, tmp_path: Path) -> None:
    import fiftyone as fo

    dataset = fo.Dataset("piano run", persistent=True)
    dataset.info = {"run": {"folder": "/elsewhere/piano run", "created_at": "2020"}}
    dataset.save()
    with pytest.raises(
        DiffugenError,
        match=r"has a dataset 'piano run', of /elsewhere/piano run, .*Rename.*delete 'piano run'",
    ):
        push(run)
    assert len(dataset) == 0


@pytest.mark.parametrize(("folder", "name"), [("a.b c", "a.b c"), ("钢琴", "run-")])
def test_dataset_name(folder: str, name: str) -> None:
    assert dataset_name(Path("/runs") / folder).startswith(name)


# -------------------------------------------------------------------- decisions made elsewhere


def test_decisions_that_the_run_knows_are_tagged(run: RunStore) -> None:
    drawn = made.instances_of(("car", made.box_mask(3, 4, 9, 11), 1.0))
    ids = [made.image_id(number) for number in (5, 1, 2, 3, 0)]
    run.add_decisions(
        [
            Decision(ids[0], "model", made.LABELS[5][1], "ben"),
            Decision(ids[1], "reject", None, "ben"),
            Decision(ids[2], "edited", drawn, "ben"),
            # Accepted when the attention labels were others.
            Decision(ids[3], "attention", drawn, "ben"),
        ]
    )
    dataset = push(run)
    tags = {sample["image_id"]: sample.tags for sample in dataset}
    assert [tags[name] for name in ids] == [["accept_model"], ["reject"], ["edited"], ["edited"], []]
    assert dataset.load_saved_view("undecided").values("rank") == [5]
    assert pulled(run, dataset) == ([], [])


def test_a_newer_choice_stands_against_the_run_and_the_run_against_an_older_one(run: RunStore) -> None:
    dataset = push(run)
    tag(dataset, 1, "empty")
    tag(dataset, 2, "empty")
    decisions, _ = pulled(run, dataset)
    # Image 1: decided again elsewhere. Image 2: tagged otherwise in the App.
    run.add_decisions([Decision(decisions[0].image_id, "reject", None, "ben")])
    sample = sample_of(dataset, 2)
    sample.tags = ["accept_attention"]
    sample.save()
    dataset = push(run)
    assert sample_of(dataset, 1).tags == ["reject"]
    assert sample_of(dataset, 2).tags == ["accept_attention"]
    ((found,), told) = pulled(run, dataset)
    assert (found.image_id, found.verdict, told) == (decisions[1].image_id, "attention", [])


# -------------------------------------------------------------------- pull


def test_tags_become_decisions_once(run: RunStore) -> None:
    dataset = push(run)
    for rank, name in enumerate(("accept_model", "reject", "empty", "accept_attention"), start=1):
        tag(dataset, rank, name)
    tag(dataset, 5, "looks odd")
    decisions, told = pulled(run, dataset)
    assert [one.verdict for one in decisions] == ["model", "reject", "empty", "attention"]
    assert told == []
    assert dataset.load_saved_view("undecided").values("rank") == [5]
    kept = [(one.image_id, one.verdict) for one in run.decisions()]
    assert kept == [(one.image_id, one.verdict) for one in decisions], "they are in the run at once"
    assert pulled(run, dataset) == ([], [])
    assert dataset.load_saved_view("decided").values("decision") == ["model", "reject", "empty", "attention"]
    sample = sample_of(dataset, 2)
    sample.tags = ["accept_attention"]
    sample.save()
    ((found,), _) = pulled(run, dataset)
    assert (found.image_id, found.verdict) == (made.image_id(1), "attention")


def test_single_labels_make_an_edited_decision(run: RunStore) -> None:
    dataset = push(run)
    tag_label(dataset, 5, "attention", 0)
    tag_label(dataset, 5, "model", 0)
    ((found,), told) = pulled(run, dataset)
    assert (found.image_id, found.verdict, told) == (made.image_id(0), "edited", [])
    attention, model = made.LABELS[0]
    instances = made.sure(found.instances)
    assert instances.class_names == ("car", "piano")
    assert instances.rles == (attention.rles[0], model.rles[0])
    assert instances.scores.tolist() == [0.9, 1 / 3]
    assert pulled(run, push(run)) == ([], [])


def test_the_human_field_is_taken_as_it_is(run: RunStore) -> None:
    import fiftyone as fo

    dataset = push(run)
    sample = sample_of(dataset, 3)
    mask = np.ones((6, 10), dtype=bool)
    mask[2, 3] = False
    sample["human"] = fo.Detections(
        detections=[fo.Detection(label="car", bounding_box=[0.5, 0.5, 0.25, 0.25], mask=mask)]
    )
    sample.tags = ["edited"]
    sample.save()
    ((found,), _) = pulled(run, dataset)
    instances = made.sure(found.instances)
    assert (found.verdict, instances.class_names, instances.scores.tolist()) == ("edited", ("car",), [1.0])
    expected = np.zeros((24, 40), dtype=bool)
    expected[12:18, 20:30] = mask
    np.testing.assert_array_equal(decode(instances.rles[0]), expected)


def test_changed_labels_count_as_they_were_left(run: RunStore) -> None:
    dataset = push(run)
    sample = sample_of(dataset, 2)
    sample.attention.detections = sample.attention.detections[1:]
    sample.tags = ["accept_attention"]
    sample.save()
    ((found,), _) = pulled(run, dataset)
    assert (found.verdict, made.sure(found.instances).class_names) == ("edited", ("car",))


def leave(sample: Any, **changes: Any) -> None:
    for name, value in changes.items():
        sample[name] = value
    sample.save()


def accept_changed(sample: Any, name: str, value: Any) -> None:
    """Change the first model label of an image, and accept the model labels."""
    setattr(sample.model.detections[0], name, value)
    leave(sample, tags=["accept_model"])


def accept(sample: Any, *labels: Any) -> None:
    for one in labels:
        one.tags.append("accept")
    sample.save()


@pytest.mark.parametrize(
    ("rank", "leave_it", "message"),
    [
        (
            1,
            lambda one: leave(one, tags=["accept_model", "reject"]),
            "tagged accept_model and reject; keep one",
        ),
        (1, lambda one: leave(one, tags=["edited"]), "its field human is empty"),
        (1, lambda one: leave(one, tags=["accept_model"], model=None), "no model labels to accept"),
        (
            1,
            lambda one: accept_changed(one, "label", "persn"),
            "the run has no class 'persn', did you mean 'person'",
        ),
        (1, lambda one: accept_changed(one, "mask", None), "a box but no mask"),
        (4, lambda one: accept(one, one.attention.detections[0], one.model.detections[0]), None),
        (
            2,
            lambda one: accept(one, one.attention.detections[1], one.model.detections[0]),
            "one object is kept twice",
        ),
        (1, lambda one: leave(one, tags=["empty"], image_id="nothing"), "no image with id 'nothing'"),
    ],
)
def test_what_is_unclear_is_reported_and_left(
    run: RunStore, rank: int, leave_it: Any, message: str | None
) -> None:
    dataset = push(run)
    tag(dataset, 3, "empty")
    leave_it(sample_of(dataset, rank))
    decisions, told = pulled(run, dataset)
    assert len(decisions) == (1 if message else 2)
    assert len(told) == (1 if message else 0)
    assert message is None or ("stays undecided" in told[0] and message in told[0])


def test_misspelt_tags_are_reported(run: RunStore) -> None:
    dataset = push(run)
    tag(dataset, 1, "acept_model")
    tag_label(dataset, 2, "model", 0, "accept_model")
    decisions, told = pulled(run, dataset)
    assert decisions == []
    assert "did you mean 'accept_model'" in told[0]
    assert "no meaning on labels; tag the image" in told[1]


# -------------------------------------------------------------------- the App


def test_a_busy_port_is_named(run: RunStore) -> None:
    dataset = push(run)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(DiffugenError, match=rf"127\.0\.0\.1:{port}: Address already in use.*--port"):
            open_app(dataset, port=port, notify=print, take_over=lambda: True)


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_an_impossible_port_is_named(run: RunStore, port: int) -> None:
    with pytest.raises(DiffugenError, match=f"port {port} is not between 1 and 65535"):
        open_app(push(run), port=port, notify=print, take_over=lambda: True)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_app_answers_the_reviewer_until_it_is_closed(
    run: RunStore, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarded, with a proxy that must not be asked."""
    import fiftyone as fo
    import requests

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    origin = f"http://127.0.0.1:{port}"
    dataset = push(run)
    told: list[str] = []
    seen: dict[str, Any] = {}

    sessions: list[Any] = []

    class Session(fo.Session):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            sessions.append(self)

    def look_and_interrupt() -> bool:
        """When verdicts are taken over: looks around once, and then ends the session with Ctrl-C."""
        if seen:
            return False
        [session] = sessions
        [url] = re.findall(r"http://\S+", told[0])
        assert url.startswith(f"{origin}/?token=")
        browser = requests.Session()
        seen["stranger"] = requests.get(f"{origin}/fiftyone", timeout=30).status_code
        seen["rebound"] = requests.get(url, headers={"Host": "evil.example"}, timeout=30).status_code
        seen["entry"] = browser.get(url, timeout=30).status_code
        seen["version"] = browser.get(f"{origin}/fiftyone", timeout=30).json()["version"]
        seen["page"] = browser.get(f"{origin}/datasets/piano", timeout=30).headers["Content-Security-Policy"]
        for name, path in (("image", dataset.first().filepath), ("ledger", run.folder / "ledger.sqlite")):
            answer = browser.get(f"{origin}/media", params={"filepath": str(path)}, timeout=30)
            seen[name] = answer.status_code, answer.content[1:4]
        seen["home"] = stat.S_IMODE((run.folder / "review" / "home").stat().st_mode)
        seen["connected"], seen["view"] = session._client._connected, session.view.values("rank")
        session.sample_id = None  # FiftyOne's client may send events: it raises if it may not
        secret = url.partition("=")[2]
        seen["in arguments"] = [one for one in psutil.process_iter() if secret in " ".join(arguments(one))]
        raise KeyboardInterrupt

    monkeypatch.setattr(fo, "Session", Session)
    assert not open_app(dataset, port=port, notify=told.append, take_over=look_and_interrupt)
    assert seen == {
        "stranger": 403,
        "rebound": 403,
        "entry": 200,
        "version": fo.__version__,
        "page": POLICY,
        "image": (200, b"PNG"),
        "ledger": (403, b"his"),
        "home": 0o700,
        "connected": True,
        "view": [1, 2, 3, 4, 5],
        "in arguments": [],
    }
    assert "5 images" in told[0]
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{origin}/fiftyone", timeout=5)


def arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_browser_is_not_started_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine can see the arguments of a process."""
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = tmp_path / "open.html"
    page.write_text("left by a killed session, and readable for all")
    with _browser("http://127.0.0.1:5151/?token=secret", page):
        assert opened == [page.as_uri()]
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert 'url=http://127.0.0.1:5151/?token=secret"' in page.read_text()
    assert not page.exists()


def test_fiftyone_still_has_what_it_does_not_promise() -> None:
    """The App's server is started, and the database left, by names that FiftyOne does not document."""
    from fiftyone.core.odm import database
    from fiftyone.core.service import ServerService
    from fiftyone.core.session import session

    assert isinstance(session._server_services, dict), "diffugen.review.app registers its server there"
    assert callable(ServerService._wait_for_child_port), "diffugen.review.app waits longer"
    assert callable(database._disconnect), "diffugen.review.database leaves the database with it"
