"""python -m tests.fuzz [LOADER …] [--seconds 60] [--seed 0] [--case NUMBER]"""

from __future__ import annotations

import argparse
import warnings

import torch

from tests.fuzz.harness import fuzz
from tests.fuzz.loaders import LOADERS


def main() -> int:
    """1 where a file ends in anything but what was written, or a sentence."""
    parser = argparse.ArgumentParser(description="Damages real files and says what their loaders do with them.")
    parser.add_argument("loaders", nargs="*", metavar="LOADER", help=f"of {', '.join(LOADERS)}; all of them by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a clock, for each loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, as an earlier run numbered it")
    asked = parser.parse_args()
    if unknown := set(asked.loaders) - set(LOADERS):
        parser.error(f"there is no loader {', '.join(sorted(unknown))}: choose from {', '.join(LOADERS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed = False
    for name in asked.loaders or LOADERS:
        report = fuzz(LOADERS[name], name, asked.seconds, asked.seed, only=asked.case)
        endings = ", ".join(f"{count} {what}" for what, count in report.endings.most_common(3))
        print(f"{name}: {report.cases} files: {endings}", flush=True)
        for finding in report.findings.values():
            failed = True
            count = report.endings[finding.what]
            print(f"  case {finding.number}, {finding.damage} of {finding.file} ({count}×): {finding.what}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
