"""What commands write: each file's format and, field by field, what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.pages.classes import fields_of, records_in
from benchmarks.pages.docstrings import summary_of
from passes import plan
from vitfx.circuits import circuit
from vitfx.discovery.basis import journal
from vitfx.models import record as model_record
from vitfx.pruning import latency_table
from vitfx.reports import records
from vitfx.runs import optimize, prune_files, recover, tau_sweep, train_files
from vitfx.runs.train_record import TrainReport
from vitfx.training import state

_HEAD = """# Files and their formats

JSON files begin with `format`, a name and a number that rises when a reader of the old format would misread the new
one. Where a file has a `digest`, it is checked when the file is read. A share is from 0 to 1, a KL divergence is in
nats an image, and times are milliseconds.

ONNX files hold in their metadata the version of vitfx, the model's name and fingerprint, how images are to be prepared
(`preprocess`: size, resize, interpolation, mean, std) and the names of the classes. `python -m vitfx.show FILE` prints
what is in any of these files.
"""


@dataclass(frozen=True)
class _File:
    name: str
    writer: str  #: the command
    format: str
    record: type
    remark: str = ""


_FILES = (
    _File(
        "circuit.json",
        "vitfx.discover and vitfx.prune",
        circuit.FORMAT,
        circuit.Circuit,
        """`writers` has each writer by
name, as sublayer, number and units; `decisions` has a row for each edge, with the columns that `columns` names. Equal
circuits are equal bytes. What each `basis` means: [good to know](../how-it-works.md#good-to-know).""",
    ),
    _File(
        "plan.json, plan.safetensors",
        "vitfx.prune",
        plan.FORMAT,
        plan.DeletionPlan,
        """Constants are base64 of
little-endian float64; the weights of refits are in plan.safetensors, their shapes and sha256 in plan.json.""",
    ),
    _File(
        "*.pt of vitfx.train",
        "vitfx.train",
        model_record.CHECKPOINT_FORMAT,
        model_record.ModelRecord,
        """A dictionary
that `torch.load(..., weights_only=True)` reads: `factory` and `kwargs` make the module, `state_dict` has its weights.
`vitfx.models.checkpoint` reads it with `load_model` and writes one with `save_checkpoint`.""",
    ),
    _File(
        "pruned.pt",
        "vitfx.prune and vitfx.recover",
        model_record.ARTIFACT_FORMAT,
        model_record.ModelRecord,
        """The
same with a `graph` in place of the factory: the canonical graph in JSON, so that the original's code is not needed.""",
    ),
    _File("report.json of vitfx.prune", "vitfx.prune", records.PRUNE_REPORT, records.PruneReport),
    _File("report.json of vitfx.optimize", "vitfx.optimize", records.OPTIMIZE_REPORT, records.OptimizeReport),
    _File("report.json of vitfx.recover", "vitfx.recover", records.RECOVER_REPORT, records.RecoverReport),
    _File("report.json of vitfx.train", "vitfx.train", records.TRAIN_REPORT, TrainReport),
    _File("history.json", "vitfx.train", state.HISTORY_FORMAT, state.Log, "Rewritten after every epoch."),
    _File("sweep.json", "vitfx.prune --sweep", records.SWEEP_RECORD, records.SweepRecord),
    _File("rounds.json", "vitfx.prune --rounds", records.ROUNDS_RECORD, records.RoundsRecord),
    _File("NAME.json of a τ sweep", "vitfx.discover --tau-sweep", tau_sweep.FORMAT, tau_sweep.Row, "A row for each τ."),
    _File("NAME.json of tasks", "vitfx.discover --tasks", records.TASKS_RECORD, records.TasksRecord),
    _File("peers.json", "benchmarks.peers", records.PEERS_RECORD, records.PeersRecord),
    _File("runtimes.json", "benchmarks.runtimes", records.RUNTIMES_RECORD, records.RuntimesRecord),
)
_INTERNAL = {
    "latency tables in the cache": latency_table.FORMAT,
    "state.pt and recovery.state, which an interrupted training or retraining resumes from": state.FORMAT,
    "discovery.jsonl, which an interrupted discovery resumes from": journal.FORMAT,
}
_FOLDERS = {
    "prune": prune_files.RESULTS,
    "optimize": optimize.RESULTS,
    "recover": recover.RESULTS,
    "train": train_files.RESULTS,
}


def page() -> str:
    lines = [_HEAD, "What a run leaves in its folder:", ""]
    lines += [f"- `vitfx.{name}`: {', '.join(f'`{file}`' for file in files)}" for name, files in _FOLDERS.items()]
    lines += ["", "Formats that vitfx keeps for itself:", ""]
    lines += [f"- {what}: `{format}`" for what, format in _INTERNAL.items()]
    described: set[type] = set()
    for file in _FILES:
        lines += ["", *_file(file, described)]
    return "\n".join([*lines, ""])


def _file(file: _File, described: set[type]) -> Iterator[str]:
    """described: the classes that stand on the page already, to be added to."""
    yield from (f"## {file.name}", "", f"Written by {file.writer}, format `{file.format}`.")
    if file.remark:
        yield from ("", *file.remark.splitlines())
    for record in records_in(file.record):
        if record in described:
            continue
        described.add(record)
        yield from ("", f"**{record.__name__}** {summary_of(record)}".rstrip(), "")
        yield from (field.to_markdown() for field in fields_of(record))
