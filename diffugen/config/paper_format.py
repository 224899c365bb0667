"""The paper's JSON format: which keys a file may have, and every mistake of one in a list.

Knows the format and nothing of DiffuGen's own keys: what becomes of a file, `diffugen.config.paper` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffugen.config.mistakes import shown
from diffugen.errors import did_you_mean
from diffugen.records import FIELD

LISTS = {
    "view_points": "view_point",
    "object_names": "object_name",
    "times_of_day": "time_of_day",
    "sky_conditions": "sky_condition",
    "weather_conditions": "weather_condition",
}
"""From a list of values to the ``{field}`` of the templates that is filled from it."""

SECTIONS = ("txt2img", "img2img", "inpaint")
"""The sections that make images, in the order in which one can start from another's."""

INPAINT_KEYS = ("stable_diffusion_model", "source_dataset")
"""Keys of the section inpaint; all others are names of objects."""

Wrong = Iterator[tuple[str, Any, str]]
"""Where in a value something is wrong (``""`` or ``"[2]"``), what stands there, and what is expected."""


def _text(value: Any) -> Wrong:
    if not isinstance(value, str) or not value.strip():
        yield "", value, "some text"


def _maybe_empty(value: Any) -> Wrong:
    if not isinstance(value, str):
        yield "", value, "text; put it in quotes"


def _flag(value: Any) -> Wrong:
    if not isinstance(value, bool):
        yield "", value, "true or false"


def _at_least(least: int) -> Callable[[Any], Wrong]:
    def check(value: Any) -> Wrong:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            yield "", value, f"a whole number of at least {least}"

    return check


def _share(value: Any) -> Wrong:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        yield "", value, "a number above 0 and at most 1"


def _texts(value: Any) -> Wrong:
    if not isinstance(value, list) or not value:
        yield "", value, "a list of at least one text"
        return
    for place, item in enumerate(value):
        yield from ((f"[{place}]", wrong, expected) for _, wrong, expected in _text(item))


def _templates(value: Any) -> Wrong:
    yield from _texts(value)
    for place, template in enumerate(value if isinstance(value, list) else ()):
        text = template if isinstance(template, str) else ""
        for field in dict.fromkeys(FIELD.findall(text)):
            if field not in LISTS.values():
                known = ", ".join(LISTS.values())
                yield (
                    f"[{place}]",
                    text,
                    f"fields among {known}, not {{{field}}}{did_you_mean(field, LISTS.values())}",
                )
        if set("{}") & set(FIELD.sub("", text)):
            yield f"[{place}]", text, "no brace without its partner; fields are written as {object_name}"


def _class_map(value: Any) -> Wrong:
    if not isinstance(value, dict):
        yield "", value, "a section of 'dataset class: class of the label model'"
        return
    for key, item in value.items():
        yield from ((f".{key}", wrong, expected) for _, wrong, expected in _text(item))


def _yolo(value: Any) -> Wrong:
    if value != "YOLOSeg":
        yield (
            "",
            value,
            "'YOLOSeg': other detectors are not there; name the weights of a YOLO segmentation model",
        )


_CHECKS: dict[str, Callable[[Any], Wrong]] = {
    "dataset_name": _text,
    "dataset_root": _text,
    "image_format": _text,
    "image_size.width": _at_least(1),
    "image_size.height": _at_least(1),
    "steps": _at_least(1),
    "dataset_classes": _texts,
    "dataset_to_model_class_map": _class_map,
    "label_model.type": _yolo,
    "label_model.weights": _text,
    "label_model.classes": _text,
    "unsupervised": _flag,
    "deterministic": _flag,
    "images_per_shard": _at_least(1),
    "txt2img.stable_diffusion_model": _text,
    "txt2img.seed_range.min": _at_least(0),
    "txt2img.seed_range.max": _at_least(0),
    "txt2img.seed_count_per_prompt": _at_least(1),
    "txt2img.image_count": _at_least(1),
    "txt2img.textual_inversion.weights": _text,
    "txt2img.textual_inversion.keyword": _text,
    **{f"txt2img.{name}": _texts for name in LISTS},
    "txt2img.prompts": _templates,
    "txt2img.negative_prompt": _maybe_empty,
    "img2img.stable_diffusion_model": _text,
    "img2img.source_dataset": _text,
    **{f"img2img.{name}": _texts for name in ("times_of_day", "sky_conditions", "weather_conditions")},
    "img2img.prompts": _templates,
    "img2img.strength": _share,
    **{f"inpaint.{name}": _text for name in INPAINT_KEYS},
}

_REQUIRED = (
    "dataset_name",
    "image_size",
    "image_size.width",
    "image_size.height",
    "steps",
    "dataset_classes",
    "label_model",
    "label_model.type",
    "label_model.weights",
    "txt2img",
    "txt2img.seed_range.min",
    "txt2img.textual_inversion.weights",
    "txt2img.textual_inversion.keyword",
    "txt2img.object_names",
    "txt2img.prompts",
    "img2img.stable_diffusion_model",
    "img2img.source_dataset",
    *(f"inpaint.{name}" for name in INPAINT_KEYS),
)
"""What must be there, of optional sections those that are there."""


