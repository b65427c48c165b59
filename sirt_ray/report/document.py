"""A report without a format, and its formats: text for a terminal, Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_BETWEEN_COLUMNS = 3
"""Characters that a table of a terminal adds to each column: space, line, space."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    note: str = ""
    """A remark under the name, such as `in-domain`."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts.

    Example::

        columns = (Column("gsm8k, cot", "in-domain"),)
        Grid("% right", "stage", columns, (("baseline", "34.7 ± 2.7"),))
    """

    title: str
    corner: str
    """Name of the first column."""
    columns: Sequence[Column]
    """The other columns."""
    rows: Sequence[Sequence[str]]
    """Cells, including the first column's; a cell may have several lines."""
    note: str = ""
    """Notes for the reader, in sentences."""


@dataclass(frozen=True, slots=True)
class Document:
    """A title, paragraphs and tables."""

    title: str
    paragraphs: Sequence[str]
    grids: Sequence[Grid]


def print_text(document: Document, console: Console) -> None:
    """Print for a terminal: a table with more columns than rows is transposed, and one that is
    still too wide is split into parts."""
    console.print(f"[bold]{escape(document.title)}[/]", highlight=False)
    for paragraph in document.paragraphs:
        console.print(paragraph, markup=False, highlight=False)
    for grid in map(_narrowed, document.grids):
        for part in _parts(grid, console.width):
            console.print()
            console.print(terminal_table(grid, part))
        if grid.note:
            console.print(grid.note, style="dim", markup=False, highlight=False)


def _narrowed(grid: Grid) -> Grid:
    """Transpose a table if that makes fewer columns."""
    if len(grid.columns) <= len(grid.rows):
        return grid
    rows = [
        (f"{column.name}, {column.note}" if column.note else column.name, *cells)
        for column, *cells in zip(grid.columns, *(row[1:] for row in grid.rows), strict=True)
    ]
    return Grid(grid.title, "", [Column(row[0]) for row in grid.rows], rows, grid.note)


def _header(column: Column) -> str:
    """Break a name at its underscores, so that the column is as wide as its figures."""
    return column.name.replace("_", "_\n").replace(", ", ",\n")


def _parts(grid: Grid, width: int) -> list[range]:
    """Split the columns into parts that fit into `width`, with at least one column each."""

    def wide(cells: Sequence[str]) -> int:
        return max(len(line) for cell in cells for line in cell.split("\n")) + _BETWEEN_COLUMNS

    first = wide([grid.corner, *(row[0] for row in grid.rows)]) + 1
    parts, used = [range(0, 0)], first
    for index, column in enumerate(grid.columns):
        needed = wide([_header(column), column.note, *(row[index + 1] for row in grid.rows)])
        if used + needed > width and parts[-1]:
            parts.append(range(index, index))
            used = first
        parts[-1] = range(parts[-1].start, index + 1)
        used += needed
    return parts


def terminal_table(grid: Grid, part: range | None = None) -> Table:
    """Return a table of `rich`, with all columns or those in `part`."""
    part = range(len(grid.columns)) if part is None else part
    table = Table(title=escape(grid.title), title_justify="left")
    table.add_column(escape(grid.corner))
    for column in grid.columns[part.start : part.stop]:
        note = f"\n[dim]{escape(column.note)}[/]" if column.note else ""
        table.add_column(f"{escape(_header(column))}{note}", justify="right", vertical="bottom")
    for row in grid.rows:
        table.add_row(*map(escape, (row[0], *row[part.start + 1 : part.stop + 1])))
    return table


def markdown(document: Document) -> str:
    """Return the document as GitHub-flavoured Markdown."""
    parts = [f"# {document.title}", *document.paragraphs]
    for grid in document.grids:
        parts += [f"## {grid.title}", _markdown_table(grid)]
        parts += [grid.note] if grid.note else []
    return "\n\n".join(parts) + "\n"


def _markdown_table(grid: Grid) -> str:
    lines = [_line([grid.corner, *(column.name for column in grid.columns)])]
    lines.append("|---|" + "---|" * len(grid.columns))
    if any(column.note for column in grid.columns):
        lines.append(_line(["", *(column.note for column in grid.columns)]))
    return "\n".join([*lines, *map(_line, grid.rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
