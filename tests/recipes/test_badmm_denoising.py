"""The experiment measures what it says, tunes until the best lies inside the grid, and writes what it found."""

import csv
import importlib
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from morphlightning.errors import ConfigError, DataError

FOLDER = Path(__file__).parents[2] / "recipes" / "badmm_denoising"
PIXELS, HIDDEN, ITERATIONS = 12, 5, 7


@pytest.fixture
def module(monkeypatch):
    """Imports modules of the recipe as it does itself, and forgets them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def samples(module):
    """Noisy and clean vectors to train on, and others."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.rand(count, PIXELS, generator=generator) for count in (30, 20)]
    kind = module("images").Samples
    return [kind(y + 0.3 * torch.randn(y.shape, generator=generator), y) for y in parts]


def recipe(*arguments):
    return subprocess.run([sys.executable, FOLDER, *map(str, arguments)], capture_output=True, text=True)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def measured(module, way, samples, checkpoints=(0, 3, 5)):
    harness = module("harness")
    network = harness.autoencoder(PIXELS, HIDDEN, 1)
    return harness.measure(way, network, *samples, ITERATIONS, checkpoints)


def decibels(mse):
    return -10 * math.log10(mse)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_numbers_are_those_of_a_loop_written_by_hand(module, samples, schedule):
    train, others = samples
    way = module("ways").Way.of("adam", lr=0.01, weight_decay=0.02, schedule=schedule)
    torch.manual_seed(1)
    first, second = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, PIXELS)
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], 0.01, weight_decay=0.02)

    def error(part):
        return (second(first(part.noisy).relu()) - part.clean).pow(2).mean()

    expected = []
    for k in range(ITERATIONS + 1):
        if k in (0, 3, 5, ITERATIONS):
            expected.append((k, error(train).item(), decibels(error(others).item())))
        fall = (1 + math.cos(math.pi * k / ITERATIONS)) / 2
        optimizer.param_groups[0]["lr"] = 0.01 * (fall if schedule == "cosine" else 1)
        optimizer.zero_grad()
        error(train).backward()
        optimizer.step()
    points = measured(module, way, samples).points
    found = [(point.iteration, point.train_mse, point.psnr) for point in points]
    assert found == [pytest.approx(numbers, rel=1e-5) for numbers in expected]
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)


def test_centred_runs_train_on_differences_to_the_means_and_add_them_again(module, samples):
    train, others = samples
    way = module("ways").Way.of("sgd", centred=True, lr=0.5, weight_decay=0.0, schedule="constant")
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    x, y = train.noisy - train.noisy.mean(0), train.clean - train.clean.mean(0)
    for _ in range(ITERATIONS):
        network.zero_grad()
        (network(x) - y).pow(2).mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.5 * parameter.grad
    made = network(others.noisy - train.noisy.mean(0)) + train.clean.mean(0)
    trace = measured(module, way, samples)
    assert trace.last.psnr == pytest.approx(decibels((made - others.clean).pow(2).mean().item()), rel=1e-5)
    assert trace.last.train_mse == pytest.approx((network(x) - y).pow(2).mean().item(), rel=1e-5)


def test_pictures_are_what_the_network_makes_of_the_noisy_images(module, samples):
    harness, (train, others) = module("harness"), samples
    way = module("ways").Way.of("lbfgs", centred=True, weight_decay=1e-4)
    network = harness.autoencoder(PIXELS, HIDDEN, 1)
    trace = harness.measure(way, network, train, others, 3, (), shown=[4, 9])
    expected = network(others.noisy[[4, 9]] - train.noisy.mean(0)) + train.clean.mean(0)
    torch.testing.assert_close(trace.pictures[3], expected)


def test_a_run_that_diverges_ends_and_loses(module, samples):
    ways, grids = module("ways"), module("grids")
    way = ways.Way.of("sgd", lr=1e30, weight_decay=0.0, schedule="constant")
    last = measured(module, way, samples).last
    assert (last.iteration, last.train_mse, last.psnr) == (3, math.inf, -math.inf)
    tried = {way: grids.Score(last.train_mse, last.psnr, 0.0), way.but(lr=1.0): grids.Score(0.1, 10.0, 0.0)}
    assert grids.best(tried, ways.TRAIN) == grids.best(tried, ways.VALIDATION) == way.but(lr=1.0)


def test_lbfgs_is_that_of_torch_with_fewer_evaluations(module, samples):
    methods, harness = module("methods"), module("harness")
    (x, y), _ = samples
    networks = [harness.autoencoder(PIXELS, HIDDEN, 1).double() for _ in range(2)]
    x, y = x.double(), y.double()
    ours = methods.LineSearches(networks[0], x, y, 1e-3)
    theirs = torch.optim.LBFGS(networks[1].parameters(), 1, 1, 25, 0, 0, 20, "strong_wolfe")
    calls = {"ours": 0, "theirs": 0}
    networks[0].register_forward_hook(lambda *_: calls.update(ours=calls["ours"] + 1))

    def evaluate():
        calls["theirs"] += 1
        theirs.zero_grad()
        decay = sum(parameter.pow(2).sum() for parameter in networks[1].parameters())
        loss = (networks[1](x) - y).pow(2).mean() + 0.5e-3 * decay
        loss.backward()
        return loss

    for _ in range(20):
        ours.iterate()
        theirs.step(evaluate)
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert calls["ours"] <= calls["theirs"] - 15


