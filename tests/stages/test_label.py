"""The label stage: earlier settings count again when they are given again, and the queue follows them."""

from __future__ import annotations

from diffugen import stages
from diffugen.config import DisagreementSettings, Labelling, LabelSettings, ScoreWeights
from diffugen.records import LabelSet
from diffugen.review.queue import read_queue
from diffugen.run import RunStore
from diffugen.run.results import Compared, Labelled
from tests.support import store_child as child
from tests.support.rounds import round_of

FIRST = Labelling(LabelSettings(), ScoreWeights())
SECOND = Labelling(LabelSettings(threshold=0.4), ScoreWeights())


def add_images(store: RunStore, count: int) -> None:
    for number in range(count):
        record = child.make_record(number, round=0)
        store.add_image(record, child.make_rgb(record), child.make_heat_maps(record), 1.0)


def newest(store: RunStore) -> set[str]:
    return {labels.method for labels in store.latest_labels("attention")}


def test_labels_by_earlier_settings_are_the_newest_again(store: RunStore) -> None:
    """Regression: returning to earlier settings silently did nothing, and later steps used the others."""
    add_images(store, 3)
    for labelling in (FIRST, SECOND, FIRST, SECOND):
        made = stages.label(round_of(store), labelling)
        assert (made.method, made.images) == (labelling.method, 3)
        assert stages.newest_method(store) == labelling.method
        assert newest(store) == {labelling.method}
    before = list(store.labels("attention"))
    stages.label(round_of(store), SECOND)
    assert list(map(str, store.labels("attention"))) == list(map(str, before)), "nothing is written twice"


def test_the_queue_shows_the_labels_that_a_command_compared_last(store: RunStore) -> None:
    """Regression: it showed those of the last comparison of a loop, with object numbers of the new one."""
    add_images(store, 1)
    [image_id] = store.image_ids()
    for labelling in (FIRST, SECOND):
        stages.label(round_of(store), labelling)
    attention = next(store.labels("attention", FIRST.method)).instances
    store.put_labels([LabelSet(image_id, "model", attention.of_classes(()), "model-1")])
    store.finish_stage(0, "label", Labelled(FIRST.method, 1, 1, FIRST.settings, FIRST.weights), seconds=1.0)
    store.finish_stage(0, "compare", Compared(1, 0, {}), seconds=1.0)
    assert read_queue(store).method == FIRST.method
    for labelling in (SECOND, FIRST, SECOND):
        stages.compare(round_of(store, ("car", "piano")), labelling.method, DisagreementSettings())
        assert read_queue(store).method == labelling.method
