"""What the commands of the pages name, under the names that they have there: models, images, and results of runs.

Models have the parts of real ones and random weights, and images are digits under the ids of ten classes of ImageNet,
so that every command has all that it needs, and takes minutes at most.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.transforms.v2.functional import pil_to_tensor

from tests.support.command_lines import module_and_arguments
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DATA = "tiny-imagenet-200"
WNIDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n01629819": "European fire salamander",
    "n01644900": "tailed frog, bell toad",
    "n01698640": "American alligator",
    "n01742172": "boa constrictor",
    "n01774384": "black widow",
    "n01882714": "koala, koala bear",
    "n01910747": "jellyfish",
    "n02123045": "tabby, tabby cat",
    "n02127052": "lynx, catamount",
}
_TRAINING, _EVALUATED = 24, 8
"""Images of each class."""
FEWER = {
    "vitfx.prune": "--samples 24 --eval-samples 24",
    "vitfx.discover": "--samples 8",
    "vitfx.optimize": "--quick",
    "vitfx.recover": "--eval-samples 24 --held-out 16",
    "vitfx.train": "--epochs 1 --set training.warm_up=0",
    "benchmarks.discovery": "--samples 8 --edges 6",
    "benchmarks.methods": "--samples 8 --eval-samples 24 --flops 0.8",
    "benchmarks.peers": "--samples 24 --eval-samples 24 --flops 0.8 --rounds 1",
    "benchmarks.classes": "--samples 16 --counts 2 --draws 1",
    "benchmarks.int8": "--samples 16 --eval-samples 24",
    "benchmarks.training": "--rounds 1 --steps 2",
    "benchmarks.faithfulness": "--samples 8 --eval-samples 16 --taus 0.01",
    "benchmarks.circuits": "--rounds 3",
    "benchmarks.runtimes": "--samples 16 --batches 1 --rounds 2",
    "benchmarks.planted": "--images 64",
}
"""What is put behind the commands: fewer images and steps. The last of an option's values counts."""
_SHORTER = {
    "--minutes": "0.5",
    "--recover-minutes": "0.5",
    "--heal-minutes": "0.05",
    "--epochs": "1",
    "--repeats": "2",
    "--sweep": "1.2:2.0:2",
}
_DEPTH = 2
_SHALLOW = f",depth={_DEPTH}"
"""Models of timm have so many blocks."""
_REFUSES_HEALING = {"--heal-minutes", "--rounds", "--sweep"}
_WITH_GOAL = ("--target-speedup", "--target-params", "--target-flops")
_MODELS = {"MODEL": "vit_s14.pt", "FILE": "vit_s14.pt", "DIR": DATA}
_MADE_BY = {
    "small": f"vitfx.prune vit_s14.pt --data {DATA} --target-flops 0.8 --tokens off --heal-minutes 0 --out small",
    "smaller": f"vitfx.prune vit_s14.pt --data {DATA} --target-flops 0.6 --heal-minutes 0 --out smaller",
    "retrained": f"vitfx.recover small/pruned.pt --teacher vit_s14.pt --data {DATA} --minutes 0.5 --out retrained",
    "ten": f"vitfx.prune vit_s14.pt --data {DATA} --classes classes.txt --target-flops 0.8 --heal-minutes 0 --out ten",
    "all": f"vitfx.prune vit_s14.pt --data {DATA} --target-flops 0.8 --heal-minutes 0 --out all",
    "sweep": f"vitfx.prune vit_s14.pt --data {DATA} --sweep 1.1:1.3:2 --out sweep",
    "rounds": f"vitfx.prune vit_s14.pt --data {DATA} --target-flops 0.8 --rounds 2 --recover-minutes 0.5 --out rounds",
    "eap.json": f"vitfx.discover vit_s14.pt --data {DATA} --method eap --granularity qkv --tau 3e-5 --out eap.json",
    "circuit.json": f"vitfx.discover vit_s14.pt --data {DATA} --method eap --tau 1e-4 --out circuit.json",
    "planted": "benchmarks.planted planted",
    "demo-pruned-tau0.001": "vitfx.prune demo --tau 0.001",
}
_TIMES = "small/runtimes.json"
_LARGE, _FEW = "torchvision:vit_b_16", 4
"""A model whose depth and images are as they are, and how many images of each class it is trained on."""
_COPIED = ("small", "smaller", "retrained")
"""Folders that commands write into."""


