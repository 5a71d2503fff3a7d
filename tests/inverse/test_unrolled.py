"""Unrolled proximal gradient steps learn, keep their steps, and are as stable as they say."""

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError
from morphlightning.interfaces import LipschitzSpec
from morphlightning.inverse import Averaged, PnPForwardBackward, UnrolledProximalGradient


class Shrink(nn.Module):
    """A learnable mean of its neighbours: 1-Lipschitz."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return x.lerp((x.roll(1, -1) + x.roll(-1, -1) + x.roll(1, -2) + x.roll(-1, -2)) / 4, self.weight.sigmoid())

    def lipschitz_spec(self):
        return LipschitzSpec(1.0)


def test_trains_end_to_end_with_steps_in_their_range(blur, images, data):
    network = UnrolledProximalGradient(blur, [Shrink() for _ in range(4)]).double()
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (network(data) - images).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        network.raw_steps.fill_(40.0)
    assert ((network.steps() > 0) & (network.steps() <= 2 / blur.norm_bound() ** 2)).all()


def test_errors_of_the_data_grow_as_little_as_it_says(blur, data):
    network = UnrolledProximalGradient(blur, [Shrink() for _ in range(4)]).double()
    other = data + torch.randn_like(data)
    assert (network(data) - network(other)).norm() <= network.stability() * (data - other).norm()
    assert "no limit" in network.guarantee
    assert UnrolledProximalGradient(blur, [nn.BatchNorm2d(1)]).guarantee.startswith("none")


def test_one_map_for_many_steps_is_plug_and_play(blur, data):
    denoiser = Averaged(Shrink())
    network = UnrolledProximalGradient(blur, [denoiser] * 200, step=1.5).double()
    assert len(list(network.proximals.parameters())) == 1
    found = PnPForwardBackward(blur, denoiser, 1.5 / blur.norm_bound() ** 2, tolerance=1e-12, max_iterations=2000)(data)
    torch.testing.assert_close(network(data), found.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", [([],), ([nn.ReLU()], 2.0), ([nn.ReLU()], 0.0)])
def test_settings_out_of_range_are_refused(arguments, blur):
    with pytest.raises(ConfigError, match="step"):
        UnrolledProximalGradient(blur, *arguments)
