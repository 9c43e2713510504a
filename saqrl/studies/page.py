"""A page of sections (text, points, a table, pictures), as Markdown and as one HTML file.

The HTML holds its pictures and asks no network for anything; those of the Markdown lie beside it.
Drawings, films, tiles and what is folded away are of the HTML alone.
"""

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saqrl.arrays import write_atomically

Cells = tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    file_name: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it, in the order of the fields; what is empty is absent.

    A cell between two `**` is bold.
    """

    title: str = ""
    text: str = ""
    points: Sequence[str] = ()
    header: Cells = ()
    rows: tuple[Cells, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tiles: Sequence[tuple[str, str]] = ()
    """A figure and what it is, large, above the text."""
    legend: Sequence[tuple[str, str]] = ()
    """Look and name of what `drawings` show."""
    drawings: Sequence[str] = ()
    """SVG of `charts`, put into the page as it is."""
    film: bytes = b""
    """MP4."""
    commands: Sequence[str] = ()
    folded: Sequence["Section"] = ()
    """Behind their titles, opened by a click."""


def write_page(
    folder: Path, title: str, sections: Sequence[Section], *, names: tuple[str, str]
) -> tuple[Path, Path]:
    """Write the page into `folder`: the paths of its Markdown and its HTML, of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for picture in section.pictures:
            write_atomically(folder / picture.file_name, picture.png)
    markdown, page = (folder / name for name in names)
    write_atomically(markdown, to_markdown(title, sections).encode())
    write_atomically(page, to_html(title, sections).encode())
    return markdown, page


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Paragraphs with an empty line between them."""
    blocks = [f"# {title}", *(block for section in sections for block in _markdown(section))]
    return "\n\n".join(blocks) + "\n"


def to_html(title: str, sections: Sequence[Section]) -> str:
    title = html.escape(title)
    body = "\n".join(line for section in sections for line in _html(section))
    return _PAGE.format(title=title, style=_STYLE, body=body)


def to_columns(header: Cells, rows: Sequence[Cells]) -> str:
    """A table for a terminal, every line of the same length."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = _to_the_right(header, rows)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numbers else cell.ljust(width)
            for cell, width, numbers in zip(line, widths, right, strict=True)
        )
        for line in (header, *rows)
    )


def _markdown(section: Section) -> Iterator[str]:
    if section.title:
        yield f"## {section.title}"
    if section.text:
        yield section.text
    if section.points:
        yield "\n".join(f"- {point}" for point in section.points)
    if section.header:
        ruler = [
            "---:" if right else "---" for right in _to_the_right(section.header, section.rows)
        ]
        lines = (section.header, ruler, *section.rows)
        yield "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
    for picture in section.pictures:
        yield f"![{picture.caption or section.title}]({picture.file_name})"
        if picture.caption:
            yield picture.caption


def _html(section: Section) -> Iterator[str]:
    if section.title:
        yield f"<h2>{html.escape(section.title)}</h2>"
    if section.tiles:
        shown = "".join(
            f"<div><b>{html.escape(value)}</b>{html.escape(what)}</div>\n"
            for value, what in section.tiles
        )
        yield f'<div class="tiles">\n{shown}</div>'
    if section.text:
        yield f"<p>{html.escape(section.text)}</p>"
    if section.points:
        points = "".join(f"<li>{html.escape(point)}</li>\n" for point in section.points)
        yield f"<ul>\n{points}</ul>"
    if section.header:
        right = _to_the_right(section.header, section.rows)
        head = _html_row("th", section.header, right)
        body = "\n".join(_html_row("td", row, right) for row in section.rows)
        yield f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>'
        yield "</table></div>"
    for picture in section.pictures:
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        caption = html.escape(picture.caption)
        below = f"<figcaption>{caption}</figcaption>" if caption else ""
        yield f'<figure><img alt="{caption or html.escape(section.title)}" src="{source}">'
        yield f"{below}</figure>"
    if section.legend:
        keys = "".join(
            f'<span><i class="{look}"></i>{html.escape(name)}</span>'
            for look, name in section.legend
        )
        yield f'<p class="legend">{keys}</p>'
    if section.drawings:
        yield f'<div class="drawings">\n{"".join(section.drawings)}</div>'
    if section.film:
        source = f"data:video/mp4;base64,{base64.b64encode(section.film).decode()}"
        yield f'<video controls muted loop playsinline src="{source}"></video>'
    if section.commands:
        lines = "\n".join(html.escape(command) for command in section.commands)
        yield f"<pre>{lines}</pre>"
    for inner in section.folded:
        body = "\n".join(_html(replace(inner, title="")))
        yield f"<details><summary>{html.escape(inner.title)}</summary>\n{body}\n</details>"


def _html_row(tag: str, cells: Cells, right: Sequence[bool]) -> str:
    parts = []
    for cell, aligned in zip(cells, right, strict=True):
        text = html.escape(cell)
        if cell.startswith("**") and cell.endswith("**"):
            text = f"<b>{text.strip('*')}</b>"
        parts.append(f"<{tag}{' class=number' if aligned else ''}>{text}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _to_the_right(header: Cells, rows: Sequence[Cells]) -> list[bool]:
    """Whether a column holds numbers: no cell of it has a word."""
    columns = list(zip(*rows, strict=True)) or [header] * len(header)
    return [not any(re.search("[A-Za-z]{2}", cell) for cell in column) for column in columns]


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head>
<body>
<h1>{title}</h1>
{body}
</body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --back: #fff; --faint: #5b6770; --rule: #e3e6ea;
        --tile: #f5f6f8; --policy: #c84b00; --baseline: #0072b2; --third: #00805c }
@media (prefers-color-scheme: dark) {
:root { --text: #e4e7eb; --back: #15181c; --faint: #9aa5b1; --rule: #333a42; --tile: #1e2329;
        --policy: #ff8f4d; --baseline: #5cb8f0; --third: #3ecf9e } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--text); background: var(--back) }
h1 { font-size: 1.7rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p, li { max-width: 50rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--rule) }
th { font-weight: 600; border-bottom: 2px solid var(--faint); white-space: nowrap }
.number { text-align: right; white-space: nowrap }
figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto; background: #fff }
figcaption, .legend { font-size: .9rem; color: var(--faint) }
.tiles, .drawings { display: grid; gap: 1rem;
                    grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)) }
.tiles div { background: var(--tile); border-radius: .5rem; padding: .8rem 1rem; font-size: .9rem }
.tiles b { display: block; font-size: 2rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.legend span { margin-right: 1.2rem; white-space: nowrap }
.legend i { display: inline-block; width: 1.1em; height: .3em; margin-right: .4em;
            vertical-align: middle; background: currentColor }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; fill: var(--faint) }
svg .title { font-size: 11px; font-weight: 600; fill: var(--text) }
.line { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-linejoin: round }
.dot, .bar { fill: currentColor } .cloud { stroke: currentColor; stroke-linecap: round }
.grid { stroke: var(--rule) } .over { fill: transparent }
.over:hover { fill: var(--faint); fill-opacity: .18 }
.recorded { color: var(--text) } .policy { color: var(--policy) }
.baseline { color: var(--baseline) } .third { color: var(--third) }
details { border-top: 1px solid var(--rule); padding: .4rem 0 } summary { cursor: pointer }
video { max-width: 100%; border-radius: .4rem }
pre { background: var(--tile); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto;
      font-size: .85rem }
"""
