"""Each check fails for a component that breaks what it checks: one mutant a check."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from morphlightning import registry
from morphlightning.errors import NotSupportedError
from morphlightning.interfaces import (
    DerivativeRule,
    Heuristic,
    Initializer,
    Loop,
    Regularizer,
    TorchOptimizer,
)
from morphlightning.testing import check_component, checks

MUTANTS: list[tuple[str, str, Any]] = []


def breaks(kind: str, check: str) -> Any:
    """Note the decorated class as one that this check must refuse."""

    def note(mutant: Any) -> Any:
        MUTANTS.append((kind, check, mutant))
        return mutant

    return note


# ------------------------------------------------------------------------------------------------ derivatives
@dataclass(frozen=True)
class Whole(DerivativeRule):
    """Each tied candidate gets the whole message."""

    eps: float = 0.0

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        return u[chunk.owner], u[chunk.owner]


@breaks("derivatives", "is_documented")
@dataclass(frozen=True)
class Undocumented(Whole):
    pass


@breaks("derivatives", "is_a_plain_value")
@dataclass(frozen=True)
class Unhashable(Whole):
    """Holds a list."""

    values: list[int] = field(default_factory=lambda: [1])


_serial = itertools.count()


@breaks("derivatives", "is_saved_by_name")
@dataclass(frozen=True)
class Counting(Whole):
    """No two of it are equal."""

    serial: int = field(default_factory=lambda: next(_serial))


@breaks("derivatives", "agrees_with_autograd_without_ties")
@dataclass(frozen=True)
class Scaled(Whole):
    """Doubles what the inputs receive."""

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        gx, gw, touched = super().backward(*args, **kwargs)
        return 2 * gx, gw, touched


@breaks("derivatives", "lone_candidate_gets_the_message")
@dataclass(frozen=True)
class Stingy(Whole):
    """Keeps a little back."""

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        return u[chunk.owner], (1 - 1e-9) * u[chunk.owner]


@breaks("derivatives", "first_takes_all")
@dataclass(frozen=True)
class FirstThatShares(Whole):
    """Declares support 'first', and shares."""

    support: ClassVar[Any] = "first"


@breaks("derivatives", "stays_in_the_active_set")
@dataclass(frozen=True)
class Leaking(Whole):
    """Spreads the message over all inputs."""

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        gx, gw, touched = super().backward(*args, **kwargs)
        return gx + gx.mean(), gw, touched


@breaks("derivatives", "is_positively_homogeneous")
@dataclass(frozen=True)
class Squaring(Whole):
    """Squares messages at ties."""

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        message = u[chunk.owner]
        share = torch.where(chunk.size[chunk.owner] == 1, message, message * message.abs())
        return share, share


@breaks("derivatives", "ignores_missing_weights")
@dataclass(frozen=True)
class Careless(Whole):
    """Multiplies by the weights."""

    def backward(self, view: Any, *args: Any, **kwargs: Any) -> Any:
        gx, gw, touched = super().backward(view, *args, **kwargs)
        return gx, gw + 0 * view.w, touched


@breaks("derivatives", "does_not_depend_on_the_order_of_the_batch")
@dataclass(frozen=True)
class Favouring(Whole):
    """Favours early samples."""

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.where(chunk.size == 1, 1.0, 1.0 + chunk.sample)
        return (u * factor)[chunk.owner], u[chunk.owner]


@breaks("derivatives", "is_deterministic")
@dataclass(frozen=True)
class Gambling(Whole):
    """Draws lots among the tied."""

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        lots = torch.where(chunk.size[chunk.owner] == 1, 1, torch.rand(len(chunk.owner)))
        return lots * u[chunk.owner], u[chunk.owner]


@breaks("derivatives", "keeps_the_dtype")
@dataclass(frozen=True)
class Rounding(Whole):
    """Computes in single precision."""

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        return u[chunk.owner], u[chunk.owner].float()


# ------------------------------------------------------------------------------------------------- heuristics
@dataclass(frozen=True)
class Keep(Heuristic):
    """Changes nothing."""

    stage: ClassVar[Any] = "update"

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad


@breaks("heuristics", "update_keeps_the_shape")
@dataclass(frozen=True)
class Reducing(Keep):
    """Gives the mean."""

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad.mean()


@breaks("heuristics", "update_keeps_the_shape")
@dataclass(frozen=True)
class Undeclared(Keep):
    """Reads a statistic that it does not declare."""

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad / statistics["count"].clamp_min(1)


@breaks("heuristics", "update_keeps_the_shape")
@dataclass(frozen=True)
class DividingByZero(Keep):
    """Divides by counts, zeros included."""

    needs: ClassVar[Any] = frozenset({"count"})

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad / statistics["count"]


@breaks("heuristics", "update_changes_no_argument")
@dataclass(frozen=True)
class InPlace(Keep):
    """Scales the gradient in place."""

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad.mul_(2)


@breaks("heuristics", "update_is_deterministic")
@dataclass(frozen=True)
class Noisy(Keep):
    """Adds noise."""

    def update(self, weight: Tensor, grad: Tensor, statistics: Any) -> Tensor:
        return grad + torch.randn_like(grad)


@breaks("heuristics", "message_changes_the_message_alone")
@dataclass(frozen=True)
class Exploding(Heuristic):
    """Sends infinite messages."""

    stage: ClassVar[Any] = "message"

    def message(self, view: Any, gy: Tensor, default: Tensor) -> Tensor:
        return default / 0


@breaks("heuristics", "route_changes_the_weights_alone")
@dataclass(frozen=True)
class NanRoute(Heuristic):
    """Sends NaN to weights."""

    stage: ClassVar[Any] = "route"

    def route(self, view: Any, gy: Tensor, count: bool, default: Any) -> Any:
        gw, touched = default(gy)
        return gw * math.nan, touched


@breaks("heuristics", "acts_deterministically_inside_backward")
@dataclass(frozen=True)
class NoisyMessage(Heuristic):
    """Adds noise to messages."""

    stage: ClassVar[Any] = "message"

    def message(self, view: Any, gy: Tensor, default: Tensor) -> Tensor:
        return default + torch.randn_like(default)


# ----------------------------------------------------------------------------------------------- initializers
@dataclass(frozen=True)
class Flat(Initializer):
    """All zeros."""

    def fill(self, spec: Any, generator: Any) -> Tensor:
        return torch.zeros(spec.shape)


@breaks("initializers", "fills_the_asked_shape_in_float32")
@dataclass(frozen=True)
class Double(Flat):
    """In double precision."""

    def fill(self, spec: Any, generator: Any) -> Tensor:
        return torch.zeros(spec.shape, dtype=torch.float64)


@breaks("initializers", "gives_weights_that_can_be_trained")
@dataclass(frozen=True)
class Missing(Flat):
    """All weights are missing."""

    def fill(self, spec: Any, generator: Any) -> Tensor:
        return torch.full(spec.shape, -math.inf)


@breaks("initializers", "draws_from_the_generator_alone")
@dataclass(frozen=True)
class Global(Flat):
    """Draws from the global state."""

    def fill(self, spec: Any, generator: Any) -> Tensor:
        return torch.rand(spec.shape)


@breaks("initializers", "draws_from_the_global_state_without_a_generator")
@dataclass(frozen=True)
class Fresh(Flat):
    """Seeds itself anew."""

    def fill(self, spec: Any, generator: Any) -> Tensor:
        return torch.rand(spec.shape, generator=generator or torch.Generator().manual_seed(next(_serial)))


@dataclass(frozen=True)
class Lowest(Flat):
    """The least difference seen."""

    data: ClassVar[Any] = "pairs"
    reduce: ClassVar[Any] = {"low": "min"}

    def begin(self, spec: Any, w: Tensor, previous: Any) -> dict[str, Tensor]:
        return {"low": torch.full_like(w, math.inf)}

    def update(self, state: dict[str, Tensor], batch: Any) -> None:
        state["low"] = torch.minimum(state["low"], batch.least().view(state["low"].shape))

    def finish(self, spec: Any, w: Tensor, state: Any, generator: Any) -> Tensor:
        return torch.where(state["low"].isfinite(), state["low"], w)


@breaks("initializers", "learns_weights_that_can_be_trained")
@dataclass(frozen=True)
class Scaling(Lowest):
    """Multiplies by the start, missing weights and all."""

    def finish(self, spec: Any, w: Tensor, state: Any, generator: Any) -> Tensor:
        return 0 * w + state["low"]


@breaks("initializers", "learns_the_same_however_rows_are_shared_out")
@dataclass(frozen=True)
class LastBatch(Lowest):
    """Remembers the last batch alone."""

    def update(self, state: dict[str, Tensor], batch: Any) -> None:
        state["low"] = batch.least().view(state["low"].shape)


@breaks("initializers", "declares_what_update_changes")
@dataclass(frozen=True)
class Secretive(Lowest):
    """Counts rows behind everybody's back."""

    def begin(self, spec: Any, w: Tensor, previous: Any) -> dict[str, Tensor]:
        return {"rows": w.new_zeros(()), **super().begin(spec, w, previous)}

    def update(self, state: dict[str, Tensor], batch: Any) -> None:
        super().update(state, batch)
        state["rows"] += len(batch.x)


