"""A report as plain Markdown with pictures beside it: the same numbers as the HTML page, as tables.

Knows blocks, no run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from diffugen.report.blocks import (
    Block,
    Cell,
    Chart,
    Code,
    Details,
    Gallery,
    Inline,
    Missing,
    Page,
    Paragraph,
    Shown,
    Table,
    Tiles,
    printable,
)

_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")
_AT_START = re.compile(r"^(\s*)(?:([-+=#>])|(\d+)([.)](?=\s|$)))")
_BLANK = re.compile(r"\s+")


def to_markdown(page: Page) -> tuple[str, dict[str, bytes]]:
    """Return a page as Markdown, and its PNG files by name; equal pictures have equal names."""
    pictures: dict[str, bytes] = {}
    parts = [f"# {_text(page.title)}", _inline(page.subtitle)]
    for section in page.sections:
        parts.append(f"## {_text(section.title)}")
        parts += [text for block in section.blocks if (text := _block(block, pictures))]
    return "\n\n".join(parts) + "\n", pictures


def _block(block: Block, pictures: dict[str, bytes]) -> str:
    match block:
        case Paragraph(parts, tone):
            return f"**{_inline(parts)}**" if tone in ("lead", "warning") else _line(_inline(parts))
        case Missing(what, next):
            return f"> {_text(what)}. Next: {_inline(next)}"
        case Tiles() | Chart():
            return ""  # a table beside it has the same numbers
        case Table():
            return _table(block)
        case Gallery(title, about, shown):
            return "\n\n".join(
                [f"### {_text(title)}", _text(about), *(_shown(one, pictures) for one in shown)]
            )
        case Details(summary, text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{_text(summary)}:\n\n{fence}json\n{printable(text)}\n{fence}"


def _table(table: Table) -> str:
    head = [_text(name) for name in table.head]
    rows = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in table.rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return f"**{_text(table.title)}**\n\n" + "\n".join(lines)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Code):
        return _code(cell.text).replace("|", r"\|")
    return _text(cell if isinstance(cell, str) else cell.text)


def _shown(shown: Shown, pictures: dict[str, bytes]) -> str:
    name = f"picture-{hashlib.sha256(shown.strip_png).hexdigest()[:16]}.png"
    pictures[name] = shown.strip_png
    labels = ", ".join(picture.label for picture in shown.pictures)
    lines = "\n".join(f"- {_text(line)}" for line in shown.lines)
    return f"![{_text(labels)}]({name})\n\n{_line(_text(shown.title))}\n\n{lines}"


def _inline(parts: Sequence[Inline]) -> str:
    return "".join(_code(part.text) if isinstance(part, Code) else _text(part) for part in parts)


def _code(text: str) -> str:
    text = _BLANK.sub(" ", printable(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    gap = " " if len(fence) > 1 else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def _text(text: str) -> str:
    """Escape what Markdown or HTML would read as markup; spaces at the ends stay, to join inline parts."""
    escaped = _SPECIAL.sub(r"\\\1", _BLANK.sub(" ", printable(text)))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(text: str) -> str:
    """Keep a line from being read as a heading, a list or a rule."""
    return _AT_START.sub(lambda found: f"{found[1]}{found[3] or ''}\\{found[2] or found[4]}", text)