@pytest.mark.parametrize(("method", "options"), [("badmm", {"order": "XZWM"}), ("mm", {})])
def test_lifted_methods_are_those_of_the_package(module, samples, method, options):
    from morphlightning import bregman

    way = module("ways").Way.of(method, mu=3.0, tau_x=1.9, ridge=2.0, **options)
    (x, y), _ = samples
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    kind = bregman.Badmm if method == "badmm" else bregman.MajorizeMinimize
    trainer = kind(
        bregman.Chain(network), bregman.SquaredError(), mu=3.0, ridge=(2.0, 1.0), tau_x=1.9, **options
    )  # fmt: skip
    state = trainer.start(x, y)
    for _ in range(ITERATIONS):
        trainer.iterate(state, x, y)
    trace = measured(module, way, samples)
    assert trace.last.train_mse == pytest.approx((network(x) - y).pow(2).mean().item(), rel=1e-4)
    assert trace.last.train_mse < trace.points[0].train_mse / 2


def family(module, *axes, criteria=None):
    ways = module("ways")
    both = (ways.TRAIN, ways.VALIDATION)
    return ways.Family("F", ways.Way.of("sgd"), tuple(ways.Axis(*axis) for axis in axes), criteria or both)


def bowl(module, **optimum):
    """Scores that fall off with the distance to an optimum in octaves."""

    def score(way):
        distance = sum(math.log2(way[name] / value) ** 2 for name, value in optimum.items())
        return module("grids").Score(distance, -distance, 0.0)

    return score


def test_a_grid_grows_until_the_best_lies_inside(module):
    grids = module("grids")
    values = tuple(2.0**k for k in range(-10, 11))
    both = family(module, ("a", values, (1.0, 2.0)), ("b", values, (1.0,)))
    tried = grids.search(both, bowl(module, a=64.0, b=2.0**-5))
    (choice,) = grids.choose(both, tried)
    assert dict(choice.way.settings) == {"a": 64.0, "b": 2.0**-5}
    assert choice.edges == ()
    for name in ("a", "b"):
        for factor in (0.5, 2.0):
            assert choice.way.but(**{name: factor * choice.way[name]}) in tried
    assert len(tried) < len(values) ** 2 / 4


def test_a_best_at_the_end_of_what_may_be_tried_is_said_to_be_at_the_edge(module):
    grids = module("grids")
    edged = family(module, ("a", (1.0, 2.0, 4.0), (2.0,)))
    (choice,) = grids.choose(edged, grids.search(edged, bowl(module, a=100.0)))
    assert choice.way["a"] == 4.0
    assert choice.edges == ("a",)


def test_a_best_whose_neighbours_are_not_there_is_said_to_be_at_the_edge(module):
    grids = module("grids")
    fixed = family(module, ("a", (1.0, 2.0, 4.0, 8.0), (2.0, 4.0)))
    score = bowl(module, a=4.0)
    tried = {way: score(way) for way in fixed.start()}
    (choice,) = grids.choose(fixed, tried)
    assert choice.edges == ("a",)
    assert grids.choose(fixed, grids.search(fixed, score))[0].edges == ()


def test_zero_is_no_edge_and_choices_have_none(module):
    grids, score = module("grids"), module("grids").Score
    either = family(module, ("wd", (0.0, 1.0, 2.0), (1.0,)), ("s", ("constant", "cosine", "step"), ("constant",)))
    points = grids.search(either, lambda way: score(way["wd"] + (way["s"] != "step"), 0.0, 0.0))
    train = grids.choose(either, points)[0]
    assert dict(train.way.settings) == {"wd": 0.0, "s": "step"}
    assert train.edges == ()


def test_criteria_that_disagree_give_two_winners(module):
    grids = module("grids")
    both = family(module, ("a", (0.5, 1.0, 2.0, 4.0, 8.0), (1.0,)))
    tried = grids.search(both, lambda way: grids.Score(abs(way["a"] - 1), -abs(way["a"] - 4), 0.0))
    by_train, by_psnr = grids.choose(both, tried)
    assert (by_train.way["a"], by_psnr.way["a"]) == (1.0, 4.0)
    assert (by_train.name, by_psnr.name) == ("F (best train MSE)", "F (best validation PSNR)")