def paper_mistakes(settings: Mapping[str, Any], file: str) -> list[str]:
    """Return a line for each unknown key, wrong value and missing key, and for what does not fit together.

    Args:
        settings: A file in the paper's format.
        file: What to call it.
    """
    objects = texts_at(settings, "txt2img", "object_names")
    return [
        f"{file}: {line}"
        for line in (
            *_section_mistakes(settings, "", objects),
            *_field_mistakes(settings),
            *_class_mistakes(settings),
            *_range_mistakes(settings),
            *_source_mistakes(settings),
        )
    ]


def texts_at(settings: Mapping[str, Any], *path: str) -> list[str]:
    """Return the texts of a list, each once; none where there is no such list."""
    value: Any = settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return (
        list(dict.fromkeys(item for item in value if isinstance(item, str)))
        if isinstance(value, list)
        else []
    )


def fields_of(templates: list[str]) -> set[str]:
    """Return the names of all fields of these templates."""
    return {field for template in templates for field in FIELD.findall(template)}


def source_section(settings: Mapping[str, Any], section: str) -> str | None:
    """Return the section of the file whose images another section starts from; None if its source lies
    elsewhere.
    """
    source = str(settings[section]["source_dataset"])
    *parents, last = [part for part in source.replace("\\", "/").split("/") if part] or [""]
    own = not parents or parents[-1] == settings.get("dataset_name")
    return last if own and last in SECTIONS and last in settings else None


def _section_mistakes(section: Mapping[str, Any], prefix: str, objects: list[str]) -> Iterator[str]:
    known = list(
        dict.fromkeys(path[len(prefix) :].split(".")[0] for path in _CHECKS if path.startswith(prefix))
    )
    known += objects if prefix == "inpaint." else []
    for key, value in section.items():
        path = f"{prefix}{key}"
        if key not in known:
            yield f"{path}: unknown key{_key_hint(key, known)}"
        elif path in _CHECKS or prefix == "inpaint.":
            for place, wrong, expected in _CHECKS.get(path, _texts)(value):
                yield f"{path}{place} = {shown(wrong)}: expected {expected}"
        elif isinstance(value, dict):
            yield from _section_mistakes(value, f"{path}.", objects)
        else:
            yield f"{path} = {shown(value)}: expected a section of 'key: value' lines"
    for path in _REQUIRED:
        if path.startswith(prefix) and "." not in (key := path[len(prefix) :]) and key not in section:
            what = ", a diffusion model's hub name or folder" if key == "stable_diffusion_model" else ""
            yield f"{path}: expected a value{what}; there is none"


def _key_hint(key: str, known: list[str]) -> str:
    """Name the section that has this very key, else the nearest key of the same section, else all keys there
    are.
    """
    home = next((path for path in _CHECKS if path.split(".")[-1] == key), None)
    nearest = f", did you mean {home!r}?" if home else did_you_mean(key, known)
    return nearest or f"; the keys here are {', '.join(known)}"


def _field_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    """Report fields of templates that no list has values for."""
    used = {section: fields_of(texts_at(settings, section, "prompts")) for section in SECTIONS[:2]}
    used["inpaint"] = {"view_point"} if "inpaint" in settings else set()
    for section, fields in used.items():
        there = {key for place in ("txt2img", section) for key in _keys(settings, place)}
        for name, field in LISTS.items():
            if field in fields and name not in there and f"txt2img.{name}" not in _REQUIRED:
                yield f"txt2img.{name}: expected a value; there is none, and the prompts of {section} use {{{field}}}"


def _keys(settings: Mapping[str, Any], section: str) -> list[str]:
    return list(settings[section]) if isinstance(settings.get(section), Mapping) else []


def _class_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    mapped, classes = settings.get("dataset_to_model_class_map"), texts_at(settings, "dataset_classes")
    for name in mapped if isinstance(mapped, Mapping) and classes else ():
        if name not in classes:
            yield f"dataset_to_model_class_map.{name}: expected a class of dataset_classes{did_you_mean(name, classes)}"


def _range_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    txt2img = settings.get("txt2img")
    seeds = txt2img.get("seed_range") if isinstance(txt2img, Mapping) else None
    least, most = (seeds.get(name) if isinstance(seeds, Mapping) else None for name in ("min", "max"))
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield f"txt2img.seed_range.max = {most}: expected at least min, which is {least}"


def _source_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    for section in SECTIONS[1:]:
        given = settings.get(section)
        if not isinstance(given, Mapping) or "source_dataset" not in given:
            continue
        source = source_section(settings, section)
        if source is not None and SECTIONS.index(source) >= SECTIONS.index(section):
            order = ", then ".join(SECTIONS)
            yield (
                f"{section}.source_dataset = {shown(given['source_dataset'])}: expected images that are made "
                "before; "
                f"the order is {order}"
            )
