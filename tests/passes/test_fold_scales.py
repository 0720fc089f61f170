import pytest
import torch

from passes.fold_scales import FoldScales
from tests.support.checks import canonical, check
from tests.support.families import images

PIXELS = images(3, torch.float64)


@pytest.mark.parametrize("name", ["vitfx", "hf-dinov2", "hand-written", "careless"])
def test_fold_scales(name):
    graph_module = canonical(name)
    scaled = any(getattr(one, "scale", 1.0) != 1.0 for one in graph_module.children())
    expected = graph_module(PIXELS).detach()
    folded = check(FoldScales(), graph_module, PIXELS, expected, changes=scaled, nodes=0, tolerance=1e-12)
    assert folded.a0.scale == 1.0
