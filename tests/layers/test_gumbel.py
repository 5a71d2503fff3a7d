"""A dilation with Gumbel weights."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from morphlightning.errors import ConfigError, NotCertifiable
from morphlightning.functional import soft_dilation
from morphlightning.functional.divergences import EULER
from morphlightning.interfaces import Posterior
from morphlightning.layers import Dilation, GumbelDilation
from morphlightning.lipschitz import lipschitz_spec
from morphlightning.models.parameters import parameter_groups


def layer(**options: object) -> GumbelDilation:
    generator = torch.Generator().manual_seed(0)
    return GumbelDilation(5, 3, scale=0.4, initializer={"name": "uniform"}, generator=generator, **options).double()


def sampled(dilation: GumbelDilation, x: Tensor, draws: int) -> Tensor:
    """Outputs (draws, units) of weights that are drawn one by one: what the layer's draws must be like."""
    shape = (draws, *dilation.weight.shape)
    g = torch.tensor(stats.gumbel_r.rvs(size=shape, random_state=1))
    weights = dilation.weight.detach() + dilation.scale.detach() * g
    return (x + weights.masked_fill(~dilation.mask, -math.inf)).amax(-1)


def test_inf_4_output_law() -> None:
    """INF-4: drawn weights and drawn outputs follow Gumbel(B LSE((x + mu) / B), B); winners follow the softmax."""
    dilation, x, count = layer(), torch.linspace(-1, 1, 5, dtype=torch.float64), 20_000
    location = soft_dilation(x, dilation.weight, 1 / 0.4).detach()
    torch.manual_seed(0)
    for outputs in (sampled(dilation, x, count), dilation(x.expand(count, 5)).detach()):
        for unit in range(3):
            law = stats.gumbel_r(location[unit].item(), 0.4)
            assert stats.kstest(outputs[:, unit].numpy(), law.cdf).pvalue > 1e-4
    g = torch.tensor(stats.gumbel_r.rvs(size=(count, 5), random_state=2))
    wins = torch.bincount((x + dilation.weight[0].detach() + 0.4 * g).argmax(1), minlength=5) / count
    share = ((x + dilation.weight[0].detach()) / 0.4).softmax(0)
    assert ((wins - share).abs() < 5 * (share * (1 - share) / count).sqrt()).all()


def test_evaluation_gives_the_mean_whose_gradient_is_the_share_of_wins() -> None:
    dilation = layer().eval()
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    y = dilation(x)
    torch.testing.assert_close(y, soft_dilation(x, dilation.weight, 1 / 0.4) + EULER * 0.4)
    y[0].backward()
    torch.testing.assert_close(x.grad, ((x + dilation.weight[0]) / 0.4).softmax(0).detach())


def test_each_output_is_drawn_by_itself_and_seeds_decide() -> None:
    dilation, x = layer(), torch.zeros(6, 5, dtype=torch.float64)
    torch.manual_seed(3)
    first = dilation(x)
    assert first.unique().numel() == 18
    torch.manual_seed(3)
    assert torch.equal(dilation(x), first)


def test_gradients_also_to_the_scale_and_with_missing_weights() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, :2] = mask[2, 4] = False
    dilation = layer(learn_scale=True, mask=mask).eval()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    def outputs(x: Tensor, weight: Tensor, log_scale: Tensor) -> Tensor:
        return torch.func.functional_call(dilation, {"weight": weight, "log_scale": log_scale}, (x,))

    assert torch.autograd.gradcheck(outputs, (x, dilation.weight, dilation.log_scale))
    assert torch.autograd.gradcheck(lambda *_: dilation.kl(), (dilation.weight, dilation.log_scale))
    (dilation.train()(x).sum() + dilation.kl()).backward()
    for tensor in (x, dilation.weight, dilation.log_scale):
        assert tensor.grad.isfinite().all()
    assert (dilation.weight.grad[~mask] == 0).all()


def test_divergence_is_the_sum_over_weights_that_are_there() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2] = False
    dilation = layer(mask=mask, prior_location=-0.2)
    d = (dilation.weight.detach() + 0.2) / 0.4
    assert isinstance(dilation, Posterior)
    torch.testing.assert_close(dilation.kl().detach(), (d - 1 + torch.exp(-d))[mask].sum())


def test_hard_kin_has_the_mean_weights() -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 2] = False
    dilation = layer(mask=mask)
    hard = dilation.harden()
    assert type(hard) is Dilation
    torch.testing.assert_close(hard.effective_weight, dilation.effective_weight + EULER * 0.4)
    cold = GumbelDilation(5, 3, scale=1e-4).double().eval()
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(cold(x), cold.harden()(x), rtol=0, atol=1e-4 * math.log(5))


def test_learned_scale_is_a_scale_for_optimizers_and_is_saved() -> None:
    dilation = layer(learn_scale=True)
    assert {group.role for group in parameter_groups(dilation)} == {"morph", "scale"}
    other = GumbelDilation(5, 3, learn_scale=True).double()
    other.load_state_dict(dilation.state_dict())
    assert other.scale.item() == pytest.approx(0.4)


def test_lipschitz_in_evaluation_alone() -> None:
    assert lipschitz_spec(layer().eval(), "linf").constant == 1
    with pytest.raises(NotCertifiable, match="draws random numbers"):
        lipschitz_spec(layer(), "linf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    dilation = layer().to(dtype).eval()
    x = torch.randn(4, 5, dtype=dtype)
    assert dilation(x).dtype == dtype
    exact = layer().eval()(x.double())
    torch.testing.assert_close(dilation(x).double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="does not take derivative"):
        GumbelDilation(2, 2, derivative="first")
    with pytest.raises(ConfigError, match="must be finite and > 0"):
        GumbelDilation(2, 2, scale=0.0)
