"""What `benchmarks.peers` found, for the terminal, as Markdown, and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitfx.reports.peers import BY_TIME
from vitfx.support.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOST = 0.01
"""Of top-1, at which peers are compared by their speed."""


def table(record: dict[str, Any]) -> Table:
    rows = _sorted(record)
    columns = ("asked for", "peer", "FLOPs deleted", "top-1", "KL", "agreement", "speed-up", "made in")
    cells = [_cells(row, len(columns)) for row in rows]
    return Table(columns, cells, _title(record), left=(1,), groups=[row["share"] for row in rows])


def markdown(record: dict[str, Any]) -> str:
    """A title, the table, what its columns are, and why rows are missing."""
    rows, asked = _sorted(record), record["asked"]
    machine, target = asked["environment"], asked["target"]
    lines = [
        _title(record),
        "",
        *table(record).to_markdown(),
        "",
        "No training. KL is D_KL(original ‖ smaller) in nats an image; top-1 is followed by its standard error. All "
        f"figures are of the exported model on ONNX Runtime {machine['onnxruntime']}. Speed-up is the median over the "
        f"rounds of the time of the original's plain export ({asked['plain']}) by this one's, in turns, at batch "
        f"{target['batch']} on {target['device']} ({machine['cpu']}, {machine['cores']} cores). The peer original is "
        "the whole model after the exact rewrites, which every peer has. Made in: the seconds that one share took, on "
        f"{machine['device']}.",
    ]
    if any(row["peer"] == BY_TIME for row in rows):
        lines[-1] += f" {BY_TIME} takes the share off the time that the exact rewrites leave, not off the FLOPs."
    if equal := speeds_at_equal_accuracy(record):
        fastest = sorted(equal.items(), key=lambda item: -item[1][0])
        listed = ", ".join(f"{peer} {'at least ' if beyond else ''}{speed:.2f}×" for peer, (speed, beyond) in fastest)
        lines += ["", f"With {100 * LOST:g} point of top-1 lost, along straight lines between the shares: {listed}."]
    refused = [f"{row['peer']} has no row at {row['share']:.0%}: {row['refused']}." for row in rows if "refused" in row]
    return "\n".join(lines + ([""] if refused else []) + refused) + "\n"


def speeds_at_equal_accuracy(record: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """How fast each peer is where `LOST` of the original's top-1 is lost, on a straight line between the last of its
    shares with no more lost and the first with more; with True the speed of its last share, where none has lost as
    much. Nothing without labels."""
    rows = [row for row in _sorted(record) if "refused" not in row and row["accuracy"] is not None]
    original = next((row for row in rows if row["share"] == 0), None)
    speeds: dict[str, tuple[float, bool]] = {}
    for peer in dict.fromkeys(row["peer"] for row in rows if row["share"]):
        assert original is not None
        least, before = original["accuracy"] - LOST, original
        speeds[peer] = (0.0, True)
        for row in (row for row in rows if row["peer"] == peer):
            if row["accuracy"] < least:
                way = (before["accuracy"] - least) / (before["accuracy"] - row["accuracy"])
                speeds[peer] = (before["speedup"] + way * (row["speedup"] - before["speedup"]), False)
                break
            before = row
            speeds[peer] = (row["speedup"], True)
    return speeds


def draw(record: dict[str, Any]) -> Figure:
    """Top-1 (agreement, where the images have no labels) against FLOPs deleted, and against measured speed."""
    from matplotlib.figure import Figure

    rows = [row for row in _sorted(record) if "refused" not in row]
    labelled = all(row["accuracy"] is not None for row in rows)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    flops, speed = figure.subplots(1, 2, sharey=True)
    original = next(row for row in rows if row["share"] == 0)
    for peer in dict.fromkeys(row["peer"] for row in rows if row["share"]):
        line = [original, *(row for row in rows if row["peer"] == peer)]
        heights = [100 * (row["accuracy"] if labelled else row["agreement"]) for row in line]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "label": peer}
        style |= {"linewidth": 2.5, "color": "black"} if peer.startswith("vitfx") else {"linewidth": 1.2}
        style |= {"linestyle": "--"} if peer == BY_TIME else {}
        flops.plot([100 * row["deleted"] for row in line], heights, **style)
        speed.plot([row["speedup"] for row in line], heights, **style)
    flops.set(xlabel="FLOPs deleted, %", ylabel="top-1, %" if labelled else "agreement with the original, %")
    speed.set(xlabel="times as fast as the original's plain export")
    flops.legend(fontsize=7)
    return figure


def _title(record: dict[str, Any]) -> str:
    asked = record["asked"]
    plain = next(row for row in record["rows"].values() if row["share"] == 0)["plain"]
    accuracy = "" if plain is None else f"; the original's top-1: {plain:.1%}"
    images = f"{asked['samples']} calibration and {asked['evaluation_images']} evaluation images"
    return f"{asked['model']['source']}, {images}{accuracy}"


def _sorted(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Share by share; peers in the order in which they came."""
    return sorted(record["rows"].values(), key=lambda row: row["share"])


def _cells(row: dict[str, Any], columns: int) -> list[str]:
    share = f"{row['share']:.0%}"
    if "refused" in row:
        return [share, row["peer"], *["–"] * (columns - 2)]
    top = "–" if row["accuracy"] is None else f"{row['accuracy']:.1%} ± {100 * row['standard_error']:.1f}"
    return [
        share,
        row["peer"],
        f"{row['deleted']:.1%}",
        top,
        f"{row['kl']:.4f}",
        f"{row['agreement']:.1%}",
        f"{row['speedup']:.2f}×",
        f"{row['seconds']:.0f} s" if "seconds" in row else "–",
    ]
