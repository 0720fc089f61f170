"""What came of each fault, in a JSON file from which a later run goes on, and as Markdown for people."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.planted_faults.faults import Fault
from tests.planted_faults.workshop import Verdict
from vitfx.support.files import write_aside

Results = Mapping[str, Verdict]
"""By the fault's key."""


def read_results(folder: Path) -> dict[str, Verdict]:
    path = folder / "results.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {key: Verdict(entry["noticed"], entry["seconds"]) for key, entry in record.items()}


def write_results(folder: Path, faults: Sequence[Fault], results: Results, root: Path) -> str:
    """Writes both files, of faults that have a result; returns the Markdown."""
    known = [(fault, results[key]) for fault in faults if (key := fault.key(root)) in results]
    record = {fault.key(root): {**asdict(verdict), **asdict(fault)} for fault, verdict in known}
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    text = markdown(known, len(faults))
    write_aside(folder / "summary.md", text)
    return text


def markdown(known: Sequence[tuple[Fault, Verdict]], total: int) -> str:
    """How many are caught by part of the tree, and each that is not, with the reason or without one."""
    parts: defaultdict[str, list[tuple[Fault, Verdict]]] = defaultdict(list)
    for fault, verdict in known:
        parts[_part(fault)].append((fault, verdict))
    rows = [_row(part, entries) for part, entries in sorted(parts.items())]
    survivors = [fault for fault, verdict in known if not verdict.noticed]
    lines = [
        f"{len(known)} of {total} faults planted.",
        "",
        "| part | planted | equivalent | caught | survived | share caught |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        _row("all", known),
    ]
    if survivors:
        lines += ["", "Survivors:", ""]
        lines += [f"- `{fault.file}`: {fault.means}. {_excuse(fault)}" for fault in survivors]
    return "\n".join(lines) + "\n"


def _part(fault: Fault) -> str:
    parts = fault.file.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def _row(part: str, entries: Sequence[tuple[Fault, Verdict]]) -> str:
    caught = sum(bool(verdict.noticed) for _, verdict in entries)
    equivalent = sum(not verdict.noticed and bool(fault.equivalent) for fault, verdict in entries)
    real = len(entries) - equivalent
    share = f"{caught / real:.1%}" if real else "–"
    return f"| {part} | {len(entries)} | {equivalent} | {caught} | {real - caught} | {share} |"


def _excuse(fault: Fault) -> str:
    kind = "Equivalent" if fault.equivalent else "No test"
    return f"{kind}: {fault.excuse}" if fault.excuse else "**It has no test.**"
