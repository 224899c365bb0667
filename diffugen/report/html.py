"""A report as one HTML file: nothing outside it is loaded, and nothing in it runs.

All text is escaped here, and a content security policy in the page forbids scripts and every address. Knows
blocks, no run.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from diffugen.report.blocks import (
    NOTHING,
    Bar,
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
    Picture,
    Section,
    Shown,
    Table,
    Tiles,
    printable,
)

_NUMBER = re.compile(r"[-+]?[\d.,]+( ?(%|s|ms|min|h)|( / [\d.]+))?|-|[\d.]+ to [\d.]+")
_LONG = 24
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(page: Page) -> str:
    """Return a page as a whole HTML document."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{section.key}">{_text(section.title)}</a>' for section in page.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="robots" content="noindex">\n'
        f"<title>{_text(page.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(page.title)}</h1><p>{_inline(page.subtitle)}</p>\n"
        f'<nav aria-label="Sections">{links}</nav></header>\n<main>\n'
        + "\n".join(map(_section, page.sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    blocks = "\n".join(_grouped(section.blocks))
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">\n'
        f'<h2 id="{section.key}-title">{_text(section.title)}</h2>\n{blocks}\n</section>'
    )


def _grouped(blocks: Sequence[Block]) -> list[str]:
    """Put charts that follow each other side by side."""
    parts: list[str] = []
    charts: list[str] = []
    for block in [*blocks, None]:
        if isinstance(block, Chart):
            charts.append(_chart(block))
            continue
        if charts:
            parts.append(f'<div class="charts">{"".join(charts)}</div>')
            charts = []
        if block is not None:
            parts.append(_block(block))
    return parts


def _block(block: Block) -> str:
    match block:
        case Paragraph(parts, tone):
            return f'<p class="{tone}">{_inline(parts)}</p>'
        case Missing(what, command):
            return f'<p class="missing">{_text(what)}. Next: <code>{_text(command)}</code></p>'
        case Tiles(tiles):
            return '<dl class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</dl>"
        case Table():
            return _table(block)
        case Chart():
            return _chart(block)
        case Gallery(title, about, shown):
            items = "".join(map(_shown, shown))
            return (
                f'<h3>{_text(title)}</h3><p class="note">{_text(about)}</p><div class="gallery">{items}</div>'
            )
        case Details(summary, text):
            return f"<details><summary>{_text(summary)}</summary><pre>{_text(text)}</pre></details>"


def _tile(label: str, value: str, detail: str) -> str:
    return f"<div><dt>{_text(label)}</dt><dd>{_text(value)}<small>{_text(detail)}</small></dd></div>"


def _table(table: Table) -> str:
    kinds = [_column_kind([row[column] for row in table.rows]) for column in range(len(table.head))]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{_text(name)}</th>'
        for name, kind in zip(table.head, kinds, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(_cell(cell, kinds[column], column == 0) for column, cell in enumerate(row))
        + "</tr>\n"
        for row in table.rows
    )
    title = _text(table.title)
    whole = (
        f'<div class="table" role="region" aria-label="{title}" tabindex="0"><table aria-label="{title}">'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    )
    if table.folded:
        return f"<details><summary>{title}</summary>{whole}</details>"
    return f'<p class="caption">{title}</p>{whole}'


def _column_kind(cells: Sequence[Cell]) -> str:
    """Numbers go to the right; long texts get room, so that they do not become towers on a narrow screen."""
    if cells and all(_is_numeric(cell) for cell in cells):
        return "n"
    return "long" if max((len(_plain(cell)) for cell in cells), default=0) > _LONG else ""


def _cell(cell: Cell, kind: str, first: bool) -> str:
    inside = f"<code>{_text(cell.text)}</code>" if isinstance(cell, Code) else _text(_plain(cell))
    style = f' style="--bar:{100 * cell.frac:.1f}%"' if isinstance(cell, Bar) else ""
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    return f"<{tag}{scope}{_class(f'{kind} bar' if style else kind)}{style}>{inside}</{tag}>"


def _class(names: str) -> str:
    return f' class="{names.strip()}"' if names.strip() else ""


def _is_numeric(cell: Cell) -> bool:
    return not isinstance(cell, Code) and _NUMBER.fullmatch(_plain(cell)) is not None


def _plain(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _chart(chart: Chart) -> str:
    keys = "".join(f"<li>{swatch}{_text(name)}</li>" for swatch, name in chart.legend)
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    return f'<figure class="chart"><figcaption>{_text(chart.title)}</figcaption>{legend}{chart.svg}</figure>'


def _shown(shown: Shown) -> str:
    pictures = "".join(map(_picture, shown.pictures))
    lines = "".join(f"<li>{_text(line)}</li>" for line in shown.lines)
    return (
        f'<figure class="shown"><div class="pictures">{pictures}</div>'
        f"<figcaption><q>{_text(shown.title)}</q><ul>{lines}</ul></figcaption></figure>"
    )


def _picture(picture: Picture) -> str:
    if picture.jpeg is None:
        inside = f'<span class="absent">{NOTHING}</span>'
    else:
        data = base64.b64encode(picture.jpeg).decode("ascii")
        inside = f'<img src="data:image/jpeg;base64,{data}" alt="{_text(picture.alt)}">'
    return f'<div class="picture">{inside}<span>{_text(picture.label)}</span></div>'


def _inline(parts: Sequence[Inline]) -> str:
    return "".join(
        f"<code>{_text(part.text)}</code>" if isinstance(part, Code) else _text(part) for part in parts
    )


def _text(text: str) -> str:
    return escape(printable(text))
