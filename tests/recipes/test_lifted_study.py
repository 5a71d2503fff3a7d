"""The study measures what it says; the methods it compares with minimize their blocks; nothing is overwritten."""

import csv
import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize

from morphlightning.bregman import Badmm, Chain, Incremental, MajorizeMinimize, SquaredError
from morphlightning.errors import NonFiniteError, NotSupportedError

FOLDER = Path(__file__).parents[2] / "recipes" / "lifted_study"


@pytest.fixture
def tiny(recipe):
    return recipe("study").Setting(recipe("problems").Images.digits(), (0,), quick=True)


def study(*arguments):
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


# ------------------------------------------------------------------------------------------------------------- parts
PARTS = {
    "deep": ("deep", "Adam"),
    "activations": ("activations", "The lifted objective"),
    "batches": ("batches", "Adam's PSNR"),
    "sensitivity": ("sensitivity", "Diverged within"),
    "classification": ("classification", "test accuracy"),
    "others": ("comparison", "best of the others"),
    "precision": ("precision", "differs from that in float64"),
}


FEWER = {
    "activations": {"ACTIVATIONS": ("relu", "spline, slopes 1 and 1/8")},
    "sensitivity": {"CHANGES": ("z_step", "w_step", "together")},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_writes_runs_a_table_and_what_came_out(part, recipe, tiny, tmp_path, monkeypatch):
    name, words = PARTS[part]
    for table, keys in FEWER.get(part, {}).items():
        kept = {key: getattr(recipe(name), table)[key] for key in keys}
        monkeypatch.setattr(recipe(name), table, kept)
    monkeypatch.setattr(recipe("study"), "climb", lambda axes, start, point: (start, [(start, point(start))]))
    report = recipe("shared.report").Report.begin(tmp_path, threads=1)
    with report.part(part, recipe(name).__doc__):
        recipe(name).run(tiny, report)
    runs = rows(report.folder / f"{part}_runs.csv")
    assert {"iteration", "loss", "score"} <= runs[0].keys()
    ends = {}
    for row in runs:
        ends.setdefault((row["method"], row["settings"], row["seed"]), []).append(float(row["loss"]))
    for (method, *_), losses in ends.items():
        assert losses[-1] < losses[0] or (part == "sensitivity" and method in ("w_step", "together"))  # some diverge
    findings = (report.folder / "findings.md").read_text()
    assert words in findings
    assert "| --: |" in findings
    for figure in report.folder.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert part == "precision" or list(report.folder.glob(f"{part}_*.png"))


def test_a_quick_run_writes_one_folder(tmp_path):
    done = study("--quick", "--only", "precision", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert torch.__version__ in (folder / "facts.txt").read_text()
    assert str(folder) in done.stdout
    assert "too small to judge by" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"), [(("--only", "nonsense"), "sensitivity"), (("--seeds", "-1"), ">= 0")]
)
def test_what_cannot_be_done_is_refused(arguments, complaint, capsys):
    parser = runpy.run_path(str(FOLDER / "__main__.py"))["arguments"]()
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert complaint in capsys.readouterr().err


def test_results_are_not_overwritten(recipe, tmp_path):
    report = recipe("shared.report").Report.begin(tmp_path, threads=1)
    with report.part("part", "About."):
        report.runs([{"a": 1}], "table")
        with pytest.raises(FileExistsError):
            report.runs([{"a": 2}], "table")


def test_where_adam_wins_is_said_and_where_it_does_not(recipe, tmp_path):
    report = recipe("shared.report").Report.begin(tmp_path, threads=1)
    training = recipe("training")

    def runs(loss, score):
        return [training.Run("m", "", 0, [training.Point(0, 9.0, 0.0, 0.0), training.Point(5, loss, score, 1.0)])]

    recipe("classification").conclude({"Adam": runs(0.1, 90.0), "BADMM": runs(0.2, 80.0)}, 5, report)
    recipe("classification").conclude({"Adam": runs(0.2, 80.0), "BADMM": runs(0.1, 90.0)}, 5, report)
    said = (report.folder / "findings.md").read_text()
    assert "Adam wins here: after 5 iterations Adam has a test accuracy of 90.00 %" in said
    assert "also fits the training data better: lowest training cross-entropy 0.1000" in said
    assert "The lifted methods win here" in said
    assert "Adam fits the training data less well" in said


# ---------------------------------------------------------------------------------------------------------- measuring
def test_the_parts_of_a_problem_share_no_image_and_a_seed_draws_the_noise(recipe):
    images = recipe("problems").Images.digits()
    one, two = images.denoising(50, 0), images.denoising(50, 1)
    torch.testing.assert_close(one.train.y, images.train.x[:50])
    torch.testing.assert_close(torch.cat([one.validation.y, one.test.y]), images.test.x[:300])
    assert not torch.equal(one.train.x, two.train.x)
    assert torch.equal(one.train.x, images.denoising(50, 0).train.x)
    assert (one.train.x - one.train.y).std().item() == pytest.approx(0.3, rel=0.05)


def test_means_that_centring_takes_away_are_added_where_it_is_judged(recipe):
    images = recipe("problems").Images.digits()
    problem = images.denoising(50, 0, centred=True)
    nothing = torch.nn.Linear(64, 64)
    torch.nn.init.zeros_(nothing.weight)
    torch.nn.init.zeros_(nothing.bias)
    loss, score = problem.judge(nothing, "test")
    clean = images.train.x[:50]
    assert loss == pytest.approx((clean - clean.mean(0)).square().mean().item(), rel=1e-5)
    mse = (images.test.x[100:300] - clean.mean(0)).square().mean().item()
    assert score == pytest.approx(-10 * math.log10(mse), rel=1e-5)


def test_the_settings_that_others_are_compared_with_are_those_of_badmm(recipe):
    base = {name: value for name, value in recipe("sensitivity").BASE.items() if name != "x_step"}
    chain = Chain(recipe("training").network((6, 5, 4), 0))
    named = Badmm(chain, SquaredError(), **recipe("training").per_layer(base))
    plain = Badmm(chain, SquaredError(), ridge=(100.0, 1.0))
    for name in (*(set(base) - {"order", "ridge_2"}), "before", "after", "mirrors"):
        assert getattr(plain, name) == getattr(named, name), name


def test_what_batches_keep_of_samples_follows_them(recipe, tiny):
    problem = tiny.images.denoising(60, 0, dtype=torch.float64)
    training = recipe("training")
    settings = {"mu": 2.0, "ridge": 3.0, "ridge_2": 0.5}
    nets = [training.network((64, 8, 64), 0).double() for _ in range(2)]
    step = training.lifted_batches(Incremental, 60, **settings)(nets[0], problem, 0)
    method = Incremental(Chain(nets[1]), SquaredError(), 60, mu=2.0, ridge=(3.0, 0.5))
    samples = method.start(*problem.train)
    for _ in range(4):
        step()  # in another order each time
        method.iterate(samples, *problem.train)
    torch.testing.assert_close(nets[0][2].weight, nets[1][2].weight, rtol=1e-8, atol=1e-9)


def test_batches_take_each_sample_once_a_pass(recipe):
    seen = []
    step = recipe("training")._in_batches(lambda part: seen.append(part.tolist()), 10, 4, True, 0)
    step()
    assert [len(part) for part in seen] == [4, 4, 2]
    assert sorted(row for part in seen for row in part) == list(range(10))
    one = recipe("training")._in_batches(lambda part: seen.append(part.tolist()), 10, 4, False, 0)
    one()
    assert len(seen) == 4


def test_a_run_that_fails_has_diverged_and_goes_on_no_more(recipe, tiny):
    training, calls = recipe("training"), []

    def way(network, problem, seed):
        def step():
            calls.append(1)
            if len(calls) == 3:
                raise NonFiniteError("not finite")

        return step

    points = training.measure(way, training.network((64, 64), 0), tiny.images.denoising(20, 0), (2, 5))
    run = training.Run("m", "", 0, points)
    assert len(calls) == 3
    assert math.isnan(run.at(5).loss)
    assert run.diverged(5)
    assert not run.diverged(2)
    table = recipe("report").summary({"m": [run]}, (2, 5))
    assert table[0]["MSE @5"] == "diverged" != table[0]["MSE @2"]


def test_an_increase_of_the_objective_is_found(recipe, tiny, monkeypatch):
    activations, training = recipe("activations"), recipe("training")
    problem = tiny.images.denoising(40, 0, dtype=torch.float64)

    class Spoiled(MajorizeMinimize):
        def update(self):
            super().update()
            if self.iteration == 5:
                self.chain.layers[0].affine.module.weight.data.mul_(1.5)

    falling = activations.largest_increase(training.network((64, 8, 64), 0).double(), problem, 8)
    monkeypatch.setattr(activations, "MajorizeMinimize", Spoiled)
    spoiled = activations.largest_increase(training.network((64, 8, 64), 0).double(), problem, 8)
    assert falling < 0 < spoiled


def test_climbing_ends_at_the_best_point_and_never_at_one_that_failed(recipe):
    study, training = recipe("study"), recipe("training")
    axes = {"a": (1.0, 2.0, 3.0, 4.0), "b": (0.0, 1.0, 2.0)}

    def point(settings):
        score = math.nan if settings["b"] == 2 else -((settings["a"] - 3) ** 2) + settings["b"]
        return training.Point(1, -score, score, 0.0)

    chosen, tried = study.climb(axes, {"a": 1.0, "b": 0.0}, point)
    assert chosen == {"a": 3.0, "b": 1.0}
    assert len(tried) < 12
    assert study.text({"a": 4.0, "b": 0.0}, axes) == "a 4*, b 0"


# ------------------------------------------------------------------------------------------- the methods of others
@pytest.fixture
def others(recipe):
    return recipe("others")


def test_pre_activations_minimize_their_block(others):
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(2, 60, generator=generator, dtype=torch.float64).mul(2)
    grid = torch.linspace(-9, 9, 18001, dtype=torch.float64)[:, None]
    for gamma, rho in ((1.0, 1.0), (0.1, 2.0), (5.0, 0.3)):
        values = gamma * (x - grid.clamp_min(0)) ** 2 + rho * (grid - c) ** 2
        z = others.pre_activation(x, c, gamma, rho)
        found = gamma * (x - z.clamp_min(0)) ** 2 + rho * (z - c) ** 2
        assert (found <= values.min(0).values).all()
        torch.testing.assert_close(found, values.min(0).values, atol=1e-5, rtol=0)


def argmin(function, shape):
    """By BFGS, the gradient by autograd."""

    def both(flat):
        point = torch.tensor(flat, requires_grad=True)
        value = function(point.view(shape))
        value.backward()
        return value.item(), point.grad.numpy()

    found = minimize(both, torch.zeros(shape, dtype=torch.float64).flatten().numpy(), jac=True, tol=1e-12)
    return torch.tensor(found.x).view(shape)


def test_activations_minimize_their_block(others):
    generator = torch.Generator().manual_seed(1)
    t, s, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (4, 5), (3, 6)))
    expected = argmin(
        lambda x: 0.35 * (t - x @ v[:, :-1].T - v[:, -1]).square().sum() + 0.2 * (x - s).square().sum(), (4, 5)
    )
    torch.testing.assert_close(others.activation(t, s, v, 0.4, 0.7), expected, atol=1e-6, rtol=1e-6)


