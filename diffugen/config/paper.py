"""The paper's JSON format, as it is: recognised, translated into DiffuGen's keys, and written as YAML.

Knows both vocabularies and says, in notes, what has no counterpart. Which files are valid,
`diffugen.config.paper_format` and `diffugen.config.sections` know.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from diffugen.config.mistakes import shown
from diffugen.config.paper_format import (
    INPAINT_KEYS,
    LISTS,
    SECTIONS,
    fields_of,
    paper_mistakes,
    source_section,
    texts_at,
)
from diffugen.errors import ConfigError
from diffugen.records import one_line

PAPER_MODEL = "mshenoda/realistic_vision_v4"
"""The model of files that name none, as the one on car accidents."""

PAPER_GUIDANCE_SCALE = 7.5
PAPER_STRENGTH = 0.8
"""The format leaves both to the pipelines, which took these values in the paper's program."""

INPAINT_TEMPLATE = "a {view_point} view of {new_object}"

_OWN_KEYS = frozenset(
    {
        "dataset_name",
        "dataset_classes",
        "dataset_to_model_class_map",
        "label_model",
        "dataset_root",
        *SECTIONS,
    }
)
_NOT_NEEDED = {
    ("dataset_root",): "a run lies in runs/<name>; give --run for another folder",
    ("image_format",): "images are always kept as PNG, without loss",
    ("images_per_shard",): "a run finds its images by its ledger, however many lie in its folder",
    ("deterministic",): "the same configuration gives the same images anyway",
    ("label_model", "classes"): "a checkpoint knows the names of its classes",
}
_WEIGHTING = re.compile(r"[\w<>{}]+(?:\++|--+)(?![\w+-])|\([^()]*\)(?:\++|--+)|\([^()]*:\d+(?:\.\d+)?\)")
"""Words with the signs by which some programs weigh words: ``car++``, ``(car)--``, ``(cgi:1.4)``."""


def is_paper_format(settings: Mapping[str, Any]) -> bool:
    """Return whether these are settings in the paper's format, by their top-level keys; mistakes may be in
    them.
    """
    return "prompts" not in settings and not _OWN_KEYS.isdisjoint(settings)


def from_paper(settings: Mapping[str, Any], file: str) -> tuple[dict[str, Any], list[str]]:
    """Translate settings in the paper's format.

    Args:
        settings: What the file holds.
        file: What to call it in messages.

    Returns:
        Settings for `diffugen.config.load.load_config`, and a note for all that is done in another way, left
        out or not needed.

    Raises:
        ConfigError: Every unknown key, wrong value and missing key.

    Example:
        >>> made, notes = from_paper(json.loads(Path("cars.json").read_text()), "cars.json")  # doctest: +SKIP
    """
    mistakes = paper_mistakes(settings, file)
    if mistakes:
        raise ConfigError(mistakes)
    notes: list[str] = []
    txt2img = settings["txt2img"]
    prompts = _prompts(settings, notes)
    tasks = [{"task": "txt2img"}, *_img2img(settings, prompts, notes), *_inpaint(settings, prompts, notes)]
    made = {
        "name": _name(settings["dataset_name"], notes),
        "seed": txt2img.get("seed_range", {}).get("min", 0),
        "prompts": prompts,
        **({"tasks": tasks} if len(tasks) > 1 else {}),
        "diffusion": _diffusion(settings, notes),
        **_labelling(settings, prompts["classes"], notes),
        "loop": {"images_per_prompt": txt2img.get("seed_count_per_prompt", 1)},
    }
    return made, [*notes, *_general_notes(settings)]


def to_yaml(config: Mapping[str, Any], notes: Sequence[str]) -> str:
    """Return settings as a YAML file that says the same, with the notes above them as comments; same input,
    same text.

    Args:
        config: What `from_paper` returned.
        notes: Likewise.
    """
    lines = [f"# {config['name']}: converted from the paper's JSON format.", "#"]
    for note in notes:
        lines += textwrap.wrap(
            note, 120, initial_indent="# - ", subsequent_indent="#   ", break_long_words=False
        )
    lines += ["#", "# Knobs that are not named here keep the values that configs/miniature.yaml explains."]
    names = {key: value for key, value in config.items() if not isinstance(value, (dict, list))}
    parts = [names, *({key: value} for key, value in config.items() if key not in names)]
    return "\n".join([*lines, "", "\n".join(map(_dumped, parts))])


def _name(dataset_name: str, notes: list[str]) -> str:
    name = re.sub(r"[^\w.-]+", "-", dataset_name).lstrip(".-") or "dataset"
    if name != dataset_name:
        notes.append(f"dataset_name = {shown(dataset_name)}: here {name!r}, because it names files")
    return name


