import pytest
import torch
from torch import nn

from morphlightning.layers import Dilation


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def integer_head():
    """Makes a max-plus head of small integers in double precision: exact, and full of ties."""

    def make(inputs=4, filters=12, classes=5, seed=0):
        generator = torch.Generator().manual_seed(seed)
        head = nn.Sequential(nn.Linear(inputs, filters), Dilation(filters, classes, initializer="zeros")).double()
        for parameter in head.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).double()
        return head

    return make
