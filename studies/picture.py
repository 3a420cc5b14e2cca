"""Draws a sentence that loses its words layer by layer.

    records/published/sentence.json  →  records/published/sentence.png

Run it without parameters: `python -m studies.picture`.
"""

from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

from studies.tables import PUBLISHED, published

WIDTH, ROW, MARGIN = 1_000, 42, 10  # pixels
LEFT, RIGHT = 75, 95  # pixels, for the layers and for the counts
PADDING, GAP = 7, 4  # pixels, inside a word's box and between two boxes
LARGEST = 13  # font size
PIXELS = 100 / 72  # in a point
SHADES = colormaps["Oranges"]  # light where a word goes early, dark where late; a number says it too


def draw(sentence: dict[str, Any]) -> Figure:
    """One row for each layer: the words that it processes, and shaded those that go before it.

    Args:
        sentence: schedule (one rate for each layer), words, and dropped, as in a record's `shown`: for each
            word "layer 2" or the like, None where it stays to the end.
    """
    words, layers = sentence["words"], len(sentence["schedule"])
    gone = [layers if text is None else int(text.split()[-1]) for text in sentence["dropped"]]
    height = ROW * layers + 2 * MARGIN
    figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    widths = [PIXELS * TextPath((0, 0), word, size=LARGEST).get_extents().width for word in words]
    scale = min(1, (WIDTH - LEFT - RIGHT - len(words) * (2 * PADDING + GAP)) / sum(widths))
    for layer in range(layers):
        middle, start = MARGIN + ROW * (layer + 0.5), float(LEFT)
        alive = sum(at > layer for at in gone)
        grey: dict[str, Any] = {"va": "center", "size": 11, "color": "#444444"}
        axes.text(MARGIN, middle, f"layer {layer}", **grey)
        axes.text(WIDTH - MARGIN, middle, f"{alive} of {len(words)}", ha="right", **grey)
        for word, width, at in zip(words, widths, gone, strict=True):
            end = start + scale * width + 2 * PADDING
            if at >= layer:
                colour = "white" if at > layer else SHADES(0.1 + 0.6 * layer / layers)
                corner, style = (start, middle - ROW * 0.36), "round,pad=0,rounding_size=3"
                box = FancyBboxPatch(corner, end - start, ROW * 0.72, style, fc=colour, ec="#bbbbbb", lw=0.8)
                axes.add_patch(box)
                axes.text((start + end) / 2, middle, word, ha="center", va="center", size=scale * LARGEST)
            if at == layer:
                axes.plot([start + PADDING - 2, end - PADDING + 2], [middle, middle], color="black", lw=1)
                axes.text(end - 1.5, middle + ROW * 0.34, str(layer), ha="right", va="bottom", size=7)
            start = end + GAP
    return figure


if __name__ == "__main__":
    draw(published("sentence")).savefig(PUBLISHED / "sentence.png")
