"""The generate stage on the miniature with few steps: chains of tasks, sources, ancestry, continuation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffugen import stages
from diffugen.config import (
    DiffusionSettings,
    Generation,
    Labelling,
    LabelSettings,
    PromptSettings,
    ScoreWeights,
    Task,
)
from diffugen.dataset.policy import split_by_family
from diffugen.dataset.yolo import write_yolo
from diffugen.diffusion.jobs import grouped
from diffugen.errors import DiffugenError, ModelError
from diffugen.labels.shapes import areas, decode, encode
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.prompts.tasks import choose_tasks, plan_tasks, task_prompts
from diffugen.records import Instances, LabelSet
from diffugen.run import OnProgress, RunStore
from diffugen.run.results import Generated, TaskImages
from diffugen.run.rounds import unseen
from diffugen.stages.generate import file_digest
from diffugen.stages.regions import outside
from tests.support.rounds import round_of
from tests.support.tiny_models import build_sd3

PROMPTS: dict[str, Any] = {
    "templates": ["a photo of a {car} on a road, {weather}"],
    "attributes": {"weather": ["sunny", "cloudy", "foggy"]},
    "classes": {"car": ["car"], "piano": ["grand piano"]},
    "background": ["road"],
    "negative": "",
    "count": 3,
    "sampling": "balanced",
}
CARS = {**PROMPTS, "classes": {"car": ["car"]}}
STREETS = {"task": "txt2img", "name": "streets"}
RAIN = {"task": "img2img", "name": "rain", "attributes": {"weather": ["rainy", "snowy"]}}
PIANOS = {"task": "inpaint", "name": "pianos", "templates": ["a {piano} on a road, {weather}"]}
LOWER = {"part": "lower half", "spare": False}
LABELLING = Labelling(LabelSettings(method="paper", instances="largest"), ScoreWeights())


def prompt_settings(values: dict[str, Any]) -> PromptSettings:
    return PromptSettings.model_validate_json(json.dumps(values))


def task_of(values: dict[str, Any]) -> Task:
    return Task.model_validate_json(json.dumps(values))


def generate(
    store: RunStore,
    *tasks: dict[str, Any],
    prompts: dict[str, Any] = PROMPTS,
    diffusion: Mapping[str, Any] = MappingProxyType({}),
    only: str | None = None,
    on_progress: OnProgress = unseen,
    notify: Callable[[str], None] = lambda text: None,
) -> Generated:
    settings = DiffusionSettings(**{"device": "cpu", "num_inference_steps": 3, "batch_size": 2, **diffusion})
    generation = Generation(prompt_settings(prompts), tuple(map(task_of, tasks)), settings, 1, "cpu")
    round = round_of(store, tuple(prompts["classes"]), seed=3, on_progress=on_progress, notify=notify)
    return stages.generate(round, generation, LABELLING, only)


def label(store: RunStore, labelling: Labelling = LABELLING) -> list[LabelSet]:
    stages.label(round_of(store), labelling)
    return list(store.labels("attention", labelling.method))


def photos(folder: Path, count: int = 2, size_wh: tuple[int, int] = (101, 67)) -> Path:
    """Write scenes without pianos, in a size that is no multiple of the model's unit."""
    folder.mkdir(exist_ok=True)
    for number, drawn in enumerate(scene_set("known", count, size_wh)):
        Image.fromarray(drawn.rgb).save(folder / f"street-{number}.png")
    return folder


def pixels_of(store: RunStore) -> dict[str, Any]:
    return {image_id: store.image(image_id) for image_id in store.image_ids()}


