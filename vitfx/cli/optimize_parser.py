"""The arguments of `vitfx.optimize`."""

from __future__ import annotations

from pathlib import Path

from vitfx.cli.options import INPUT, add_inputs, add_loading, add_rewrites, add_runtime, add_task
from vitfx.cli.parser import CommandParser
from vitfx.deploy.lowering import PASSES
from vitfx.deploy.onnx_forms import FORMS
from vitfx.deploy.precisions import BF16, FP32, INT8
from vitfx.runs.optimize import BF16_FILE, INT8_FILE

_FIRST = {
    "input": {
        **INPUT,
        "--data": "images for proofs and timings (default: the checkpoint's, else noise)",
    },
    "result": {
        "--precision": "int8 and bf16 also write a file in these numbers, for CPUs",
        "--runtime": "where the file is to be fast (default onnxruntime)",
        "--portable": "use only standard ONNX operators, none of ONNX Runtime's own",
        "--batch": "batch sizes to measure (default 1,8,64)",
        "--quick": "do not measure each rewrite by itself",
        "--out": "folder for the results (default: MODEL-optimized)",
    },
}
_EXAMPLES = (
    "python -m vitfx.optimize demo",
    "python -m vitfx.optimize vit.pt --data photos/ --batch 8 --precision int8 --out fast/",
    "python -m vitfx.optimize weights.safetensors --arch timm:vit_small_patch16_224 --portable",
    "python -m vitfx.optimize demo --passes fold_norms,narrow_to_cls --print-after all",
)
_NOTES = """\
Nothing is pruned: the logits stay the same up to rounding. `python -m vitfx.prune` makes the same rewrites after
it has deleted what is dead."""


def optimize_parser(doc: str | None) -> CommandParser:
    """doc: of the command, its first line in the help."""
    parser = CommandParser("optimize", doc, usage="MODEL [options]", first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    add_inputs(parser)
    add_task(parser)
    add = parser.add_argument
    add("--out", type=Path, help="folder for the results (default: MODEL-optimized)")
    add("--force", action="store_true", help="replace earlier results in the folder")
    add("--batch", default="1,8,64", metavar="N,N", help="batch sizes to measure (default 1,8,64)")
    add("--quick", action="store_true", help="do not measure each rewrite by itself")
    add(
        "--form",
        default="auto",
        choices=("auto", *FORMS),
        help="which operators do attention; auto measures those that --rewrites allows and keeps the fastest "
        "(default auto)",
    )
    add(
        "--precision",
        default=FP32,
        choices=(FP32, BF16, INT8),
        help=f"int8 also writes {INT8_FILE}, static quantization for CPUs, and keeps the form that this is fastest in; "
        f"bf16 writes {BF16_FILE}, for --runtime openvino on CPUs with bfloat16; fp32 writes no such file "
        "(default fp32)",
    )
    add_runtime(add, "times forms and files; int8 and bf16 are compared there")
    add(
        "--plain-pixels",
        action="store_true",
        help="the file takes pixels of 0 to 1 and normalises them itself, at no cost",
    )
    add_rewrites(parser)
    add = parser.add_argument_group("looking at the graph").add_argument
    add(
        "--passes",
        metavar="NAME,NAME",
        help="run only these passes on the graph, in this order, and report what each did; nothing is exported: "
        f"{', '.join(PASSES)}",
    )
    add("--print-after", metavar="all|NAME,NAME", help="print the graph after these of --passes")
    add_loading(parser)
    return parser
