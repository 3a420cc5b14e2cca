"""Draws a sentence that loses its words layer by layer.

    records/published/sentence.json  →  records/published/sentence.png

Run it without parameters: `python -m studies.picture`.
"""

from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch

from studies.tables import PUBLISHED, published

WIDTH, ROW, MARGIN = 1_000, 42, 10  # pixels
LEFT, RIGHT = 75, 95  # pixels, for the layers and for the counts
PADDING, GAP = 7, 4  # pixels, inside a word's box and between two boxes
LARGEST = 13  # font size
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
    size, boxes = fitted(words, figure)
    for layer in range(layers):
        middle = MARGIN + ROW * (layer + 0.5)
        alive = sum(at > layer for at in gone)
        grey: dict[str, Any] = {"va": "center", "size": 11, "color": "#444444"}
        axes.text(MARGIN, middle, f"layer {layer}", **grey)
        axes.text(WIDTH - MARGIN, middle, f"{alive} of {len(words)}", ha="right", **grey)
        for word, at, box in zip(words, gone, boxes, strict=True):
            if at >= layer:
                draw_word(axes, word, box, middle, size, None if at > layer else (layer, layers))
    return figure


def fitted(words: list[str], figure: Figure) -> tuple[float, list[tuple[float, float]]]:
    """The font size at which the words fit in a row, and where the box of each starts and ends."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    room = WIDTH - LEFT - RIGHT - len(words) * (2 * PADDING + GAP)

    def widths(size: float) -> list[float]:
        font = FontProperties(size=size)
        return [renderer.get_text_width_height_descent(word, font, False)[0] for word in words]

    size = min(LARGEST, LARGEST * room / sum(widths(LARGEST)))
    boxes, start = [], float(LEFT)
    for width in widths(size):
        boxes.append((start, start + width + 2 * PADDING))
        start = boxes[-1][1] + GAP
    return size, boxes


def draw_word(
    axes: Any, word: str, box: tuple[float, float], middle: float, size: float, goes: tuple[int, int] | None
) -> None:
    """A word in its box.

    Args:
        box: where it starts and ends.
        goes: where the word goes before this layer, the layer and their number; None where it stays.
    """
    start, end = box
    colour = "white" if goes is None else SHADES(0.1 + 0.6 * goes[0] / goes[1])
    corner, width, height = (start, middle - ROW * 0.36), end - start, ROW * 0.72
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=3",
        "facecolor": colour,
        "edgecolor": "#bbbbbb",
    }
    axes.add_patch(FancyBboxPatch(corner, width, height, mutation_aspect=1, linewidth=0.8, **style))
    axes.text((start + end) / 2, middle, word, ha="center", va="center", size=size)
    if goes is not None:
        axes.plot([start + PADDING - 2, end - PADDING + 2], [middle, middle], color="black", linewidth=1)
        axes.text(end - 1.5, middle + ROW * 0.34, str(goes[0]), ha="right", va="bottom", size=7)


def main() -> None:
    path = PUBLISHED / "sentence.png"
    draw(published("sentence")).savefig(path)
    print(path)


if __name__ == "__main__":
    main()
