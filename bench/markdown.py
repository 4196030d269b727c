"""Tables of results, as Markdown has them."""

from collections.abc import Iterable, Sequence


def row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def table(headings: Sequence[str], rows: Iterable[str]) -> list[str]:
    """Its lines; `rows` are as `row` makes them, a cell for each heading."""
    return [row(headings), "|" + "---|" * len(headings), *rows]
