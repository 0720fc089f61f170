"""Made-up circuits of any granularity, for what looks at circuits."""

from __future__ import annotations

import random
from xml.etree import ElementTree

from vitfx.circuits.circuit import (
    BOUND,
    EMBED,
    EXACT,
    GRANULARITIES,
    LOGITS,
    PARTS,
    Circuit,
    Decision,
    Edge,
    Reader,
    Writer,
)

SETTINGS = {"method": "acdc", "tau": 0.01, "ablation": "mean", "corruption": "swap", "samples": 8, "seed": 0}


def made_up(granularity: str, layers: int = 2, heads: int = 3, paths: int = 2) -> Circuit:
    """Every edge of such a model, a third of them kept, the embedding's always; lognormal scores."""
    assert granularity in GRANULARITIES
    drawn = random.Random(0)
    decisions: list[Decision] = []

    def decide(writer: Writer, reader: Reader) -> None:
        kept = writer.sublayer == EMBED or drawn.random() < 1 / 3
        basis = BOUND if kept and drawn.random() < 0.5 else EXACT
        decisions.append(Decision(Edge(writer, reader), kept, drawn.lognormvariate(-6, 2), None, basis))

    writers = [Writer(EMBED)]
    parts = PARTS if granularity == "qkv" else (None,)
    for name in (f"{kind}{layer}" for layer in range(layers) for kind in "am"):
        count = heads if name[0] == "a" else paths
        if granularity in ("edge", "qkv"):
            apart = [Reader(name, head, part) for head in range(heads) for part in parts]
            for reader in apart if name[0] == "a" else [Reader(name)]:
                for writer in writers:
                    decide(writer, reader)
        writers += [Writer(name, None)] if granularity == "block" else [Writer(name, index) for index in range(count)]
    for writer in writers:
        decide(writer, Reader(LOGITS) if granularity in ("edge", "qkv") else Reader())
    return Circuit(tuple(decisions), 0.25, {**SETTINGS, "granularity": granularity}, {"model": "ab" * 32})


def of_edges(*edges: tuple[str, str, bool, float]) -> Circuit:
    """A circuit of (writer, reader, kept, score), by name."""

    def writer(name: str) -> Writer:
        sublayer, _, rest = name.partition(".")
        return Writer(sublayer, int(rest[1:]) if rest else 0)

    return Circuit(
        tuple(Decision(Edge(writer(one), Reader.parse(other)), kept, score, None) for one, other, kept, score in edges),
        0.5,
        SETTINGS,
    )


SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> set[str]:
    """matplotlib writes text as outlines, and beside them as comments; a grid has texts and titles."""
    builder = ElementTree.TreeBuilder(insert_comments=True)
    tree = ElementTree.fromstring(svg, ElementTree.XMLParser(target=builder))
    tags = (ElementTree.Comment, f"{SVG}text", f"{SVG}title")
    return {" ".join((one.text or "").split()) for one in tree.iter() if one.tag in tags}
