"""From a canonical graph to the ONNX model that is deployed: exact rewrites, then the form that suits the target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.deploy.export import OPSET, to_onnx
from vitfx.deploy.lowering import NEEDS, REWRITES, Lowered, lower
from vitfx.deploy.onnx_forms import FORMS, Form, Formed, to_form
from vitfx.images.preprocess import Preprocess
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError

GEMM = "gemm"
"""The one rewrite that is made in ONNX: see `vitfx.deploy.onnx_forms.to_form`."""
NAMES = (*REWRITES, GEMM)


@dataclass(frozen=True)
class Deployment:
    """How a model is exported."""

    rewrites: tuple[str, ...]  #: out of `NAMES`
    form: Form
    plain: Preprocess | None = None  #: its mean and standard deviation go into the model; None for normalised input
    opset: int = OPSET  #: of ONNX's operators

    @property
    def remark(self) -> str | None:
        """What the opset costs, for the user."""
        if self.opset == OPSET:
            return None
        return (
            f"opset {self.opset} has no Attention operator, which comes with {OPSET}: attention is in basic operators"
        )

    @property
    def graph_rewrites(self) -> tuple[str, ...]:
        """Those made on the graph: q, k and v are packed only for a form that wants them packed."""
        return tuple(name for name in self.rewrites if name != GEMM and (name != "pack_qkv" or self.form.packed))

    def preprocess(self, preprocess: Preprocess) -> Preprocess:
        """What the exported model needs done to its images."""
        return preprocess if self.plain is None else preprocess.plain()

    def formed(self, model: onnx.ModelProto) -> Formed:
        """An exported model in this form, with a note of it in its metadata."""
        formed = to_form(model, self.form, gemm=GEMM in self.rewrites)
        formed.model.metadata_props.add(key="deployment", value=json.dumps(self.to_json()))
        return formed

    def to_json(self) -> dict[str, Any]:
        rewrites = [*self.graph_rewrites, *(name for name in self.rewrites if name == GEMM)]
        return {"rewrites": rewrites, "form": self.form.name, "plain_pixels": self.plain is not None} | (
            {} if self.opset == OPSET else {"opset": self.opset}
        )


@dataclass(frozen=True)
class Deployed:
    """An exported model."""

    model: onnx.ModelProto
    lowered: Lowered  #: the graph that was exported
    refusals: tuple[str, ...]  #: why rules of the form left something alone


def read_rewrites(text: str) -> tuple[str, ...]:
    """The rewrites that "all", "none" or "NAME,NAME" stand for, in their order. Raises UserError for other names."""
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in NAMES:
            raise UserError(f"`rewrites` {name} is not a rewrite: give all, none, or some of {','.join(NAMES)}")
        for needed in NEEDS.get(name, ()):
            if needed not in given:
                raise UserError(f"`rewrites` {name} does nothing without {needed}: name both, or neither")
    return tuple(name for name in NAMES if name in given)


def default_deployment(
    rewrites: tuple[str, ...],
    device: torch.device,
    *,
    portable: bool,
    plain: Preprocess | None = None,
    opset: int = OPSET,
) -> Deployment:
    """The form that is usually fastest on the device, without measuring; without rewrites and for opsets without the
    Attention operator, what the exporter writes."""
    name = "packed" if is_gpu(device) and not portable else "standard"
    return Deployment(rewrites, FORMS[name if rewrites and opset >= OPSET else "exported"], plain, opset)


def deploy(graph_module: GraphModule, deployment: Deployment, pixels: Tensor, metadata: Mapping[str, str]) -> Deployed:
    """Lowers, exports and brings into form.

    graph_module: canonical, on the CPU.
    pixels: (2 or more, C, H, W), normalised.
    Raises UserError and VerificationError as `vitfx.deploy.lowering.lower` does.
    """
    (deployed,) = deploy_forms(graph_module, deployment, [deployment.form], pixels, metadata).values()
    return deployed


def deploy_forms(
    graph_module: GraphModule,
    deployment: Deployment,
    forms: Sequence[Form],
    pixels: Tensor,
    metadata: Mapping[str, str],
) -> dict[str, Deployed]:
    """The same in several forms, by name, with one export for all that pack q, k and v and one for the others."""
    exported: dict[bool, tuple[Lowered, onnx.ModelProto]] = {}
    deployed = {}
    for form in forms:
        in_form = replace(deployment, form=form)
        if form.packed not in exported:
            lowered = lower(graph_module, in_form.graph_rewrites, pixels, in_form.plain)
            exported[form.packed] = lowered, to_onnx(lowered.graph_module, pixels[:2], metadata, deployment.opset)
        lowered, model = exported[form.packed]
        formed = in_form.formed(model)
        deployed[form.name] = Deployed(formed.model, lowered, formed.refusals)
    return deployed
