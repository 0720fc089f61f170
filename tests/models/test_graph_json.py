"""Canonical graphs go to JSON and back; a file can name nothing but what an artifact is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from tests.support.checks import traced
from tests.support.families import CLASSES, FAMILIES, SIZE, images, randomised
from vitfx.graph.trace import to_canonical
from vitfx.models.graph_json import decode, encode
from vitfx.support.errors import UserError

_SMALL = {"image_size": SIZE, "patch_size": 8, "num_labels": CLASSES, "hidden_size": 32}


def _small(**more: object) -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 8, "depth": 2, "num_heads": 2, "embed_dim": 32, "num_classes": CLASSES}
    return timm.models.VisionTransformer(**sizes, **more)


def _one_block_with_a_norm_behind(part: str, projection: str) -> nn.Module:
    model = _small()
    sublayer = getattr(model.blocks[1], part)
    setattr(sublayer, projection, nn.Sequential(getattr(sublayer, projection), nn.LayerNorm(32)))
    return model


OPAQUE: dict[str, Callable[[], nn.Module]] = {
    "a norm behind the attention": lambda: _one_block_with_a_norm_behind("attn", "proj"),
    "a norm behind the MLP": lambda: _one_block_with_a_norm_behind("mlp", "fc2"),
}


def returned(graph_module: GraphModule) -> GraphModule:
    """What an artifact's reader gets: the graph decoded, the weights loaded."""
    back = decode(encode(graph_module))
    assert back.state_dict().keys() == graph_module.state_dict().keys()
    back.load_state_dict(graph_module.state_dict())
    return back.eval()


def assert_same(graph_module: GraphModule) -> None:
    back = returned(graph_module)
    for count in (1, 3):
        with torch.no_grad():
            assert torch.equal(back(images(count)), graph_module(images(count)))
    assert back.code == graph_module.code
    assert encode(back) == encode(graph_module)
    parameters = [name for name, _ in graph_module.named_parameters()]
    assert [name for name, _ in back.named_parameters()] == parameters


@pytest.mark.parametrize(
    "name",
    [
        "torchvision",
        "timm-layerscale-average-registers",
        "hf-deit",
        "hand-written",
        "timm-rms-swiglu-qk-norm",
        "timm-rotary-mixed",
        "timm-beit",
        "timm-norms-inside",
        "timm-norm-on-norm",
        "timm-grouped-queries",
    ],
)
def test_families_come_back_to_the_bit(name: str) -> None:
    assert name in FAMILIES
    assert_same(traced(name).graph_module)


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_sublayers_come_back_to_the_bit(name: str) -> None:
    found = to_canonical(randomised(OPAQUE[name]()), images(2))
    assert any("not prunable" in note for note in found.notes)
    assert_same(found.graph_module)


@cache
def description() -> str:
    return encode(traced("vitfx").graph_module)


def embedding(record: dict[str, Any]) -> dict[str, Any]:
    """The graph of ATen operators in `description()`."""
    return record["modules"]["embed"]


def test_arguments_that_json_does_not_have() -> None:
    module = GraphModule({}, _graph(torch.ops.aten.clamp.default, -math.inf, math.inf))
    text = encode(module)
    assert json.loads(text, parse_constant=pytest.fail)
    x = torch.randn(3)
    assert torch.equal(decode(text)(x), x)
    cast = GraphModule({}, _graph(torch.ops.aten.to.dtype, torch.float64))
    assert decode(encode(cast))(x).dtype == torch.float64
    lists = GraphModule({}, _graph(torch.ops.aten.permute.default, [1, 0]))
    assert decode(encode(lists))(x[:, None]).shape == (1, 3)


def _graph(function: Any, *arguments: Any) -> Graph:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(function, (x, *arguments)))
    return graph


@pytest.mark.parametrize("function", [torch.relu, print, torch.ops.aten.from_file.default, math.sqrt])
def test_only_operators_are_written(function: Any) -> None:
    with pytest.raises(UserError, match=r"an artifact can't hold the (function|operator)"):
        encode(GraphModule({}, _graph(function)))