def test_a_chain_records_ancestry_and_carries_objects_over(store: RunStore) -> None:
    made = generate(store, STREETS, RAIN, {**PIANOS, "source": "rain", "region": LOWER})
    assert made == Generated(9, tasks={name: TaskImages(3) for name in ("streets", "rain", "pianos")})
    records = {record.id: record for record in store.records()}
    label(store)
    labels = {one.image_id: one.instances for one in store.labels("attention", LABELLING.method)}
    for piano in (record for record in records.values() if record.step == "pianos"):
        rain = records[str(piano.parent)]
        street = records[str(rain.parent)]
        assert (street.task, rain.task, piano.task) == ("txt2img", "img2img", "inpaint")
        assert street.parent is None and street.family == rain.family == piano.family == street.prompt.id
        before, after = street.prompt.attributes["weather"], rain.prompt.attributes["weather"]
        assert after in ("rainy", "snowy") and after != before
        assert rain.prompt.template == street.prompt.template
        assert piano.prompt.attributes["weather"] == after, "unchanged attributes come from the source"
        region = decode(piano.region)  # type: ignore[arg-type]
        assert np.array_equal(store.image(piano.id)[~region], store.image(rain.id)[~region])
        assert not np.array_equal(store.image(piano.id), store.image(rain.id))
        for name, rle in zip(labels[piano.id].class_names, labels[piano.id].rles, strict=True):
            assert not (decode(rle) & (~region if name == "piano" else region)).any()
    held_out = split_by_family((record.family for record in store.records()), 0.5, 0)
    assert len(held_out) < 3, "whole families are held out, not single images"


def test_other_label_settings_change_carried_objects_too(store: RunStore) -> None:
    """Regression: objects outside the painted region kept the labels of the first settings."""
    generate(
        store, STREETS, {**PIANOS, "source": "streets", "region": {"part": "upper third", "spare": False}}
    )
    label(store)
    wide = replace(LABELLING, settings=LABELLING.settings.changed(threshold=0.2))
    stages.label(round_of(store), wide)
    changed = 0
    for record in list(store.records()):
        if record.step != "pianos":
            continue
        first, second = (
            next(store.labels("attention", one.method, image_id=record.id)).instances.of_classes(["car"])
            for one in (LABELLING, wide)
        )
        street = next(store.labels("attention", wide.method, image_id=str(record.parent))).instances
        assert second.rles == outside(street, decode(record.region)).rles  # type: ignore[arg-type]
        changed += first.rles != second.rles
    assert changed


def test_self_attention_is_kept_and_labels_use_it(store: RunStore) -> None:
    generate(store, prompts={**CARS, "count": 2}, diffusion={"keep_self_attention": True})
    walks = replace(LABELLING, settings=LABELLING.settings.changed(self_attention=2))
    plain, walked = (
        [one.instances.rles for one in label(store, labelling)] for labelling in (LABELLING, walks)
    )
    assert len(plain) == len(walked) == 2 and plain != walked


def test_concepts_are_traced_and_kept_as_background(store: RunStore, tmp_path: Path) -> None:
    build_sd3().save_pretrained(tmp_path / "sd3")
    output = {"map": "output", "concepts": ("sky",), "size_wh": (96, 64)}
    prompts = {**CARS, "count": 1}
    with pytest.raises(ModelError, match="StableDiffusionPipeline has none"):
        generate(store, prompts=prompts, diffusion=output)
    generate(store, prompts=prompts, diffusion={**output, "model": str(tmp_path / "sd3")})
    [image_id] = store.image_ids()
    assert [(one.text, one.class_name) for one in store.heat_maps(image_id).phrases] == [
        ("car", "car"),
        ("road", None),
        ("sky", None),
    ]
    assert label(store)[0].image_id == image_id


def test_words_that_the_text_encoder_never_sees_are_told(store: RunStore) -> None:
    said: list[str] = []
    long = {"templates": ["a photo of a {car} on a road, {weather}" + ", sunny" * 60], "count": 2}
    generate(store, prompts={**CARS, **long, "negative": "blurred " * 90}, notify=said.append)
    assert len(said) == 2
    assert "2 of 2 prompts" in said[0] and "sunny, sunny' of 'a photo of a car" in said[0]
    assert "1 of 1 negative prompts" in said[1] and "such as 'blurred blurred" in said[1]
    generate(store, prompts=CARS, notify=said.append)
    assert len(said) == 2


