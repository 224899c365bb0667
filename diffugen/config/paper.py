"""Translate the paper's JSON format into DiffuGen's keys, and write the result as YAML.

Knows both vocabularies, and reports in notes what has no counterpart. Which files are valid is known to
`diffugen.config.paper_format` and `diffugen.config.sections`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffugen.config.mistakes import shown
from diffugen.config.paper_format import (
    INPAINT_TEMPLATE,
    LISTS,
    SECTIONS,
    Img2img,
    Inpaint,
    PaperFile,
    fields_of,
    read_paper,
    source_section,
)
from diffugen.config.yaml_text import dump_yaml
from diffugen.records import one_line

PAPER_MODEL = "mshenoda/realistic_vision_v4"
"""The model for files that name none, such as the paper's file on car accidents."""

PAPER_GUIDANCE_SCALE = 7.5
PAPER_STRENGTH = 0.8
"""Values of the paper's program, where the format leaves both to the defaults of the pipelines."""

PAPER_CONFIDENCE = 0.45
"""From this confidence on, the paper's program takes what its label model finds for a label."""

_LABEL_KEYS = ("dataset_classes", "dataset_to_model_class_map", "label_model")
_OWN_KEYS = frozenset({"dataset_name", "dataset_root", *_LABEL_KEYS, *SECTIONS})
"""Keys by which a file in the paper's format is recognised."""

_WEIGHTING = re.compile(r"[\w<>{}]+(?:\++|--+)(?![\w+-])|\([^()]*\)(?:\++|--+)|\([^()]*:\d+(?:\.\d+)?\)")
"""Prompt weighting of some programs: ``car++``, ``(car)--``, ``(cgi:1.4)``."""


def is_paper_format(settings: Mapping[str, Any]) -> bool:
    """Return whether settings are in the paper's format, valid or not, by their top-level keys."""
    return "prompts" not in settings and not _OWN_KEYS.isdisjoint(settings)


def from_paper(settings: Mapping[str, Any], file: str) -> tuple[dict[str, Any], list[str]]:
    """Translate settings in the paper's format.

    Args:
        settings: The content of a file.
        file: Name of the file in messages.

    Returns:
        Settings for `diffugen.config.load.load_config`, and a note for everything that is done differently,
        left out or not needed.

    Raises:
        ConfigError: Every unknown key, wrong value and missing key.

    Example:
        >>> made, notes = from_paper(json.loads(Path("cars.json").read_text()), "cars.json")  # doctest: +SKIP
    """
    paper = read_paper(settings, file)
    notes: list[str] = []
    prompts = _prompts(paper, notes)
    tasks = [{"task": "txt2img"}, *_img2img(paper, prompts, notes), *_inpaint(paper, prompts, notes)]
    seeds = paper.txt2img.seed_range
    made = {
        "name": _name(paper.dataset_name, notes),
        "seed": seeds.min if seeds else 0,
        "prompts": prompts,
        **({"tasks": tasks} if len(tasks) > 1 else {}),
        "diffusion": _diffusion(paper, notes),
        **_labelling(paper, prompts["classes"], notes),
        "loop": {"images_per_prompt": paper.txt2img.seed_count_per_prompt or 1},
    }
    return made, [*notes, *_general_notes(paper)]