def test_grids_are_read_as_they_were_written(module, tmp_path):
    grids, tables = module("grids"), module("tables")
    both = family(module, ("a", (0.1, 0.2, 0.4), (0.2,)), ("s", ("constant", "cosine"), ("constant",)))
    tried = grids.search(both, lambda way: grids.Score(way["a"] / 3, 1 / way["a"], 0.1))
    lines = grids.rows(0.3, both, tried, grids.choose(both, tried))
    tables.write(tmp_path / "grid.csv", [line | {"data": "d", "iterations": 9} for line in lines])
    assert grids.read(tmp_path / "grid.csv", "d", 9) == {(0.3, way): score for way, score in tried.items()}
    assert grids.read(tmp_path / "grid.csv", "d", 10) == grids.read(tmp_path / "grid.csv", "e", 9) == {}


def test_what_an_earlier_run_scored_is_not_run_again(module):
    ways, grids, images = module("ways"), module("grids"), module("images").Images.digits()
    known = {way: grids.Score(abs(way["ridge"] - 30), -abs(way["ridge"] - 30), 0.0) for way in ways.lifted()[1].start()}
    scores = {(0.2, way): score for way, score in known.items()}
    study = module("study").Study(images, "digits", 3, [ways.lifted()[1]], module("rich.console").Console(), scores)
    written = []
    (choice,) = study.grid(0.2, written.extend)
    assert choice.way["ridge"] == 30
    assert {line["train_mse"] for line in written} == {score.train_mse for score in known.values()}


def test_conditions_compare_seed_by_seed(module):
    acceptance, harness, grids = module("acceptance"), module("harness"), module("grids")
    ways, study = module("ways"), module("study")

    def row(name, *runs):
        choice = grids.Choice(name, ways.Way.of("adam"), (ways.TRAIN, ways.VALIDATION), (), True)
        traces = [harness.Trace([harness.Point(*point) for point in run]) for run in runs]
        return study.Row(choice, tuple(traces))

    slow = [(0, 1.0, 1.0, 0.0), (50, 0.5, 5.0, 5.0), (100, 0.2, 9.0, 10.0)]
    fast = [(0, 1.0, 1.0, 0.0), (50, 0.1, 9.5, 2.0), (100, 0.1, 8.0, 4.0)]
    rows = [row("Adam + wd", slow, fast), row(ways.RECOMMENDED, fast, slow)]
    mse, psnr, seconds = acceptance.conditions(rows, 100)
    assert (mse.measured, mse.held) == ((0.5, 5.0), 1)
    assert psnr.measured == (0.5, -3.0)
    assert seconds.measured == (0.2, 5.0)  # the second: from 8.0 dB on, 10 s against 2 s
    assert [condition.holds for condition in (mse, psnr, seconds)] == [False] * 3
    tuned = [row("Adam + wd", slow), row(ways.TUNED, fast)]
    assert [condition.holds for condition in acceptance.conditions(tuned, 100)] == [True] * 3
    (better,) = acceptance.conditions([row("SGD", slow), row(ways.LITERAL, fast)], 100)
    assert (better.measured, better.holds) == ((0.5,), True)


def test_seeds_have_images_of_their_own_and_the_test_parts_are_apart(module):
    images = module("images").Images.digits()
    first, second = images.task(0.1, 0), images.task(0.1, 1)
    assert torch.equal(first.train.clean, images.train[:100])
    assert torch.equal(second.train.clean, images.train[100:200])
    assert torch.equal(first.validation.clean, images.test[:100])
    assert torch.equal(first.held_out.clean, images.test[100:300])
    noise = first.train.noisy - first.train.clean
    assert noise.std().item() == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(images.task(0.5, 0).train.noisy - first.train.clean, 5 * noise, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="below 14"):
        images.task(0.1, 14)


def test_missing_files_are_named(module, monkeypatch, tmp_path):
    images = module("images")
    monkeypatch.setattr(images, "MNIST", partial(images.MNIST, download=False))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*Put the files there"):
        images.Images.mnist(str(tmp_path))


def test_quick_run_writes_tables_and_figures(tmp_path):
    some = "adam", "lbfgs", "badmm", "mm"
    done = recipe("--quick", "--iterations", 4, "--seeds", 0, 1, "--methods", *some, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    points, curves = table(folder / "grid.csv"), table(folder / "curves.csv")
    summary, acceptance = table(folder / "summary.csv"), table(folder / "acceptance.csv")
    families = {point["family"] for point in points}
    assert len(families) == 6 + 12
    assert all(sum(bool(p["best"]) for p in points if p["family"] == name) in (1, 2) for name in families)
    assert {line["method"] for line in curves} == {line["method"] for line in summary}
    assert len(curves) == 2 * 5 * len(summary)  # seeds, iterations 0 to 4
    assert {line["number"] for line in acceptance} >= {"train MSE, ratio", "PSNR, dB above", "CPU time, ratio"}
    assert len(table(folder / "cost.csv")) == 7 * 3
    for figure in ("curves_0.3.png", "pictures_0.3.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    assert "Conditions at noise 0.3" in (folder / "report.txt").read_text()
    assert "commit: " in (folder / "facts.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(("--only", "nonsense"), "pictures"), (("--seeds", "-1"), ">= 0")],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(arguments, complaint, tmp_path):
    done = recipe(*arguments, "--results", tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert not any(tmp_path.iterdir())
