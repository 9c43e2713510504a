"""A page of sections (text, points, a table, pictures), as Markdown and as one HTML file.

The HTML holds its pictures and asks no network for anything; those of the Markdown lie beside it.
"""

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2129; background: #fff }
h1 { font-size: 1.7rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p, li { max-width: 50rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #e3e6ea }
th { font-weight: 600; border-bottom: 2px solid #9aa3ad; white-space: nowrap }
.number { text-align: right; white-space: nowrap }
figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto }
figcaption { font-size: .9rem; color: #5b6770 }
"""
