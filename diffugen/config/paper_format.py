"""The paper's JSON format: the keys of a file as a model, and every mistake of a file in one list.

Knows the format, not DiffuGen's own keys; `diffugen.config.paper` translates between the two.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from diffugen.config.mistakes import describe, shown
from diffugen.config.values import Section, Text, Texts, some
from diffugen.errors import ConfigError, did_you_mean
from diffugen.records import FIELD

LISTS = {
    "view_points": "view_point",
    "object_names": "object_name",
    "times_of_day": "time_of_day",
    "sky_conditions": "sky_condition",
    "weather_conditions": "weather_condition",
}
"""The ``{field}`` of the templates that each list of values fills."""

SECTIONS = ("txt2img", "img2img", "inpaint")
"""The sections that generate images, in the order in which one can start from the images of another."""

INPAINT_TEMPLATE = "a {view_point} view of {new_object}"
"""The prompt of in-painting, which the format does not contain."""


def _template(text: str) -> str:
    known = LISTS.values()
    unknown = [
        f"{{{field}}}{did_you_mean(field, known)}"
        for field in dict.fromkeys(FIELD.findall(text))
        if field not in known
    ]
    expected = [f"fields among {', '.join(known)}, not {' or '.join(unknown)}"] if unknown else []
    if set("{}") & set(FIELD.sub("", text)):
        expected.append("fields with both braces, such as {object_name}")
    if expected:
        raise ValueError(" and ".join(expected))
    return text


Count = Annotated[int, Field(ge=1, lt=2**63)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Templates = Annotated[tuple[Annotated[Text, AfterValidator(_template)], ...], AfterValidator(some)]


class PaperSection(Section):
    """A part of a file. A key that may be missing has the default None, but ``null`` is a mistake."""

    model_config = ConfigDict(validate_default=False)

    @field_validator("*")
    @classmethod
    def _not_null(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a value, not null")
        return value


class ImageSize(PaperSection):
    """Size of the images in pixels."""

    width: Count
    height: Count


class LabelModel(PaperSection):
    """The detector that labels the images, and the file with the names of its classes.

    The weights of a ``Mask2Former``, which the paper's program does not accept, are a folder or a name on the
    Hub.
    """

    type: Literal["YOLOSeg", "Mask2Former"]
    weights: Text
    classes: Text | None = None


class SeedRange(PaperSection):
    """The range that the seeds of the images are drawn from."""

    min: Seed
    max: Seed | None = None

    @field_validator("max")
    @classmethod
    def _at_least_min(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("min", 0):
            raise ValueError(f"at least min, which is {info.data['min']}")
        return value


class TextualInversion(PaperSection):
    """A learned token, and the word that stands for it in prompts."""

    weights: Text
    keyword: Text


class Txt2img(PaperSection):
    """Images from prompts."""

    stable_diffusion_model: Text | None = None
    seed_range: SeedRange | None = None
    seed_count_per_prompt: Count | None = None
    image_count: Count | None = None
    textual_inversion: TextualInversion | None = None
    view_points: Texts | None = None
    object_names: Texts
    times_of_day: Texts | None = None
    sky_conditions: Texts | None = None
    weather_conditions: Texts | None = None
    prompts: Templates
    negative_prompt: str = ""


class Img2img(PaperSection):
    """Images from other images, with other values."""

    stable_diffusion_model: Text
    source_dataset: Text
    times_of_day: Texts | None = None
    sky_conditions: Texts | None = None
    weather_conditions: Texts | None = None
    prompts: Templates | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None


class Inpaint(PaperSection):
    """Images in which objects are repainted; all other keys are object names, each with the new words."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Texts]

    stable_diffusion_model: Text
    source_dataset: Text


class PaperFile(PaperSection):
    """A file in the paper's format."""

    dataset_name: Text
    dataset_root: Text | None = None
    image_format: Text | None = None
    image_size: ImageSize
    steps: Count
    dataset_classes: Texts
    dataset_to_model_class_map: dict[str, Text] = Field(default_factory=dict)
    label_model: LabelModel
    unsupervised: bool = True
    deterministic: bool | None = None
    images_per_shard: Count | None = None
    txt2img: Txt2img
    img2img: Img2img | None = None
    inpaint: Inpaint | None = None


def read_paper(settings: Mapping[str, Any], file: str) -> PaperFile:
    """Check settings in the paper's format.

    Args:
        settings: The content of a file.
        file: Name of the file in the error message.

    Raises:
        ConfigError: Every unknown key, wrong value and missing key, and every contradiction between keys.
    """
    mistakes: list[str] = []
    paper = None
    try:
        # As JSON, where a strict check accepts lists as tuples. A TOML date becomes a section, which no key
        # accepts.
        text = json.dumps(settings, default=lambda value: {str(value): None})
        paper = PaperFile.model_validate_json(text)
    except ValidationError as error:
        mistakes += describe(error.errors(include_url=False), PaperFile, settings, file, {})
    for check in (_name_mistakes, _field_mistakes, _source_mistakes):
        mistakes += (f"{file}: {line}" for line in check(settings))
    if mistakes or paper is None:
        raise ConfigError(mistakes)
    return paper


def fields_of(templates: Iterable[str]) -> set[str]:
    """Return the names of all fields of templates."""
    return {field for template in templates for field in FIELD.findall(template)}


def source_section(source: str, dataset_name: Any, sections: Collection[str]) -> str | None:
    """Return the section whose images a ``source_dataset`` names; None if it is a path to other images."""
    *parents, last = [part for part in source.replace("\\", "/").split("/") if part] or [""]
    own = not parents or parents[-1] == dataset_name
    return last if own and last in SECTIONS and last in sections else None


# The checks below compare keys with each other. The keys themselves may be wrong, which the model reports.


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, Mapping) else {}


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _name_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys of inpaint that are not objects, and mapped classes that the dataset does not have."""
    objects = [*Inpaint.model_fields, *_texts(_section(settings, "txt2img").get("object_names"))]
    for key in _section(settings, "inpaint"):
        if key not in objects:
            near = did_you_mean(key, objects) or f"; the keys here are {', '.join(dict.fromkeys(objects))}"
            yield f"inpaint.{key}: unknown key{near}"
    classes = _texts(settings.get("dataset_classes"))
    for key in _section(settings, "dataset_to_model_class_map") if classes else ():
        if key not in classes:
            near = did_you_mean(key, classes)
            yield f"dataset_to_model_class_map.{key}: expected a class of dataset_classes{near}"


def _field_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield lists that are missing although the templates of a section use them."""
    for section in SECTIONS:
        given = _section(settings, section)
        templates = [INPAINT_TEMPLATE] if section == "inpaint" else _texts(given.get("prompts"))
        fields = fields_of(templates) if section in settings else set()
        lists = {*_section(settings, "txt2img"), *(given if section == "img2img" else ())}
        for key, field in LISTS.items():
            required = Txt2img.model_fields[key].is_required()  # reported by the model
            if field in fields and not required and key not in lists:
                use = f"the prompts of {section} use {{{field}}}"
                yield f"txt2img.{key}: expected a value; there is none, and {use}"


def _source_mistakes(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield sections that start from images of themselves or of a later section."""
    for place, section in enumerate(SECTIONS):
        given = _section(settings, section).get("source_dataset") if place else None
        source = source_section(str(given), settings.get("dataset_name"), settings)
        if source is not None and SECTIONS.index(source) >= place:
            what = f"expected images of an earlier section; the order is {', then '.join(SECTIONS)}"
            yield f"{section}.source_dataset = {shown(given)}: {what}"
