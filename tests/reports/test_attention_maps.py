"""Attention maps against attention that is computed by hand, and the models that have none."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.fx import GraphModule

from passes.base import run_passes
from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan, SublayerDeletion
from passes.token_schedule import TokenSchedule
from tests.support.prune_runs import DIGITS, GREY, model
from tests.support.recover_runs import GONE, student, teacher
from vitfx.graph.merge_oracle import Merged, Merges
from vitfx.graph.stages import read_stages
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import _AblatedModel
from vitfx.images.image_set import ImageSet
from vitfx.images.splits import open_data
from vitfx.reports.attention_maps import AttentionMaps, attention_maps, patch_grid
from vitfx.reports.sections import attention


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return open_data("digits", GREY).evaluation


def mapped(artifact: GraphModule, images: ImageSet, gone: dict[str, Any], original: GraphModule) -> AttentionMaps:
    plan = DeletionPlan(
        tuple(SublayerDeletion(name, "head", gone[name], 2) for name in sorted(gone) if name.startswith("a"))
    )
    return attention_maps(original, artifact, plan, images, 0, GREY, DIGITS)


def test_heads_that_nobody_knows_are_not_compared(images: ImageSet) -> None:
    found = attention_maps(teacher(), student({"a1": (0,)}), None, images, 0, GREY, DIGITS)
    assert not found.maps and found.reason.startswith("Which heads of a1 were deleted is not known")
    # Of the last attention all are left.
    found = attention_maps(teacher(), student({"a0": (0,)}), None, images, 0, GREY, DIGITS)
    assert (len(found.maps), found.sublayer, found.heads, found.total) == (3, "a1", (0, 1), 2)


def test_they_are_the_class_tokens_attention(images: ImageSet) -> None:
    gone = {"a1": (0,)}
    found = mapped(student(gone), images, gone, teacher())
    assert (found.sublayer, found.heads, found.total, found.reason) == ("a1", (1,), 2, "")
    pixels = images.sample(12, 0).load().pixels[:3]
    stream = pixels
    for stage in read_stages(teacher()):
        if stage.name == "a1":
            break
        stream = stage(stream)
    assert stage.norm is not None
    x = stage.norm(stream)
    module: Any = stage.module
    size = module.head_dim
    q, k = (linear(x)[..., size : 2 * size] for linear in (module.q, module.k))
    weights = torch.softmax(q[:, :1] @ k.transpose(1, 2) * module.scale, -1)[:, 0, 1:]
    assert len(found.maps) == 3
    for one, expected, seen in zip(found.maps, weights, pixels, strict=True):
        np.testing.assert_allclose(np.array(one.before), expected.detach().reshape(2, 2).numpy(), rtol=1e-4)
        # Nothing before this sublayer's attention was deleted, and survivors stay as they are.
        np.testing.assert_allclose(np.array(one.after), np.array(one.before), rtol=1e-4)
        with Image.open(io.BytesIO(one.picture)) as picture:
            shown = np.asarray(picture) / 255
        np.testing.assert_allclose(shown, (seen[0] * 0.4 + 0.3).numpy(), atol=0.003)
    assert "class " in found.maps[0].name


def test_no_attention_no_maps(images: ImageSet) -> None:
    gone = {"a0": (0, 1), "a1": (0, 1)}
    found = mapped(student(gone), images, gone, teacher())
    assert found == AttentionMaps(reason="No attention survives, so there are no attention maps.")


def test_the_last_attention_that_survives(images: ImageSet) -> None:
    gone = {"a0": (1,), "a1": (0, 1)}
    found = mapped(student(gone), images, gone, teacher())
    assert (found.sublayer, found.heads) == ("a0", (0,))
    assert mapped(student(GONE), images, GONE, teacher()).sublayer == "a1"


def test_average_pooling_has_no_class_token(images: ImageSet) -> None:
    graph = to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module
    head = [stage for stage in read_stages(graph) if stage.sublayer is None][-1]

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(1)

    graph.set_submodule(head.name, Mean())
    found = mapped(graph, images, {}, graph)
    assert found.maps == ()
    assert "read 5 of 5 tokens and not a class token alone" in found.reason


def test_corrupt_images_are_no_maps(images: ImageSet) -> None:
    class Corrupt:
        def decode(self, channels: int, reader: str) -> torch.Tensor:
            from vitfx.images.sources import CorruptImageError

            raise CorruptImageError("torn")

    torn: Any = dataclasses.replace(images, sources=tuple(Corrupt() for _ in images.names))
    assert "all corrupt" in mapped(teacher(), torn, {}, teacher()).reason


def test_the_grid_of_patches() -> None:
    assert patch_grid(197, 224, 224) == (14, 14)
    assert patch_grid(201, 224, 224) == (14, 14), "four registers"
    assert patch_grid(9, 32, 64) == (2, 4)
    assert patch_grid(1, 8, 8) is None


def test_where_tokens_merge_patches_of_one_token_are_shown_together(images: ImageSet) -> None:
    whole = teacher()
    schedule = TokenSchedule(((0, 1), (1, 1)))
    merged = run_passes(whole, [MergeBySchedule(schedule, images.sample(2, 0).load().pixels)]).graph_module
    found = attention_maps(whole, merged, None, images, 0, GREY, DIGITS)
    assert not found.maps and len(found.groups) == 3
    pixels = images.sample(12, 0).load().pixels[:3]
    wanted = Merged.of(torch.zeros(3, 5, 1))
    oracle = _AblatedModel(whole, DeletionPlan(), Merges.of(merged))
    oracle._merged = wanted
    with torch.no_grad():
        oracle.run(pixels)
    for image, groups in zip(found.groups, wanted.groups, strict=True):
        tokens = [token for row in image.groups for token in row]
        assert [
            sorted(patch + 1 for patch, of in enumerate(tokens) if of == token) for token in sorted(set(tokens))
        ] == [sorted(group) for group in groups[1:]]
    page = attention(found, "Where the class token looks")
    assert "Which patches end up together" in page and page.count("hsl(") >= 2
