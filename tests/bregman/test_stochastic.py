"""The lifted objective by mini-batches against sums taken anew, plain implementations and the full method."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from morphlightning import bregman as B
from morphlightning.bregman.method import Method, Samples
from morphlightning.errors import ConfigError

DOUBLE = torch.float64
N = 30
RIDGE = (2.0, 0.5)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)).double()


def convolutions() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, 6, generator=generator, dtype=DOUBLE)
    return x, 2 * torch.randn(N, 3, generator=generator, dtype=DOUBLE)


def weights(method: Method) -> list[Tensor]:
    return [layer.affine.weights() for layer in method.chain.layers]


def batches(epochs: int, seed: int = 0, size: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [part for _ in range(epochs) for part in torch.randperm(N, generator=generator).split(size)]


class Kept:
    """Samples by index, as a loop keeps them."""

    def __init__(self) -> None:
        self.rows: Samples = {}
        self.known = torch.zeros(N, dtype=torch.bool)

    def visit(self, method: Method, index: Tensor, x: Tensor, y: Tensor) -> None:
        fresh = method.start(x[index], y[index])
        for name, value in fresh.items():
            room = self.rows.setdefault(name, value.new_zeros(N, *value.shape[1:]))
            fresh[name] = torch.where(self.known[index].view(-1, *[1] * (value.ndim - 1)), room[index], value)
        method.iterate(fresh, x[index], y[index])
        for name, value in fresh.items():
            self.rows[name][index] = value
        self.known[index] = True


def incremental(make: Callable[[], nn.Sequential] = network, **settings: Any) -> B.Incremental:
    return B.Incremental(B.Chain(make()), B.SquaredError(), N, **{"ridge": RIDGE, "mu": 0.8, **settings})


def anew(method: B.Incremental, kept: Kept, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Gram matrices and moments over all samples seen."""
    seen, found = kept.known, []
    for i, layer in enumerate(method.chain.layers):
        inputs = (x if i == 0 else kept.rows[f"x{i}"])[seen]
        targets = kept.rows.get(f"t{i + 1}", data()[1])[seen]  # those of a quadratic loss are the network's own
        found.append((layer.affine.gram(inputs), layer.affine.moment(inputs, targets)))
    return found


# --------------------------------------------------------------------------------------------------------- incremental
@pytest.mark.parametrize("make", [network, convolutions])
@torch.no_grad()
def test_sums_are_those_over_all_samples_seen(make: Callable[[], nn.Sequential]):
    (x, y), method, kept = data(), incremental(make), Kept()
    for k, index in enumerate(batches(epochs=10)):
        kept.visit(method, index, x, y)
        assert method.seen == int(kept.known.sum())
        for total, (gram, moment) in zip(method._totals, anew(method, kept, x), strict=True):
            torch.testing.assert_close(total.gram, gram, rtol=1e-10, atol=1e-11)
            torch.testing.assert_close(total.moment, moment, rtol=1e-10, atol=1e-11)
        for i, (v, (gram, moment)) in enumerate(zip(weights(method), anew(method, kept, x), strict=True)):
            c = 1.0 if i == len(method.chain) - 1 else method.mu
            share = method.seen / N * method.ridge[i]
            torch.testing.assert_close(c * v @ gram + share * v, c * moment, rtol=1e-8, atol=1e-9)
        assert (method.input_gram is not None) == (k >= 4)


def test_targets_are_those_of_the_majorizer():
    (x, y), method, kept = data(), incremental(), Kept()
    for index in batches(epochs=1):
        before = weights(method)
        kept.visit(method, index, x, y)
        a = torch.cat([x[index], torch.ones(len(index), 1, dtype=DOUBLE)], 1)
        u = a @ before[0][0].mT
        expected = u - (u.relu() - kept.rows["x1"][index])
        torch.testing.assert_close(kept.rows["t1"][index], expected, rtol=1e-12, atol=1e-12)
    assert "t3" not in kept.rows  # those of squared error are the network's own


