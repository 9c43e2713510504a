"""Pages: what is written is what was given, in both forms and in a terminal."""

import re

from saqrl.studies.page import Picture, Section, to_columns, to_html, to_markdown, write_page

TABLE = {
    "header": ("data", "score", "measure"),
    "rows": (("can", "**61.0 [60.0, 62.0]**", "a | b"), ("<lift>", "-", "success, %")),
}


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert "| --- | ---: | --- |" in to_markdown("T", [Section(**TABLE)])
    text = to_html("T", [Section(**TABLE)])
    assert re.findall(r"<th( class=number)?>", text) == ["", " class=number", ""]


def test_nothing_that_is_shown_is_read_as_markup():
    text = to_html("A < B", [Section("1 & 2", "<p>", points=("<i>",), **TABLE)])
    assert "<title>A &lt; B</title>" in text
    for shown in ("1 &amp; 2", "<p>&lt;p&gt;</p>", "<li>&lt;i&gt;</li>", "&lt;lift&gt;"):
        assert shown in text
    assert "<b>61.0 [60.0, 62.0]</b>" in text
    assert "a \\| b" in to_markdown("T", [Section(**TABLE)])


def test_pictures_lie_beside_the_markdown_and_inside_the_html(tmp_path):
    sections = [Section(pictures=(Picture("curve.png", b"PNG", "A curve."),))]
    names = ("README.md", "index.html")
    markdown, page = write_page(tmp_path / "new", "T", sections, names=names)
    assert (tmp_path / "new" / "curve.png").read_bytes() == b"PNG"
    assert "![A curve.](curve.png)\n\nA curve.\n" in markdown.read_text()
    assert 'src="data:image/png;base64,UE5H"' in page.read_text()
    assert "<figcaption>A curve.</figcaption>" in page.read_text()


def test_an_empty_section_writes_nothing_but_its_title():
    assert to_markdown("T", [Section("Empty")]) == "# T\n\n## Empty\n"
    assert "<table>" not in to_html("T", [Section("Empty")])


def test_columns_of_a_terminal_are_aligned():
    lines = to_columns(("name", "codes"), [("vqvae", "8"), ("fsq", "512")]).splitlines()
    assert lines == ["name   codes", "vqvae      8", "fsq      512"]
