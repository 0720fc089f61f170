"""The picture of a circuit: its cells and strongest edges, layers upwards, beside heat maps of the scores by layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitfx.circuits.circuit import BOUND, Circuit, Decision
from vitfx.circuits.picture_panels import Panel, circuit_panel, layers_panel, scores_panel
from vitfx.circuits.view import Sublayer, live_edges, read_sublayers, reads_stream, score_unit, structurally_alive
from vitfx.support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
_DPI = 144
# The user's own matplotlibrc must not change the picture; "$" in a setting is a dollar.
_STYLE: list[Any] = ["default", {"svg.hashsalt": "vitfx", "text.parse_math": False, "font.size": 9}]
# Inches.
_MARGIN, _GAP, _TOP, _BOTTOM, _TITLE = 0.35, 0.35, 0.95, 0.9, 0.4
_NARROWEST, _WIDTH = 4.5, 10.5


def picture_bytes(circuit: Circuit, suffix: str, edges: int) -> bytes:
    """An SVG or PNG file, the same for the same circuit and the same matplotlib.

    edges: at most so many are drawn, the strongest of those that live. Raises UserError where matplotlib is missing, or
    the circuit has sublayers that can't be placed.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'vitfx[plot]'") from error
    metadata: dict[str, Any] = {"Date": None} if suffix == ".svg" else {}
    buffer = io.BytesIO()
    with style.context(_STYLE):
        draw(circuit, edges).savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


def draw(circuit: Circuit, edges: int) -> Figure:
    """A figure as large as its layers, heads and paths need; see `picture_bytes`."""
    sublayers, alive = read_sublayers(circuit), structurally_alive(circuit)
    live = live_edges(circuit, alive)
    left_title = f"{len(circuit.kept):,} kept edges into the stream"
    right = [scores_panel(circuit, sublayers, alive)]
    drawn: Sequence[Decision] = ()
    if not reads_stream(circuit):
        drawn = live[:edges]
        left_title = f"the {len(drawn):,} strongest of {len(live):,} live kept edges, running upwards"
        right.append(layers_panel(sublayers, live))
    left = circuit_panel(circuit, sublayers, alive, drawn, left_title)
    return _compose(left, right, (_title(circuit), _facts(circuit, sublayers, alive), _caption(circuit)))


def _compose(left: Panel, right: Sequence[Panel], texts: tuple[str, str, str]) -> Figure:
    """One panel beside a column of others, all from the same line down; title and facts above, the caption below."""
    from matplotlib.figure import Figure

    column = max(left.left + left.width + left.right, _NARROWEST)
    beside = max(panel.left + panel.width + panel.right for panel in right)
    middle = max(_TITLE + left.height + left.below, sum(_TITLE + one.height + one.below for one in right))
    width, height = max(_MARGIN + column + _GAP + beside + _MARGIN, _WIDTH), _TOP + middle + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")

    def place(panel: Panel, x: float, top: float) -> None:
        box = ((x + panel.left) / width, (top - _TITLE - panel.height) / height)
        axes = figure.add_axes((*box, panel.width / width, panel.height / height))
        panel.paint(axes)
        axes.set_title(panel.title, fontsize=10, loc="left", pad=8)

    top = _BOTTOM + middle
    place(left, _MARGIN, top)
    for panel in right:
        place(panel, _MARGIN + column + _GAP, top)
        top -= _TITLE + panel.height + panel.below
    title, facts, caption = texts
    figure.text(_MARGIN / width, 1 - 0.35 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(_MARGIN / width, 1 - 0.65 / height, facts, fontsize=9, va="center")
    figure.text(_MARGIN / width, 0.2 / height, caption, fontsize=8.5, color="#444444", va="bottom")
    return figure


def _title(circuit: Circuit) -> str:
    known = circuit.settings
    parts = [f"{known.get('method', 'circuit')}"]
    if known.get("remove") is not None:
        parts.append(f"{known['remove']:g} to remove")
    elif known.get("goal") is not None:
        parts.append(f"{known['goal']} {known.get('value')}")
    elif known.get("tau") is not None:
        parts.append(f"τ = {known['tau']:g}" if isinstance(known["tau"], int | float) else f"τ = {known['tau']}")
    if "granularity" in known:
        parts.append(f"{known['granularity']} graph")
    kept = len(circuit.kept)
    return "  ·  ".join([*parts, f"KL {circuit.kl:.4g} nats", f"{kept:,} of {len(circuit.decisions):,} edges kept"])


def _facts(circuit: Circuit, sublayers: Sequence[Sublayer], alive: frozenset[str]) -> str:
    known = circuit.settings
    cells = [cell for one in sublayers for cell in one.cells]
    parts = [f"{sum(cell not in alive for cell in cells)} of {len(cells)} cells dead"]
    parts += [f"{known[name]} {name}" for name in ("ablation", "corruption") if name in known]
    parts += [f"{name} {known[name]}" for name in ("samples", "seed") if name in known]
    parts += [f"{name} {_short(circuit.origins, name)}" for name in ("model", "vitfx") if name in circuit.origins]
    return "  ·  ".join(parts)


def _short(origins: Mapping[str, str], name: str) -> str:
    """A fingerprint's first digits tell files apart."""
    value = str(origins[name])
    return value if len(value) <= 16 else value[:12]


def _caption(circuit: Circuit) -> str:
    kept = [one for one in circuit.decisions if one.kept]
    bounds = sum(one.basis == BOUND for one in kept)
    lines = [f"Score: {score_unit(circuit)}. Colours, widths: logarithmic, three decades at most."]
    if bounds:
        sign = "≥: " if reads_stream(circuit) else ""
        lines.append(
            f"{sign}{bounds:,} of {len(kept):,} kept scores are bounds: the edge's score is at least this much."
        )
    lines.append("Dead: no kept way from the image through it to the logits, by the edges alone.")
    return "\n".join(lines)
