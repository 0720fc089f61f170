"""EAP + ACDC: attributions order and pre-screen the edges into a sublayer, exact measurement decides where it is close.

Sublayers are visited as in ACDC, each with all its readers at once. What removing edges would cost, one on top of
another, is forecast at the circuit as it stands (see `vitfx.discovery.basis.forecast`), behind the readers' norm
(`vitfx.discovery.engines.behind_norm`). Edges forecast to cost clearly less than τ form a group. It begins with edges
of writers that no reader reads so far, because only writers that nobody reads can be deleted, and takes the cheapest
first. D_KL(G‖H) is measured without the group, and its slopes are taken again there. The slopes before and after tell
what each edge costs at its place in the group. These costs are believed if they add up to the measured rise; otherwise
half of the group is tried. Edges that turn out to cost τ or more are left out. If there are none or few of them, the
group is removed, and the next is forecast from the slopes after it.

That settles what is cheap everywhere. The more of what a reader saw is gone, the more the rest matters to it, because
its LayerNorm scales it up. So the rest is then taken reader by reader, from new forecasts, half of a reader's cheap
edges at a time, and each half is measured as a whole. Finally the same is done with what is left of all readers
together, and edges expected to cost about τ are asked about one by one, which is ACDC's own question. Edges expected to
cost many times τ are kept unasked, and so are all others once several single edges in a row had to be kept.

D_KL bends more than its Fisher information says, most of all where slopes lead downwards, which is where removals are
sought. How much more is learned from each trial (see `vitfx.discovery.basis.forecast.Curvature`).

Gradients say less about MLPs than about heads, so the forecasts of each are scaled apart, by the median ratio of
measured to forecast cost. This ratio, like the calibration that is reported, comes from edges drawn at random, which
are measured first and one by one, and not from the close cases.
"""

from __future__ import annotations

from collections.abc import Callable

from vitfx.circuits.circuit import Decision
from vitfx.discovery.basis.protocol import Engine, Journal, Limits
from vitfx.discovery.methods.forecast_accuracy import scales_of
from vitfx.discovery.methods.sublayer_decision import SublayerDecision


def eap_acdc(
    engine: Engine,
    limits: Limits,
    journal: Journal,
    seed: int,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge.

    seed: of the edges that are measured for the calibration.
    progress: called with each decision as it is made. The journal gets a sublayer's decisions all at once.
    """
    decisions: list[Decision] = []
    report = progress or (lambda decision: None)
    kl = 0.0
    for visit in engine.wide_visits():
        known = journal.recall([*visit.idle, *visit.edges])
        if known is None:
            read = {decision.edge.writer for decision in decisions if decision.kept}
            known = SublayerDecision(visit, limits, kl, scales_of(decisions), read, report).decide(seed)
            journal.record(known)
        else:
            removed = [decision for decision in known if not decision.kept]
            visit.remove([decision.edge for decision in removed], removed[-1].order if removed else None)
            for decision in known:
                report(decision)
        for decision in known:
            if not decision.kept:
                assert decision.kl is not None
                kl = decision.kl
        decisions += known
    return decisions