def _prompts(settings: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    txt2img = settings["txt2img"]
    templates = _once(txt2img["prompts"], "txt2img.prompts", notes)
    attributes, used = {}, fields_of(templates)
    for key, field in LISTS.items():
        if field in used:
            attributes[field] = _once(txt2img[key], f"txt2img.{key}", notes)
        elif key in txt2img and key != "object_names":
            notes.append(f"txt2img.{key}: left out, because no prompt uses {{{field}}}")
    total = sum(
        math.prod(len(attributes[field]) for field in fields_of([template])) for template in templates
    )
    count = txt2img.get("image_count", total)
    return {
        "attributes": attributes,
        "classes": _classes(settings, templates, notes),
        "templates": templates,
        "negative": txt2img.get("negative_prompt", ""),
        **({"count": count, "sampling": "sample"} if count < total else {"sampling": "product"}),
    }


def _once(texts: Sequence[str], key: str, notes: list[str]) -> list[str]:
    """Drop texts that were there before, which the paper's program makes again with other seeds."""
    once = list({one_line(text): text for text in reversed(texts)}.values())[::-1]
    if len(once) < len(texts):
        notes.append(
            f"{key}: of {len(texts)} texts {len(texts) - len(once)} stand there twice, and are taken once"
        )
    return once


def _classes(settings: Mapping[str, Any], templates: Sequence[str], notes: list[str]) -> dict[str, list[str]]:
    """Return the phrases of each class: the object's name, next to a learned word, and the words it is
    in-painted with.
    """
    objects, named = texts_at(settings, "txt2img", "object_names"), texts_at(settings, "dataset_classes")
    left_out = [name for name in named if name not in objects]
    added = [name for name in objects if name not in named]
    if left_out:
        notes.append(f"dataset_classes: {', '.join(left_out)} left out, because no object has that name")
    if added:
        notes.append(f"dataset_classes: {', '.join(added)} added, because objects have that name")
    order = [*(name for name in named if name in objects), *added]
    keyword = settings["txt2img"].get("textual_inversion", {}).get("keyword")
    learned = _learned_phrases(keyword, templates, objects, notes) if keyword else {}
    classes = {name: [name, *learned.get(name, ())] for name in order}
    for name in order:
        for words in texts_at(settings, "inpaint", name):
            phrase = words.rstrip("+-")
            owner = next((other for other, phrases in classes.items() if phrase in phrases), None)
            if owner is None:
                classes[name].append(phrase)
            elif owner != name:
                notes.append(
                    f"inpaint.{name}: {phrase!r} is labelled as {owner}, which has these words already"
                )
    return classes


def _learned_phrases(
    keyword: str, templates: Sequence[str], objects: Sequence[str], notes: list[str]
) -> dict[str, list[str]]:
    """Return the phrases in which a textual-inversion word names an object: with the object's name next to
    it, or alone.
    """
    word, name = re.escape(keyword), re.escape("{object_name}")
    next_to = re.compile(rf"{name}\S* +{word}|{word}\S* +{name}")
    there = [template for template in templates if keyword in template]
    patterns = dict.fromkeys(match[0] for template in there for match in next_to.finditer(one_line(template)))
    alone = len(objects) == 1 and any("{object_name}" not in template for template in there)
    if not there:
        notes.append(
            f"txt2img.textual_inversion.keyword = {keyword}: stands in no prompt, and so has no effect"
        )
    elif not patterns and not alone:
        notes.append(
            f"txt2img.textual_inversion.keyword = {keyword}: not traced, because it does not stand next to "
            f"{{object_name}}"
        )
    return {
        one: [*(pattern.replace("{object_name}", one) for pattern in patterns), *([keyword] if alone else [])]
        for one in objects
        if one != keyword
    }


def _img2img(
    settings: Mapping[str, Any], prompts: Mapping[str, Any], notes: list[str]
) -> Iterator[dict[str, Any]]:
    section = settings.get("img2img")
    if section is None:
        return
    templates = _once(section.get("prompts", []), "img2img.prompts", notes)
    attributes = _changes(settings, "img2img", templates, prompts, notes)
    for field, values in attributes.items():
        if set(values) & set(prompts["attributes"].get(field, ())):
            notes.append(
                f"img2img: a source whose {field} is among the new ones gets the others only, as in the paper"
            )
    yield {
        "task": "img2img",
        "source": _source(settings, "img2img", notes),
        **({"templates": templates} if templates else {}),
        **({"attributes": attributes} if attributes else {}),
        "images_per_source": math.prod(len(values) for values in attributes.values())
        * max(1, len(templates)),
        "strength": section.get("strength", PAPER_STRENGTH),
        **_model(settings, "img2img"),
    }


def _inpaint(
    settings: Mapping[str, Any], prompts: Mapping[str, Any], notes: list[str]
) -> Iterator[dict[str, Any]]:
    section = settings.get("inpaint", {})
    names: list[str] = []
    for key, given in section.items():
        if key in INPAINT_KEYS:
            continue
        words = _once(given, f"inpaint.{key}", notes)
        name = re.sub(r"[^\w.-]+", "-", f"inpaint-{key}")
        names.append(name if name not in names else f"{name}-{len(names)}")
        changes = _changes(settings, "inpaint", [INPAINT_TEMPLATE], prompts, [])
        yield {
            "task": "inpaint",
            "name": names[-1],
            "source": _source(settings, "inpaint", notes if len(names) == 1 else []),
            "templates": [INPAINT_TEMPLATE],
            "attributes": {**changes, "new_object": words},
            "images_per_source": len(words),
            "region": {"label": key},
            **_model(settings, "inpaint"),
        }
    if section and not names:
        notes.append("inpaint: left out, because it names no object and no new words for one")


def _changes(
    settings: Mapping[str, Any],
    section: str,
    templates: list[str],
    prompts: Mapping[str, Any],
    notes: list[str],
) -> dict[str, list[str]]:
    """Return the values of a task: those of its own lists, and of lists that only its own templates use."""
    used, changes = fields_of(templates or prompts["templates"]), {}
    for key, field in LISTS.items():
        own = key in settings[section] and section != "inpaint"  # where any key may be the name of an object
        if field in used and (own or field not in prompts["attributes"]):
            changes[field] = _once(settings[section if own else "txt2img"][key], f"{section}.{key}", notes)
        elif own:
            notes.append(f"{section}.{key}: left out, because no prompt uses {{{field}}}")
    return changes


def _source(settings: Mapping[str, Any], section: str, notes: list[str]) -> str:
    source, place = source_section(settings, section), str(settings[section]["source_dataset"])
    if source is None:
        notes.append(
            f"{section}.source_dataset = {shown(place)}: no task of this file, so it stays a path: of "
            "photos, of a labelled "
            "set, or of a run"
        )
    return source or place


def _model(settings: Mapping[str, Any], section: str) -> dict[str, str]:
    model = settings[section]["stable_diffusion_model"]
    return {} if model == settings["txt2img"].get("stable_diffusion_model", PAPER_MODEL) else {"model": model}


def _diffusion(settings: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    txt2img = settings["txt2img"]
    learned = txt2img.get("textual_inversion", {}).get("weights")
    if "stable_diffusion_model" not in txt2img:
        notes.append(
            f"txt2img.stable_diffusion_model: not given, so diffusion.model is the paper's, {PAPER_MODEL}"
        )
    return {
        "model": txt2img.get("stable_diffusion_model", PAPER_MODEL),
        "dtype": "auto",
        "size_wh": [settings["image_size"]["width"], settings["image_size"]["height"]],
        "num_inference_steps": settings["steps"],
        "guidance_scale": PAPER_GUIDANCE_SCALE,
        **({} if learned is None else {"embeddings": [learned]}),
    }


def _labelling(settings: Mapping[str, Any], classes: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return how labels are made: by attention, or, where the file says so, by the detector."""
    mapped = settings.get("dataset_to_model_class_map", {})
    class_map = {name: theirs for name, theirs in mapped.items() if name in classes and theirs != name}
    detector = {
        "checkpoint": settings["label_model"]["weights"],
        **({"class_map": class_map} if class_map else {}),
    }
    if settings.get("unsupervised", True):
        notes.append(
            "unsupervised = true: labels come from attention (diffugen label), by the paper's method"
        )
        return {"labels": {"method": "paper"}, "detector": detector}
    notes.append(
        "unsupervised = false: the paper labels with its label model; here diffugen relabel does, after "
        "diffugen label, and "
        "dataset.trust: model believes it where attention says otherwise"
    )
    return {"detector": detector, "dataset": {"trust": "model"}}


def _general_notes(settings: Mapping[str, Any]) -> Iterator[str]:
    for path, reason in _NOT_NEEDED.items():
        value: Any = settings
        for key in path:
            value = value.get(key) if value is not None else None
        if value is not None:
            yield f"{'.'.join(path)} = {shown(value)}: not needed here, because {reason}"
    if "seed_range" in settings["txt2img"]:
        yield "txt2img.seed_range: its min is the run's seed; the images' seeds are derived from it, not drawn from the range"
    texts = [
        text
        for section in SECTIONS[:2]
        for text in (*texts_at(settings, section, "prompts"), _negative(settings, section))
    ]
    weighted = [match[0] for text in texts for match in _WEIGHTING.finditer(text)]
    if weighted:
        yield f"weighting signs in prompts, such as {weighted[0]}: passed on as they are, like all other text"


def _negative(settings: Mapping[str, Any], section: str) -> str:
    return str(settings.get(section, {}).get("negative_prompt", ""))


class _Dumper(yaml.SafeDumper):
    """YAML in the shape of the shipped files: short lists on one line, long ones with a line a value, no
    aliases.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=_is_short(sequence))


def _is_short(sequence: Sequence[Any]) -> bool:
    return len(str(sequence)) <= 90 and not any(isinstance(item, (dict, list)) for item in sequence)


# In quotes, because `diffugen.config.files` reads YAML 1.2, where this is a number.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _dumped(part: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        part, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=False
    )
    return text