def test_repeating_a_call_makes_nothing_new(store: RunStore, tmp_path: Path) -> None:
    tasks = (STREETS, {**PIANOS, "region": LOWER})
    seen: list[tuple[float, int]] = []
    generate(store, *tasks)
    first = pixels_of(store)
    for image_id in list(first)[1::3]:
        store.image_path(image_id).unlink()
    again = generate(store, *tasks)
    assert again.images == len(first)
    assert {image_id: pixels.tobytes() for image_id, pixels in pixels_of(store).items()} == {
        image_id: pixels.tobytes() for image_id, pixels in first.items()
    }
    with RunStore.create_or_open(tmp_path / "other", config=None) as other:
        generate(other, *tasks, on_progress=lambda done, total, note="": seen.append((done, total)))
        assert list(other.image_ids()) == list(first)
        assert {image_id: pixels.tobytes() for image_id, pixels in pixels_of(other).items()} == {
            image_id: pixels.tobytes() for image_id, pixels in first.items()
        }
    assert seen[-1] == (6, 6) and seen == sorted(seen)


def test_running_one_task_of_several(store: RunStore) -> None:
    tasks = (STREETS, {**PIANOS, "region": LOWER})
    with pytest.raises(
        DiffugenError, match="'streets' has not made any images yet; run it first, without --task"
    ):
        generate(store, *tasks, only="inpaint")
    assert generate(store, *tasks, only="txt2img").images == 3
    assert {record.step for record in store.records()} == {"streets"}
    assert generate(store, *tasks, only="pianos").images == 3
    assert len(list(store.image_ids())) == 6


def test_own_photos_keep_every_pixel_outside_the_region(store: RunStore, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    task = {**PIANOS, "source": str(folder), "region": LOWER, "images_per_source": 2}
    assert generate(store, task).images == 4
    records = list(store.records())
    assert len({record.id for record in records}) == 4 and len({record.family for record in records}) == 2
    for record in records:
        assert (record.size_wh, record.task, record.family) == ((101, 67), "inpaint", record.parent)
        given = np.array(Image.open(record.source))
        assert np.array_equal(store.source(str(record.parent)), given)
        region = decode(record.region)  # type: ignore[arg-type]
        image = store.image(record.id)
        assert np.array_equal(image[~region], given[~region])
        assert np.abs(image[region].astype(int) - given[region]).mean() > 4
        assert store.heat_maps(record.id).region == record.region


def test_photos_use_the_common_templates(store: RunStore, tmp_path: Path) -> None:
    generate(store, {"task": "img2img", "source": str(photos(tmp_path / "photos")), "strength": 0.5})
    assert {record.prompt.template for record in store.records()} == set(PROMPTS["templates"])
    assert {record.size_wh for record in store.records()} == {(80, 56)}, (
        "as many pixels as the model was trained on"
    )


def test_photos_may_be_deleted_after_generation(store: RunStore, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 1)
    generate(store, {**PIANOS, "source": str(folder), "region": LOWER})
    [record] = store.records()
    (folder / "street-0.png").unlink()
    assert store.source(str(record.parent)).shape == (67, 101, 3)


def test_a_piano_replaces_the_largest_car_and_other_objects_stay(store: RunStore, tmp_path: Path) -> None:
    """In a labelled street the largest car is painted over; the other car and the cone are kept."""
    drawn = next(one for one in scene_set("known", 40, (96, 64)) if "car" in exact_instances(one).class_names)
    exact = exact_instances(drawn)
    second = np.zeros((64, 96), dtype=bool)
    second[2:8, 80:95] = True
    objects = Instances(
        (96, 64), (*exact.class_names, "car"), (*exact.rles, encode(second)), np.full(len(exact) + 1, 0.9)
    )
    write_yolo(
        tmp_path / "set", {"train": [("street", drawn.rgb, objects)]}, sorted(set(objects.class_names))
    )
    made = generate(store, {**PIANOS, "source": str(tmp_path / "set"), "region": {"label": "car"}})
    assert made.images == 1
    [record] = store.records()
    label(store)
    [labels] = store.labels("attention")
    cars = labels.instances.of_classes(["car"])
    before = objects.of_classes(["car"])
    biggest = int(np.argmax(areas(before.rles)))
    region = decode(record.region)  # type: ignore[arg-type]
    assert (decode(before.rles[biggest]) <= region).all()
    assert encode(second) in list(cars.rles) and len(cars) == len(before) - 1
    assert set(labels.instances.class_names) <= {"car", "piano"}, "classes of the run only"
    assert cars.scores.tolist() == [0.9] * len(cars)


def test_a_detector_finds_the_region_and_labels_the_rest(store: RunStore, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 12, (64, 64))
    region = {"detector": "miniature", "find": "car"}
    made = generate(store, {**PIANOS, "source": str(folder), "region": region})
    assert 0 < made.images < 12 and made.images + made.skipped == 12
    assert sum(len(labels.instances.of_classes(["truck"])) for labels in store.labels("carried")) == 0
    with pytest.raises(DiffugenError, match=r"has no class 'zebra'; its classes are .*car"):
        generate(store, {**PIANOS, "source": str(folder), "region": {**region, "find": "zebra"}})


def test_another_run_can_be_the_source(store: RunStore, tmp_path: Path) -> None:
    with RunStore.create_or_open(tmp_path / "streets", config=None) as streets:
        generate(streets, STREETS, prompts=CARS)
        label(streets)
    made = generate(store, {**RAIN, "source": str(tmp_path / "streets"), "count": 2, "strength": 0.4})
    assert made.images == 2
    assert {record.settings["strength"] for record in store.records()} == {0.4}
    assert all(record.prompt.template == PROMPTS["templates"][0] for record in store.records())


def test_a_blackened_image_is_dropped_counted_and_not_generated_again(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a real safety checker at tiny size, with a threshold that flags every image."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    from diffugen.diffusion import pipelines

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**tiny, "image_size": 32, "patch_size": 16}, projection_dim=8)
    )
    checker.concept_embeds_weights.data.fill_(-2.0)
    calls = []
    load = pipelines.load_pipeline

    def load_with_checker(*args: Any, **options: Any) -> Any:
        pipeline = load(*args, **options)
        pipeline.register_modules(
            safety_checker=checker.eval(),
            feature_extractor=CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        )
        calls.append(pipeline)
        return pipeline

    monkeypatch.setattr(pipelines, "load_pipeline", load_with_checker)
    made = generate(store, STREETS, prompts=CARS)
    assert (made.images, made.dropped) == (3, 3)
    assert list(store.image_ids()) == [] and store.summary().rounds[0].dropped == 3
    steps: list[float] = []
    generate(store, STREETS, prompts=CARS, on_progress=lambda done, total, note="": steps.append(done))
    assert steps[:2] == [0, 3], "nothing was left to do"


