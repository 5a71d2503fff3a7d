"""Checks of regularizers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import MorphLightningError
from morphlightning.interfaces import Regularizer, RegularizerContext
from morphlightning.testing._subject import (
    Subject,
    is_a_plain_value,
    is_documented,
    is_saved_by_name,
    require_equal,
)


def gives_a_finite_scalar(subject: Subject) -> None:
    """term() is a finite scalar tensor."""
    term = _term(*_bound(subject))
    assert isinstance(term, Tensor), f"a {type(term).__name__}"
    assert term.shape == (), f"shape {tuple(term.shape)}"
    assert term.isfinite(), f"{term.item()}"


def can_be_differentiated(subject: Subject) -> None:
    """The term has a finite gradient for at least one parameter, or for the output; or prox_() moves parameters."""
    regularizer, network = _bound(subject)
    term = _term(regularizer, network)
    if not term.requires_grad:
        assert _moved(regularizer, network, 0.1), "nothing that the term depends on requires a gradient"
        return
    term.backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert grads, "no parameter received a gradient"
    assert all(grad.isfinite().all() for grad in grads), "a gradient is not finite"


def changes_nothing(subject: Subject) -> None:
    """bind() and term() leave parameters, buffers and training mode as they are."""
    regularizer, network = _bound(subject)
    before, mode = copy.deepcopy(network.state_dict()), network.training
    regularizer.bind(network)
    _term(regularizer, network)
    assert network.training == mode, "the training mode changed"
    assert list(network.state_dict()) == list(before), "the entries of state_dict changed"
    for name, value in network.state_dict().items():
        require_equal(value, before[name], name)


def steps_by_the_learning_rate(subject: Subject) -> None:
    """prox_() moves parameters to finite values, nothing else, and nothing where the learning rate is 0 or unknown."""
    regularizer, network = _bound(subject)
    names = {name for name, _ in network.named_parameters()}
    moved = _moved(regularizer, network, 0.1)
    assert moved <= names, f"it changed {', '.join(sorted(moved - names))}"
    for rate in (0.0, None):
        moved = _moved(regularizer, network, rate)
        assert not moved, f"it changed {', '.join(sorted(moved))} with the learning rate {rate}"


def is_deterministic(subject: Subject) -> None:
    """With the random state restored, the term is the same."""
    regularizer, network = _bound(subject)
    terms = []
    for _ in range(2):
        torch.manual_seed(5)
        terms.append(_term(regularizer, network).detach())
    require_equal(terms[1], terms[0], "two calls")


CHECKS = (
    is_documented,
    is_a_plain_value,
    is_saved_by_name,
    gives_a_finite_scalar,
    can_be_differentiated,
    changes_nothing,
    steps_by_the_learning_rate,
    is_deterministic,
)


def _bound(subject: Subject) -> tuple[Regularizer, nn.Module]:
    """The regularizer, bound to the first network that it does not refuse."""
    refusals = []
    for network in [subject.module] if subject.module is not None else _networks():
        regularizer, network = subject.build(), copy.deepcopy(network)
        try:
            regularizer.bind(network)
        except MorphLightningError as refusal:
            refusals.append(str(refusal))
        else:
            return regularizer, network
    raise AssertionError("every network of the kit was refused (give one as module=...): " + "; ".join(refusals))


def _networks() -> list[nn.Module]:
    """Small networks, 4 inputs, 3 outputs: morphological, with splines, smooth, with random weights, sums of slices."""
    from morphlightning.guarantees.optimality import GainDilation, ParallelSum
    from morphlightning.layers import Dilation, GumbelDilation

    spline = registry.build("activations", "morphlightning:linear_spline", channels=5, channel_dim=-1)
    return [
        nn.Sequential(Dilation(4, 5), nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(4, 5), spline, nn.Linear(5, 3)),
        nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 3)),
        nn.Sequential(GumbelDilation(4, 5), nn.Linear(5, 3)),
        ParallelSum(GainDilation(4, 3), 2),
    ]


def _moved(regularizer: Regularizer, network: nn.Module, rate: float | None) -> set[str]:
    """The entries of a copy that prox_() changes; a rate of None is for an optimizer that holds no parameter."""
    network = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    regularizer.prox_(network, {} if rate is None else dict.fromkeys(network.parameters(), rate))
    after = network.state_dict()
    assert list(after) == list(before), "prox_ changed the entries of state_dict"
    tensors = {name: value for name, value in after.items() if isinstance(value, Tensor)}
    moved = {name for name, value in tensors.items() if not torch.equal(value, before[name])}
    assert all(after[name].isfinite().all() for name in moved), "prox_ made values that are not finite"
    return moved


def _term(regularizer: Regularizer, network: nn.Module) -> Tensor:
    from morphlightning.models.watched import Watched

    x, watched = torch.linspace(-1, 1, 24).view(6, 4), Watched()
    watched.begin(network, regularizer.watches(network))
    try:
        context = RegularizerContext(x, network(x), step=0, dataset_size=6, activations=watched.activations)
        return regularizer.term(network, context)
    finally:
        watched.end()
