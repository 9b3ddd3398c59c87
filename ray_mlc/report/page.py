"""The page that every report is: headings, words, plots and tables in one HTML file.

Style, plots' library and data are inside, and a content security policy forbids the browser to
fetch anything: what the page shows in a year, on a train, is what it shows now. Texts of documents
and names of labels are escaped by the template, as they may hold any character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

GENERATOR = '<meta name="generator" content="ray-mlc">'
"""What a page of ours has in its head."""
PLOT_HEIGHT = 420
"""Pixels of a plot, unless its figure says otherwise."""
HISTOGRAM_HEIGHT = 340
PROSE = 80
"""Characters from which a cell is text to be read, and gets the width for it."""
MARKS = 4
"""Strengths of a mark."""
DEEPEST = 12
"""Depth from which on lines of a tree are no longer moved to the right."""
LONG_TABLE = 30
"""Rows above which a table has a box that filters it."""


@dataclass(frozen=True)
class Choice:
    """Traces that a reader adds to a plot by name, where all at once would be too many."""

    label: str
    """What the names are of; stands beside the box."""
    traces: Sequence[Mapping[str, Any]]
    """Plotly traces as plain mappings. `key`, which is not plotly's, is what the reader types."""


@dataclass(frozen=True)
class Plot:
    """A plotly figure."""

    figure: Any
    """`plotly.graph_objects.Figure`."""
    note: str = ""
    """What the reader should see in it, in words."""
    choice: Choice | None = None
    """What can be added to it."""


@dataclass(frozen=True)
class Histograms:
    """A histogram of many, one at a time and by name: drawn when it is asked for."""

    label: str
    """What the names are of; stands beside the box."""
    names: Sequence[str]
    """The first is shown first."""
    counts: Sequence[Sequence[int]]
    """Bins of equal width from 0 to 1, of each."""
    marks: Sequence[float]
    """Where a line is drawn, of each; bars from there on have another color."""
    said: Sequence[str]
    """A line of words under each."""
    note: str = ""
    """What the reader should see in it, in words."""


@dataclass(frozen=True)
class Markdown:
    """A text with Markdown's marks; HTML in it is shown as it is typed, and images are not."""

    text: str
    """The text; a YAML head is left out."""
    note: str = ""
    """Stands under it."""


@dataclass(frozen=True)
class Verbatim:
    """A file as it is."""

    text: str
    """Its content."""
    note: str = ""
    """Stands under it."""


@dataclass(frozen=True)
class Table:
    """A table that readers sort by a click on a column's head."""

    columns: Sequence[str]
    """Heads."""
    rows: Sequence[Sequence[str | int | float | None]]
    """Cells; numbers are sorted as numbers and shown with `digits`, None as a dash, last."""
    note: str = ""
    """What the reader should see in it, in words."""
    digits: int = 4
    """Decimal places of floats."""


@dataclass(frozen=True)
class Twig:
    """A line of a tree."""

    name: str
    depth: int
    """0 for what has nothing above it."""
    figures: Sequence[int | float | None]
    """In the tree's columns."""
    note: str = ""
    """Stands beside the name."""


@dataclass(frozen=True)
class Tree:
    """Names below names, with figures; readers open and close what is below one, or search."""

    columns: Sequence[str]
    """Heads: of the names, and of the figures."""
    twigs: Sequence[Twig]
    """Each followed by those below it."""
    note: str = ""
    """What the reader should see in it, in words."""


@dataclass(frozen=True)
class Piece:
    """A piece of a text."""

    text: str
    """As it stands in the text."""
    mark: int = 0
    """How much it speaks for something, 1 to `MARKS`, or, negative, against it; 0: it is plain."""
    hint: str = ""
    """What a pointer on it is told."""


@dataclass(frozen=True)
class Passage:
    """A text of which some pieces are marked: by shade, by kind of underline, and in words."""

    title: str
    """What the text is."""
    facts: str
    """A line of figures under it."""
    pieces: Sequence[Piece]
    """The text."""
    said: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """What the marks say, in words: a name and what belongs to it."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    """Heading; also its place in the page's list of contents."""
    words: str = ""
    """A paragraph."""
    parts: Sequence[Part] = field(default_factory=tuple)
    """In this order."""


Part = Plot | Histograms | Table | Tree | Passage | Markdown | Verbatim
"""What stands under a heading."""


def render_page(
    title: str, *, facts: Sequence[tuple[str, str]], sections: Sequence[Section]
) -> str:
    """One HTML document without any reference to another file.

    Args:
        title: Of the page.
        facts: Name and value of what the reader must know first: source, rows, date, versions.
        sections: In this order.
    """
    return str(
        _template().render(
            title=title,
            generator=GENERATOR,
            facts=list(facts),
            sections=[_filled(section) for section in sections],
            plotly=_plotly_script() if _has_plots(sections) else None,
        )
    )


