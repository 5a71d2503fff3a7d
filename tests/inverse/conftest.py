"""Small problems with known answers."""

import pytest
import torch

from morphlightning.inverse import operators
from morphlightning.inverse.total_variation import differences, differences_adjoint


class Huber:
    """Sum of Huber functions of differences: convex."""

    def __init__(self, width=0.1):
        self.width = width

    def grad(self, x, sigma=None):
        scale = 1.0 if sigma is None else sigma.view(-1, 1, 1, 1)
        return differences_adjoint((differences(x) / self.width).clamp(-1, 1)) * scale

    def energy(self, x, sigma=None):
        d = differences(x).abs()
        each = torch.where(d < self.width, d.square() / (2 * self.width), d - self.width / 2).flatten(1).sum(1)
        return each if sigma is None else each * sigma

    def lipschitz(self):
        return 8 / self.width

    def weak_convexity(self):
        return 0.0


class Logarithmic:
    """Sum of log(1 + (d/w)^2) w^2/2 of differences d: second derivatives in [-1/8, 1], ||D||^2 <= 8."""

    def __init__(self, width=0.05):
        self.width = width

    def grad(self, x, sigma=None):
        d = differences(x)
        return differences_adjoint(d / (1 + (d / self.width).square()))

    def energy(self, x, sigma=None):
        return ((differences(x) / self.width).square().log1p() * self.width**2 / 2).flatten(1).sum(1)

    def lipschitz(self):
        return 8.0

    def weak_convexity(self):
        return 1.0


@pytest.fixture
def huber():
    return Huber()


@pytest.fixture
def logarithmic():
    return Logarithmic()


@pytest.fixture
def images():
    """Two piecewise constant images (2, 1, 8, 10) in [0, 1], float64."""
    x = torch.zeros(2, 1, 8, 10, dtype=torch.float64)
    x[0, 0, 2:6, 3:8], x[1, 0, :, 5:] = 0.8, 0.6
    return x


@pytest.fixture
def blur():
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
    return operators.CircularBlur(kernel, (8, 10))


@pytest.fixture
def data(blur, images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=images.dtype)
    return blur(images) + 0.05 * noise
