"""YAML text: read with the plain values of YAML 1.2, and written so that readers of YAML 1.1 agree.

Reading has limits on depth and on what aliases repeat. Does not know any key. `diffugen.config.foreign` is
the way to read YAML; it turns every problem into one kind of error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from yaml.composer import Composer

from diffugen.errors import MOST_LINES

MOST_DEPTH = 50
"""How deep lists and mappings may be nested."""

MOST_VALUES = 300_000
"""The most values in a text, each counted as often as aliases repeat it."""

TOO_DEEP = f"nested more than {MOST_DEPTH} deep"


def load_yaml(text: str, mistakes: list[str], texts_only: bool = False) -> Any:
    """Return the value of a YAML text; see `diffugen.config.foreign.parse_yaml`.

    Raises:
        yaml.YAMLError: The text is not valid, or passes a limit.
        ValueError: It has a character that does not exist, or a number that is too long.
        OverflowError: The same.
    """
    loader = (_TextLoader if texts_only else _Loader)(text)
    loader.mistakes = mistakes
    return loader.get_single_data()


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

    def represent_str(self, data: str) -> Any:
        # Line breaks in YAML 1.1 alone, which only this style writes as escapes.
        style = '"' if re.search("[\x85\u2028\u2029\ufeff]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        return super().represent_sequence(tag, sequence, flow_style=_is_short(sequence))


def _is_short(sequence: Sequence[Any]) -> bool:
    return len(str(sequence)) <= 90 and not any(isinstance(item, (dict, list)) for item in sequence)


_Dumper.add_representer(str, _Dumper.represent_str)
# Quoted, because YAML 1.2, which is read here, takes these texts for numbers.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


# libyaml splits the text into events several times faster, where PyYAML comes with it.
_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(Composer, _Events):
    """YAML loader with the plain values of YAML 1.2 and a limit on depth and on repeated aliases."""

    def __init__(self, text: str) -> None:
        _Events.__init__(self, text)
        Composer.__init__(self)
        self.mistakes: list[str] = []
        self._depth = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # values below and depth of each finished node, by id

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _refused(event, TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._measure(event, node)
        elif id(node) not in self._sizes:
            raise _refused(event, f"the alias {event.anchor!r} contains itself")
        return node

    def _measure(self, event: Any, node: Any) -> None:
        below = [] if isinstance(node, yaml.ScalarNode) else node.value
        pairs = isinstance(node, yaml.MappingNode)
        sizes = [self._sizes[id(one)] for part in below for one in (part if pairs else (part,))]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > MOST_VALUES:
            raise _refused(event, f"more than {MOST_VALUES:,} values, those that aliases repeat included")
        if depth > MOST_DEPTH:
            raise _refused(event, TOO_DEEP)
        self._sizes[id(node)] = (size, depth)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            row, name = key.start_mark.line + 1, key.value
            if key.tag == "tag:yaml.org,2002:merge" or len(self.mistakes) > MOST_LINES:
                continue
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                shown = name if isinstance(name, str) else "in brackets"
                self.mistakes.append(f"line {row}: the key {shown} is not text; put it in quotes")
            elif name in lines:
                self.mistakes.append(
                    f"line {row}: the key {name!r} is already given in line {lines[name]}; remove one"
                )
            else:
                lines[name] = row
        return node


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _TextLoader(_Loader):
    """YAML loader for which every plain value is text."""


def _scalar(convert: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    def construct(loader: Any, node: Any) -> Any:
        text = loader.construct_scalar(node)
        try:
            return convert(text)
        except (ValueError, KeyError):
            problem = f"{text[:60]!r} is not a value of {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    return construct


def _undefined(loader: Any, node: Any) -> Any:
    raise yaml.MarkedYAMLError(
        problem=f"the type {node.tag[:60]!r} is not supported; remove it", problem_mark=node.start_mark
    )


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    f"{_TAG}null": _scalar(lambda text: None),
    f"{_TAG}bool": _scalar(lambda text: {"true": True, "false": False}[text.lower()]),
    f"{_TAG}int": _scalar(int),
    f"{_TAG}float": _scalar(float),
    **{f"{_TAG}{kind}": getattr(yaml.SafeLoader, f"construct_yaml_{kind}") for kind in ("str", "seq", "map")},
    None: _undefined,
}
_Loader.yaml_implicit_resolvers = {}
_TextLoader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), _first)
_TextLoader.add_implicit_resolver(f"{_TAG}merge", re.compile("^<<$"), ["<"])
