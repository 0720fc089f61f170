"""The embedding becomes one linear map of each patch and one table of class token, registers and positions.

The libraries' own code reads the batch size and expands the class token to it on every call. What an embedding computes
is found by values, whatever its form: zeros give its table, single pixels of patches its map, and random pixels must
then give the same.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import Pass, PassResult
from passes.deployment import PatchTokens
from passes.dialect import AddConstant
from passes.stream import module_of

_TOLERANCE = 1e-12
_CHUNK = 64


class FoldPatches(Pass):
    """embed, or embed and positions, become one PatchTokens where that is what they compute.

    Runs before rewrites that need a canonical graph, and leaves one. Any other embedding (overlapping patches, several
    layers, tokens in another order) stays as it is, with the reason in the notes.

    example: pixels (B, C, H, W), for their size.
    """

    def __init__(self, example: Tensor) -> None:
        self.example = example

    @torch.no_grad()
    def rewrite(self, graph_module: GraphModule) -> PassResult:
        first = next(node for node in graph_module.graph.nodes if node.op == "call_module")
        embed = module_of(graph_module, first)
        if isinstance(embed, PatchTokens):
            return PassResult(graph_module, False, ("the embedding is folded already",))
        assert embed is not None
        tokens = _patch_tokens(embed, self.example.shape[1:], next(graph_module.parameters()))
        if isinstance(tokens, str):
            return PassResult(graph_module, False, (f"the embedding stays as it is: {tokens}",))
        graph_module.set_submodule(str(first.target), tokens)
        after = list(first.users)
        table = module_of(graph_module, after[0])
        if len(after) == 1 and isinstance(table, AddConstant):
            tokens.table.add_(table.value)
            after[0].replace_all_uses_with(first)
            graph_module.graph.erase_node(after[0])
        note = f"{tokens.weight.shape[2]}×{tokens.weight.shape[3]} patches, {tokens.prefix} tokens before them"
        return PassResult(graph_module, True, (note,))


def _patch_tokens(embed: nn.Module, image: torch.Size, like: Tensor) -> PatchTokens | str:
    """The same in the type of `like`, worked out in float64; or why it is something else."""
    exact = copy.deepcopy(embed).double()
    table = exact(torch.zeros(2, *image, dtype=torch.float64, device=like.device))
    if table.dim() != 3 or not torch.equal(table[0], table[1]):
        return "its tokens differ between equal images"
    sides = _patch(exact, image, like.device)
    if sides is None:
        return "its last token is not that of the last patch"
    height, width = sides
    prefix = table.shape[1] - (image[1] // height) * (image[2] // width)
    if image[1] % height or image[2] % width or prefix < 0:
        return f"{height}×{width} patches do not tile the image"
    if why_not := _why_no_map_of_patches(exact, table[0], image, sides):
        return why_not
    tokens = PatchTokens(_weight(exact, image, sides, table[0, prefix:]), table[0], prefix)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, *image, generator=generator, dtype=torch.float64).to(like.device)
    expected = exact(probe)
    if not bool((tokens(probe) - expected).abs().max() < _TOLERANCE * expected.abs().max()):
        return "it is no sum of a linear map of each patch and a table"
    return tokens.to(like)


def _why_no_map_of_patches(embed: nn.Module, table: Tensor, image: torch.Size, sides: tuple[int, int]) -> str:
    """Why single pixels would not tell what the embedding computes; "" where they may. To ask this costs three images,
    where those take one each: for a stem of convolutions, hours."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(3, *image, generator=generator, dtype=torch.float64).to(table.device)
    pixels[1, :, : -sides[0]] = 0
    pixels[1, :, :, : -sides[1]] = 0
    pixels[2] = pixels[0] + pixels[1]
    first, last_patch, both = embed(pixels) - table
    least = _TOLERANCE * float(both.abs().max().clamp_min(float(table.abs().max())))
    if not bool((both - first - last_patch).abs().max() <= least):
        return "it is no sum of a linear map of each patch and a table"
    if len(table) > 1 and not bool(last_patch[:-1].abs().max() <= least):
        return "its patches overlap"
    return ""


def _patch(embed: nn.Module, image: torch.Size, device: torch.device) -> tuple[int, int] | None:
    """Height and width of what the last token sees, where that is the image's last corner."""
    probe = torch.randn(1, *image, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    with torch.enable_grad():
        seen = embed(probe.requires_grad_())[:, -1]
        (gradient,) = torch.autograd.grad(seen.square().sum(), probe, allow_unused=True)
    if gradient is None or not bool(gradient[0, :, -1, -1].any()):
        return None
    rows, columns = (gradient.ne(0).any(dim=1)[0].any(dim=axis) for axis in (1, 0))
    return int(rows.sum()), int(columns.sum())


def _weight(embed: nn.Module, image: torch.Size, sides: tuple[int, int], constants: Tensor) -> Tensor:
    """(D, C, height, width): what each pixel of a patch adds to its token. constants: (patches, D), of the tokens.

    Each patch of an image shows another pixel: no patch reads another's.
    """
    channels, (height, width) = image[0], sides
    places = torch.cartesian_prod(torch.arange(channels), torch.arange(height), torch.arange(width))
    corners = torch.cartesian_prod(torch.arange(0, image[1], height), torch.arange(0, image[2], width))
    columns = []
    for chunk in torch.split(places, _CHUNK * len(corners)):
        # One more than needed, because traced code may treat a batch of one apart.
        images = -(-len(chunk) // len(corners)) + 1
        pixels = torch.zeros(images, *image, dtype=torch.float64, device=constants.device)
        index = torch.arange(len(chunk))
        at = corners[index % len(corners)]
        pixels[index // len(corners), chunk[:, 0], at[:, 0] + chunk[:, 1], at[:, 1] + chunk[:, 2]] = 1
        added = embed(pixels)[:, -len(corners) :] - constants
        columns.append(added.flatten(0, 1)[: len(chunk)])
    return torch.cat(columns).T.reshape(-1, channels, height, width)
