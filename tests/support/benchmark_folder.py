"""The small folder and models that the benchmark's tests compare."""

import json

import torch
from torch import nn
from torchvision.models import VisionTransformer

from benchmarks import workloads
from benchmarks.contenders import Contender
from benchmarks.workloads import Variant
from vitfx.deploy.export import export_onnx
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import save_checkpoint

CPU = torch.device("cpu")
EAGER, COMPILED, OPENVINO, ONNX = (Variant(name, CPU) for name in workloads.RUNTIMES)
DIGITS = Preprocess(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = [str(digit) for digit in range(10)]


def write_checkpoint(path, layers, preprocess=DIGITS, **record):
    torch.manual_seed(layers)
    kwargs = {
        "image_size": preprocess.size[0],
        "patch_size": 8,
        "num_layers": layers,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
        "num_classes": 10,
    }
    vit = VisionTransformer(**kwargs).eval()
    nn.init.normal_(vit.heads.head.weight)
    save_checkpoint(
        path,
        factory="torchvision.models:VisionTransformer",
        kwargs=kwargs,
        state_dict=vit.state_dict(),
        preprocess=preprocess,
        classes=CLASSES,
        **record,
    )
    return vit


def write_folder(folder):
    """What vitfx.prune leaves of a two-layer model that became a one-layer model."""
    original = folder.parent / "original.pt"
    example = torch.zeros(2, 3, 16, 16)
    metadata = {"preprocess": json.dumps(DIGITS.to_json())}
    export_onnx(write_checkpoint(original, 2, data="digits"), folder / "baseline.onnx", example, metadata)
    export_onnx(write_checkpoint(folder / "pruned.pt", 1), folder / "pruned.onnx", example, metadata)
    report = {"settings": {"model": str(original), "data": "digits"}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def linear(name, module=None, onnx=b"", no_module="gone"):
    return Contender(name, name, onnx, module, no_module, DIGITS, None, None)
