"""What random halves of the calibration images agree on, and a circuit that keeps what they do not.

An edge that is removed on all images but not on most halves of them is a coincidence of these images: other images may
need it. So a circuit can abstain from such removals (as Certified Circuits, arXiv:2602.22968, abstain where deleting
random images changes the decision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vitfx.circuits.details import Halves
from vitfx.discovery.basis.fidelity import fidelity
from vitfx.discovery.run import Discovery
from vitfx.discovery.stability import Outcome, death_shares, removal_shares
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError


def check_halves(count: int, certain: float | None) -> None:
    """Raises UserError. count: of the halves, 0 for none. certain: see `settle`."""
    if count < 0 or count == 1:
        raise UserError(f"`stability` {count} says nothing of agreement: give 2 halves or more, 0 for none")
    if certain is not None and not count:
        raise UserError(f"`certain` {certain:g} is a share of random halves: give their number with `stability`")
    if certain is not None and not 0 < certain <= 1:
        raise UserError(f"`certain` {certain:g} is not a share of the halves: give a number above 0, up to 1")


def random_half(images: Images, seed: int, number: int) -> Images:
    """Half of the images, rounded down and in their order, the same for the same seed and number."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number + 1):
        order = torch.randperm(len(images), generator=generator)
    return images.subset(order[: len(images) // 2].sort().values)


def settle(discovery: Discovery, halves: Sequence[Outcome], certain: float | None) -> Discovery:
    """The discovery with what the halves say of it in its details.

    certain: edges that fewer than this share of the halves removed are kept, and what the circuit is worth is measured
        again; None keeps the circuit. A path's edge counts as its neurons' do, as in `vitfx.discovery.stability`.
    """
    circuit, whole = discovery.circuit, Outcome.of(discovery)
    shares = removal_shares(whole, halves)
    decisions = [
        replace(decision, kept=decision.kept or (certain is not None and shares[decision.edge.name] < certain))
        for decision in circuit.decisions
    ]
    details = circuit.details.copy()
    details["halves"] = Halves(
        runs=len(halves),
        certain=certain,
        kept_after_all=sum(new.kept != old.kept for new, old in zip(decisions, circuit.decisions, strict=True)),
        unsure={name: share for name, share in shares.items() if 0 < share < 1},
        unsure_units={name: share for name, share in death_shares(whole, halves).items() if 0 < share < 1},
    )
    calibration = discovery.calibration
    if certain is not None:
        details["fidelity"] = fidelity(
            discovery.graph,
            [decision.edge for decision in decisions if not decision.kept],
            discovery.reference,
            calibration.clean,
            calibration.labels,
            calibration.share,
            divergence=calibration.divergence,
        )
    kl = details["fidelity"]["kl"]
    return replace(discovery, circuit=replace(circuit, decisions=tuple(decisions), kl=kl, details=details))
