import pytest
import torch

from passes.base import PassError, run_passes
from passes.fold_patches import FoldPatches
from passes.plain_pixels import PlainPixels
from tests.support.checks import assert_equal, assert_trainable, canonical
from tests.support.families import images

PIXELS = images(3, torch.float64)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.mark.parametrize("name", ["torchvision", "hf-dinov2-registers", "hand-written"])
def test_the_graph_takes_pixels_of_0_to_1(name):
    graph_module = canonical(name)
    result = run_passes(graph_module, [FoldPatches(PIXELS), PlainPixels(MEAN, STD)])
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    assert result.changed
    assert_equal(result.graph_module(PIXELS * std + mean), graph_module(PIXELS), 1e-12)
    assert_trainable(result.graph_module, PIXELS)
    with pytest.raises(AssertionError, match="off by"):
        assert_equal(result.graph_module(PIXELS), graph_module(PIXELS), 1e-12)


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ([PlainPixels(MEAN, STD)], "not one linear map of each patch"),
        ([FoldPatches(PIXELS), PlainPixels(MEAN[:1], STD[:1])], "mean has 1 channels and the images have 3"),
    ],
)
def test_what_it_refuses(passes, reason):
    with pytest.raises(PassError, match=reason):
        run_passes(canonical(), passes)
