"""What certificates rest on: facts about signed layers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from morphlightning import layers


def randomized(layer: layers.MorphLayer, scale: float = 0.7) -> layers.MorphLayer:
    torch.nn.init.normal_(layer.weight, 0, scale)
    layer.mask.copy_(torch.rand(layer.weight.shape) > 0.2)
    layer.mask[:, :2] = True
    return layer.double()


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0, 80.0, 1e3, 1e5, math.inf])
@pytest.mark.parametrize("kind", ["SoftSignedDilation", "SoftSignedErosion", "SoftDilation", "SoftErosion"])
def test_rows_of_derivatives_of_soft_layers_have_moduli_that_add_to_one(kind: str, beta: float) -> None:
    """LIP-1: of unsigned layers exactly one; of signed ones the two signs of an input may cancel, never more than one.

    The derivative by (x, -x) is a softmax, whose moduli add to 1 at every inverse temperature; that by x joins two of
    its numbers with opposite signs.
    """
    torch.manual_seed(0)
    layer = randomized(getattr(layers, kind)(6, 5, beta=beta))
    x = torch.randn(4, 6, dtype=torch.float64)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(layer, row)
        sums = jacobian.abs().sum(1)
        assert (sums <= 1 + 1e-12).all()
        if "Signed" not in kind:
            torch.testing.assert_close(sums, torch.ones(5, dtype=torch.float64), atol=1e-12, rtol=0)
        else:
            plain = layers.SoftDilation if "Dilation" in kind else layers.SoftErosion
            merged = plain(12, 5, beta=beta).double()
            merged.load_state_dict(layer.state_dict())
            both = torch.autograd.functional.jacobian(merged, torch.cat([row, -row]))
            torch.testing.assert_close(both.abs().sum(1), torch.ones(5, dtype=torch.float64), atol=1e-12, rtol=0)
            torch.testing.assert_close(jacobian, both[:, :6] - both[:, 6:], atol=1e-12, rtol=0)
        if beta == 1e5:  # cold: one input has it all
            torch.testing.assert_close(sums, torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_with_opposite_weights_a_signed_dilation_is_the_distance_in_the_sup_norm(n: int, m: int, seed: int) -> None:
    """LIP-2: max_j |x_j - c_j| from a = -c, b = c; to the last bit, as a subtraction is an addition of the negative."""
    generator = torch.Generator().manual_seed(seed)
    x, centres = torch.randn(7, n, generator=generator), torch.randn(m, n, generator=generator)
    layer = layers.SignedDilation(n, m)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([-centres, centres], 1))
    assert torch.equal(layer(x), (x[:, None] - centres).abs().amax(-1))
    torch.testing.assert_close(layer(x), torch.cdist(x, centres, p=math.inf))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["SignedDilation", "SignedErosion", "SoftSignedDilation"]))
def test_signed_layers_move_no_further_than_their_inputs(seed: int, kind: str) -> None:
    torch.manual_seed(seed)
    layer = randomized(getattr(layers, kind)(6, 5))
    x = torch.randn(50, 6, dtype=torch.float64)
    y = x + torch.randn_like(x) * torch.logspace(-6, 1, 50, dtype=torch.float64)[:, None]
    moved: Tensor = (layer(x) - layer(y)).abs().amax(1)
    assert (moved <= (x - y).abs().amax(1) + 1e-12).all()
