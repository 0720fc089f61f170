"""One table for the console, Markdown and HTML, and the report in Markdown that it stands in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

_UNBOUNDED = 10_000
"""Columns of a console on which any table fits."""


@dataclass(frozen=True)
class Table:
    """Plain text in every cell: no sign in it is markup. A console prints it as it is; pages read its fields."""

    columns: Sequence[str]  #: headings
    rows: Sequence[Sequence[str]]
    title: str = ""  #: above it on the console
    caption: str = ""  #: below it on the console, above it in HTML
    left: Sequence[int] = (0,)  #: numbers of the columns that are aligned to the left
    groups: Sequence[object] = ()  #: each row's group, if any; the console draws a line between groups

    def to_markdown(self) -> list[str]:
        """Its lines."""
        rules = ["---" if index in self.left else "---:" for index in range(len(self.columns))]
        return [f"| {' | '.join(cells)} |" for cells in (_escaped(self.columns), rules, *map(_escaped, self.rows))]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The roomiest form in which no number is cut: side by side, closer, or a block for each row."""
        if self.title:
            yield Text(self.title, style="bold")
        unbounded = options.update(max_width=_UNBOUNDED)
        forms = (self._side_by_side(wrapped, padding) for wrapped, padding in ((False, 1), (True, 1), (True, 0)))
        fitting = (form for form in forms if Measurement.get(console, unbounded, form).minimum <= options.max_width)
        table = next(fitting, None)
        yield from self._blocks() if table is None else [table]
        if self.caption:
            yield Text(self.caption, style="dim")

    def _side_by_side(self, wrapped: bool, padding: int) -> RichTable:
        """wrapped: headings have a line for each word."""
        table = RichTable(box=SIMPLE, padding=(0, padding), show_header=any(self.columns))
        for index, column in enumerate(self.columns):
            heading = Text("\n".join(column.split()) if wrapped else column)
            if index in self.left:
                table.add_column(heading, overflow="fold")
            else:
                cells = [heading, *(Text(row[index]) for row in self.rows)]
                width = max(line.cell_len for cell in cells for line in cell.split(allow_blank=True))
                table.add_column(heading, justify="right", no_wrap=True, width=width)
        for index, row in enumerate(self.rows):
            ends = self.groups[index : index + 1] != self.groups[index + 1 : index + 2]
            table.add_row(*map(Text, row), end_section=ends)
        return table

    def _blocks(self) -> Iterator[RenderableType]:
        """A heading for each row, by its first left column, and under it the others: for narrow consoles."""
        name = next(iter(self.left), 0)
        for row in self.rows:
            if row[name]:
                yield Text(row[name], style="bold")
            block = RichTable.grid(padding=(0, 2, 0, 0))
            block.add_column(overflow="fold")
            block.add_column(overflow="fold")
            for index, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                if index != name and cell:
                    block.add_row(Text(f"  {column}"), Text(cell))
            yield block


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def markdown_report(
    title: str, table: Table, facts: Sequence[str], settings: Mapping[str, object], environment: Mapping[str, object]
) -> str:
    """A report in Markdown: heading, table, facts as sentences, and what it was made with."""
    return "\n".join(
        [
            f"# {title}",
            "",
            *table.to_markdown(),
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "## Settings",
            "",
            *(f"- {name}: {value}" for name, value in settings.items()),
            "",
            "## Environment",
            "",
            *(f"- {name}: {value}" for name, value in environment.items()),
            "",
        ]
    )
