"""Products with what a removal changes behind a norm, against the change worked out in full."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitfx.discovery.engines.behind_norm import Rescale, products, standardized


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([nn.LayerNorm, nn.RMSNorm]),
    st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_the_change(gradients, readers, writers, size, kind, seed):
    """size: of the writers' changes beside what is read, down to tangents and up to where they are all there is."""
    draws = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, 2, 3, 8, dtype=torch.float64, generator=draws)

    gradient, read, changes = drawn(gradients, readers), drawn(readers), size * drawn(writers)
    signs = torch.randint(0, 2, (readers, writers), generator=draws) * 2.0 - 1
    norm = kind(8, eps=1e-5, elementwise_affine=False)
    sign = signs.double()[:, :, None, None, None]
    change = sign * (norm(read.unsqueeze(1) + sign * changes) - norm(read).unsqueeze(1))
    expected = torch.einsum("grntd,rwntd->grwn", gradient, change).flatten(1, 2)
    assert torch.allclose(products(norm, gradient, read, changes, signs), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_scale_and_shift_make_the_norm_of_what_is_standardized(options):
    norm = nn.LayerNorm(6, eps=1e-3, **options).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    read = torch.randn(4, 5, 6, dtype=torch.float64)
    assert torch.allclose(Rescale(norm)(standardized(norm, read)), norm(read), rtol=0, atol=1e-12)