class PrintedWorld:
    """A folder of what commands name, each made when a command first names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, line: str, place: Path) -> subprocess.CompletedProcess[str]:
        """The command in a folder of its own, which has what it names, on fewer images and layers."""
        module, arguments = module_and_arguments(line)
        arguments = [_MODELS.get(word.rstrip("/"), word) for word in arguments]
        arguments = [f"{word}{_SHALLOW}" if word.startswith("timm:") else word for word in arguments]
        for name in self._named(module, arguments):
            made = self._made(name, arguments)
            (shutil.copytree if name in _COPIED else _link)(made, place / name)
        if _TIMES in arguments:
            images = str(self._made(DATA, arguments))
            done = _run("benchmarks.runtimes", ["small", "--data", images], place)
            assert done.returncode == 0, done.stderr
        if "--out" in arguments:
            (place / arguments[arguments.index("--out") + 1]).parent.mkdir(parents=True, exist_ok=True)
        return _run(module, arguments, place, processes=line.startswith("torchrun"))

    def _named(self, module: str, arguments: list[str]) -> Iterator[str]:
        """Of the inputs: first parts of paths, without what the command itself makes."""
        own = arguments[arguments.index("--out") + 1].rstrip("/") if "--out" in arguments else None
        own = arguments[0].rstrip("/") if module == "benchmarks.planted" else own
        words = [*arguments, DATA] if "vit_s14.pt" in arguments or "vit.pt" in arguments else arguments
        names = dict.fromkeys(word.partition("/")[0] for word in words)
        yield from (name for name in names if (name in _MADE_BY or name in _MAKERS) and name != own)

    def _made(self, name: str, arguments: list[str]) -> Path:
        demo = name == "circuit.json" and "demo" in arguments
        stored = f"demo-{name}" if demo else name
        if name == "photos" and _LARGE in arguments:
            stored = "few-photos"
        if name == "vit.pth":
            stored = "vit_b_16.pth" if _LARGE in arguments else "vit_base.pth"
        path = self.folder / stored
        if path.exists():
            return path
        if stored in _MAKERS:
            _MAKERS[stored](path)
            return path
        words = shlex.split(_MADE_BY[name])
        if demo:
            words = shlex.split(f"vitfx.discover demo --method eap --tau 1e-4 --out {stored}")
        for needed in self._named(words[0], words[1:]):
            self._made(needed, words)
        done = _run(words[0], words[1:], self.folder)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return path


def _run(module: str, arguments: list[str], place: Path, processes: bool = False) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2"] if processes else []
    command = [sys.executable, *launcher, "-m", module, *arguments, *_fewer(module, arguments)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def _fewer(module: str, arguments: list[str]) -> list[str]:
    # Passes alone write nothing, and have nothing to be quick with.
    extra = [] if "--passes" in arguments else shlex.split(FEWER.get(module, ""))
    if "--circuit" in arguments:
        # A circuit brings its number of images.
        place = extra.index("--samples")
        del extra[place : place + 2]
    if module == "vitfx.prune" and "--data" not in arguments and "vit_s14.pt" in arguments:
        extra += ["--data", DATA]
    if module == "vitfx.prune" and set(_WITH_GOAL) & set(arguments) and not _REFUSES_HEALING & set(arguments):
        extra += ["--heal-minutes", "0"]
    if _LARGE in arguments:
        extra += ["--batch", "8"]
    return extra + [word for name in _SHORTER if name in arguments for word in (name, _SHORTER[name])]


def _link(made: Path, path: Path) -> None:
    path.symlink_to(made)


def _digits() -> Iterator[tuple[str, int, Image.Image]]:
    """Class, number within the class, and a picture in colours of 64 × 64 pixels."""
    digits = load_digits()
    for label, wnid in enumerate(WNIDS):
        members = np.flatnonzero(digits.target == label)[: _TRAINING + _EVALUATED]
        for number, pixels in enumerate(digits.images[members]):
            grey = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((64, 64))
            yield wnid, number, grey.convert("RGB")


def _write_tiny_imagenet(root: Path) -> None:
    """In the layout in which Tiny ImageNet is downloaded."""
    lines = []
    for wnid, number, picture in _digits():
        trains = number < _TRAINING
        folder = root / ("train" if trains else "val") / (f"{wnid}/images" if trains else "images")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{wnid if trains else 'val'}_{number if trains else len(lines)}.JPEG"
        picture.save(folder / name)
        if not trains:
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WNIDS.items()))


def _write_photos(root: Path, most: int = _TRAINING + _EVALUATED) -> None:
    for wnid, number, picture in _digits():
        if number >= most:
            continue
        (root / wnid).mkdir(parents=True, exist_ok=True)
        picture.save(root / wnid / f"{number}.jpg")


def _write_vit_s(path: Path) -> None:
    """With the heads of a ViT-S, half as wide and a quarter as deep, on a quarter of the patches: measured times count
    for nothing here."""
    kwargs = {
        "image_size": 56,
        "patch_size": 14,
        "num_layers": 3,
        "num_heads": 6,
        "hidden_dim": 192,
        "mlp_dim": 768,
        "num_classes": len(WNIDS),
    }
    torch.manual_seed(0)
    vit = VisionTransformer(**kwargs).eval()
    _fit(vit.heads, vit)
    save_checkpoint(
        path,
        factory="torchvision.models:VisionTransformer",
        kwargs=kwargs,
        state_dict=vit.state_dict(),
        preprocess=Preprocess(size=(56, 56), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        classes=list(WNIDS),
        data=DATA,
    )


@torch.no_grad()
def _fit(heads: nn.Sequential, vit: VisionTransformer) -> None:
    """By ridge regression, so that the model answers most digits rightly."""
    labels, pictures = zip(*((list(WNIDS).index(wnid), picture) for wnid, _, picture in _digits()), strict=True)
    pixels = torch.stack([pil_to_tensor(picture.resize((56, 56))) for picture in pictures]) / 127.5 - 1
    head, heads.head = heads.head, nn.Identity()
    features = vit(pixels)
    heads.head = head
    centred, wanted = features - features.mean(0), 10 * nn.functional.one_hot(torch.tensor(labels)).float() - 1
    damped = centred.T @ centred + 1e-3 * centred.square().sum() / len(centred) * torch.eye(centred.shape[1])
    head.weight.copy_(torch.linalg.solve(damped, centred.T @ wanted).T)
    head.bias.copy_(wanted.mean(0) - head.weight @ features.mean(0))


def _timm_state(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(WNIDS), depth=_DEPTH)
    nn.init.normal_(model.head.weight, std=0.1)
    return dict(model.state_dict())


def _write_vit_b(path: Path) -> None:
    torch.manual_seed(0)
    kwargs = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 12, "hidden_dim": 768}
    torch.save(VisionTransformer(**kwargs, mlp_dim=3072, num_classes=len(WNIDS)).state_dict(), path)


_MAKERS: dict[str, Callable[[Path], object]] = {
    DATA: _write_tiny_imagenet,
    "photos": _write_photos,
    "few-photos": partial(_write_photos, most=_FEW),
    "vit_s14.pt": _write_vit_s,
    "vit.pt": _write_vit_s,
    "vit.pth": _write_vit_b,
    "vit_b_16.pth": _write_vit_b,
    "vit_base.pth": lambda path: torch.save(_timm_state("vit_base_patch16_224"), path),
    "weights.pth": lambda path: torch.save(_timm_state("vit_small_patch16_224"), path),
    "weights.safetensors": lambda path: save_file(_timm_state("vit_small_patch16_224"), path),
    "classes.txt": lambda path: path.write_text("tabby\nlynx\n"),
    "tasks.toml": lambda path: path.write_text('cats = ["tabby", "lynx"]\neverything = "all"\n'),
    "peers.json": lambda path: shutil.copy(ROOT / "docs" / "peers.json", path),
}
