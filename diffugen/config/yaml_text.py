"""Write settings as YAML text in the layout of the shipped configurations.

Knows which texts `diffugen.config.files` would not read back as text unless quoted; does not know any key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def dump_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML in the order of the keys, with short lists on one line and without aliases."""
    text: str = yaml.dump(
        settings,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
        default_flow_style=False,
    )
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=_is_short(sequence))


def _is_short(sequence: Sequence[Any]) -> bool:
    return len(str(sequence)) <= 90 and not any(isinstance(item, (dict, list)) for item in sequence)


# Quoted, because `diffugen.config.files` reads YAML 1.2, where these texts are numbers.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
