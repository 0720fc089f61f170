"""python -m tests.planted_faults --out RESULTS [--only TEXT] [--seconds 120] [--trusting]"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.planted_faults.faults import ROOT, Fault, FaultError, read_faults
from tests.planted_faults.results import read_results, write_results
from tests.planted_faults.workshop import LOADED, Verdict, Workshop


def main() -> int:
    """1 where a fault survives that has no excuse, 2 where one can't be planted."""
    parser = argparse.ArgumentParser(description="Plants faults one by one and says which tests notice them.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, to go on from if there are any")
    parser.add_argument("--only", default="", help="only faults with this text in their file's name or meaning")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the processor, for the tests of a fault")
    parser.add_argument("--trusting", action="store_true", help="do not run the tests without a fault first")
    asked = parser.parse_args()
    try:
        return plant_all(read_faults(), asked.out, asked.seconds, only=asked.only, trusting=asked.trusting)
    except FaultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def plant_all(
    faults: Sequence[Fault],
    out: Path,
    seconds: float,
    *,
    only: str = "",
    trusting: bool = False,
    root: Path = ROOT,
    loaded: Sequence[str] = LOADED,
) -> int:
    """As `main`; `loaded` is imported once for all runs of tests. Raises FaultError.

    Unless `trusting`, the tests of a fault are first run without it: tests that fail anyway would notice everything.
    """
    for fault in faults:
        fault.planted_in((root / fault.file).read_text(encoding="utf-8"))
    chosen = [fault for fault in faults if only in fault.file or only in fault.means]
    results = read_results(out)
    if missing := [fault for fault in chosen if fault.key(root) not in results]:
        with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
            workshop = Workshop(root, Path(folder).resolve(), loaded)
            for number, (fault, verdict) in enumerate(_verdicts(workshop, missing, seconds, trusting), start=1):
                results[fault.key(root)] = verdict
                write_results(out, faults, results, root)
                said = f"noticed by {verdict.noticed}" if verdict.noticed else "SURVIVED"
                took = f"{number}/{len(missing)}, {verdict.seconds:.0f} s"
                print(f"{fault.file}: {fault.means}: {said} ({took})", flush=True)
    print(write_results(out, faults, results, root))
    return int(any(not results[fault.key(root)].noticed and not fault.excuse for fault in chosen))


def _verdicts(
    workshop: Workshop, faults: Sequence[Fault], seconds: float, trusting: bool
) -> Iterator[tuple[Fault, Verdict]]:
    sound: set[str] = set()
    for fault in faults:
        if fresh := [path for path in fault.tests if path not in sound and not trusting]:
            verdict = workshop.run(fresh, 10 * seconds)
            if verdict.noticed:
                raise FaultError(f"without any fault {verdict.noticed} fails: mend that first")
            sound.update(fresh)
        with workshop.planted(fault):
            verdict = workshop.run(fault.tests, seconds)
        yield fault, verdict


if __name__ == "__main__":
    raise SystemExit(main())
