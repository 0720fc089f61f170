"""Which of timm's ViT-like models the compiler takes: each is built small, with random weights, and looked at."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from benchmarks import command
from passes.dialect import Attention, Sublayer
from passes.stream import read_sites
from vitfx.graph.trace import to_canonical
from vitfx.support.console import entry_point
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import check_new_file, write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-coverage/1"
CLASSES = (
    "VisionTransformer",
    "VisionTransformerDistilled",
    "VisionTransformerRelPos",
    "Eva",
    "Beit",
    "NaFlexVit",
    "Cait",
    "Xcit",
)
"""timm's classes of plain, isotropic transformers."""
FULL, PARTIAL, REFUSED, NOT_BUILT = "full", "partial", "refused", "not built"
_GRID, _DEPTH = 4, 2
_EXAMPLE = """example:
  python -m benchmarks.coverage --out docs/coverage.json --markdown docs/coverage.md"""


@dataclass(frozen=True)
class Coverage:
    """One model name."""

    name: str
    kind: str  #: its class
    state: str  #: FULL where every sublayer is prunable and the logits are the model's own
    heads: bool = False  #: whether heads are prunable
    error: float | None = None  #: of the canonical graph's logits, relative to the greatest
    reason: str = ""


@dataclass(frozen=True)
class CoverageOptions:
    out: Path
    markdown: Path | None
    names: str
    force: bool

    def __post_init__(self) -> None:
        """Raises UserError."""
        for path in (self.out, self.markdown):
            if path is not None:
                check_new_file(path, force=self.force)


def model_names(pattern: str) -> Iterator[tuple[str, str]]:
    """Names and classes of timm's ViT-like models."""
    import timm

    for name in timm.list_models(pattern):
        kind = _class_of(name)
        if kind in CLASSES:
            yield name, kind


def _class_of(name: str) -> str | None:
    import timm

    # A model on the meta device has its class and no weights.
    try:
        with torch.device("meta"):
            return type(timm.create_model(name)).__name__
    except Exception:  # Models fail on the meta device in ways of their own; these are looked at as they are.
        return type(_build(name)).__name__


def _build(name: str) -> nn.Module:
    """A small model of this name: few layers and tokens, its kinds of parts untouched."""
    import timm

    patch = int(name.split("patch")[1].split("_")[0]) if "patch" in name else 16
    small = {"depth": _DEPTH, "embed_dim": 96, "num_heads": 3, "img_size": _GRID * patch, "num_classes": 7}
    widths = ("embed_dim", "num_heads")
    for left_out in ((), widths, ("img_size",), (*widths, "img_size"), tuple(small)):
        try:
            chosen: dict[str, Any] = {key: value for key, value in small.items() if key not in left_out}
            return timm.create_model(name, **chosen).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError):
            continue
    raise UserError(f"{name} can't be built")


def look_at(name: str, kind: str) -> Coverage:
    """Builds, traces and compares the model."""
    try:
        torch.manual_seed(0)
        model = _build(name)
    except UserError as error:
        return Coverage(name, kind, NOT_BUILT, reason=in_a_line(error))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    config = cast("dict[str, Any]", model.pretrained_cfg)
    channels, height, width = config["input_size"]
    patches = getattr(model, "patch_embed", getattr(model, "embeds", None))
    size = getattr(patches, "img_size", None) or (height, width)
    try:
        pixels = torch.randn(2, channels, *size)
        traced = to_canonical(model, pixels)
        with torch.no_grad():
            expected, logits = model(pixels), traced.graph_module(pixels)
        sublayers: list[Sublayer] = [site.module for site in read_sites(traced.graph_module)]
        difference = float((logits - expected).abs().max() / expected.abs().max())
        state = PARTIAL if traced.notes else FULL
        heads = any(isinstance(sublayer, Attention) for sublayer in sublayers)
        return Coverage(name, kind, state, heads, difference, "; ".join(traced.notes[:2]))
    except Exception as error:  # A refusal is a row, whatever raised it.
        return Coverage(name, kind, REFUSED, reason=in_a_line(error))


def table_of(rows: Sequence[Coverage]) -> Table:
    counts = Counter((row.kind, row.state) for row in rows)
    cells = []
    for kind in dict.fromkeys(row.kind for row in rows):
        numbers = [counts[kind, state] for state in (FULL, PARTIAL, REFUSED, NOT_BUILT)]
        cells.append((kind, *map(str, numbers), str(sum(numbers))))
    totals = [sum(row.state == state for row in rows) for state in (FULL, PARTIAL, REFUSED, NOT_BUILT)]
    cells.append(("all", *map(str, totals), str(len(rows))))
    return Table(("class", FULL, PARTIAL, REFUSED, NOT_BUILT, "names"), cells)


def _work(options: CoverageOptions, watcher: Watcher) -> list[Table]:
    names = list(model_names(options.names))
    if not names:
        raise UserError(f"--names {options.names} matches no ViT-like model of timm's")
    report, rows = watcher.bar("models"), []
    for number, (name, kind) in enumerate(names, 1):
        watcher.detail(name)
        rows.append(look_at(name, kind))
        report(number, len(names))
    record = {"environment": environment(), "names": options.names, "models": [asdict(row) for row in rows]}
    write_json(options.out, FORMAT, record)
    table = table_of(rows)
    if options.markdown is not None:
        reasons = Counter(row.reason for row in rows if row.state in (PARTIAL, REFUSED))
        lines = [f"- {count}: {reason}" for reason, count in reasons.most_common(20)]
        write_aside(options.markdown, "\n".join(["# timm's ViT-like models", "", *table.to_markdown(), "", *lines, ""]))
    return [table]


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.make_parser("coverage", __doc__ or "", _EXAMPLE)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--markdown", type=Path, help="the table and the reasons as Markdown")
    parser.add_argument("--names", default="*", help="names to look at, with wildcards (default: all)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    return command.run_command(lambda: CoverageOptions(**vars(parser.parse_args(arguments))), _work)


if __name__ == "__main__":
    sys.exit(main())
