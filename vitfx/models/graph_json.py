"""Canonical graphs as JSON: what an artifact stores beside its weights, so that it loads without anybody's code.

Only dialect modules, LayerNorm and graphs of ATen operators are written and read: no name in a file makes Python
import or run anything else. torch.fx turns graphs into Python source and looks methods and attributes up by name, so
method calls are refused, names must be names, and attributes and modules those that the file itself holds.
"""

from __future__ import annotations

import json
import keyword
import operator
import re
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from passes.aten import attribute_tensor
from passes.dialect import AddConstant, Attention
from passes.merging import MergeTokens, RestoreTokens
from passes.mlp import GatedMlp, Mlp, Neurons
from passes.norms import SINGLE, NormOnNorm
from passes.pooled_attention import FreshTokens, PooledAttention
from vitfx.support.errors import UserError, in_a_line

_DIALECT = (Attention, PooledAttention, FreshTokens, Mlp, GatedMlp, AddConstant, MergeTokens, RestoreTokens)
_MODULES: dict[str, type[nn.Module]] = {part.__name__: part for part in (*_DIALECT, *SINGLE)}
_PYTHON = {
    f"operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")
}
_NAMED = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def encode(graph_module: GraphModule) -> str:
    """The graph and its modules' settings, without the weights. Raises UserError for what an artifact can't hold."""
    return json.dumps(_encode_graph(graph_module))


def decode(text: str) -> GraphModule:
    """A graph module whose parameters are still to be loaded. Raises UserError for a damaged or strange description."""
    try:
        return _decode_graph(json.loads(text))
    except UserError:
        raise
    except Exception as error:  # torch and torch.fx refuse senseless arguments with many kinds of exception.
        raise UserError(
            f"the artifact's graph can't be read ({type(error).__name__}: {in_a_line(error)}): "
            "give a file that vitfx wrote"
        ) from error


def _encode_graph(graph_module: GraphModule) -> dict[str, Any]:
    tensors = {}
    for node in graph_module.graph.nodes:
        if (tensor := attribute_tensor(graph_module, node)) is not None:
            shape, dtype = list(tensor.shape), _word(tensor.dtype)
            tensors[str(node.target)] = {"shape": shape, "dtype": dtype, "parameter": isinstance(tensor, nn.Parameter)}
    return {
        "type": "Graph",
        "name": type(graph_module).__name__,
        "tensors": tensors,
        "modules": {name: _encode_module(name, child) for name, child in graph_module.named_children()},
        "nodes": [_encode_node(node) for node in graph_module.graph.nodes],
    }


def _encode_module(name: str, module: nn.Module) -> dict[str, Any]:
    if isinstance(module, GraphModule):
        return _encode_graph(module)
    if isinstance(module, nn.LayerNorm):
        return {
            "type": "LayerNorm",
            "normalized_shape": list(module.normalized_shape),
            "eps": module.eps,
            "elementwise_affine": module.elementwise_affine,
            "bias": module.bias is not None,
        }
    if isinstance(module, nn.RMSNorm):
        shape, affine = list(module.normalized_shape), module.elementwise_affine
        return {"type": "RMSNorm", "normalized_shape": shape, "eps": module.eps, "elementwise_affine": affine}
    if isinstance(module, NormOnNorm):
        return {"type": "NormOnNorm", **{part: _encode_module(part, norm) for part, norm in module.named_children()}}
    if isinstance(module, _DIALECT):
        record = {"type": type(module).__name__, **module.config()}
        if isinstance(module, Neurons) and isinstance(module.activation, GraphModule):
            record["activation"] = _encode_graph(module.activation)
        return record
    raise UserError(f"module {name} is a {type(module).__name__}, which an artifact can't hold")