@breaks("initializers", "learns_from_rows_and_generator_alone")
@dataclass(frozen=True)
class Blurred(Lowest):
    """Adds noise from the global state."""

    def finish(self, spec: Any, w: Tensor, state: Any, generator: Any) -> Tensor:
        return super().finish(spec, w, state, generator) + 0.01 * torch.rand(spec.shape)


# ------------------------------------------------------------------------------------------------- optimizers
@dataclass(frozen=True)
class Descent(TorchOptimizer):
    """Gradient descent."""

    lr: float = 0.01

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group.params], lr=self.lr)


@breaks("optimizers", "reads_what_it_needs")
@dataclass(frozen=True)
class Prying(Descent):
    """Looks at counts that it did not ask for."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        optimizer = super().build(groups)
        optimizer.register_step_pre_hook(lambda *_: [s.of_step()["count"] for g in groups for s in g.sites] and None)
        return optimizer


@breaks("optimizers", "takes_every_parameter_once")
@dataclass(frozen=True)
class Forgetful(Descent):
    """Forgets all groups but the first."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return super().build(groups[:1])


@breaks("optimizers", "decreases_a_convex_problem")
@dataclass(frozen=True)
class Climbing(Descent):
    """Goes uphill."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group.params], lr=self.lr, maximize=True)


@breaks("optimizers", "leaves_undecayed_groups_alone")
@dataclass(frozen=True)
class Decaying(Descent):
    """Decays everything."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for group in groups for p in group.params], lr=self.lr, weight_decay=0.1)


