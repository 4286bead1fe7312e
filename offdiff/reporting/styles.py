"""One colour and mark per method, the same in every plot of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from offdiff.lines import Line, Method

COLOURS = 8
"""Of the style sheet, as --m0 to --m7."""
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")


@dataclass(frozen=True)
class Style:
    """How a method is drawn; colours are names that the page resolves, light or dark."""

    colour: int
    dash: str
    symbol: str

    @property
    def line(self) -> str:
        """Name of the colour."""
        return f"var:m{self.colour}"

    @property
    def band(self) -> str:
        """The same, nearly transparent."""
        return f"var:m{self.colour}/0.16"


def styles_of(lines: Sequence[Line]) -> dict[str, Style]:
    """Style by a method's label, and by its short name as in `offdiff.tables.comparisons`.

    A name has a colour; its variants, and names beyond the colours, differ in dash and mark.
    """
    names = sorted({line.method.name for line in lines})
    variants: dict[str, list[Method]] = {name: [] for name in names}
    for method in sorted({line.method for line in lines}):
        variants[method.name].append(method)
    styles: dict[str, Style] = {}
    for position, name in enumerate(names):
        rounds, colour = divmod(position, COLOURS)
        for number, method in enumerate(variants[name]):
            kind = rounds + number
            style = Style(colour, DASHES[kind % len(DASHES)], SYMBOLS[kind % len(SYMBOLS)])
            styles[method.label] = style
            styles.setdefault(f"{name}, {method.updates:,} updates", style)
    return styles
