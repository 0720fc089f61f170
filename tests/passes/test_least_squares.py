import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.least_squares import SHRINKAGES, Moments, gram, ridge


def rows(count, inputs=6, outputs=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, inputs, generator=generator, dtype=dtype) + 2,
        torch.randn(count, outputs, generator=generator, dtype=dtype),
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_moments_of_batches_add_up_to_those_of_all_rows(seed, counts):
    inputs, missing = rows(sum(counts), seed=seed)
    parts = [Moments.of(*one) for one in zip(inputs.split(counts), missing.split(counts), strict=True)]
    added, whole = sum(parts[1:], parts[0]), Moments.of(inputs, missing)
    assert added.rows == sum(counts)
    for name in ("gram", "cross", "square"):
        assert torch.allclose(getattr(added, name), getattr(whole, name), rtol=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_the_error_is_that_of_the_rows(seed):
    inputs, missing = rows(40, seed=seed)
    change, shift = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = (missing - inputs @ change.T - shift).square().sum(dim=1).mean()
    assert Moments.of(inputs, missing).error(change, shift) == pytest.approx(float(expected), rel=1e-10)


def test_the_fit_is_the_least_of_the_penalised_error():
    inputs, missing = rows(200)
    missing = missing + inputs @ torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [Moments.of(inputs[half], missing[half]) for half in (slice(0, 150), slice(150, None))]
    found = ridge(*parts)
    assert found.shrinkage in SHRINKAGES
    change, shift = found.change.clone().requires_grad_(), found.shift.clone().requires_grad_()
    penalty = found.shrinkage * inputs.var(dim=0, correction=0).mean()
    error = (missing - inputs @ change.T - shift).square().sum(dim=1).mean()
    (error + penalty * change.square().sum()).backward()
    assert change.grad.abs().max() < 1e-10
    assert shift.grad.abs().max() < 1e-10
    assert found.before == pytest.approx(float(missing[150:].square().sum(dim=1).mean()))
    assert found.after < found.before / 2


def test_what_is_a_linear_map_is_found_in_float32():
    inputs, _ = rows(2000, dtype=torch.float32)
    change = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    missing = inputs @ change.T + 5
    found = ridge(Moments.of(inputs[:1000], missing[:1000]), Moments.of(inputs[1000:], missing[1000:]))
    assert found.shrinkage == SHRINKAGES[-1]
    assert found.change.dtype == torch.float64
    assert (found.change - change).abs().max() < 2e-3
    assert found.after < 1e-6 * found.before


def test_no_map_where_inputs_say_nothing_of_what_is_missing():
    """Half of the rows want the opposite of the other half: any map is worse than none."""
    inputs, _ = rows(100)
    missing = inputs[:, :3] - 2
    found = ridge(Moments.of(inputs, missing + 7), Moments.of(inputs, 7 - missing))
    assert found.change is None
    assert found.shrinkage is None
    assert (found.shift - 7).abs().max() < 0.2
    assert found.after < found.before


def test_inputs_that_never_vary_leave_a_shift():
    inputs, missing = torch.ones(8, 4, dtype=torch.float64), torch.full((8, 2), 3.0, dtype=torch.float64)
    found = ridge(Moments.of(inputs, missing), Moments.of(inputs, missing))
    assert found.change is None
    assert torch.equal(found.shift, torch.full((2,), 3.0, dtype=torch.float64))


def test_products_of_wide_rows_are_those_of_one_product():
    """Wider than two blocks and a part of a third."""
    wide, _ = rows(5, inputs=900)
    assert torch.allclose(gram(wide), wide.T @ wide, rtol=1e-12)