@torch.no_grad()
def test_one_batch_of_all_samples_is_the_full_method():
    (x, y), method = data(), incremental(tau_x=1.6)
    full = B.MajorizeMinimize(B.Chain(network()), B.SquaredError(), ridge=RIDGE, mu=0.8, tau_x=1.6)
    samples, of_full = method.start(x, y), full.start(x, y)
    for _ in range(20):
        method.iterate(samples, x, y)
        full.iterate(of_full, x, y)
        for a, b in zip(weights(method), weights(full), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_the_order_of_batches_changes_no_sum_of_the_first_pass():
    """The first layer's Gram matrix, and the number of samples: what does not depend on the weights."""
    x, y = data()
    found = []
    for seed in (0, 1):
        method, kept = incremental(), Kept()
        for index in batches(epochs=1, seed=seed):
            kept.visit(method, index, x, y)
        found.append(method._totals[0].gram)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_the_order_within_a_batch_changes_nothing():
    (x, y), found = data(), []
    for order in (torch.arange(N), torch.randperm(N, generator=torch.Generator().manual_seed(5))):
        method, kept = incremental(), Kept()
        for _ in range(5):
            kept.visit(method, order, x, y)
        found.append(weights(method))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_batches_of_new_and_known_samples_mix():
    (x, y), method, kept = data(), incremental(), Kept()
    for index in (torch.arange(10), torch.arange(5, 20), torch.arange(15, 30), torch.arange(30)):
        kept.visit(method, index, x, y)
        with torch.no_grad():
            for total, (gram, moment) in zip(method._totals, anew(method, kept, x), strict=True):
                torch.testing.assert_close(total.gram, gram, rtol=1e-10, atol=1e-11)
                torch.testing.assert_close(total.moment, moment, rtol=1e-10, atol=1e-11)


def test_incremental_surrogates_never_increase():
    """What least squares minimizes over the stored x and t bounds the objective, and each V-step lowers it."""
    (x, y), method, kept = data(), incremental(), Kept()
    for index in batches(epochs=1):
        kept.visit(method, index, x, y)

    @torch.no_grad()
    def surrogate() -> float:
        total = 0.0
        for i, layer in enumerate(method.chain.layers):
            inputs, c = x if i == 0 else kept.rows[f"x{i}"], 1.0 if i == 2 else method.mu
            total += c / 2 * float((layer.affine(inputs) - kept.rows.get(f"t{i + 1}", y)).square().sum())
            total += method.ridge[i] / 2 * float(layer.affine.weights().square().sum())
        return total

    for index in batches(epochs=2, seed=3):
        kept.visit(method, index, x, y)
        at_solution = surrogate()
        with torch.no_grad():
            for parameter in method.chain.parameters():
                step = 0.01 * torch.randn_like(parameter)
                parameter += step
                assert surrogate() > at_solution
                parameter -= step


def test_the_sums_begin_anew_where_auxiliary_variables_are_lost():
    (x, y), method, kept = data(), incremental(), Kept()
    for index in batches(epochs=2):
        kept.visit(method, index, x, y)
    assert not method.begins_anew(N)
    assert method.seen == N
    assert method.begins_anew(N - 1)
    assert method.seen == 0
    again, kept = incremental(), Kept()
    again.chain.network.load_state_dict(method.chain.network.state_dict())
    other = Kept()
    for index in batches(epochs=2, seed=4):
        kept.visit(method, index, x, y)
        other.visit(again, index, x, y)
        assert method.seen == again.seen == int(kept.known.sum())
        for a, b in zip(weights(method), weights(again), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_other_losses_keep_the_targets_of_the_output():
    x, y = data()
    method, kept = B.Incremental(B.Chain(network()), B.CrossEntropy(), N, ridge=RIDGE, mu=0.8), Kept()
    for index in batches(epochs=4):
        kept.visit(method, index, x, y.softmax(1))
        with torch.no_grad():
            for total, (gram, moment) in zip(method._totals, anew(method, kept, x), strict=True):
                torch.testing.assert_close(total.gram, gram, rtol=1e-10, atol=1e-11)
                torch.testing.assert_close(total.moment, moment, rtol=1e-10, atol=1e-11)


# ------------------------------------------------------------------------------------------- methods without memory
class Plain:
    """One batch by augmented matrices, with x from a forward pass and one sweep of X-steps."""

    def __init__(self, method: Method, **settings: Any) -> None:
        self.method, self.settings = method, settings
        self.sigmas = [layer.activation for layer in method.chain.layers[:-1]]
        self.biased = [layer.affine.has_bias for layer in method.chain.layers]
        self.v = [each[0] for each in weights(method)]
        self.averages = [torch.zeros(v.shape[1], v.shape[1], dtype=DOUBLE) for v in self.v]
        self.k = 0

    def a(self, i: int, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], 1) if self.biased[i] else x

    def slope(self, i: int, u: Tensor, xs: Sequence[Tensor], y: Tensor) -> Tensor:
        return u - y if i == len(self.v) - 1 else 0.8 * (self.sigmas[i](u) - xs[i + 1])

    @torch.no_grad()
    def swept(self, x: Tensor, y: Tensor) -> list[Tensor]:
        xs = [x]
        for i, sigma in enumerate(self.sigmas):
            xs.append(sigma(self.a(i, xs[i]) @ self.v[i].mT))
        for i in reversed(range(1, len(self.v))):
            w = self.v[i][:, : xs[i].shape[1]]
            layer = nn.Linear(w.shape[1], w.shape[0]).double()
            layer.weight.data = w
            norm = float(B.Chain(layer).layers[0].affine.squared_norm(xs[i]))
            inverse = (1.0 if i == len(self.v) - 1 else 0.8) * norm / self.settings["tau_x"]
            slope = self.slope(i, self.a(i, xs[i]) @ self.v[i].mT, xs, y) @ w
            u = self.a(i - 1, xs[i - 1]) @ self.v[i - 1].mT
            d = inverse + 0.8
            xs[i] = self.sigmas[i - 1].prox((inverse * xs[i] + 0.8 * u - slope) / d, 0.8 / d)
        return xs

    def step(self, x: Tensor, y: Tensor) -> None:
        xs, new, s, size = self.swept(x, y), [], self.settings, len(x)
        for i, v in enumerate(self.v):
            a, c, ridge = self.a(i, xs[i]), 1.0 if i == len(self.v) - 1 else 0.8, RIDGE[min(i, 1)]
            slope = self.slope(i, a @ v.mT, xs, y).mT @ a / size + ridge / N * v
            gram, unit = c * a.mT @ a / size, torch.eye(a.shape[1], dtype=DOUBLE)
            if "tau" in s:
                new.append(v - torch.linalg.solve(gram + (ridge / N + 1 / s["tau"]) * unit, slope.mT).mT)
            else:
                self.averages[i] = s["beta"] * self.averages[i] + (1 - s["beta"]) * gram
                left = self.averages[i] / (1 - s["beta"] ** (self.k + 1)) + (ridge / N + s["damping"]) * unit
                rate = s["lr"] / (1 + s["decay"] * self.k)
                new.append(v - rate * torch.linalg.solve(left, slope.mT).mT)
        self.v, self.k = new, self.k + 1


MEMORYLESS = {"tau_x": 1.3, "tau": 0.7}
AVERAGE = {"tau_x": 1.2, "lr": 0.2, "decay": 0.05, "beta": 0.9, "damping": 1e-2}


@pytest.mark.parametrize(("kind", "settings"), [(B.Memoryless, MEMORYLESS), (B.MovingAverage, AVERAGE)])
def test_methods_without_memory_are_those_written_down_plainly(kind: Any, settings: dict[str, float]):
    (x, y), method = data(), kind(B.Chain(network()), B.SquaredError(), N, mu=0.8, ridge=RIDGE, **settings)
    plain = Plain(method, **settings)
    for k, index in enumerate(batches(epochs=4)):
        method.monitored = k % 3 == 0
        method.iterate({}, x[index], y[index])
        plain.step(x[index], y[index])
        for a, b in zip(weights(method), plain.v, strict=True):
            torch.testing.assert_close(a[0], b, rtol=1e-9, atol=1e-10)


def test_the_memoryless_step_is_an_implicit_gradient_step():
    """It minimizes a majorizer of the batch's mean objective, plus 1/(2 tau) ||V - V before||^2."""
    (x, y), method = data(), B.Memoryless(B.Chain(network()), B.SquaredError(), N, mu=0.8, ridge=RIDGE, tau=0.4)
    plain = Plain(method, tau_x=method.tau_x, tau=0.4)
    xs, before = plain.swept(x, y), plain.v
    method.iterate({}, x, y)
    for i, (v, old) in enumerate(zip(weights(method), before, strict=True)):
        a, c = plain.a(i, xs[i]), 1.0 if i == 2 else 0.8
        u, new = a @ old.mT, a @ v[0].mT
        of_majorizer = (plain.slope(i, u, xs, y) + c * (new - u)).mT @ a / N
        slope = of_majorizer + method.ridge[i] / N * v[0] + (v[0] - old) / 0.4
        assert float(slope.abs().max()) < 1e-11


# ------------------------------------------------------------------------------------------------------- all methods
METHODS: dict[str, Callable[[B.Chain], Method]] = {
    "badmm": lambda chain: B.Badmm(chain, B.SquaredError(), ridge=RIDGE),
    "badmm_deferred": lambda chain: B.Badmm(chain, B.SquaredError(), ridge=RIDGE, order="WXZM", x_step="mirror"),
    "full": lambda chain: B.MajorizeMinimize(chain, B.SquaredError(), ridge=RIDGE),
    "incremental": lambda chain: B.Incremental(chain, B.SquaredError(), N, ridge=RIDGE),
    "memoryless": lambda chain: B.Memoryless(chain, B.SquaredError(), N, ridge=RIDGE),
    "average": lambda chain: B.MovingAverage(chain, B.SquaredError(), N, ridge=RIDGE, decay=0.1),
}


def run(method: Method, kept: Kept, parts: Sequence[Tensor]) -> None:
    x, y = data()
    for index in parts:
        kept.visit(method, torch.arange(N) if method.full_batch else index, x, y)


@pytest.mark.parametrize("make", [network, convolutions])
@pytest.mark.parametrize("name", METHODS)
def test_a_restored_method_goes_on_bit_for_bit(name: str, make: Callable[[], nn.Sequential]):
    straight, kept = METHODS[name](B.Chain(make())), Kept()
    run(straight, kept, batches(epochs=2)[:8])  # in the middle of a pass
    saved = io.BytesIO()
    torch.save([straight.state_dict(), kept.__dict__, straight.chain.network.state_dict()], saved)
    snapshot = copy.deepcopy(straight.state_dict())
    run(straight, kept, batches(epochs=2)[8:])

    saved.seek(0)
    state, rows, parameters = torch.load(saved, weights_only=True)
    resumed, kept_again = METHODS[name](B.Chain(make())), Kept()
    kept_again.__dict__.update(rows)
    resumed.chain.network.load_state_dict(parameters)
    resumed.load_state_dict(state)
    run(resumed, kept_again, batches(epochs=2)[8:])
    assert resumed.iteration == straight.iteration == 10
    assert str(snapshot) == str(state)  # training on did not reach into what was saved
    left = [*weights(straight), *kept.rows.values()]
    right = [*weights(resumed), *kept_again.rows.values()]
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_restored_within_an_iteration_goes_on(name: str):
    (x, y), halves = data(), (slice(0, 11), slice(11, N))
    straight, resumed = METHODS[name](B.Chain(network())), METHODS[name](B.Chain(network()))
    samples = [straight.start(x[half], y[half]) for half in halves]
    again = copy.deepcopy(samples)
    straight.piece(samples[0], x[halves[0]], y[halves[0]])
    resumed.load_partial_sums(straight.partial_sums())
    straight.piece(samples[1], x[halves[1]], y[halves[1]])
    resumed.piece(again[1], x[halves[1]], y[halves[1]])
    straight.update()
    resumed.update()
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_sums_over_processes_are_those_over_samples(name: str):
    """Two methods that exchange their sums, one of them with a batch of no sample, do what one does."""
    (x, y), halves = data(), (slice(0, N), slice(N, N))
    whole = METHODS[name](B.Chain(network()))
    pair = [METHODS[name](B.Chain(network())) for _ in halves]
    samples = whole.start(x, y)
    shares = [method.start(x[half], y[half]) for method, half in zip(pair, halves, strict=True)]
    for k in range(4):
        whole.monitored = pair[0].monitored = pair[1].monitored = k % 2 == 0
        whole.piece(samples, x, y)
        for method, share, half in zip(pair, shares, halves, strict=True):
            method.piece(share, x[half], y[half])
        left, right = (method.partial_sums() for method in pair)
        assert left.keys() == right.keys()
        summed = {key: left[key] + right[key] for key in left}
        for method in pair:
            method.load_partial_sums(summed)
            method.update()
        whole.update()
        for method in pair:
            for a, b in zip(weights(method), weights(whole), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        for key, figure in whole.figures.items():
            torch.testing.assert_close(pair[1].figures[key], figure, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_batches_in_two_pieces_are_the_whole(name: str):
    (x, y), halves = data(), (slice(0, 11), slice(11, N))
    whole, pieces = METHODS[name](B.Chain(network())), METHODS[name](B.Chain(network()))
    samples, shares = whole.start(x, y), [pieces.start(x[half], y[half]) for half in halves]
    for _ in range(4):
        whole.piece(samples, x, y)
        whole.update()
        for share, half in zip(shares, halves, strict=True):
            pieces.piece(share, x[half], y[half])
        pieces.update()
        for a, b in zip(weights(whole), weights(pieces), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["incremental", "memoryless", "average"])
def test_monitors_change_no_bit(name: str):
    found = []
    for monitored in (True, False):
        method, kept = METHODS[name](B.Chain(network())), Kept()
        method.monitored = monitored
        run(method, kept, batches(epochs=2))
        assert ("loss" in method.figures) == monitored
        assert "objective" not in method.figures
        found.append([*weights(method), *kept.rows.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        *((kind, {"tau_x": 2.0}, "tau_x must lie in") for kind in (B.Incremental, B.Memoryless, B.MovingAverage)),
        *((kind, {"mu": 0.0}, "mu must be > 0") for kind in (B.Incremental, B.Memoryless, B.MovingAverage)),
        *((kind, {"inner_x": 0}, "inner_x must be >= 1") for kind in (B.Incremental, B.Memoryless, B.MovingAverage)),
        *((kind, {"ridge": -1}, "ridge must be >= 0") for kind in (B.Incremental, B.Memoryless, B.MovingAverage)),
        (B.Memoryless, {"tau": 0.0}, "tau must be > 0"),
        (B.MovingAverage, {"lr": 0.0}, "lr must be > 0"),
        (B.MovingAverage, {"damping": 0.0}, "damping must be > 0"),
        (B.MovingAverage, {"decay": -0.1}, "decay must be >= 0"),
        (B.MovingAverage, {"beta": 1.0}, "beta must lie in"),
        (B.MovingAverage, {"beta": -0.1}, "beta must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        kind(B.Chain(network()), B.SquaredError(), N, **settings)


@pytest.mark.parametrize("kind", [B.Incremental, B.Memoryless, B.MovingAverage])
def test_the_number_of_samples_must_be_known(kind: Any):
    (x, y), method = data(), kind(B.Chain(network()), B.SquaredError())
    with pytest.raises(ConfigError, match="size must be > 0"):
        method.iterate(method.start(x, y), x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("make", [network, convolutions])
@pytest.mark.parametrize("name", METHODS)
def test_cuda_computes_what_the_cpu_does(name: str, make: Callable[[], nn.Sequential]):
    found = []
    for device in ("cpu", "cuda"):
        method = METHODS[name](B.Chain(make().to(device)))
        x, y = (each.to(device) for each in data())
        parts = [slice(0, N)] if method.full_batch else [slice(0, 13), slice(13, N)]
        kept = [method.start(x[part], y[part]) for part in parts]
        for _ in range(10):
            for part, samples in zip(parts, kept, strict=True):
                method.iterate(samples, x[part], y[part])
        found.append([each.cpu() for each in weights(method)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
