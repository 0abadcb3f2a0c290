"""All figures of the book: one style, one function per kind of figure. Notebooks choose only data and words.

Colours are Okabe and Ito's for categories, viridis for magnitudes, a zero-centred map for signed values; a marker or a
line style always says what the colour says. The background is opaque white, so that dark pages change no data.
Every function returns the matplotlib Figure, closed; a cell that ends in the call shows it once.
"""

from vitutils.plot._curves import history, lines, mean_lines, panels, reliability
from vitutils.plot._matrices import confusion, matrices
from vitutils.plot._pictures import (
    SIDES,
    Diagram,
    clouds,
    diagram,
    images,
    map_rows,
    patch_grid,
    patch_rows,
    patch_sheet,
    show_picture,
    to_picture,
    top_answers,
)
from vitutils.plot._rows import dots, intervals, layer_dots, scatter, stacked
from vitutils.plot._style import COLOURS, DASHES, MARKERS, WIDTH, look, short_number, use_style

__all__ = [
    "COLOURS",
    "DASHES",
    "Diagram",
    "MARKERS",
    "SIDES",
    "WIDTH",
    "clouds",
    "confusion",
    "diagram",
    "dots",
    "history",
    "images",
    "intervals",
    "layer_dots",
    "lines",
    "look",
    "map_rows",
    "matrices",
    "mean_lines",
    "panels",
    "patch_grid",
    "patch_rows",
    "patch_sheet",
    "reliability",
    "scatter",
    "short_number",
    "show_picture",
    "stacked",
    "to_picture",
    "top_answers",
    "use_style",
]
