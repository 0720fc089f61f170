"""EAP + ACDC: attribution orders and pre-screens the edges into a sublayer, exact measurement decides where it matters.

Sublayers are visited as in ACDC, all readers of one at once. What removals would cost, on top of one another, is
forecast at the circuit as it stands (see `vitfx.discovery.basis.forecast`), behind the readers' norm
(`vitfx.discovery.engines.behind_norm`). Edges forecast to cost clearly less than τ are taken as one group, those of
writers that no reader so far reads first, since nothing else can be deleted, and the cheapest first among them.
Without the group D_KL(G‖H) is measured and its slopes are taken anew. From the slopes on both sides follows what each
edge costs at its place in the group; that it all adds up to the measured rise shows whether it can be believed. If it
can't, half of the group is tried. Edges that turn out to cost τ or more are left out, and if there are none or few,
the group goes, and from the slopes behind it the next is forecast.

That settles what is cheap everywhere. The more of what a reader saw is gone, the more the rest matters to it: its
LayerNorm makes little large. What is left is therefore taken reader by reader, from forecasts made anew, half of a
reader's cheap edges at a time, each half measured as a whole. In the end the same is done with what is left of all
readers, and what is expected to cost about τ is asked edge by edge, which is ACDC's own question. What is expected to
cost many times τ is kept unasked, and so is the rest once single edges in a row had to be kept.

D_KL bends more than its Fisher information says, most where its slope leads downwards, which is where removals are
sought. How much more is learned from each trial (see `vitfx.discovery.basis.forecast.Curvature`).

Gradients say less of MLPs than of heads, so both have forecasts of their own scale: the median of measured by forecast
over edges drawn at random, which are measured first and alone. The calibration that is reported rests on them too, not
on the close cases.
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
    """Decides every edge. seed: of the edges that are measured for the calibration. progress is told of each decision
    as it is made; the journal of all of a sublayer's at once."""
    decisions: list[Decision] = []
    told = progress or (lambda decision: None)
    kl = 0.0
    for visit in engine.wide_visits():
        known = journal.recall_all([*visit.idle, *visit.edges])
        if known is None:
            read = {one.edge.writer for one in decisions if one.kept}
            known = SublayerDecision(visit, limits, kl, scales_of(decisions), read, told).decide(seed)
            journal.record_all(known)
        else:
            gone = [one for one in known if not one.kept]
            visit.remove([one.edge for one in gone], gone[-1].order if gone else None)
            for decision in known:
                told(decision)
        for decision in known:
            if not decision.kept:
                assert decision.kl is not None
                kl = decision.kl
        decisions += known
    return decisions
