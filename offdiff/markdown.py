"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """Header and rows of text as a Markdown table; any text stays within its cell."""
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in table]
    head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + " --- |" * len(table[0]), *rows])
