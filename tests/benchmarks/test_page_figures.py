"""README and docs: figures that have a record beside the page are the record's, and recipes have no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
CIRCUITS = (DOCS / "circuits.md").read_text(encoding="utf-8")
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
PEERS = {
    "random": "random", "magnitude": "magnitude", "Taylor": "taylor", "Torch-Pruning, uniform": "torch-pruning-uniform",
    "VBP": "vbp", "CORP's MLP ridge": "corp", "**vitfx**": "vitfx",
}  # fmt: skip


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def table(section: str, first: str) -> list[list[str]]:
    """The rows of the section's table whose first heading begins so, with its headings."""
    lines = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first}"))
    rows = [line for line in lines[start : lines.index("", start)] if not line.startswith("| ---")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_peers() -> None:
    (_, *shares), *rows = table("Against the others", "top-1 / KL / speed-up")
    known = record("peers")["rows"]
    assert [row[0] for row in rows] == list(PEERS) and len(shares) == 5
    for name, *cells in rows:
        for share, cell in zip(shares, cells, strict=True):
            row = known[f"{PEERS[name]} {int(share.removesuffix(' %')) / 100:g}"]
            assert cell == f"{100 * row['accuracy']:.1f} % / {row['kl']:.3f} / {row['speedup']:.2f}", (name, share)


def test_discovery() -> None:
    exact, forecast = record("discovery-acdc-qkv"), record("discovery-eap-acdc-qkv")
    equal = forecast["agreement"]["all"]
    told = [
        f"{exact['whole_ratio']:.1f} times",
        f"All {exact['engine_agreement']['all']['agreeing']} decisions equal the loop's",
        f"ViT-S, qkv, `eap-acdc`, 1e-3 | 2 | {forecast['edges']:,} | {forecast['whole_run']['seconds'] / 60:.1f} min",
        f"| {forecast['whole_ratio']:.0f} | {equal['agreeing']} of {equal['edges']} |",
        f"lacks {forecast['whole_run']['removed']:,} of its edges, at a KL of {forecast['whole_run']['kl']:.3f}",
    ]
    assert [figure for figure in told if figure not in flat(PAGE)] == []


def test_goals() -> None:
    ten, int8 = record("goal-ten-classes"), record("goal-int8")
    sides = [f"{100 * ten[side]['accuracy']:.1f} %" for side in ("pruned", "baseline")]
    assert f"{sides[0]} where the whole model cut to these classes has {sides[1]}, KL {ten['kl']:.3f}" in flat(PAGE)
    file, speeds = int8["precision"], int8["precision"]["speedup_by_batch"]
    told = flat(PAGE)
    assert measured(int8) in told
    assert f"{speeds['8']:.2f}× ({speeds['1']:.2f}× at batch 1, {speeds['64']:.2f}× at batch 64; float32: " in told
    accuracies = [f"{100 * side['accuracy']:.2f} %" for side in (file, int8["baseline"])]
    assert f"{' of '.join(accuracies)} top-1 on all 10,000 validation images, KL {file['kl']:.4f}" in told
    float32 = f"its float32 file {100 * int8['pruned']['accuracy']:.2f} %, KL {int8['kl']:.4f}"
    assert float32 in told and int8["images"]["evaluation"] == 10_000
    assert f"| {measured(int8)[:5]} at batch 8, {' of '.join(accuracies)} | [JSON](goal-int8.json) |" in PAGE


def test_the_default_goal() -> None:
    default, told = record("goal-default"), flat(PAGE)
    speeds = "{:.2f}×, {:.2f}× and {:.2f}×".format(*(default["speedup_by_batch"][batch] for batch in ("1", "8", "64")))
    assert f"{speeds} at batch 1, 8 and 64, {default['pruned']['flops'] / default['baseline']['flops']:.3f} of" in told
    kept = "{:.2f} % of {:.2f} %".format(*(100 * default[side]["accuracy"] for side in ("pruned", "baseline")))
    assert f"{kept} are right and the KL is {default['kl']:.4f}" in told
    assert default["baseline"]["accuracy"] - default["pruned"]["accuracy"] <= 0.01
    gone = {name: default["baseline"][name] - default["pruned"][name] for name in ("heads", "mlp_neurons")}
    neurons = gone["mlp_neurons"] / default["baseline"]["mlp_neurons"]
    assert f"{gone['heads']} heads and {neurons:.0%}".replace("%", " %") + " of the neurons went" in told


def measured(report: dict[str, Any]) -> str:
    """The speed-up at the end of a goal's search, with its interval."""
    (note,) = (note for note in report["notes"] if note.startswith("asked for"))
    return re.findall(r"measured (\d\.\d\d× \([^)]*\))", note)[0]


def test_the_readme() -> None:
    """Its table: exact rewrites, alone and in fewer bits, and goals; and the sentences beside it."""
    rows = record("runtimes-vit-s")["latency"]
    times = {(row["model"], row["runtime"].split()[0]): row.get("median_ms") for row in rows if row["batch"] == 8}
    plain = times["baseline", "onnxruntime"]
    exact, bf16, int8 = (
        f"{plain / times[name]:.2f}×"
        for name in (
            ("optimized", "onnxruntime"), ("optimized-bf16", "openvino"), ("optimized-int8", "openvino"),
        )
    )  # fmt: skip
    score = record("accuracy-int8")["evaluation"]["scores"]["optimized-int8"]
    assert score["images"] == 10_000 and "all 10,000 validation images" in flat(README)
    goal, default = record("goal-int8"), record("goal-default")
    kept = "{:.2f} % of {:.2f} %".format(*(100 * default[side]["accuracy"] for side in ("pruned", "baseline")))
    assert default["images"]["evaluation"] == 2000
    cells = [
        f"| {default['speedup']:.2f}× | {kept}, on 2,000 | {default['kl']:.4f} |",
        f"| exact rewrites | {exact} | {100 * goal['baseline']['accuracy']:.2f} % | 0 |",
        f"bf16 on OpenVINO | {bf16} | | {record('optimize-vit-s-bf16')['precision']['divergence']:.4f} |",
        f"int8 on OpenVINO | {int8} | {100 * score['accuracy']:.2f} % | {score['kl']:.4f} |",
        f"label-free training | {measured(goal)[:5]} | {100 * goal['precision']['accuracy']:.2f} % | "
        f"{goal['precision']['kl']:.4f} |",
    ]
    peers, ten = record("peers")["rows"], record("goal-ten-classes")
    known = {row["peer"] for row in peers.values()} - {"original", "vitfx", "vitfx-time"}
    best = max(row["accuracy"] for name, row in peers.items() if name.endswith(" 0.5") and row["peer"] in known)
    assert len(known) == 6 and "six other methods" in flat(README) and peers["vitfx 0.5"]["images"] == 2000
    left = f"{100 * peers['vitfx 0.5']['accuracy']:.1f} % are left, {100 * best:.1f} % by the next best"
    classes = "half of the FLOPs do for ten of the classes: {:.1f} % of {:.1f} %"
    told = classes.format(*(100 * ten[side]["accuracy"] for side in ("pruned", "baseline")))
    assert [line for line in [*cells, left, told] if line not in flat(README)] == []
    assert abs(ten["pruned"]["flops"] / ten["baseline"]["flops"] - 0.5) < 0.001


RESULT = r"\bKL (?:of |from )?0\.\d+|\d % top-1|\d\.\d\d×(?! to)|\| 0\.\d+ \||\d\.\d+ (?:ms|s|minutes)\b"


@pytest.mark.parametrize("name", ["how-to", "how-it-works"])
def test_recipes_and_explanations_have_no_results(name: str) -> None:
    """Which would have no record there; arguments and defaults are not results."""
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(RESULT, re.sub(r"```.*?```|`[^`]*`", "", page, flags=re.DOTALL)) == []
    assert re.findall(RESULT, PAGE) != []


def test_faithfulness_of_the_vit() -> None:
    rows = record("faithfulness-vit-s-head")["rows"].values()
    for row in rows:
        by_logits, by_kl, spearman = row["areas"]["logit-difference"], row["areas"]["kl"], row["spearman"]
        signed = [value / row["whole"]["logit-difference"] for value in row["signed"]["values"]["logit-difference"]]
        cells = [
            f"`{row['method']}`",
            *(f"{area:.3f}" for area in (by_logits["CPR"], by_logits["CMD"], by_kl["CPR"])),
            " / ".join(f"{spearman[kind]:.2f}".replace("0.", ".") for kind in ("heads", "paths")),
            " / ".join(f"{signed[place]:.2f}" for place in (7, 8)),
        ]
        assert f"| {' | '.join(cells)} |".replace("-0", "−0").replace("-.", "−.") in CIRCUITS
    most = max(row[order]["values"]["logit-difference"][8] for row in rows for order in ("signed", "magnitude"))
    whole = {row["whole"]["logit-difference"] for row in rows}
    assert f"half of them carry at most {100 * most / max(whole):.0f} % of the logit difference" in flat(CIRCUITS)


def test_circuit_tools() -> None:
    known = record("circuit-tools-demo")
    peers = ("plain-hooks", "transformer-lens")
    edges = " | ".join(f"{known['agreement']['effect'][peer]['relative']:.0e}".replace("e-0", "e-") for peer in peers)
    told = [
        f"qkv graph, {known['edges']:,} edges",
        f"from vitfx's, {known['settings']['sampled_edges']} edges | | {edges} |",
    ]
    for method, name in (
        ("eap", "EAP of all edges: rank correlation with vitfx's"),
        ("eap-ig", "EAP-IG, 5 steps: the same"),
    ):
        ranks = " | ".join(f"{known['agreement'][method][peer]['rank_correlation']:.4f}" for peer in peers)
        told.append(f"| {name} | | {ranks} |")
    for what, name in (("effect", "time of an edge, by vitfx's"), ("eap", "of EAP"), ("eap-ig", "of EAP-IG")):
        times = known["times"][what]
        ratios = " | ".join(f"{times[peer]['ratio']['of_medians']:.1f}" for peer in peers)
        told.append(f"| {name} | 1 ({times['vitfx']['median_ms']:.0f} ms) | {ratios} |")
    assert [line for line in told if line not in CIRCUITS] == []


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_summary_repeats_its_sections() -> None:
    """Every figure in it stands below it, too."""
    summary, below = PAGE.partition("\n## In short\n")[2].split("\n## ", 1)
    answers = [cells[1] for cells in (line.strip("|").split(" | ") for line in summary.splitlines()) if len(cells) == 3]
    figures = {figure for answer in answers for figure in re.findall(r"\d[\d,]*\.\d+ %|\d+,\d+|\d+\.\d{4}", answer)}
    assert len(figures) >= 8
    assert {figure for figure in figures if figure not in below} == set()
