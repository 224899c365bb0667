"""The shipped configurations for real models: complete headers, comments on all keys, sensible prompts."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from diffugen.config.files import config_path, list_configs
from diffugen.config.load import load_config
from diffugen.config.sections import Config
from diffugen.prompts.make import make_prompts
from diffugen.prompts.sampling import weights_of
from diffugen.records import Prompt
from tests.support.prompts import children

REAL = [name for name in list_configs() if not name.startswith("miniature")]
TOKENS = 77
"""Token limit of Stable Diffusion's text encoders, including the start and end tokens."""


def text_of(name: str) -> str:
    return config_path(name).read_text(encoding="utf-8")


def prompts_of(config: Config) -> list[Prompt]:
    return make_prompts(**dict(config.prompts), seed=config.seed)


@pytest.mark.parametrize("name", REAL)
def test_headers_state_requirements(name: str) -> None:
    header = text_of(name).split("\n\n")[0]
    assert re.match(r"# [A-Z].{20,}\.\n#\n# Command:  diffugen \w+ " + name, header)
    for part in (
        "Time:     not measured;",
        "Memory:   not measured;",
        "Weights:  diffusion.model",
        "licence",
    ):
        assert part in header
    assert all(line.startswith("#") for line in header.splitlines())


@pytest.mark.parametrize("name", REAL)
def test_every_key_has_a_comment(name: str) -> None:
    above, section = "", ""
    for line in text_of(name).splitlines():
        if found := re.match(r"(\w+):", line):
            section = found[1]
        is_key = re.match(r"  (- )?(  )?\w+: ", line) or re.match(r"  \w+:$", line)
        if section in ("prompts", "diffusion", "labels", "detector", "dataset", "tune", "loop") and is_key:
            nested = re.match(r"    \w+: ", line)
            assert nested or " # " in line or above.lstrip().startswith("#"), f"{name}: {line} has no comment"
        above = line


@pytest.mark.parametrize("name", REAL)
def test_all_three_kinds_of_models_are_offered(name: str) -> None:
    text = text_of(name)
    assert "SG161222/Realistic_Vision" in text and "stable-diffusion-v1-5/stable-diffusion-" in text
    assert re.search(
        r"stabilityai/stable-diffusion-xl-base-1\.0|diffusers/stable-diffusion-xl-1\.0-inpainting-0\.1", text
    )
    config = load_config(name)
    width, height = config.diffusion.size_wh or (0, 0)
    assert width % 64 == height % 64 == 0 and 0.8 < width * height / 512**2 < 1.2, (
        "about as many pixels as the model was trained on"
    )


@pytest.mark.parametrize("name", REAL)
def test_prompts_use_every_value_and_follow_the_weights(name: str) -> None:
    config = load_config(name)
    made = prompts_of(config)
    assert len({prompt.text for prompt in made}) > 0.9 * len(made)
    for field, values in config.prompts.attributes.items():
        counts = Counter(prompt.attributes[field] for prompt in made if field in prompt.attributes)
        weights = weights_of(values)
        assert set(counts) == set(weights)
        share = sum(counts.values()) / sum(weights.values())
        assert all(abs(counts[value] - weight * share) <= 2 for value, weight in weights.items()), (
            field,
            counts,
        )


@pytest.mark.parametrize("name", REAL)
def test_texts_fit_the_text_encoder(name: str) -> None:
    config = load_config(name)
    for text in {config.prompts.negative, *(prompt.text for prompt in prompts_of(config))}:
        # Rare words take several tokens: 1.5 tokens per word is a safe estimate for these texts.
        assert 1.5 * len(re.findall(r"\w+|[^\w\s]", text)) < TOKENS + 10, text


@pytest.mark.parametrize("name", [name for name in REAL if name != "piano-on-own-photos"])
def test_tasks_change_only_their_own_attributes(name: str) -> None:
    config = load_config(name)
    first, *others = config.tasks
    assert first.task == "txt2img" and others
    parents = prompts_of(config)
    for task in others:
        assert task.source == "txt2img"
        sources = parents
        if task.region is not None:
            assert task.region.label in config.prompts.classes
            sources = [
                one for one in parents if task.region.label in {phrase.class_name for phrase in one.phrases}
            ]
        assert sources
        for parent, made in zip(sources, children(config, task, sources), strict=True):
            for child in made:
                named = {phrase.class_name for phrase in child.phrases if phrase.class_name}
                before = {phrase.class_name for phrase in parent.phrases if phrase.class_name}
                assert named == ({task.region.label} if task.region else before)
                changed = {
                    field
                    for field in child.attributes
                    if child.attributes[field] != parent.attributes.get(field)
                }
                assert changed == set(task.attributes) & set(child.attributes) and changed
                assert child.negative == config.prompts.negative


def test_inpainted_models_are_phrases_of_the_replaced_class() -> None:
    config = load_config("cars")
    tasks = [task for task in config.tasks if task.task == "inpaint"]
    assert [task.region.label for task in tasks if task.region] == ["car", "sedan", "suv", "pickup"]
    for task in tasks:
        assert task.region is not None and task.region.label is not None
        assert set(task.attributes["model"]) < set(config.prompts.classes[task.region.label])
        assert str(task.model).endswith("inpainting")


@pytest.mark.parametrize(
    ("name", "classes"), [("cars", {"car", "truck"}), ("car-accident", {"car", "person"})]
)
def test_class_maps_map_classes_of_the_run_to_coco_classes(name: str, classes: set[str]) -> None:
    config = load_config(name)
    assert set(config.detector.class_map) <= set(config.prompts.classes)
    assert set(config.detector.class_map.values()) == classes


def test_pianos_are_painted_into_photos() -> None:
    config = load_config("piano-on-own-photos")
    [task] = config.tasks
    assert (task.task, task.source, task.count) == ("inpaint", "photos", None)
    assert task.region is not None and task.region.part == "lower half"
    assert task.templates == config.prompts.templates
    assert "--source ~/photos" in text_of("piano-on-own-photos").split("\n\n")[0]
    made = [prompt for prompts in children(config, task, [None] * 20) for prompt in prompts]
    assert len(made) == 40 and {phrase.class_name for prompt in made for phrase in prompt.phrases} == {
        "piano",
        None,
    }