def test_weights_minimize_their_block(others):
    generator = torch.Generator().manual_seed(2)
    a, t, old = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 4), (9, 3), (3, 4)))
    expected = argmin(
        lambda v: 0.35 * (a @ v.T - t).square().sum() + 0.1 * v.square().sum() + 0.15 * (v - old).square().sum(), (3, 4)
    )
    found = others.regression(a.T @ a, t.T @ a, 0.7, 0.2, 0.3, old)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def splitting(recipe, kind, **settings):
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randn(30, size, generator=generator, dtype=torch.float64) for size in (6, 4))
    net = recipe("training").network((6, 8, 5, 4), 0).double()
    return kind(Chain(net), x, y, gamma=0.7, rho=0.4, ridge=(0.5, 0.1), **settings)


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_block_coordinate_descent_never_increases_its_objective(others, recipe, alpha):
    method = splitting(recipe, others.BlockCoordinateDescent, alpha=alpha)
    values = [method.objective()]
    for _ in range(40):
        method.iterate()
        values.append(method.objective())
    steps = torch.stack(values).diff()
    assert (steps <= 1e-12 * values[0]).all()
    assert values[-1] < 0.7 * values[0]


def test_the_output_blocks_of_admm_minimize_theirs_and_the_multiplier_waits(others, recipe):
    method = splitting(recipe, others.PenaltyAdmm, warm=1)
    method.iterate()
    assert not method.m.any()
    mapped = method.mapped(2)
    torch.testing.assert_close(method.z[2] - method.y + 0.4 * (method.z[2] - mapped), torch.zeros_like(mapped))
    method.iterate()
    torch.testing.assert_close(method.m, 0.4 * (method.z[2] - method.mapped(2)))
    before = method.m.clone()
    method.iterate()
    gradient = method.z[2] - method.y + before + 0.4 * (method.z[2] - method.mapped(2))
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_other_activations_are_refused(others, recipe):
    net = recipe("training").network((6, 8, 4), 0, torch.nn.Tanh)
    with pytest.raises(NotSupportedError, match="ReLU"):
        others.PenaltyAdmm(Chain(net), torch.zeros(3, 6), torch.zeros(3, 4), 1.0, 1.0, (1.0,))