def test_the_content_of_an_embedding_is_part_of_an_images_identity(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"one")
    before = file_digest(str(tmp_path / "a.safetensors"))
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert before != file_digest(str(tmp_path / "a.safetensors"))
    assert file_digest("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {**PIANOS, "source": "stretes", "region": LOWER},
            "source 'stretes' not found .*name of an earlier task .*streets",
        ),
        ({**PIANOS, "region": {"mask": "nowhere.png"}}, "no mask image at nowhere.png"),
        ({**PIANOS, "region": {"detector": "nowhere.pt", "find": "car"}}, "nowhere.pt"),
        ({**PIANOS, "region": {"label": "zebra"}}, "in the 3 images of 'streets': none shows a zebra"),
        ({**PIANOS, "region": LOWER, "templates": ["a {sofa} on a road"]}, "sofa"),
        ({**RAIN, "attributes": {"light": ["dim"]}}, "light"),
        ({**PIANOS, "region": LOWER, "model": "./no-such-model"}, "no-such-model"),
    ],
)
def test_a_mistake_gives_one_clear_error(store: RunStore, task: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffugenError, match=message):
        generate(store, STREETS, task)


@pytest.mark.parametrize(
    ("prepare", "changes", "message"),
    [
        (lambda folder: None, {"region": LOWER}, "contains no images"),
        (
            lambda folder: (folder / "a.png").write_bytes(b"no"),
            {"region": LOWER},
            "cannot read the image .*a.png",
        ),
        (photos, {"region": {"label": "car"}}, "have no labels"),
        (
            photos,
            {
                "region": {
                    "polygon": [[0.5, 0.5], [0.52, 0.5], [0.52, 0.52]],
                    "grow_frac": 0.0,
                    "spare": False,
                }
            },
            r"nothing to paint over in the \d images of 'photos': the region covers less than 0.5%",
        ),
        (photos, {"region": {"detector": "miniature", "find": "piano"}}, r"has no class 'piano'"),
        (
            lambda folder: Image.new("L", (5, 5), 255).save(photos(folder).parent / "mask.png"),
            {"region": {"mask": "mask.png"}},
            "has 5x5 pixels, the image 101x67",
        ),
    ],
)
def test_mistakes_with_photos_leave_no_images_behind(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Any, changes: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    prepare(tmp_path / "photos")
    with pytest.raises(DiffugenError, match=message):
        generate(store, {**PIANOS, "source": "photos", **changes})
    assert list(store.image_ids()) == []


def test_task_names_and_default_sources() -> None:
    assert [(task.step, task.source) for task in plan_tasks([])] == [("txt2img", None)]
    tasks = plan_tasks([task_of(one) for one in (STREETS, RAIN, {**PIANOS, "region": LOWER})])
    assert [task.source for task in tasks] == [None, "streets", "rain"]
    assert choose_tasks(tasks, "img2img") == choose_tasks(tasks, "rain") == tasks[1:2]
    with pytest.raises(DiffugenError, match="no task 'sun'; the configuration has streets, rain, pianos"):
        choose_tasks(tasks, "sun")


def test_a_txt2img_task_can_have_its_own_templates_attributes_and_count() -> None:
    values = {**PROMPTS, "attributes": {**PROMPTS["attributes"], "time": ["night"]}}
    values["templates"] = [*PROMPTS["templates"], "a {car}, {time}"]
    prompts = prompt_settings(values)
    other = {
        "task": "txt2img",
        "name": "more",
        "templates": ["a {piano} by a road, {mood}"],
        "count": 2,
        "attributes": {"mood": ["sad", "gay"]},
    }
    tasks = plan_tasks([task_of(STREETS), task_of(other)])
    assert {prompt.text for prompt in task_prompts(tasks[1], tasks, prompts, 0)} == {
        "a grand piano by a road, sad",
        "a grand piano by a road, gay",
    }
    assert all("car" in prompt.text for prompt in task_prompts(tasks[0], tasks, prompts, 0))
    alone = plan_tasks([task_of(other)])
    assert {prompt.text for prompt in task_prompts(alone[0], alone, prompts, 0)} == {
        "a grand piano by a road, sad",
        "a grand piano by a road, gay",
    }
    with pytest.raises(DiffugenError, match="season"):
        unused = {**values, "attributes": {**values["attributes"], "season": ["may"]}}
        task_prompts(tasks[0], tasks, prompt_settings(unused), 0)


def test_small_regions_of_large_photos_share_batches(store: RunStore, tmp_path: Path) -> None:
    """Different windows are resized to one working size with the model's number of pixels."""
    folder = photos(tmp_path / "photos", 3, (320, 200))
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, (left, width) in enumerate(((10, 40), (150, 60), (200, 30))):
        mask = np.zeros((200, 320), dtype=np.uint8)
        mask[90:130, left : left + width] = 255
        Image.fromarray(mask).save(masks / f"street-{number}.png")
    generate(
        store,
        {**PIANOS, "source": str(folder), "region": {"mask": str(masks), "grow_frac": 0.0}},
        diffusion={"batch_size": 3},
    )
    records = list(store.records())
    assert len({tuple(record.settings["window_xyxy"]) for record in records}) == 3
    assert {tuple(record.settings["working_wh"]) for record in records} == {(64, 64)}
    assert len(grouped(records)) == 1
    for record in records:
        region = decode(record.region)  # type: ignore[arg-type]
        given = np.array(Image.open(record.source))
        assert np.array_equal(store.image(record.id)[~region], given[~region])
        heat_maps = store.heat_maps(record.id)
        assert heat_maps.window_xyxy == tuple(record.settings["window_xyxy"])