@breaks("optimizers", "keeps_missing_weights_missing")
@dataclass(frozen=True)
class Multiplying(Descent):
    """Decays by multiplication, so that 0 times -inf is NaN."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for g in groups for p in g.params], lr=1.0, weight_decay=1.0)


class _Forgetting(torch.optim.SGD):
    def load_state_dict(self, state_dict: Any) -> None:
        pass


@breaks("optimizers", "continues_bit_for_bit")
@dataclass(frozen=True)
class Amnesic(Descent):
    """Loses its momentum."""

    def build(self, groups: Any) -> torch.optim.Optimizer:
        return _Forgetting([p for group in groups for p in group.params], lr=self.lr, momentum=0.9)


@breaks("optimizers", "schedules_finite_rates")
@dataclass(frozen=True)
class Runaway(Descent):
    """Schedules a rate below zero."""

    def scheduler(self, optimizer: Any, total_steps: int, total_epochs: int) -> Any:
        return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step)}


@dataclass
class HandLoop(Loop):
    """Gradient descent by hand."""

    lr: float = 0.05

    def bind(self, network: nn.Module, groups: Any) -> None:
        self._optimizer = torch.optim.SGD(network.parameters(), lr=self.lr, momentum=0.9)

    def optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer

    def step(self, batch: Any, context: Any) -> dict[str, Tensor]:
        def closure() -> Tensor:
            loss = context.loss(context.forward(batch.input), batch.target)
            context.backward(loss)
            return loss

        return {"loss": context.step(closure)}


@breaks("optimizers", "steps_once_a_batch")
@dataclass
class Idle(HandLoop):
    """Never steps."""

    def step(self, batch: Any, context: Any) -> dict[str, Tensor]:
        return {"loss": context.loss(context.forward(batch.input), batch.target)}


@breaks("optimizers", "changes_the_network")
@dataclass
class Lame(HandLoop):
    """Steps by nothing."""

    lr: float = 0.0


@breaks("optimizers", "resumes_bit_for_bit")
@dataclass
class Hiding(HandLoop):
    """Keeps state that no checkpoint sees."""

    def bind(self, network: nn.Module, groups: Any) -> None:
        super().bind(network, groups)
        self._seen = 0

    def step(self, batch: Any, context: Any) -> dict[str, Tensor]:
        self._seen += 1
        self._optimizer.param_groups[0]["lr"] = 0.05 / self._seen
        return super().step(batch, context)


@dataclass
class WholePass(HandLoop):
    """Descends once a pass, on samples that it owns, through networks without max-plus layers."""

    steps_once_a_pass = True
    owns_samples = True

    def bind(self, network: nn.Module, groups: Any) -> None:
        if any(group.role == "morph" for group in groups):
            raise NotSupportedError("max-plus layers")
        super().bind(network, groups)
        self._batches: list[Any] = []

    def step(self, batch: Any, context: Any) -> dict[str, Tensor]:
        assert batch.indices is not None
        self._batches.append(batch)
        if not context.ends_pass:
            return {}
        batches, self._batches = self._batches, []
        whole = type(batch)(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
        return super().step(whole, context)


@breaks("optimizers", "steps_once_a_batch")
@dataclass
class Hasty(WholePass):
    """Says that it steps once a pass, and steps in each batch."""

    def step(self, batch: Any, context: Any) -> dict[str, Tensor]:
        return HandLoop.step(self, batch, context)


# ------------------------------------------------------------------------------------------------ activations
class Identity(nn.Module):
    """The identity."""

    api_version = "1.0"

    def __init__(self, channels: int | None = None, channel_dim: int = 1) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype)


@breaks("activations", "keeps_the_shape")
class Flattening(Identity):
    """Flattens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1)


