"""A method that diverges says so in one way, and leaves the weights as they were."""

import pytest
import torch
from torch import nn

from morphlightning.bregman import Badmm, Chain, SquaredError
from morphlightning.errors import NonFiniteError


@pytest.mark.parametrize("w_step", ["exact", "gradient"])
def test_a_gram_matrix_that_is_not_finite(w_step):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))
    x, y = torch.randn(50, 40), torch.randn(50, 5)
    method = Badmm(Chain(network), SquaredError(), w_step=w_step)
    samples = method.start(x, y)
    method.iterate(samples, x, y)
    samples["z2"] *= 1e25  # the square of what x becomes is beyond float32
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(NonFiniteError, match=r"Gram matrix of the inputs of layer 2 is not finite"):
        method.iterate(samples, x, y)
    for parameter, old in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old)
