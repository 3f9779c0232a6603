"""Figures of the cluster report, each a picture of the same width (extra `eval`: matplotlib)."""

from io import BytesIO

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from ..data.pixels import to_image
from ..metrics.clusters import leaf_order
from .patches import code_patches

COLORS = {
    "masc": "#0f766e",
    "dcpe": "#0f766e",
    "kmeans": "#c2670a",
    "balanced": "#6d4bc3",
    "random": "#94a0ae",
}
INK, FAINT = "#1f2933", "#cbd2d9"
BRANCHES = ("#0f766e", "#c2670a", "#6d4bc3", "#2563a8", "#b83280", "#5c7c1f", "#a4553a", "#52667a")
WIDTH, DPI = 11.0, 180  # inches, dots an inch: the width of the .png page without its margins
LEAVES = 36  # branches shown of the tree


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")


def _picture(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)


class _Top:
    """The last merges of a tree, laid out: branches side by side in order, links above them."""

    def __init__(self, children: np.ndarray, heights: np.ndarray, shown: int):
        n = len(children) + 1
        self.children, self.heights, self.n = children, heights, n
        self.first = 2 * n - shown  # nodes from here on are drawn as links, others as branches
        sizes = np.ones(2 * n - 1, dtype=np.int64)
        for i, (a, b) in enumerate(children):
            sizes[n + i] = sizes[a] + sizes[b]
        self.sizes: list[int] = []  # of the branches, left to right
        self.floor = self._floor()
        self.lines: list[list[tuple[float, float]]] = []
        self.colors: list[str] = []
        self._group = 0
        self._place(2 * n - 2, sizes, INK)

    def _floor(self) -> float:
        drawn = self.heights[self.first - self.n :]
        return float(drawn[0] - 0.1 * (drawn[-1] - drawn[0] or 1))

    def _place(self, node: int, sizes: np.ndarray, color: str) -> float:
        """Draw what is below a node; its place on the x axis."""
        # Every branch below the trunk gets a color, which all of its lines keep.
        groups = 2 * self.n - 1 - len(BRANCHES)  # nodes above are the trunk
        if color == INK and (node <= groups or node < self.first):
            color = BRANCHES[self._group % len(BRANCHES)]
            self._group += 1
        if node < self.first:
            self.sizes.append(int(sizes[node]))
            return len(self.sizes) - 0.5
        # A bracket from the tops of both children up to the height of the merge.
        pair = self.children[node - self.n]
        height = float(self.heights[node - self.n])
        left, right = (self._place(int(child), sizes, color) for child in pair)
        low, other = (self._top_of(int(child)) for child in pair)
        self.lines.append([(left, low), (left, height), (right, height), (right, other)])
        self.colors.append(color)
        return (left + right) / 2

    def _top_of(self, node: int) -> float:
        return self.floor if node < self.first else float(self.heights[node - self.n])


def dendrogram(result, vq_model=None) -> Image.Image:
    """The last merges of the tree; with a tokenizer, the middle code of every branch."""
    # Links above, branches side by side below; their sizes are the labels of the x axis.
    children, heights = result.tree
    top = _Top(children, heights, min(LEAVES, len(children) + 1))
    shown = len(top.sizes)
    figure = _figure(4.4 if vq_model is not None else 3.9)
    axes = figure.subplots()
    _plain(axes)
    axes.add_collection(
        LineCollection(top.lines, colors=top.colors, linewidths=1.7, capstyle="round")
    )
    axes.set_xlim(0, shown)
    axes.set_ylim(top.floor, heights[-1] + 0.04 * (heights[-1] - top.floor))
    axes.set_ylabel("mean distance of what merges: lower is more alike", color=INK, fontsize=9.5)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(np.arange(shown) + 0.5, [f"{size:,}" for size in top.sizes], fontsize=8)
    crowded = max(top.sizes) > 999
    axes.tick_params(axis="x", length=0, pad=30 if vq_model else 3, rotation=90 * crowded)

    # A tile a branch, between the axis and its labels.
    if vq_model is not None:
        order, _ = leaf_order(children, heights)
        branches = np.split(order, np.cumsum(top.sizes)[:-1])
        for place, tile in enumerate(_tiles(result.rows, branches, vq_model)):
            box = axes.inset_axes([(place + 0.06) / shown, -0.095, 0.88 / shown, 0.088])
            box.imshow(tile, aspect="auto", interpolation="nearest")
            box.set_axis_off()

    axes.set_xlabel("codes in the branch", color=INK, fontsize=9.5)
    return _picture(figure)


