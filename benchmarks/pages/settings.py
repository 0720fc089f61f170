"""The settings of discovery, goals and retraining, field by field."""

from __future__ import annotations

from benchmarks.pages.classes import fields_of
from benchmarks.pages.docstrings import summary_of
from vitfx.circuits.circuit import GRANULARITIES
from vitfx.deploy.deployment import NAMES
from vitfx.deploy.lowering import PASSES
from vitfx.discovery.basis.settings import ABLATIONS, CORRUPTIONS, METHODS, METRICS, ORDERS, STARTS, Settings
from vitfx.graph.kinds import WORDS
from vitfx.pruning.goal import Goal, Target
from vitfx.recovery.distill import LOSSES, Objective
from vitfx.recovery.settings import AUGMENTS, RecoverSettings
from vitfx.recovery.trainable import ONLY
from vitfx.training.config import PACKAGED

_RECORDS = (Settings, Goal, Target, RecoverSettings, Objective)
_VALUES = {
    "method": METHODS,
    "granularity": GRANULARITIES,
    "order": ORDERS,
    "metric": METRICS,
    "gate_start": STARTS,
    "ablation": ABLATIONS,
    "corruption": CORRUPTIONS,
    "task": WORDS,
    "loss": LOSSES,
    "only": ONLY,
    "augment": AUGMENTS,
    "rewrites": NAMES,
    "passes": PASSES,
    "config": PACKAGED,
}
_HEAD = """# Settings

Reports and circuits hold the settings that they were made with under these names. A recipe of `vitfx.train` is a TOML
file, and [the first](../../vitfx/training/configs/tiny-imagenet.toml) explains every key.
"""


def page() -> str:
    lines = [_HEAD]
    for record in _RECORDS:
        lines += [f"## {record.__name__}", "", summary_of(record), ""]
        lines += [*(field.to_markdown() for field in fields_of(record)), ""]
    lines += ["## Values", ""]
    lines += [f"- `{name}`: {', '.join(f'`{value}`' for value in values)}" for name, values in _VALUES.items()]
    lines += ["", "## Kinds of answers", "", "What a `task` compares answers by, and what it counts as right:", ""]
    lines += [
        f"- `{kind}`: {words.divergence}{words.unit and f' in {words.unit}'}; {words.metric or 'nothing is counted'}"
        for kind, words in WORDS.items()
    ]
    return "\n".join([*lines, ""])
