"""vitfx.models.factory: arguments that files give by name."""

from __future__ import annotations

import pytest
from timm.layers import LayerNorm, RmsNorm

from vitfx.models.architectures import arch_sizes
from vitfx.models.factory import build_from_factory
from vitfx.support.errors import UserError

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize(("norm", "layer"), [("rmsnorm", RmsNorm), ("layernorm", LayerNorm), (None, object)])
def test_timms_norms_go_by_name(name: str, norm: str | None, layer: type) -> None:
    given = {} if norm is None else {"norm_layer": norm}
    module = build_from_factory("timm:create_model", {"model_name": name, **SMALL, **given})
    assert isinstance(module.blocks[0].norm1, layer)


def test_a_norm_that_timm_does_not_have() -> None:
    sentence = "cannot be made .*timm has no norm named 'magic'.*: correct its arguments"
    with pytest.raises(UserError, match=sentence):
        arch_sizes("timm:eva02_tiny_patch14_224,norm_layer=magic", {}, "weights.pt")