def _tiles(rows: np.ndarray, branches: list[np.ndarray], vq_model) -> list[Image.Image]:
    """The code nearest to the mean of every branch, as it looks in images."""
    middle = []
    for branch in branches:
        offset = np.linalg.norm(rows[branch] - rows[branch].mean(0), axis=1)
        middle.append(int(branch[offset.argmin()]))
    return [to_image(patch) for patch in code_patches(vq_model, torch.tensor(middle))]


def sizes(result) -> Image.Image:
    """A histogram of cluster sizes for every method at the report's K."""
    return _picture(sizes_figure(result))


def sizes_figure(result) -> Figure:
    """The figure of `sizes`."""
    parts = result.at(result.clusters)
    counts = [np.bincount(part.labels) for part in parts]
    largest = max(int(count.max()) for count in counts)
    # All panels have the same bars, so that their heights compare.
    step = max(1, -(-largest // 32))  # sizes a bar
    edges = np.arange(0.5, largest + step + 0.5, step)
    figure = _figure(2.9)
    for axes, part, count in zip(
        figure.subplots(1, len(parts), sharex=True, sharey=True), parts, counts, strict=True
    ):
        _plain(axes)
        axes.hist(count, bins=edges, color=COLORS[part.method], rwidth=0.86)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_title(part.method, color=INK, fontsize=11, loc="left", fontweight="bold")
        axes.axvline(len(part.labels) / part.clusters, color=INK, linewidth=1, linestyle=":")
        axes.set_xlabel("codes in a cluster", color=INK, fontsize=9.5)
        axes.set_xlim(0.3, largest + step + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    # The panels share one axis, so its end is that of the highest bar of all.
    highest = max(int(np.histogram(count, edges)[0].max()) for count in counts)
    figure.axes[0].set_ylim(0.7, 1.3 * highest)
    figure.axes[0].set_ylabel("clusters (dotted: mean size)", color=INK, fontsize=9.5)
    return figure


def curves(result) -> Image.Image:
    """Distance inside clusters and, where measured, the replacement test over K."""
    # One panel a number; those of images also have the value that K = N would reach.
    panels = [("against_random", "distance inside / random", "lower is better", None)]
    if result.image_count:
        for key, label in (("psnr", "PSNR to the photographs, dB"), ("ssim", "SSIM")):
            best = result.reconstruction_numbers[key]
            panels.append((f"photograph_{key}", label, "higher is better", best))
    figure = _figure(3.3)
    for axes, (key, label, way, ceiling) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True
    ):
        _plain(axes)
        ks = sorted({part.clusters for part in result.partitions})
        if ceiling is not None:
            axes.axhline(ceiling, color=INK, linewidth=1, linestyle=":")
            axes.annotate(
                "no replacement", (0.02, ceiling), xycoords=("axes fraction", "data"),
                xytext=(0, 3), textcoords="offset points", fontsize=8, color=INK,
            )  # fmt: skip

        # One line a method, over the K at which its number is finite.
        for method in dict.fromkeys(part.method for part in result.partitions):
            points = sorted(
                (part.clusters, part.numbers[key])
                for part in result.partitions
                if part.method == method and np.isfinite(part.numbers[key])
            )
            axes.plot(
                *np.array(points).reshape(-1, 2).T, marker="o", markersize=5, linewidth=1.8,
                color=COLORS[method], label=method,
            )  # fmt: skip

        # K on a logarithmic axis, marked where it was measured.
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("clusters K", color=INK, fontsize=9.5)
        axes.set_ylabel(way, color=INK, fontsize=9.5)
        axes.set_title(label, color=INK, fontsize=11, loc="left", fontweight="bold")
    # Below the panels, where no line can run.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False,
        fontsize=9.5, labelcolor=INK,
    )  # fmt: skip
    return _picture(figure)