def plot_text(text: str, *, width: int | None = None) -> str:
    """A name as plotly must get it: it takes some HTML in texts for markup.

    Args:
        text: Any characters.
        width: Characters after which it is cut; None: it is not.
    """
    if width is not None and len(text) > width:
        text = text[: width - 1] + "…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def distinct(names: Sequence[str]) -> list[str]:
    """Names as a one-line box can hold them, none twice."""
    taken: set[str] = set()
    found = []
    for name in names:
        key = plain = " ".join(name.split()) or "(blank)"
        number = 1
        while key in taken:
            number += 1
            key = f"{plain} ({number})"
        taken.add(key)
        found.append(key)
    return found


def shown(value: str | int | float | None, digits: int) -> str:
    """A cell's text: thousands apart, decimals cut, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _has_plots(sections: Sequence[Section]) -> bool:
    return any(
        isinstance(part, Plot | Histograms) for section in sections for part in section.parts
    )


def _filled(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "words": section.words,
        "parts": [_part(part) for part in section.parts],
    }


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Plot):
        return _plot(part)
    if isinstance(part, Passage):
        return {"kind": "passage", "passage": part, "note": ""}
    if isinstance(part, Tree):
        return _tree(part)
    if isinstance(part, Histograms):
        return _histograms(part)
    if isinstance(part, Markdown):
        return {"kind": "markdown", "html": _html_of(part.text), "note": part.note}
    if isinstance(part, Verbatim):
        return {"kind": "verbatim", "text": part.text, "note": part.note}
    return _table(part)


def _plot(plot: Plot) -> dict[str, Any]:
    height = plot.figure.layout.height or PLOT_HEIGHT
    found = {"kind": "plot", "json": _inside_script(plot.figure.to_json()), "height": height}
    choice = None
    if plot.choice is not None:
        data = json.dumps(list(plot.choice.traces), ensure_ascii=False, separators=(",", ":"))
        choice = {"label": plot.choice.label, "json": _inside_script(data)}
    return {**found, "choice": choice, "note": plot.note}


def _histograms(part: Histograms) -> dict[str, Any]:
    data = {
        "names": distinct(part.names),
        "counts": part.counts,
        "marks": part.marks,
        "said": part.said,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return {
        "kind": "histograms",
        "label": part.label,
        "json": _inside_script(text),
        "height": HISTOGRAM_HEIGHT,
        "note": part.note,
    }


def _html_of(text: str) -> str:
    """HTML of a text with Markdown's marks, below the headings of the page."""
    from markdown_it import MarkdownIt

    if text.startswith("---\n"):
        text = text[4:].partition("\n---\n")[2]
    # html: what a name holds between < and > is text, and never an element
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = reader.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 2)}"
    return str(reader.renderer.render(tokens, reader.options, {}))


def _inside_script(data: str) -> str:
    """JSON in which no name of a label can end the script that holds it."""
    return data.replace("<", "\\u003c")


def _table(table: Table) -> dict[str, Any]:
    rows = [
        [
            {
                "text": shown(cell, table.digits),
                "number": isinstance(cell, int | float) or cell is None,
                "prose": isinstance(cell, str) and len(cell) > PROSE,
                # what sorting compares: a number as it is, not as it is shown
                "key": f"{cell:.9g}" if isinstance(cell, int | float) and cell == cell else "",
            }
            for cell in row
        ]
        for row in table.rows
    ]
    numeric = [
        any(isinstance(row[column], int | float) for row in table.rows)
        for column in range(len(table.columns))
    ]
    return {
        "kind": "table",
        "columns": list(zip(table.columns, numeric, strict=True)),
        "rows": rows,
        "note": table.note,
        "long": len(rows) > LONG_TABLE,
    }


def _tree(tree: Tree) -> dict[str, Any]:
    twigs = [
        {
            "name": twig.name,
            "depth": twig.depth,
            "indent": min(twig.depth, DEEPEST),
            "note": twig.note,
            "parent": index + 1 < len(tree.twigs) and tree.twigs[index + 1].depth > twig.depth,
            "figures": [shown(figure, 2) for figure in twig.figures],
        }
        for index, twig in enumerate(tree.twigs)
    ]
    return {"kind": "tree", "columns": tree.columns, "twigs": twigs, "note": tree.note}


@cache
def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _template() -> Any:
    import jinja2

    source = resources.files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
