"""Made-up measured rows with the shape of a training, for the tests of the figures."""

import numpy as np

EPOCHS = (0, 1, 2, 3, 5, 8, 13, 22, 40, 75, 140, 260, 375)
COLUMNS = ("paper", "cell", "seed", "epoch", "step", "split", "layer", "centres", "measure", "value", "predicted", "flag")


def rows_of(cell, seed, epoch, layers, draw):
    """Yield (split, layer, centres, measure, value) at one epoch: train collapses, test stops at its error."""
    left = 1.0 / (1.0 + epoch)
    noise = lambda: float(np.exp(0.05 * draw.standard_normal()))  # noqa: E731
    error = min(0.9, 0.012 * draw.uniform(0.8, 1.2) + 0.9 * left**1.6)
    for depth, layer in enumerate(layers):
        behind = 2.2 ** ((len(layers) - 1 - depth) * (1.0 if epoch else 0.1))
        train, test = (5 * left**1.55 + 4e-4) * behind, 0.02 + 3 * left**1.3
        wrong = round(min(0.9, error * behind**0.5) * 797) / 797
        yield "train", layer, "self", "nc1_pinv", train * noise()
        yield "test", layer, "self", "nc1_pinv", (0.8 * test + train) * noise()
        yield "test", layer, "train", "nc1_pinv_strong", (1.3 * test + train) * noise()
        yield "test", layer, "train", "nc1_pinv_weak", (0.9 * test + train) * noise()
        yield "test", layer, "train", "ncc_error", wrong
        yield "test", layer, "train", "ncc_error_between", wrong
        yield "train", layer, "self", "ncc_error", round(max(0.0, wrong - 0.02) * 1000) / 1000
        for measure, scale in (("nc2_etf_means", 0.5), ("nc3_papyan", 0.9)):
            yield "train", layer, "self", measure, (scale * left**0.9 + 0.004) * noise()
            yield "test", layer, "self", measure, (scale * left**0.6 + 0.06) * noise()
        yield "train", layer, "self", "nc2_etf_weights", (0.5 * left**0.8 + 0.003) * noise()
        yield "train", layer, "self", "nc4_disagreement", round(max(0.0, 0.4 * left**1.5 - 0.01) * 1000) / 1000
        yield "test", layer, "self", "nc4_disagreement", round((0.4 * left**1.5 + 0.003) * 797) / 797
    yield "train", "network", "self", "error", round(max(0.0, error - 0.02) * 1000) / 1000
    yield "test", "network", "self", "error", round(error * 797) / 797


def make(seeds=5, layers=("input", "hidden1", "hidden2", "penultimate"), epochs=EPOCHS, cells=("digits-0a1b2c",)):
    """Return a table (a dict of arrays) of trainings."""
    lines = []
    for cell in cells:
        for seed in range(seeds):
            draw = np.random.default_rng(seed)
            for epoch in epochs:
                for split, layer, centres, measure, value in rows_of(cell, seed, epoch, layers, draw):
                    lines.append(("hui2022", cell, seed, epoch, 8 * epoch, split, layer, centres, measure, value, np.nan, ""))
    return {
        name: np.array([line[i] for line in lines], dtype=object if isinstance(lines[0][i], str) else None)
        for i, name in enumerate(COLUMNS)
    }


def keep(table, mask):
    """Return the rows of a mask."""
    return {name: column[mask] for name, column in table.items()}


def change(table, mask, **columns):
    """Return a copy with some columns set where the mask is true."""
    copy = {name: column.copy() for name, column in table.items()}
    for name, value in columns.items():
        copy[name][mask] = value
    return copy


def drawn_texts(figure):
    """Return [(text, box)] of every text artist that drawing the figure really draws."""
    from unittest import mock

    from matplotlib.text import Text

    seen, draw = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            seen.append((self.get_text(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", record):
        figure.canvas.draw()
    return seen


def collisions(figure, slack=0.5):
    """Return what is wrong with the texts' places: outside the figure, or over one another (slack in pixels)."""
    texts, (width, height) = drawn_texts(figure), figure.bbox.size
    found = [
        f"{text!r} leaves the figure: {box.extents}"
        for text, box in texts
        if box.x0 < -slack or box.y0 < -slack or box.x1 > width + slack or box.y1 > height + slack
    ]
    for i, (one, a) in enumerate(texts):
        for other, b in texts[i + 1 :]:
            wide = min(a.x1, b.x1) - max(a.x0, b.x0)
            high = min(a.y1, b.y1) - max(a.y0, b.y0)
            if wide > slack and high > slack:
                found.append(f"{one!r} over {other!r}: {wide:.1f} x {high:.1f} px")
    return found


def table_for(name):
    """Return the table that the figure `name` draws in the tests that hold for all figures."""
    return _TABLES.get(name, _TABLES[""])


_TABLES = {"": make()}
