"""The picture of a run: one panel for each workload, one bar for each contestant, whiskers from the least to the
greatest round.

Comes in: rows. Goes out: one SVG file. Panels of a single client show milliseconds (shorter is better), the others
inputs per second.
"""

from pathlib import Path

from .figures import Spread
from .summary import Row
from .workloads import Workload

OURS_COLOUR, PEER_COLOUR = "#d1495b", "#7d8ca3"


def draw(rows: list[Row], workloads: list[Workload], ours: list[str], out: Path) -> None:
    """Writes the file; nothing when there are no rows."""
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "peers"
    from matplotlib import pyplot

    panels = [(workload, [row for row in rows if row.workload == workload.name]) for workload in workloads]
    panels = [(workload, bars) for workload, bars in panels if bars]
    if not panels:
        return
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(bars) for _, bars in panels)
    figure, axes = pyplot.subplots(lines, columns, figsize=(7 * columns, (1.1 + 0.34 * tallest) * lines), squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place < len(panels):
            _panel(axis, *panels[place], ours)
        else:
            axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _panel(axis, workload: Workload, rows: list[Row], ours: list[str]) -> None:
    def value(row: Row) -> Spread | None:
        return row.p50_ms if workload.is_single else row.inputs_per_second

    bars = [(row.contestant, spread) for row in rows if (spread := value(row)) is not None]
    # The best on top.
    bars.sort(key=lambda bar: bar[1].median, reverse=workload.is_single)
    medians = [spread.median for _, spread in bars]
    whiskers = [
        [spread.median - spread.least for _, spread in bars],
        [spread.greatest - spread.median for _, spread in bars],
    ]
    colours = [OURS_COLOUR if name in ours else PEER_COLOUR for name, _ in bars]
    axis.barh([name for name, _ in bars], medians, xerr=whiskers, color=colours, ecolor="#333333", capsize=2)
    for place, (_, spread) in enumerate(bars):
        axis.annotate(
            f"{spread.median:.3g}",
            (spread.greatest, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.margins(x=0.12)
    axis.set_title(f"{workload.name}: {workload.describe()}", fontsize=9, loc="left")
    axis.set_xlabel("p50, ms (less is better)" if workload.is_single else "inputs/s", fontsize=8)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
