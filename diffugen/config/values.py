"""Value types that configuration sections share, and their base class.

Does not know any particular section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

SomeSection = TypeVar("SomeSection", bound="Section")


def some(values: Any) -> Any:
    """Return the values if there is at least one."""
    # Not pydantic's min_length: it counts only valid values, and so reports a wrong value twice.
    if not values:
        raise ValueError("at least one value")
    return values


def some_weight(weights: Any) -> Any:
    """Return the weights, a mapping or a sequence, if at least one is above 0."""
    if not any(weights.values() if isinstance(weights, Mapping) else weights):
        raise ValueError("at least one weight above 0")
    return weights


def _matching(pattern: str, expected: str, most_bytes: int = 10_000) -> AfterValidator:
    def check(text: str) -> str:
        if len(text.encode()) > most_bytes:
            raise ValueError(f"at most {most_bytes:,} bytes")
        if not re.search(pattern, text):
            raise ValueError(expected)
        return text

    return AfterValidator(check)


AnyText = Annotated[str, _matching(r"\A[^\0-\x08\x0e-\x1f\x7f]*\Z", "text without control characters")]
Text = Annotated[AnyText, _matching(r"\S", "some text")]
Name = Annotated[
    str, _matching(r"\A\w[\w.-]*\Z", "letters, digits, '.', '_' and '-' only, because it names files", 200)
]
Device = Annotated[
    str, _matching(r"\A(auto|cpu|mps|(cuda|xpu)(:\d+)?)\Z", "'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu'")
]
Devices = Annotated[
    str,
    _matching(
        r"\A(auto|cpu|mps|xpu(:\d+)?|cuda(:\d+(,\d+)*)?)\Z",
        "'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu', or several GPUs such as 'cuda:0,1'",
    ),
]
Texts = Annotated[tuple[Text, ...], AfterValidator(some)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Point = tuple[Share, Share]
SideWH = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Radius = Annotated[float, Field(ge=0, lt=0.2)]
Values = Annotated[
    Annotated[Texts, Tag("<values>")]
    | Annotated[dict[Text, Weight], AfterValidator(some_weight), Tag("<weights>")],
    Discriminator(lambda given: "<weights>" if isinstance(given, dict) else "<values>"),
]


class Section(BaseModel):
    """A section of the configuration: frozen, no unknown keys, no silent type conversion.

    Attributes:
        RESUMABLE: Keys that may change when a run is continued, because they affect no image and no split.
            The key of a section covers all keys in it.
        FORMER: From a key that an earlier version had to what to write instead.

    Raises:
        pydantic.ValidationError: A value is out of range or has the wrong type.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )
    RESUMABLE: ClassVar[tuple[str, ...]] = ()
    FORMER: ClassVar[Mapping[str, str]] = {}

    def changed(self: SomeSection, **values: object) -> SomeSection:
        """Return a section with other values, validated like those of a file."""
        return type(self)(**{**dict(self), **values})
