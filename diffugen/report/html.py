"""A report as one HTML file: it loads nothing from outside, and nothing in it runs.

The templates escape all text, and a content security policy in the page forbids scripts and every address.
Knows blocks, no run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffugen.report.blocks import NOTHING, Block, Cell, Chart, Code, Page, Table, printable

_NUMBER = re.compile(r"[-+]?[\d.,]+( ?(%|s|ms|min|h)|( / [\d.]+))?|-|[\d.]+ to [\d.]+")
_LONG = 24


def to_html(page: Page) -> str:
    """Return a page as a whole HTML document."""
    return _environment().get_template("page.html").render(page=page)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("diffugen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals["NOTHING"] = NOTHING
    made.filters |= {"in_rows": _in_rows, "kind": _kind, "column_kinds": _column_kinds, "base64": _base64}
    return made


def _printable(value: Any) -> Any:
    """Clean whatever a template prints; text that is markup already stays markup."""
    if isinstance(value, str):
        clean = printable(value)
        return Markup(clean) if isinstance(value, Markup) else clean
    return value


def _in_rows(blocks: Sequence[Block]) -> list[list[Block]]:
    """Put charts that follow each other into one row, and every other block into a row of its own."""
    rows: list[list[Block]] = []
    for is_chart, group in groupby(blocks, lambda block: isinstance(block, Chart)):
        row = list(group)
        rows += [row] if is_chart else [[block] for block in row]
    return rows


def _kind(block: Block) -> str:
    """Return the name of the macro that renders a block."""
    return type(block).__name__.lower()


def _column_kinds(table: Table) -> list[str]:
    """Return the class of each column: ``n`` aligns numbers right, ``long`` keeps long text from wrapping."""
    return [_column_kind([row[column] for row in table.rows]) for column in range(len(table.head))]


def _column_kind(cells: Sequence[Cell]) -> str:
    if cells and all(not isinstance(cell, Code) and _NUMBER.fullmatch(_plain(cell)) for cell in cells):
        return "n"
    return "long" if max((len(_plain(cell)) for cell in cells), default=0) > _LONG else ""


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
