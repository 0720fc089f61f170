"""`benchmarks.circuits`: single edges and attributions agree with hooks on Hugging Face's ViT of the same weights."""

import json
import sys

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import VisionTransformer

from benchmarks.circuits import main
from benchmarks.vit_twin import make_twin
from tests.support.benchmark_folder import write_checkpoint
from tests.support.families import randomised
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.pt"
    write_checkpoint(path, 2, data="digits")
    return str(path)


def run(model, out, *more):
    return main([model, "--out", str(out), "--samples", "6", "--paths", "2", *more])


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_vitfx_agrees_with_plain_hooks(model, tmp_path, capsys, granularity):
    out = tmp_path / "out.json"
    asked = ("--peers", "plain-hooks", "--granularity", granularity, "--edges", "20", "--steps", "3")
    assert run(model, out, *asked) == 0
    record = json.loads(out.read_text())
    effects = record["effects"]["plain-hooks"]
    assert len(effects) == record["settings"]["sampled_edges"] == 20
    assert sum(effect > 1e-6 for effect in effects.values()) > 10
    for what in ("effect", "eap", "eap-ig"):
        agreement = record["agreement"][what]["plain-hooks"]
        assert agreement["of_greatest"] < 1e-9
        # Of 20 edges two neighbours may swap by rounding, at .9985; no more than that.
        assert agreement["rank_correlation"] > 0.998
        assert set(record["times"][what]) == {"vitfx", "plain-hooks"}
        assert record["times"][what]["vitfx"]["ratio"] == {"paired": 1, "of_medians": 1}
    single = record["agreement"]["effect"]["plain-hooks"]
    assert single["relative"] < 1e-4 and single["relative_of"] > 10
    assert f"{granularity} graph, {record['edges']:,} edges, 20 sampled" in " ".join(capsys.readouterr().out.split())


def test_vitfx_agrees_with_transformer_lens(model, tmp_path):
    pytest.importorskip("transformer_lens", reason="transformer-lens is not installed")
    out = tmp_path / "out.json"
    assert run(model, out, "--peers", "transformer-lens", "--edges", "20", "--steps", "2") == 0
    agreement = {what: of["transformer-lens"] for what, of in json.loads(out.read_text())["agreement"].items()}
    assert agreement["effect"]["relative"] < 1e-4
    assert min(of["rank_correlation"] for of in agreement.values()) > 0.99


def _huggingface():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5)
    return Answering(transformers.ViTForImageClassification(config))


class Answering(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pixels):
        return self.module(pixels).logits


MODELS = {
    "torchvision": lambda: VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=5),
    "vitfx": lambda: ViT((16, 24), 8, 3, 5, width=8, depth=2, heads=2, mlp=12),
    "Hugging Face": _huggingface,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_twin_gives_the_models_logits(name):
    module = randomised(MODELS[name]()).double().eval()
    pixels = torch.randn(2, 3, 16, 24 if name == "vitfx" else 16, dtype=torch.float64)
    torch.testing.assert_close(make_twin(module, pixels)(pixels).logits, module(pixels), rtol=0, atol=1e-9)


def test_another_model_has_no_twin():
    module = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2).double()
    with pytest.raises(UserError, match="VisionTransformer is no ViT of torchvision, Hugging Face or vitfx"):
        make_twin(module, torch.zeros(2, 3, 16, 16, dtype=torch.float64))


def test_a_model_that_computes_otherwise_has_no_twin():
    module = MODELS["torchvision"]()
    module.heads.head.weight.data.normal_()
    module.encoder.layers[0].mlp[1] = nn.ReLU()
    with pytest.raises(UserError, match="gives other logits"):
        make_twin(module.double().eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--peers", "nobody"), "--peers nobody is not known: choose from plain-hooks, transformer-lens"),
        (("--edges", "1"), "--edges is 1: give 2 or more"),
        (("--rounds", "2"), "--rounds is 2: give 3 or more"),
        (("--peers", "transformer-lens"), "transformer-lens is not installed: pip install 'vitfx[lens]'"),
    ],
)
def test_mistakes_are_told(model, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    assert run(model, tmp_path / "out.json", *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
