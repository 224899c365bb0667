"""The paper's JSON format is translated completely, and every mistake in a file is named."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diffugen.config.load import load_config
from diffugen.config.paper import from_paper, is_paper_format, to_yaml
from diffugen.config.paper_format import INPAINT_TEMPLATE
from diffugen.config.sections import Config
from diffugen.errors import ConfigError
from diffugen.prompts.make import make_prompts
from diffugen.records import Prompt
from tests.support.prompts import children

VEHICLES: dict[str, Any] = {
    "dataset_name": "vehicles",
    "dataset_root": "out",
    "image_format": "png",
    "image_size": {"width": 640, "height": 448},
    "steps": 40,
    "dataset_classes": ["van", "lorry", "tram", "bicycle"],
    "dataset_to_model_class_map": {"van": "car", "lorry": "truck", "tram": "train", "bicycle": "bicycle"},
    "label_model": {"type": "YOLOSeg", "weights": "weights/yolov8m-seg.pt", "classes": "weights/coco.txt"},
    "unsupervised": False,
    "deterministic": True,
    "images_per_shard": 250,
    "txt2img": {
        "stable_diffusion_model": "someone/photographic",
        "seed_range": {"min": 1200, "max": 9900},
        "seed_count_per_prompt": 2,
        "object_names": ["lorry", "van", "tram"],
        "view_points": ["left", "right"],
        "times_of_day": ["dawn", "dusk", "midnight"],
        "sky_conditions": ["blue", "grey"],
        "weather_conditions": ["dry", "windy"],
        "prompts": [
            "a {view_point} side photo of a {object_name}++ on a bridge, {sky_condition} sky, "
            "{weather_condition} weather, "
            "{time_of_day}",
            "a {view_point} side photo of a {object_name}++ in a tunnel at {time_of_day}",
        ],
        "negative_prompt": "(painting, sketch:1.3), tiny",
    },
    "img2img": {
        "stable_diffusion_model": "someone/photographic",
        "source_dataset": "out/vehicles/txt2img",
        "times_of_day": ["noon", "night"],
        "sky_conditions": ["stormy"],
        "weather_conditions": ["hail", "thick fog", "drizzle"],
    },
    "inpaint": {
        "stable_diffusion_model": "someone/photographic-inpainting",
        "source_dataset": "out/vehicles/txt2img",
        "van": ["yellow delivery van", "ambulance", "old camper"],
        "lorry": ["tank lorry", "fire engine"],
    },
}

CRASH: dict[str, Any] = {
    "dataset_name": "crash",
    "image_size": {"width": 512, "height": 384},
    "steps": 30,
    "dataset_classes": ["hatchback", "minibus"],
    "dataset_to_model_class_map": {"hatchback": "car", "minibus": "bus"},
    "label_model": {"type": "YOLOSeg", "weights": "yolov8m-seg.pt", "classes": "coco.txt"},
    "unsupervised": False,
    "txt2img": {
        "stable_diffusion_model": "someone/photographic",
        "seed_range": {"min": 7, "max": 8},
        "seed_count_per_prompt": 1,
        "textual_inversion": {"weights": "learned/crash.pt", "keyword": "<crash>"},
        "object_names": ["hatchback", "minibus"],
        "view_points": ["front", "back"],
        "times_of_day": ["evening", "noon"],
        "sky_conditions": ["blue"],
        "weather_conditions": ["icy", "wet"],
        "prompts": [
            "a {view_point} view of a <crash> where a {object_name}++ lies in a ditch, {weather_condition}, "
            "{time_of_day}"
        ],
    },
}

PIANO: dict[str, Any] = {
    "dataset_name": "pianos on roads",
    "image_size": {"width": 576, "height": 512},
    "steps": 70,
    "dataset_classes": ["car", "bus"],
    "dataset_to_model_class_map": {"car": "car", "bus": "bus"},
    "label_model": {"type": "YOLOSeg", "weights": "yolov8m-seg.pt"},
    "unsupervised": True,
    "txt2img": {
        "stable_diffusion_model": "someone/photographic",
        "seed_count_per_prompt": 12,
        "image_count": 5,
        "textual_inversion": {"weights": "learned/piano.safetensors", "keyword": "<upright>"},
        "object_names": ["piano"],
        "view_points": ["full", "near"],
        "times_of_day": ["day"],
        "sky_conditions": ["clear", "dark"],
        "weather_conditions": ["sunny", "rainy"],
        "prompts": [
            "a {view_point} view of a classic {object_name} <upright>++ on asphalt, {weather_condition}, "
            "{time_of_day}",
            "a {view_point} view of a <upright>+ {object_name} on gravel, {weather_condition}, {time_of_day}",
            "a {view_point} view of a <upright> on grass",
        ],
        "negative_prompt": "blurry",
    },
}

EXAMPLES = {"vehicles": VEHICLES, "crash": CRASH, "pianos": PIANO}


def changed(settings: Mapping[str, Any], path: str, *value: Any) -> dict[str, Any]:
    """A copy with another value at a dotted path; without a value, the key is removed."""
    made = copy.deepcopy(dict(settings))
    *sections, key = path.split(".")
    section = made
    for name in sections:
        section = section[name]
    if value:
        section[key] = value[0]
    else:
        del section[key]
    return made


def write(folder: Path, settings: Mapping[str, Any], name: str = "paper.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(settings, indent=4), encoding="utf-8")
    return path


def load(folder: Path, settings: Mapping[str, Any], *overrides: str) -> Config:
    return load_config(write(folder, settings), overrides)


def notes_of(settings: Mapping[str, Any]) -> str:
    return "\n".join(from_paper(settings, "paper.json")[1])


def texts_of_the_paper(settings: Mapping[str, Any]) -> set[str]:
    """All combinations of all lists in all templates, as in the paper."""
    section = settings["txt2img"]
    fields = ("view_point", "object_name", "time_of_day", "sky_condition", "weather_condition")
    lists = ("view_points", "object_names", "times_of_day", "sky_conditions", "weather_conditions")
    return {
        template.format(**dict(zip(fields, values, strict=True)))
        for template in section["prompts"]
        for values in itertools.product(*(section[name] for name in lists))
    }


def prompts_of(config: Config) -> list[Prompt]:
    return make_prompts(**dict(config.prompts), seed=config.seed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_prompts_are_all_combinations_as_in_the_paper(tmp_path: Path, name: str) -> None:
    settings = EXAMPLES[name]
    made = [
        prompt.text for prompt in prompts_of(load(tmp_path, changed(settings, "txt2img.image_count", 1000)))
    ]
    assert len(made) == len(set(made))
    assert set(made) == texts_of_the_paper(settings)


def test_a_smaller_image_count_draws_a_sample(tmp_path: Path) -> None:
    config = load(tmp_path, PIANO)
    made = [prompt.text for prompt in prompts_of(config)]
    assert len(made) == len(set(made)) == 5 and set(made) < texts_of_the_paper(PIANO)
    assert (config.prompts.count, config.prompts.sampling, config.loop.images_per_prompt) == (5, "sample", 12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_converted_file_loads_like_the_original(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, EXAMPLES[name])
    made, notes = from_paper(EXAMPLES[name], str(path))
    text = to_yaml(made, notes)
    assert text == to_yaml(*from_paper(json.loads(path.read_text()), str(path)))
    (tmp_path / "converted.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "converted.yaml") == load_config(path)
    header = text.split("\n\n")[0]
    assert all(line.startswith("#") and len(line) <= 120 for line in header.splitlines())
    comments = " ".join(line.lstrip("# ") for line in header.splitlines())
    assert all(" ".join(note.split()) in comments for note in notes)


def test_yaml_keeps_texts_that_look_like_other_types(tmp_path: Path) -> None:
    odd = [
        "no",
        "12:30",
        "1e3",
        "0x10",
        "null",
        "2024-01-01",
        "- x",
        "a: b",
        "# c",
        "it's",
        "~",
        "käse",
        "'",
        '"',
        "1.5",
    ]
    settings = changed(VEHICLES, "txt2img.weather_conditions", odd)
    path = write(tmp_path, settings)
    (tmp_path / "converted.yaml").write_text(to_yaml(*from_paper(settings, str(path))), encoding="utf-8")
    assert load_config(tmp_path / "converted.yaml").prompts.attributes["weather_condition"] == tuple(odd)
    assert load_config(tmp_path / "converted.yaml") == load_config(path)


def test_general_settings(tmp_path: Path) -> None:
    config = load(tmp_path, VEHICLES)
    diffusion = config.diffusion
    assert (config.name, config.seed) == ("vehicles", 1200)
    assert (diffusion.model, diffusion.size_wh, diffusion.num_inference_steps, diffusion.dtype) == (
        "someone/photographic",
        (640, 448),
        40,
        "auto",
    )
    assert (diffusion.guidance_scale, diffusion.embeddings) == (7.5, ())
    assert config.prompts.negative == "(painting, sketch:1.3), tiny"
    assert config.loop.images_per_prompt == 2
    assert config.detector.checkpoint == "weights/yolov8m-seg.pt"
    assert config.detector.class_map == {"van": "car", "lorry": "truck", "tram": "train"}
    assert load(tmp_path, PIANO).name == "pianos-on-roads"


def test_overrides_use_our_keys(tmp_path: Path) -> None:
    config = load(tmp_path, VEHICLES, "diffusion.num_inference_steps=5", "tasks=[]")
    assert config.diffusion.num_inference_steps == 5 and config.tasks == ()
    with pytest.raises(ConfigError, match=r"--set steps=5: steps = 5: unknown key"):
        load(tmp_path, VEHICLES, "steps=5")


@pytest.mark.parametrize(
    ("name", "source", "confidence", "trust"),
    [("vehicles", "detector", 0.45, "attention"), ("pianos", "attention", 0.5, "none")],
)
def test_the_file_decides_who_labels(
    tmp_path: Path, name: str, source: str, confidence: float, trust: str
) -> None:
    config = load(tmp_path, EXAMPLES[name])
    assert (config.labels.source, config.labels.detector_confidence) == (source, confidence)
    assert (config.labels.method, config.dataset.trust) == ("paper", trust)
    assert ("what the label model finds" in notes_of(EXAMPLES[name])) is (source == "detector")


def test_classes_that_a_supervised_file_does_not_map_are_labelled_by_attention(tmp_path: Path) -> None:
    mapped = {"van": "car", "lorry": "truck"}
    partly = changed(VEHICLES, "dataset_to_model_class_map", mapped)
    assert load(tmp_path, partly).labels.source == "both"
    assert "tram not in it, so labelled by attention" in notes_of(partly)
    assert load(tmp_path, changed(partly, "unsupervised", True)).labels.source == "attention"
    assert load(tmp_path, changed(VEHICLES, "dataset_to_model_class_map")).labels.source == "detector"


@pytest.mark.parametrize("kind", ["YOLOSeg", "Mask2Former"])
def test_the_label_model_is_a_yolo_model_or_a_mask2former(tmp_path: Path, kind: str) -> None:
    settings = changed(changed(VEHICLES, "label_model.type", kind), "label_model.weights", "models/theirs")
    assert load(tmp_path, settings).detector.checkpoint == "models/theirs"


def test_classes_are_the_objects_in_the_order_of_dataset_classes(tmp_path: Path) -> None:
    classes = load(tmp_path, VEHICLES).prompts.classes
    assert list(classes) == ["van", "lorry", "tram"]
    assert classes["van"] == ("van", "yellow delivery van", "ambulance", "old camper")
    assert classes["tram"] == ("tram",)
    assert list(load(tmp_path, PIANO).prompts.classes) == ["piano"]
    for prompt in prompts_of(load(tmp_path, VEHICLES)):
        assert [(phrase.text, phrase.class_name) for phrase in prompt.phrases] == [
            (prompt.attributes["object_name"], prompt.attributes["object_name"])
        ]


def test_a_learned_token_is_traced_where_it_names_the_object(tmp_path: Path) -> None:
    config = load(tmp_path, changed(PIANO, "txt2img.image_count"))
    assert config.diffusion.embeddings == ("learned/piano.safetensors",)
    traced = {phrase.text for prompt in prompts_of(config) for phrase in prompt.phrases}
    assert traced == {"piano <upright>", "<upright>+ piano", "<upright>"}
    crash = load(tmp_path, CRASH)
    assert crash.diffusion.embeddings == ("learned/crash.pt",)
    traced = {phrase.text for prompt in prompts_of(crash) for phrase in prompt.phrases}
    assert traced == {"hatchback", "minibus"}


def test_tasks_are_chained(tmp_path: Path) -> None:
    tasks = load(tmp_path, VEHICLES).tasks
    assert [(task.task, task.name, task.source) for task in tasks] == [
        ("txt2img", None, None),
        ("img2img", None, "txt2img"),
        ("inpaint", "inpaint-van", "txt2img"),
        ("inpaint", "inpaint-lorry", "txt2img"),
    ]
    assert [task.region.label for task in tasks[2:] if task.region] == ["van", "lorry"]
    assert [task.model for task in tasks] == [None, None, *["someone/photographic-inpainting"] * 2]
    assert tasks[1].strength == 0.8
    assert load(tmp_path, changed(VEHICLES, "img2img.strength", 0.5)).tasks[1].strength == 0.5
    assert load(tmp_path, CRASH).tasks == ()


def test_img2img_gives_each_source_all_new_combinations(tmp_path: Path) -> None:
    config = load(tmp_path, VEHICLES)
    parents = prompts_of(config)
    new = list(itertools.product(["noon", "night"], ["stormy"], ["hail", "thick fog", "drizzle"]))
    for parent, made in zip(parents, children(config, config.tasks[1], parents), strict=True):
        expected = {
            parent.template.format(
                **{
                    **parent.attributes,
                    "time_of_day": time,
                    "sky_condition": sky,
                    "weather_condition": weather,
                }
            )
            for time, sky, weather in new
        }
        assert {prompt.text for prompt in made} == expected
        assert all(prompt.negative == "(painting, sketch:1.3), tiny" for prompt in made)


def test_img2img_skips_sources_that_cannot_change(tmp_path: Path) -> None:
    config = load(tmp_path, changed(VEHICLES, "img2img.times_of_day", ["dusk"]))
    parents = prompts_of(config)
    for parent, made in zip(parents, children(config, config.tasks[1], parents), strict=True):
        assert len(made) == (0 if parent.attributes["time_of_day"] == "dusk" else 3)


def test_img2img_can_have_its_own_prompts(tmp_path: Path) -> None:
    own = changed(
        VEHICLES, "img2img.prompts", ["a {object_name} in the snow, {time_of_day}", "a {object_name} in mud"]
    )
    config = load(tmp_path, changed(changed(own, "img2img.sky_conditions"), "img2img.weather_conditions"))
    assert config.tasks[1].images_per_source == 4
    [made] = children(config, config.tasks[1], prompts_of(config)[:1])
    assert {prompt.text for prompt in made} == {
        "a lorry in the snow, noon",
        "a lorry in the snow, night",
        "a lorry in mud",
    }


def test_inpainting_replaces_each_object_with_its_new_words(tmp_path: Path) -> None:
    config = load(tmp_path, VEHICLES)
    for place, name in ((2, "van"), (3, "lorry")):
        parents = [prompt for prompt in prompts_of(config) if prompt.attributes["object_name"] == name]
        for parent, made in zip(parents, children(config, config.tasks[place], parents), strict=True):
            words = VEHICLES["inpaint"][name]
            assert {prompt.text for prompt in made} == {
                f"a {parent.attributes['view_point']} view of {one}" for one in words
            }
            assert {(phrase.text, phrase.class_name) for prompt in made for phrase in prompt.phrases} == {
                (one, name) for one in words
            }


def test_inpainting_adds_the_view_point_if_no_prompt_has_one(tmp_path: Path) -> None:
    settings = changed(VEHICLES, "txt2img.prompts", ["a {object_name} on a bridge, {time_of_day}"])
    for section in ("sky_conditions", "weather_conditions"):
        del settings["img2img"][section]
    config = load(tmp_path, settings)
    assert "view_point" not in config.prompts.attributes
    [made, *_] = children(
        config, config.tasks[2], [prompt for prompt in prompts_of(config) if "van" in prompt.text]
    )
    assert len(made) == 3
    assert {prompt.text.split(" view of ")[0] for prompt in made} <= {"a left", "a right"}
    assert INPAINT_TEMPLATE.startswith("a {view_point} view of ")


@pytest.mark.parametrize(
    ("settings", "path", "value", "expected"),
    [
        (
            VEHICLES,
            "inpaint.tram",
            ["fire engine"],
            "'fire engine' is labelled as lorry, which already has these words",
        ),
        (VEHICLES, "inpaint.van", ["lorry"], "'lorry' is labelled as lorry"),
        (
            VEHICLES,
            "txt2img.times_of_day",
            ["dawn", "noon", "noon"],
            "txt2img.times_of_day: 1 of 3 texts are repeats",
        ),
        (
            VEHICLES,
            "img2img.source_dataset",
            "out/others/txt2img",
            '"out/others/txt2img": not a task of this file, so it stays a path',
        ),
        (
            VEHICLES,
            "img2img.weather_conditions",
            ["dry", "wet"],
            "a source whose weather_condition is among the new ones",
        ),
        (VEHICLES, "txt2img.image_count", 100000, "prompt weighting, such as {object_name}++"),
        (
            VEHICLES,
            "dataset_classes",
            ["van", "lorry", "tram", "bicycle"],
            "bicycle left out, because no object has that name",
        ),
        (
            VEHICLES,
            "dataset_root",
            "elsewhere",
            'dataset_root = "elsewhere": not needed here, because a run is kept in',
        ),
        (
            VEHICLES,
            "image_format",
            "jpg",
            'image_format = "jpg": not needed here, because images are always kept as PNG',
        ),
        (VEHICLES, "images_per_shard", 7, "images_per_shard = 7: not needed here, because"),
        (VEHICLES, "deterministic", False, "deterministic = false: not needed here, because"),
        (VEHICLES, "label_model.classes", "a.txt", 'label_model.classes = "a.txt": not needed here, because'),
        (
            VEHICLES,
            "txt2img.seed_range",
            {"min": 1, "max": 2},
            "txt2img.seed_range: min is the seed of the run",
        ),
        (VEHICLES, "dataset_name", "my cars!", "dataset_name = \"my cars!\": changed to 'my-cars-'"),
        (
            VEHICLES,
            "inpaint",
            {"stable_diffusion_model": "m", "source_dataset": "txt2img"},
            "inpaint: left out, because it lists no object",
        ),
        (
            CRASH,
            "txt2img.sky_conditions",
            ["red"],
            "txt2img.sky_conditions: left out, because no prompt uses {sky_condition}",
        ),
        (
            CRASH,
            "txt2img.textual_inversion.keyword",
            "<crash>",
            "<crash>: not traced, because it is not next to",
        ),
        (
            CRASH,
            "txt2img.textual_inversion.keyword",
            "<crush>",
            "<crush>: has no effect, because no prompt uses it",
        ),
        (PIANO, "steps", 3, "piano added, because objects have that name"),
    ],
)
def test_differences_from_the_paper_are_noted(
    tmp_path: Path, settings: dict[str, Any], path: str, value: Any, expected: str
) -> None:
    other = changed(settings, path, value)
    assert expected in notes_of(other)
    prompts_of(load(tmp_path, other))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("txt2img", "txt2img"),
        ("out/vehicles/txt2img", "txt2img"),
        ("out\\vehicles\\txt2img", "txt2img"),
        ("./elsewhere/vehicles/txt2img/", "txt2img"),
        ("out/vehicles/img2img", "img2img"),
        ("out/others/txt2img", "out/others/txt2img"),
        ("photos", "photos"),
        ("~/photos/txt2img-like", "~/photos/txt2img-like"),
    ],
)
def test_a_source_is_an_earlier_task_or_a_path(tmp_path: Path, source: str, expected: str) -> None:
    assert load(tmp_path, changed(VEHICLES, "inpaint.source_dataset", source)).tasks[2].source == expected


def test_a_file_without_a_model_uses_the_model_of_the_paper(tmp_path: Path) -> None:
    settings = changed(CRASH, "txt2img.stable_diffusion_model")
    assert "txt2img.stable_diffusion_model: not given, so diffusion.model is the paper's" in notes_of(
        settings
    )
    assert load(tmp_path, settings).diffusion.model == "mshenoda/realistic_vision_v4"


def test_a_missing_section_is_not_a_source(tmp_path: Path) -> None:
    settings = changed(changed(VEHICLES, "img2img"), "inpaint.source_dataset", "out/vehicles/img2img")
    assert load(tmp_path, settings).tasks[1].source == "out/vehicles/img2img"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        # unknown keys
        ("step", [5], "step = 5: unknown key, did you mean 'steps'?"),
        ("image_count", [5], "image_count = 5: unknown key, did you mean 'txt2img.image_count'?"),
        ("zzz", [5], "zzz = 5: unknown key; the keys here are dataset_name, dataset_root,"),
        ("image_size.heigth", [5], "image_size.heigth = 5: unknown key, did you mean 'height'?"),
        ("label_model.wieghts", ["a"], "label_model.wieghts = \"a\": unknown key, did you mean 'weights'?"),
        ("txt2img.seed_range.mim", [1], "txt2img.seed_range.mim = 1: unknown key, did you mean 'min'?"),
        (
            "txt2img.object_name",
            [["a"]],
            "txt2img.object_name = [\"a\"]: unknown key, did you mean 'object_names'?",
        ),
        (
            "img2img.view_points",
            [["a"]],
            "img2img.view_points = [\"a\"]: unknown key, did you mean 'txt2img.view_points'?",
        ),
        ("inpaint.vann", [["a"]], "inpaint.vann: unknown key, did you mean 'van'?"),
        (
            "inpaint.boat",
            [["a"]],
            "inpaint.boat: unknown key; the keys here are stable_diffusion_model, source_dataset, lorry",
        ),
        # types and ranges
        ("dataset_name", [7], "dataset_name = 7: expected text; put it in quotes"),
        ("dataset_name", [" "], 'dataset_name = " ": expected some text'),
        ("image_size", [512], "image_size = 512: expected a section of 'key: value' lines"),
        ("image_size.width", [0], "image_size.width = 0: expected a number of at least 1"),
        ("image_size.width", ["512"], 'image_size.width = "512": expected a whole number'),
        ("steps", [True], "steps = true: expected a whole number"),
        ("steps", [2.5], "steps = 2.5: expected a whole number"),
        ("dataset_classes", ["van"], 'dataset_classes = "van": expected a list'),
        (
            "dataset_classes",
            [["van", "lorry", "tram", "bicycle", 5]],
            "dataset_classes[4] = 5: expected text; put it in quotes",
        ),
        (
            "dataset_to_model_class_map",
            [["car"]],
            'dataset_to_model_class_map = ["car"]: expected a section of',
        ),
        (
            "dataset_to_model_class_map.van",
            [2],
            "dataset_to_model_class_map.van = 2: expected text; put it in quotes",
        ),
        (
            "dataset_to_model_class_map.vam",
            ["car"],
            "map.vam: expected a class of dataset_classes, did you mean 'van'?",
        ),
        ("label_model", ["yolo.pt"], 'label_model = "yolo.pt": expected a section'),
        (
            "label_model.type",
            ["MaskRCNN"],
            "label_model.type = \"MaskRCNN\": expected 'YOLOSeg' or 'Mask2Former'",
        ),
        ("unsupervised", ["false"], 'unsupervised = "false": expected true or false'),
        ("images_per_shard", [0], "images_per_shard = 0: expected a number of at least 1"),
        ("txt2img", [[]], "txt2img = []: expected a section of 'key: value' lines"),
        ("txt2img.seed_range", [[1, 2]], "txt2img.seed_range = [1, 2]: expected a section"),
        ("txt2img.seed_range.min", [-1], "txt2img.seed_range.min = -1: expected a number of at least 0"),
        (
            "txt2img.seed_range.min",
            [9901],
            "txt2img.seed_range.max = 9900: expected at least min, which is 9901",
        ),
        (
            "txt2img.seed_range.max",
            [2**63],
            "txt2img.seed_range.max = 9223372036854775808: expected a number below 9.22337e+18",
        ),
        (
            "txt2img.seed_count_per_prompt",
            [0],
            "txt2img.seed_count_per_prompt = 0: expected a number of at least 1",
        ),
        ("txt2img.textual_inversion", ["a.pt"], 'txt2img.textual_inversion = "a.pt": expected a section'),
        ("txt2img.weather_conditions", [[]], "txt2img.weather_conditions = []: expected at least one value"),
        ("txt2img.view_points", [None], "txt2img.view_points = null: expected a value, not null"),
        ("txt2img.negative_prompt", [["a"]], 'txt2img.negative_prompt = ["a"]: expected text'),
        ("img2img.strength", [0], "img2img.strength = 0: expected a number above 0"),
        ("img2img.strength", [1.5], "img2img.strength = 1.5: expected a number of at most 1"),
        ("img2img.strength", [float("nan")], "img2img.strength = NaN: expected a finite number"),
        ("inpaint.van", ["camper"], 'inpaint.van = "camper": expected a list'),
        ("inpaint.van", [["a", ""]], 'inpaint.van[1] = "": expected some text'),
        # templates
        (
            "txt2img.prompts",
            [["a {object_name}", "a {objectname}"]],
            'txt2img.prompts[1] = "a {objectname}": expected fields among view_point, object_name, '
            "time_of_day, sky_condition, "
            "weather_condition, not {objectname}, did you mean 'object_name'?",
        ),
        (
            "txt2img.prompts",
            [["a {object_name"]],
            'txt2img.prompts[0] = "a {object_name": expected fields with both braces, such as',
        ),
        ("img2img.prompts", [["a {weather}"]], "expected fields among view_point"),
        (
            "txt2img.view_points",
            [],
            "txt2img.view_points: expected a value; there is none, and the prompts of txt2img use",
        ),
        (
            "txt2img.prompts",
            [["a {weather} {object_name} {"]],
            "not {weather} and fields with both braces, such as {object_name}",
        ),
        ("txt2img.prompts", [["{objectname}"]], "not {objectname}, did you mean 'object_name'?"),
        # missing keys
        ("dataset_name", [], "dataset_name: expected a value; there is none"),
        ("image_size.width", [], "image_size.width: expected a value; there is none"),
        ("label_model.type", [], "label_model.type: expected a value; there is none"),
        ("txt2img", [], "txt2img: expected a value; there is none"),
        ("txt2img.object_names", [], "txt2img.object_names: expected a value; there is none"),
        ("txt2img.seed_range.min", [], "txt2img.seed_range.min: expected a value; there is none"),
        (
            "txt2img.textual_inversion",
            [{"keyword": "<a>"}],
            "txt2img.textual_inversion.weights: expected a value",
        ),
        ("img2img.source_dataset", [], "img2img.source_dataset: expected a value; there is none"),
        # order
        (
            "img2img.source_dataset",
            ["out/vehicles/inpaint"],
            "expected images of an earlier section; the order is txt2img, then",
        ),
        ("inpaint.source_dataset", ["out/vehicles/inpaint"], "expected images of an earlier section"),
    ],
)
def test_errors_name_the_mistake(tmp_path: Path, path: str, value: list[Any], expected: str) -> None:
    file = write(tmp_path, changed(VEHICLES, path, *value))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    lines = caught.value.mistakes
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert [line for line in lines if expected in line], lines


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    settings = changed(
        changed(changed(VEHICLES, "steps", "many"), "txt2img.object_names"), "img2img.wether", ["a"]
    )
    text = json.dumps(changed(settings, "image_size.width", -5)).replace(
        '"steps"', '"dataset_root": "x", "steps"'
    )
    path = tmp_path / "paper.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["oops"])
    starts = [
        f"{path}: the key 'dataset_root' is given twice",
        f"{path}: image_size.width = -5",
        f'{path}: steps = "many"',
        f"{path}: txt2img.object_names: expected a value",
        f'{path}: img2img.wether = ["a"]: unknown key',
        f"{path}: inpaint.van: unknown key",
        f"{path}: inpaint.lorry: unknown key",
        "--set oops: expected key.sub=value",
    ]
    assert [line[: len(start)] for line, start in zip(caught.value.mistakes, starts, strict=True)] == starts


WRONG: tuple[Any, ...] = (
    None,
    True,
    0,
    -1.5,
    "",
    "text",
    [],
    [None],
    [[]],
    ["{", "{x}"],
    {},
    {"a": {"b": 1}},
)


def paths_of(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    inner = [
        path
        for key, value in settings.items()
        if isinstance(value, dict)
        for path in paths_of(value, f"{prefix}{key}.")
    ]
    return [*(prefix + key for key in settings), *inner]


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_value_of_any_key_causes_a_traceback(tmp_path: Path, name: str) -> None:
    for path in paths_of(EXAMPLES[name]):
        for value in WRONG:
            settings = changed(EXAMPLES[name], path, value)
            try:
                load(tmp_path, settings)
            except ConfigError as error:
                assert all("paper.json: " in line for line in error.mistakes)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (VEHICLES, True),
        ({"dataset_name": "x"}, True),
        ({"txt2img": {}}, True),
        ({"txt2img": {}, "prompts": {}}, False),
        ({"name": "x", "prompts": {}}, False),
        ({}, False),
        ({"dataset": {}}, False),
    ],
)
def test_the_format_is_recognised(settings: dict[str, Any], expected: bool) -> None:
    assert is_paper_format(settings) is expected
