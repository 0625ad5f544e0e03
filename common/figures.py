"""Draw figures, all in one style."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLUMNS = 12  # a figure shows so many; the JSON has all
# By name: a function that takes a result and returns a matplotlib Figure, and the caption
Figures = dict[str, tuple[Callable[[dict[str, Any]], Any], str]]
STYLE = [
    "seaborn-v0_8-colorblind",
    {
        "figure.constrained_layout.use": True,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    },
]


def save_figures(figures: Figures, result: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draw the figures of a result, and write each as SVG under its name.

    figures (Figures): The figures.
    result (dict[str, Any]): What their functions take.
    folder (Path): Where to write them; it is made.
    RETURNS (dict[str, str]): The captions by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, _) in figures.items():
        with plt.style.context(STYLE), warnings.catch_warnings():
            # Only matplotlib lacks a glyph: the text stays text in the SVG, and browsers have fonts for it
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure = draw(result)
            figure.savefig(folder / f"{name}.svg")
            plt.close(figure)
    return {name: caption for name, (_, caption) in figures.items()}


def scale_log(axes: Any) -> None:
    """Make the horizontal axis logarithmic, with plain numbers.

    matplotlib would write them as markup, which STYLE does not parse.
    """
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.xaxis.set_minor_formatter("")


def draw_shares(values: dict[str, dict[str, float]], xlabel: str, ylabel: str, of_all: bool = True) -> Any:
    """Draw groups of bars.

    values (dict[str, dict[str, float]]): A bar of each group for each outer key, a group for each inner key; COLUMNS
        of both at most.
    xlabel, ylabel (str): Of the axes.
    of_all (bool): Whether to draw shares of the sum of an inner dictionary, and not its values as shares.
    RETURNS (Any): The figure.
    """
    keys = list(dict.fromkeys(key for inner in values.values() for key in inner))[:COLUMNS]
    figure, axes = plt.subplots(figsize=(max(6.0, 0.25 * len(keys) * len(values)), 3.4))
    width = 0.8 / max(1, len(values))
    for i, (name, inner) in enumerate(list(values.items())[:COLUMNS]):
        total = sum(inner.values()) if of_all else 1
        heights = [100 * inner.get(key, 0) / max(total, 1e-9) for key in keys]
        axes.bar(np.arange(len(keys)) + i * width, heights, width, label=name)
    axes.set_xticks(np.arange(len(keys)) + 0.4 - width / 2, keys, rotation=60 if len(keys) > 8 else 0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    return figure


def draw_matrix(values: dict[str, dict[str, int]], xlabel: str) -> Any:
    """Draw a matrix of shares.

    values (dict[str, dict[str, int]]): Counts: a row for each outer key, COLUMNS at most; a column for each of the most
        frequent inner keys, and one for all others.
    xlabel (str): What the columns are.
    RETURNS (Any): The figure.
    """
    values = dict(list(values.items())[:COLUMNS])
    common = sum((Counter(inner) for inner in values.values()), Counter[str]())
    keys = [key for key, _ in common.most_common(COLUMNS)]
    rows = []
    for inner in values.values():
        shares = [100 * inner.get(key, 0) / max(1, sum(inner.values())) for key in keys]
        rows.append([*shares, max(0.0, 100 - sum(shares))])
    figure, axes = plt.subplots(figsize=(1.5 + 0.6 * (len(keys) + 1), 1.4 + 0.4 * len(rows)))
    axes.imshow(rows, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(keys) + 1), [key or "none" for key in keys] + ["others"], rotation=60)
    axes.set_yticks(range(len(rows)), list(values))
    for y, row in enumerate(rows):
        for x, share in enumerate(row):
            axes.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 50 else "black")
    axes.set(xlabel=f"{xlabel}, share of the label, %", ylabel="label")
    return figure