def test_only_known_modules_are_written() -> None:
    with pytest.raises(UserError, match="module inner is a Dropout, which an artifact can't hold"):
        graph = Graph()
        graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
        encode(GraphModule(nn.ModuleDict({"inner": nn.Dropout()}), graph))


FUNCTIONS = [
    "os.system", "builtins.eval", "operator.attrgetter", "operator.methodcaller", "torch.load",
    "aten.from_file.default", "aten.save.default", "aten.nothing.default", "aten.linear.nothing",
    "aten.linear", "aten.__class__.mro", "aten..", "prim.device.default", "aten.linear.default()", "",
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_function_is_refused(function: str) -> None:
    record = json.loads(description())
    node = next(one for one in embedding(record)["nodes"] if one["op"] == "call_function")
    node["target"] = function
    with pytest.raises(UserError):
        decode(json.dumps(record))


def _call(marker: str) -> str:
    return f"__import__('os').mkdir('{marker}')"


def placeholder(record: dict[str, Any], marker: str) -> None:
    record["nodes"][0]["target"] = f"pixels={_call(marker)}"


def keyword(record: dict[str, Any], marker: str) -> None:
    embedding(record)["nodes"][-2]["kwargs"] = {f"x={_call(marker)}, y": 1}


def module(record: dict[str, Any], marker: str) -> None:
    name = f'x"), getattr(__import__("os"), "mkdir")("{marker}"), getattr(self, "y'
    record["modules"][name] = record["modules"].pop("head")
    next(one for one in record["nodes"] if one["target"] == "head")["target"] = name


def tensor(record: dict[str, Any], marker: str) -> None:
    inner = embedding(record)
    old = next(iter(inner["tensors"]))
    name = f'x"), getattr(__import__("os"), "mkdir")("{marker}"), getattr(self, "y'
    inner["tensors"][name] = inner["tensors"].pop(old)
    next(one for one in inner["nodes"] if one["target"] == old)["target"] = name


def method(record: dict[str, Any], marker: str) -> None:
    node = next(one for one in embedding(record)["nodes"] if one["op"] == "call_function")
    node |= {"op": "call_method", "target": "to_mkldnn"}


def attribute(record: dict[str, Any], marker: str) -> None:
    node = next(one for one in embedding(record)["nodes"] if one["op"] == "get_attr")
    node["target"] = "forward.__func__.__globals__"


def class_name(record: dict[str, Any], marker: str) -> None:
    record["modules"]["head"]["type"] = "Sequential"


@pytest.mark.parametrize("doctor", [placeholder, keyword, module, tensor, method, attribute, class_name])
def test_names_cannot_smuggle_code(doctor: Callable[[dict[str, Any], str], None], tmp_path: Path) -> None:
    """torch.fx writes names into the Python that it compiles; none may be anything but a name."""
    marker = tmp_path / "marker"
    record = json.loads(description())
    doctor(record, str(marker))
    with pytest.raises(UserError):
        decode(json.dumps(record))
    assert not marker.exists()


CUT_SHORT = "cut short"


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "null", "{}", '{"type": "Graph"}', "[" * 100_000, CUT_SHORT], ids=range(8)
)
def test_a_damaged_description_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="give a file that vitfx wrote") as caught:
        decode(description()[:-30] if text == CUT_SHORT else text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("node", {"op": "bogus"}),
        ("node", {"args": {"tuple": [{"node": "nobody"}]}}),
        ("node", {"args": {"tuple": [{"dtype": "load"}]}}),
        ("node", {"args": {"tuple": [{"device": "toaster"}]}}),
        ("node", {"args": {"tuple": [{"object": 1}]}}),
        ("tensor", {"shape": [-1]}),
        ("tensor", {"shape": [2**60]}),
        ("tensor", {"dtype": "load"}),
    ],
)
def test_damaged_parts_are_refused(part: str, changes: dict[str, Any]) -> None:
    record = json.loads(description())
    inner = embedding(record)
    damaged = inner["nodes"][-2] if part == "node" else next(iter(inner["tensors"].values()))
    damaged |= changes
    with pytest.raises(UserError):
        decode(json.dumps(record))