def _decode_module(record: dict[str, Any]) -> nn.Module:
    if record["type"] == "Graph":
        return _decode_graph(record)
    if record["type"] == "NormOnNorm":
        first, second = (_decode_module(record[part]) for part in ("first", "second"))
        if not isinstance(first, SINGLE) or not isinstance(second, SINGLE):
            raise UserError("the artifact's graph has a norm on a norm that is none: give a file that vitfx wrote")
        return NormOnNorm(first, second)
    settings = {key: value for key, value in record.items() if key != "type"}
    if isinstance(graph := settings.get("activation"), dict):
        settings["activation"] = _decode_graph(graph)
    return _MODULES[record["type"]](**settings)


def _encode_node(node: Node) -> dict[str, Any]:
    target = str(node.target)
    if node.op == "call_function":
        known = [name for name, function in _PYTHON.items() if function is node.target]
        target = known[0] if known else target
        _function(target)
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": _encode_value(tuple(node.args)),
        "kwargs": {key: _encode_value(value) for key, value in node.kwargs.items()},
    }


def _decode_graph(record: dict[str, Any]) -> GraphModule:
    root = nn.Module()
    for name, child in record["modules"].items():
        root.add_module(_name(name), _decode_module(child))
    for name, tensor in record["tensors"].items():
        _name(name)
        empty = torch.empty(tensor["shape"], dtype=getattr(torch, tensor["dtype"]))
        if tensor["parameter"]:
            root.register_parameter(name, nn.Parameter(empty, requires_grad=empty.is_floating_point()))
        else:
            root.register_buffer(name, empty)
    graph = Graph()
    placed: dict[str, Node] = {}
    for node in record["nodes"]:
        target = _target(node["op"], node["target"], record)
        args = _decode_value(node["args"], placed)
        kwargs = {_name(key): _decode_value(value, placed) for key, value in node["kwargs"].items()}
        placed[node["name"]] = graph.create_node(node["op"], target, args, kwargs, name=node["name"])
    graph.lint()
    return GraphModule(root, graph, class_name=record["name"])


def _target(op: str, target: str, record: dict[str, Any]) -> Any:
    if op == "call_function":
        return _function(target)
    places = {"call_module": record["modules"], "get_attr": record["tensors"], "placeholder": None, "output": None}
    if op not in places:
        raise UserError(f"the artifact's graph has a node of the kind {op!r}: give a file that vitfx wrote")
    owner = places[op]
    if owner is not None and target not in owner:
        raise UserError(f"the artifact's graph reads {target!r}, which it does not hold: give a file that vitfx wrote")
    return _name(target)


def _name(text: str) -> str:
    """The name of a module, tensor or argument. Parts of a Sequential are numbers."""
    if re.fullmatch(r"[A-Za-z0-9_]+", text, re.ASCII) is None or keyword.iskeyword(text):
        raise UserError(f"{text!r} can't be a name in an artifact's graph: give a file that vitfx wrote")
    return text


def _function(target: str) -> Any:
    """The operator of this name: ATen's, or one of Python's for sizes. ATen's few that touch files are refused."""
    if target in _PYTHON:
        return _PYTHON[target]
    namespace, _, rest = target.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace != "aten" or not packet.isidentifier() or not overload.isidentifier():
        raise UserError(f"an artifact can't hold the function {target}: only ATen operators are written and read")
    function = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(function, torch._ops.OpOverload):
        raise UserError(
            f"torch {torch.__version__} has no operator {target}: use the torch that the file was made with"
        )
    if any(argument.name == "filename" or "file" in packet for argument in function._schema.arguments):
        raise UserError(f"an artifact can't hold the operator {target}, which reads or writes files")
    return function


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")


def _encode_value(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return {"list" if isinstance(value, list) else "tuple": [_encode_value(item) for item in value]}
    for name, named in _NAMED.items():
        if isinstance(value, named):
            return {name: _word(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"an artifact can't hold an argument of type {type(value).__name__}")


def _decode_value(value: Any, placed: dict[str, Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode_value(item, placed) for item in content)
    if kind == "node":
        return placed[content]
    if kind in _NAMED:
        named = getattr(torch, content)
        if not isinstance(named, _NAMED[kind]):
            raise ValueError(f"{content} is no torch.{kind}")
        return named
    if kind == "device":
        return torch.device(content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown kind of argument {kind!r}")