def to_yaml(config: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return settings as the text of a YAML file, with notes as comments at the top; deterministic.

    Args:
        config: Settings returned by `from_paper`.
        notes: Notes returned by `from_paper`.
    """
    lines = [f"# {config['name']}: converted from the paper's JSON format.", "#"]
    for note in notes:
        lines += textwrap.wrap(
            note, 120, initial_indent="# - ", subsequent_indent="#   ", break_long_words=False
        )
    lines += ["#", "# Keys that are not listed here have the defaults explained in configs/miniature.yaml."]
    names = {key: value for key, value in config.items() if not isinstance(value, (dict, list))}
    parts = [names, *({key: value} for key, value in config.items() if key not in names)]
    return "\n".join([*lines, "", "\n".join(map(dump_yaml, parts))])


def _name(dataset_name: str, notes: list[str]) -> str:
    name = re.sub(r"[^\w.-]+", "-", dataset_name).lstrip(".-") or "dataset"
    if name != dataset_name:
        notes.append(f"dataset_name = {shown(dataset_name)}: changed to {name!r}, because it names files")
    return name


def _prompts(paper: PaperFile, notes: list[str]) -> dict[str, Any]:
    txt2img = paper.txt2img
    templates = _once(txt2img.prompts, "txt2img.prompts", notes)
    attributes, used = {}, fields_of(templates)
    for key, field in LISTS.items():
        values = getattr(txt2img, key)
        if field in used:
            attributes[field] = _once(values, f"txt2img.{key}", notes)
        elif values is not None and key != "object_names":
            notes.append(f"txt2img.{key}: left out, because no prompt uses {{{field}}}")
    total = sum(
        math.prod(len(attributes[field]) for field in fields_of([template])) for template in templates
    )
    count = txt2img.image_count or total
    return {
        "attributes": attributes,
        "classes": _classes(paper, templates, notes),
        "templates": templates,
        "negative": txt2img.negative_prompt,
        **({"count": count, "sampling": "sample"} if count < total else {"sampling": "product"}),
    }


def _once(texts: Sequence[str], key: str, notes: list[str]) -> list[str]:
    """Return texts without repeats, which the paper's program generates again with other seeds."""
    once = list({one_line(text): text for text in reversed(texts)}.values())[::-1]
    if len(once) < len(texts):
        notes.append(f"{key}: {len(texts) - len(once)} of {len(texts)} texts are repeats, and used once")
    return once


def _classes(paper: PaperFile, templates: Sequence[str], notes: list[str]) -> dict[str, list[str]]:
    """Return the phrases of each class: the object's name, learned phrases, and the words to in-paint."""
    objects, named = dict.fromkeys(paper.txt2img.object_names), dict.fromkeys(paper.dataset_classes)
    left_out = [name for name in named if name not in objects]
    added = [name for name in objects if name not in named]
    if left_out:
        notes.append(f"dataset_classes: {', '.join(left_out)} left out, because no object has that name")
    if added:
        notes.append(f"dataset_classes: {', '.join(added)} added, because objects have that name")
    order = [*(name for name in named if name in objects), *added]
    learned = _learned_phrases(paper, templates, list(objects), notes)
    classes = {name: [name, *learned.get(name, ())] for name in order}
    for name in order:
        for words in dict.fromkeys(_words(paper.inpaint).get(name, ())):
            phrase = words.rstrip("+-")
            owner = next((other for other, phrases in classes.items() if phrase in phrases), None)
            if owner is None:
                classes[name].append(phrase)
            elif owner != name:
                notes.append(
                    f"inpaint.{name}: {phrase!r} is labelled as {owner}, which already has these words"
                )
    return classes


def _learned_phrases(
    paper: PaperFile, templates: Sequence[str], objects: Sequence[str], notes: list[str]
) -> dict[str, list[str]]:
    """Return the phrases in which a learned token names an object: next to the object's name, or alone."""
    if paper.txt2img.textual_inversion is None:
        return {}
    keyword = paper.txt2img.textual_inversion.keyword
    word, name = re.escape(keyword), re.escape("{object_name}")
    next_to = re.compile(rf"{name}\S* +{word}|{word}\S* +{name}")
    using = [template for template in templates if keyword in template]
    patterns = dict.fromkeys(match[0] for template in using for match in next_to.finditer(one_line(template)))
    alone = len(objects) == 1 and any("{object_name}" not in template for template in using)
    key = f"txt2img.textual_inversion.keyword = {keyword}"
    if not using:
        notes.append(f"{key}: has no effect, because no prompt uses it")
    elif not patterns and not alone:
        notes.append(f"{key}: not traced, because it is not next to {{object_name}}")
    return {
        one: [*(pattern.replace("{object_name}", one) for pattern in patterns), *([keyword] if alone else [])]
        for one in objects
        if one != keyword
    }


def _img2img(paper: PaperFile, prompts: Mapping[str, Any], notes: list[str]) -> Iterator[dict[str, Any]]:
    section = paper.img2img
    if section is None:
        return
    templates = _once(section.prompts or (), "img2img.prompts", notes)
    attributes = _changes(paper, section, templates, prompts, notes)
    for field, values in attributes.items():
        if set(values) & set(prompts["attributes"].get(field, ())):
            notes.append(
                f"img2img: a source whose {field} is among the new ones gets only the others, as in the paper"
            )
    yield {
        "task": "img2img",
        "source": _source(paper, section, notes),
        **({"templates": templates} if templates else {}),
        **({"attributes": attributes} if attributes else {}),
        "images_per_source": math.prod(map(len, attributes.values())) * max(1, len(templates)),
        "strength": section.strength or PAPER_STRENGTH,
        **_model(paper, section),
    }


def _inpaint(paper: PaperFile, prompts: Mapping[str, Any], notes: list[str]) -> Iterator[dict[str, Any]]:
    section = paper.inpaint
    if section is None:
        return
    names: list[str] = []
    for key, given in _words(section).items():
        words = _once(given, f"inpaint.{key}", notes)
        name = re.sub(r"[^\w.-]+", "-", f"inpaint-{key}")
        names.append(name if name not in names else f"{name}-{len(names)}")
        changes = _changes(paper, section, [INPAINT_TEMPLATE], prompts, [])
        yield {
            "task": "inpaint",
            "name": names[-1],
            "source": _source(paper, section, notes if len(names) == 1 else []),
            "templates": [INPAINT_TEMPLATE],
            "attributes": {**changes, "new_object": words},
            "images_per_source": len(words),
            "region": {"label": key},
            **_model(paper, section),
        }
    if not names:
        notes.append("inpaint: left out, because it lists no object with new words")


def _words(section: Inpaint | None) -> Mapping[str, Sequence[str]]:
    """Return the new words of each object to in-paint."""
    return (section.model_extra or {}) if section else {}


def _changes(
    paper: PaperFile,
    section: Img2img | Inpaint,
    templates: list[str],
    prompts: Mapping[str, Any],
    notes: list[str],
) -> dict[str, list[str]]:
    """Return the values of a task: those of its own lists, and of lists that only its own templates use."""
    used, changes = fields_of(templates or prompts["templates"]), {}
    for key, field in LISTS.items():
        own = getattr(section, key, None) if isinstance(section, Img2img) else None
        if field in used and (own is not None or field not in prompts["attributes"]):
            values = getattr(paper.txt2img, key) if own is None else own
            changes[field] = _once(values, f"{_key(section)}.{key}", notes)
        elif own is not None:
            notes.append(f"{_key(section)}.{key}: left out, because no prompt uses {{{field}}}")
    return changes


def _key(section: Img2img | Inpaint) -> str:
    return type(section).__name__.lower()


def _source(paper: PaperFile, section: Img2img | Inpaint, notes: list[str]) -> str:
    place, there = section.source_dataset, [name for name in SECTIONS if getattr(paper, name) is not None]
    source = source_section(place, paper.dataset_name, there)
    if source is None:
        notes.append(
            f"{_key(section)}.source_dataset = {shown(place)}: not a task of this file, so it stays a path, "
            "to photos, a labelled set, or a run"
        )
    return source or place


def _model(paper: PaperFile, section: Img2img | Inpaint) -> dict[str, str]:
    model = section.stable_diffusion_model
    return {} if model == (paper.txt2img.stable_diffusion_model or PAPER_MODEL) else {"model": model}


def _diffusion(paper: PaperFile, notes: list[str]) -> dict[str, Any]:
    txt2img = paper.txt2img
    if txt2img.stable_diffusion_model is None:
        notes.append(
            f"txt2img.stable_diffusion_model: not given, so diffusion.model is the paper's, {PAPER_MODEL}"
        )
    learned = txt2img.textual_inversion
    return {
        "model": txt2img.stable_diffusion_model or PAPER_MODEL,
        "dtype": "auto",
        "size_wh": [paper.image_size.width, paper.image_size.height],
        "num_inference_steps": paper.steps,
        "guidance_scale": PAPER_GUIDANCE_SCALE,
        **({"embeddings": [learned.weights]} if learned else {}),
    }


def _labelling(paper: PaperFile, classes: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return how labels are made, and where the detector starts.

    The paper's program either thresholds heat maps (``unsupervised: true``, which uses no label model) or
    takes the label model's objects of the mapped classes (``false``, in which heat maps are only drawn).
    These are the sources ``attention`` and ``detector``. A file can be supervised and leave classes out of
    its map: no object of such a class would ever be labelled, so the source is ``both`` then, and attention
    labels them. An empty map says nothing of what the model knows, which is checked when the loop begins.
    """
    mapped = paper.dataset_to_model_class_map.items()
    class_map = {name: theirs for name, theirs in mapped if name in classes and theirs != name}
    detector = {"checkpoint": paper.label_model.weights, **({"class_map": class_map} if class_map else {})}
    if paper.unsupervised:
        notes.append(
            "unsupervised = true: labels come from attention (diffugen label), by the paper's method"
        )
        return {"labels": {"method": "paper"}, "detector": detector}
    mapped_names = paper.dataset_to_model_class_map
    left_out = [name for name in classes if name not in mapped_names] if mapped_names else []
    notes.append(
        "unsupervised = false: labels are what the label model finds (labels.source), whatever a later "
        "detector sees (dataset.trust: attention, which means these labels, whoever made them)"
    )
    if left_out:
        notes.append(
            f"dataset_to_model_class_map: {', '.join(left_out)} not in it, so labelled by attention, by the "
            "paper's method, unless the label model knows the name"
        )
    source = "both" if left_out else "detector"
    return {
        "labels": {"method": "paper", "source": source, "detector_confidence": PAPER_CONFIDENCE},
        "detector": detector,
        "dataset": {"trust": "attention"},
    }


def _general_notes(paper: PaperFile) -> Iterator[str]:
    for key, value, reason in (
        ("dataset_root", paper.dataset_root, "a run is kept in runs/<name>; give --run for another folder"),
        ("image_format", paper.image_format, "images are always kept as PNG, without loss"),
        ("images_per_shard", paper.images_per_shard, "a run may keep any number of images in its folder"),
        ("deterministic", paper.deterministic, "the same configuration always gives the same images"),
        ("label_model.classes", paper.label_model.classes, "a checkpoint contains its class names"),
    ):
        if value is not None:
            yield f"{key} = {shown(value)}: not needed here, because {reason}"
    if paper.txt2img.seed_range:
        yield "txt2img.seed_range: min is the seed of the run, from which the seeds of the images are derived"
    texts = [*paper.txt2img.prompts, paper.txt2img.negative_prompt]
    texts += (paper.img2img and paper.img2img.prompts) or ()
    weighted = [match[0] for text in texts for match in _WEIGHTING.finditer(text)]
    if weighted:
        yield f"prompt weighting, such as {weighted[0]}: passed to the model as plain text"