@breaks("activations", "keeps_the_dtype")
class Promoting(Identity):
    """Computes and answers in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@breaks("activations", "acts_elementwise")
class Centring(Identity):
    """Subtracts the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - (x.mean() if x.numel() else 0)


@breaks("activations", "channels_start_alike")
class Ranked(Identity):
    """Starts with another slope where there are channels."""

    def __init__(self, channels: int | None = None, channel_dim: int = 1) -> None:
        super().__init__()
        self.scale.data.fill_(channels or 1)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


@breaks("activations", "has_the_right_gradient")
class Lying(Identity):
    """Doubles its gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return _WrongGradient.apply(super().forward(x))  # type: ignore[no-any-return]


@breaks("activations", "passes_nan_on")
class Hushing(Identity):
    """Turns NaN into zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).nan_to_num(0)


@breaks("activations", "state_comes_back")
class Unsaved(Identity):
    """Draws a slope that is no parameter."""

    def __init__(self, channels: int | None = None, channel_dim: int = 1) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(float(next(_serial))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.slope.to(x.dtype)


# ----------------------------------------------------------------------------------------------- regularizers
@dataclass(frozen=True)
class Squares(Regularizer):
    """Sum of squares."""

    def term(self, module: nn.Module, context: Any) -> Tensor:
        return torch.stack([p[p > -math.inf].square().sum() for p in module.parameters()]).sum()


@breaks("regularizers", "gives_a_finite_scalar")
@dataclass(frozen=True)
class Vector(Squares):
    """One number for each sample."""

    def term(self, module: nn.Module, context: Any) -> Tensor:
        return context.output.square().sum(1)


@breaks("regularizers", "can_be_differentiated")
@dataclass(frozen=True)
class Detached(Squares):
    """A number without a gradient."""

    def term(self, module: nn.Module, context: Any) -> Tensor:
        return super().term(module, context).detach()


@breaks("regularizers", "changes_nothing")
@dataclass(frozen=True)
class Meddling(Squares):
    """Shrinks the weights on the way."""

    def term(self, module: nn.Module, context: Any) -> Tensor:
        with torch.no_grad():
            next(module.parameters()).mul_(0.9)
        return super().term(module, context)


@breaks("regularizers", "steps_by_the_learning_rate")
@dataclass(frozen=True)
class Unasked(Squares):
    """Shrinks all parameters by the same factor after each step."""

    def prox_(self, module: nn.Module, steps: Any) -> None:
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(0.9)


@breaks("regularizers", "is_deterministic")
@dataclass(frozen=True)
class Seeding(Squares):
    """Draws from a state of its own."""

    def term(self, module: nn.Module, context: Any) -> Tensor:
        return super().term(module, context) * (2 + next(_serial))


# ------------------------------------------------------------------------------------------------ diagnostics
class Watching(pl.Callback):
    """Logs a constant."""

    api_version = "1.0"
    reads: frozenset[str] = frozenset()
    key = "diagnostics/mutant/one"

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        module.log(self.key, 1.0)


@breaks("diagnostics", "changes_no_bit_of_training")
class Drawing(Watching):
    """Draws random numbers."""

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        module.log(self.key, torch.rand(()))


@breaks("diagnostics", "logs_under_its_own_name")
class Misplaced(Watching):
    """Logs under another name."""

    key = "loss/one"


@breaks("diagnostics", "logs_under_its_own_name")
class Silent(Watching):
    """Logs nothing."""

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        pass


@breaks("diagnostics", "works_twice")
class OneWay(Watching):
    """Refuses a second training."""

    used = False

    def on_train_start(self, trainer: Any, module: Any) -> None:
        assert not self.used, "used before"
        self.used = True


# ------------------------------------------------------------------------------------------------------ tests
SOUND = [
    ("derivatives", Whole),
    ("heuristics", Keep),
    ("initializers", Flat),
    ("initializers", Lowest),
    ("optimizers", Descent),
    ("optimizers", HandLoop),
    ("optimizers", WholePass),
    ("activations", Identity),
    ("regularizers", Squares),
    ("diagnostics", Watching),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


@pytest.mark.parametrize(("kind", "component"), SOUND, ids=lambda value: getattr(value, "__name__", value))
def test_a_sound_component_passes(kind: str, component: Any, stack: ExitStack) -> None:
    stack.enter_context(registry.registered(kind, "mutant", component))
    report = check_component(kind, "mutant")
    assert set(report.passed) | set(report.skipped) == set(checks(kind))


@pytest.mark.parametrize(("kind", "check", "mutant"), MUTANTS, ids=[f"{m[1]}-{m[2].__name__}" for m in MUTANTS])
def test_a_check_refuses_what_breaks_it(kind: str, check: str, mutant: Any, stack: ExitStack) -> None:
    stack.enter_context(registry.registered(kind, "mutant", mutant))
    others = {name: "tested elsewhere" for name in checks(kind) if name != check}
    with pytest.raises(AssertionError, match=rf"1 failed\n  {check}\n    expected: .*\n    seen: .*"):
        check_component(kind, "mutant", skip=others)


def test_each_check_that_a_kind_has_of_its_own_has_a_mutant() -> None:
    shared = {"is_documented", "is_a_plain_value", "is_a_plain_value_unless_a_loop", "is_saved_by_name"}
    have = {(kind, check) for kind, check, _ in MUTANTS}
    for kind in {kind for kind, _ in SOUND}:
        assert set(checks(kind)) - shared <= {check for k, check in have if k == kind}, kind
