"""One self-contained HTML page out of stored results."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

import plotly.graph_objects as go

from landscape.comparison import CHAPTERS, Finding
from landscape.figures import figures_of
from landscape.figures.page import figure_html, page_html, scenes
from landscape.sanity import findings
from landscape.storage import replacing
from landscape.surface import Surface

Row = Mapping[str, object]
_MOST = (
    8  # figures, or 3-D scenes, that are drawn when the page opens; a browser keeps sixteen scenes, of all its pages
)
_LONGEST = 300  # characters of a value in the table of provenance
_STYLE = """:root { --figure-height: 640px; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1120px; background: #fff; color: #1a1a1a;
  font: 16px/1.5 Arial, Helvetica, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem;
  border-top: 1px solid #d0d0d0; }
h1, h2, p, li, td, th { overflow-wrap: anywhere; }
p { max-width: 75ch; margin: 0.5rem 0; white-space: pre-line; }
nav ul, ul.links { margin: 0.5rem 0; padding-left: 1.2rem; }
nav ul { columns: 2 20rem; }
ul.links { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; }
a { color: #005a91; }
.figure { height: var(--figure-height); margin: 0.5rem auto; }
table { border-collapse: collapse; margin: 0.75rem 0; width: 100%; font-size: 0.95rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px; border-bottom: 1px solid #e0e0e0; }
th { font-weight: 600; width: 30%; }
@media (max-width: 600px) {
  :root { --figure-height: 520px; }
  body { padding: 10px; font-size: 15px; }
  th, td { padding: 4px 6px; }
  th { width: 38%; }
}"""
_STUDY_STYLE = """h2.chapter { font-size: 1.5rem; margin-top: 3.5rem; border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.15rem; line-height: 1.3; margin: 2rem 0 0.5rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.wide th, .wide td { width: auto; white-space: nowrap; overflow-wrap: normal; }
.wide thead th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; }
.wide td { font-variant-numeric: tabular-nums; }
@media (max-width: 600px) { .wide table { font-size: 0.85rem; } }"""

_TITLES = {
    "contour": "contours",
    "surface": "in three dimensions",
    "accuracy": "accuracy",
    "descent": "descent",
    "trajectory": "distance of the training runs",
}
_CAPTIONS = {
    "line": "Loss and accuracy along the line. Solid: training data, dashed: test data.",
    "contour": "Lines of equal value over the slice.",
    "surface": "The same values as heights. Drag to turn, scroll to zoom.",
    "accuracy": "Share of right answers on the training data over the slice.",
    "descent": "The training runs as they go. A run does not lie in the slice; its nearest points are shown.",
    "volume": "Surfaces of equal value around the best 2 %, 10 % and 30 % of the grid points. Drag to turn.",
    "trajectory": "How far the training runs lie from the slice, and what their loss is there and on the slice: where "
    "the two differ, the picture does not show what the run saw.",
}


@dataclass(frozen=True)
class Section:
    """A part of a page; all text is plain and escaped on the page.

    Attributes:
        title: The heading.
        caption: A paragraph below it.
        figure: A plotly figure.
        table: Rows of cells; the first cell of a row says what it is.
        links: Labels and relative paths of files beside the page.
        folded: Whether the table is shown only on a click.
        header: The table's columns; such a table may be wider than the page, and is moved sideways there.
        downloads: Tables by the name of the CSV file that the page offers them as, without its suffix.
        chapter: Whether it begins a part of the page; then only such sections are in the table of contents.
        further: Figures below the first.
    """

    title: str
    caption: str = ""
    figure: go.Figure | None = None
    table: Sequence[Sequence[str]] | None = None
    links: Sequence[tuple[str, str]] = ()
    folded: bool = False
    header: Sequence[str] = ()
    downloads: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    chapter: bool = False
    further: Sequence[go.Figure] = ()


def page(title: str, sections: Sequence[Section], path: str | os.PathLike) -> Path:
    """Write a page that needs no network and no other file, and loads nothing.

    Args:
        title: Plain text.
        sections: From top to bottom; more than two get a table of contents.
        path: The HTML file to write.

    Returns:
        The path.

    Example:
        >>> page("My network", surface_sections(surface), "results/report.html")  # doctest: +SKIP
    """
    path = Path(path)
    parts = [f"<h1>{escape(title)}</h1>"]
    crowded = sum(max(1, len(scenes(figure))) for section in sections for figure in _figures(section)) > _MOST
    chapters = any(section.chapter for section in sections)
    if len(sections) > 2:
        entries = [
            f'<li><a href="#section-{i}">{escape(s.title)}</a></li>'
            for i, s in enumerate(sections, start=1)
            if s.chapter or not chapters
        ]
        parts.append(f"<nav><ul>{''.join(entries)}</ul></nav>")
    for i, section in enumerate(sections, start=1):
        heading = f'<h2 id="section-{i}">{escape(section.title)}</h2>'
        if chapters:
            heading = heading.replace("<h2", '<h2 class="chapter"', 1) if section.chapter else _smaller(heading)
        parts += ["<section>", heading, *_section_html(section, i, crowded), "</section>"]
    style = f"{_STYLE}\n{_STUDY_STYLE}" if chapters else _STYLE
    with replacing(path) as temporary:
        temporary.write_text(page_html(title, style, "\n".join(parts)), encoding="utf-8")
    return path


def surface_sections(
    surface: Surface, title: str | None = None, scale: str = "linear", ceiling: float | None = None
) -> list[Section]:
    """Return all that is to be said about a surface: its figures, its sanity report, and how it was made.

    Args:
        surface: Finished or not.
        title: What it is called. Default: the name of its file.
        scale: Of losses, `"linear"` or `"log"`.
        ceiling: Where the view of contours and 3-D surfaces ends.

    Returns:
        One section per figure, then one for the sanity report and one for the provenance.
    """
    if title is None:
        title = surface.path.stem if surface.path else "surface"
    sections = [
        Section(title if kind in ("line", "volume") else f"{title}: {_TITLES[kind]}", _CAPTIONS[kind], figure)
        for kind, figure in figures_of(surface, scale=scale, ceiling=ceiling).items()
    ]
    found = findings(surface)
    n_warnings = sum(finding.warning for finding in found)
    rows = [[("⚠ " if finding.warning else "") + finding.label, finding.text] for finding in found]
    caption = "Nothing conspicuous." if not n_warnings else f"{n_warnings} point(s) to look at, marked with ⚠."
    sections.append(Section(f"{title}: is the picture right?", caption, table=rows))
    shape = " x ".join(map(str, surface.shape))
    facts = [["grid", f"{shape} points of {', '.join(surface.values)}"], *map(list, _flatten(surface.provenance))]
    links = [(surface.path.name, surface.path.name)] if surface.path else []
    sections.append(Section(f"{title}: how it was made", table=facts, links=links, folded=True))
    return sections


def study_sections(findings: Sequence[Finding]) -> list[Section]:
    """Return the page of restart studies: what was run, how runs ended, what they found, compared, connected.

    Args:
        findings: Of `comparison.compare_studies`.

    Example:
        >>> page("My study", study_sections(compare_studies({"mine": study})), "index.html")  # doctest: +SKIP
    """
    sections = []
    for chapter in CHAPTERS:
        mine = [finding for finding in findings if finding.chapter == chapter]
        if mine:
            sections.append(Section(chapter, chapter=True))
        for one in mine:
            table = [list(row.values()) for row in one.shown]
            header = list(one.shown[0]) if one.shown else []
            sections.append(Section(one.title, one.text, one.figure, table, header=header, downloads=one.tables))
    return sections


def csv_text(rows: Sequence[Row]) -> str:
    """Return a table as CSV, header first; floats keep all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _smaller(heading: str) -> str:
    return heading.replace("<h2", "<h3").replace("</h2>", "</h3>")


def _figures(section: Section) -> list[go.Figure]:
    return [*([] if section.figure is None else [section.figure]), *section.further]


def _section_html(section: Section, number: int, crowded: bool) -> Iterator[str]:
    if section.caption:
        yield f"<p>{escape(section.caption)}</p>"
    for i, figure in enumerate(_figures(section)):
        name = f"figure-{number}" + (f"-{i + 1}" if i else "")
        yield figure_html(figure, name, in_turn=crowded)
    if section.table:
        if section.folded:
            yield f"<details><summary>{len(section.table)} entries</summary>"
        yield from _table_html(section.header, section.table)
        if section.folded:
            yield "</details>"
    if section.links:
        # quoted whole, so that a name with a colon, `#` or `?` stays the name of a file
        entries = [f'<li><a href="{escape(quote(href))}">{escape(label)}</a></li>' for label, href in section.links]
        yield f'<ul class="links">{"".join(entries)}</ul>'
    if section.downloads:
        entries = [
            f'<li><a download="{escape(name)}.csv" href="data:text/csv;charset=utf-8,{quote(csv_text(rows))}">'
            f"{escape(name)}.csv</a> ({len(rows):,} rows)</li>"
            for name, rows in section.downloads.items()
        ]
        yield f'<ul class="links">{"".join(entries)}</ul>'


def _table_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield '<div class="wide"><table>' if header else "<table>"
    if header:
        cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        yield f"<thead><tr>{cells}</tr></thead>"
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    yield "</table></div>" if header else "</table>"


def _flatten(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested provenance as rows of name and text; what is long is cut."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            value = {str(i): entry for i, entry in enumerate(value, start=1)}
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{name}, ")
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
