"""The benchmark writes what it measured, fills documents between their markers, and refuses what it cannot do."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "recipes" / "bench_kernels"


@pytest.fixture
def module(monkeypatch):
    """Imports modules of the benchmark as it does itself, and forgets them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def bench(*arguments):
    command = [sys.executable, FOLDER, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_quick_run_writes_files_and_fills_the_document(tmp_path):
    document = tmp_path / "performance.md"
    places = [
        "<!-- bench:flat -->",
        "stale",
        "<!-- /bench -->",
        "kept",
        "<!-- bench:ties -->",
        "<!-- /bench -->",
        "end",
    ]
    document.write_text("\n".join(places))
    options = ("--quick", "--rounds", 2, "--results", tmp_path / "results", "--table", document)
    done = bench("--groups", "flat", "ties", *options)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    assert sorted(path.name for path in folder.glob("flat.*")) == ["flat.csv", "flat.md", "flat.png"]
    assert sorted(path.name for path in folder.glob("ties.*")) == ["ties.csv", "ties.md", "ties.png"]

    rows = list(csv.DictReader((folder / "flat.csv").read_text().splitlines()))
    assert {row["mode"] for row in rows} == {"forward", "step"}
    ours = [row for row in rows if row["role"] == "ours" and row["mode"] == "forward"]
    assert "eager" in {row["backend"] for row in ours}
    for row in ours:
        assert 0 < float(row["first_quartile"]) <= float(row["milliseconds"]) <= float(row["third_quartile"])
        assert 0 < float(row["limit_fraction"]) < 2
    (pooling,) = (row for row in rows if row["operator"] == "F.max_pool2d" and row["mode"] == "forward")
    assert float(pooling["times_reference"]) == 1
    assert "differs from ours" not in done.stdout

    text = document.read_text()
    assert "stale" not in text
    assert text.index("F.max_pool2d") < text.index("\nkept\n") < text.index("nn.Linear") < text.index("\nend")
    assert text.count("<!-- /bench -->") == 2
    about = (folder / "ties.md").read_text()
    assert torch.__version__ in about
    assert "allocator" in about
    assert (folder / "flat.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_group_is_refused_with_those_that_there_are(tmp_path):
    done = bench("--groups", "dense", "nonsense", "--results", tmp_path)
    assert done.returncode == 2
    groups = ("dense", "argmax", "ties", "soft", "signed", "depthwise", "full", "flat", "spline", "startup")
    for group in ("nonsense", *groups):
        assert group in done.stderr.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_a_document_without_markers_is_refused_before_anything_runs(tmp_path):
    document = tmp_path / "performance.md"
    document.write_text("<!-- bench:dense -->\n<!-- /bench -->\n")
    done = bench("--groups", "dense", "soft", "--table", document, "--results", tmp_path / "results")
    assert done.returncode == 2
    assert "<!-- bench:soft -->" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("fused", [False, True])
def test_the_limit_computes_additions_and_maxima(module, fused):
    loop, _engine = module("peak")._compile(fused)
    _, accumulators = module("peak")._vectors()
    # each accumulator climbs by a half from the floor of 2: after six turns it is 5; they are summed onto the floor
    assert loop(6, 1.0, 0.5, 2.0) == 2 + 5 * accumulators
    assert loop(6, 1.0, -0.5, 2.0) == 2 + 2 * accumulators


def test_splines_of_the_peers_are_ours(module):
    splines, cases = module("splines"), module("cases")
    case = next(splines.spline(cases.Setting("cpu", 1, False, True)))
    same = {c.name.split()[0]: c for c in case.candidates if c.role != "other" and c.backend in ("", "eager")}
    y, *expected = value_and_gradients(same.pop("linear_spline"))
    assert {"gather/scatter_add_", "PWLU"} <= set(same)
    for name, candidate in same.items():
        found, *gradients = value_and_gradients(candidate)
        torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients[0], expected[0], rtol=1e-3, atol=1e-3)
        if name != "PWLU":  # its slopes outside are parameters of their own
            torch.testing.assert_close(gradients[1], expected[1], rtol=1e-3, atol=1e-3)


def test_peers_with_free_knots_and_of_the_slope_are_ours(module):
    splines, cases = module("splines"), module("cases")
    for case in list(splines.spline(cases.Setting("cpu", 1, False, True)))[1:]:
        mine, *others = (c for c in case.candidates if c.role != "other")
        for other in others:
            torch.testing.assert_close(other.run(), mine.run(), rtol=1e-4, atol=1e-4)
            gradients = [torch.autograd.grad(c.run().square().sum(), other.leaves) for c in (other, mine)]
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)


def value_and_gradients(candidate):
    """Output, and the gradients of the input and of the values at the knots."""
    candidate.forget()
    y = candidate.run()
    (y * y).sum().backward()
    x, values, *_ = candidate.leaves
    return y, x.grad.clone(), values.grad.flatten()


def test_results_that_differ_are_noted(module, tmp_path):
    runner, cases = module("runner"), module("cases")
    bench = runner.Bench(cases.Setting("cpu", 1, False, True), 1, [], False, tmp_path, None)
    one, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])
    candidates = [cases.Candidate("ours", lambda: one, role="ours"), cases.Candidate("wrong", lambda: other)]
    case = cases.Case("case", "ours", [*candidates, cases.Candidate("broken", lambda: 1 / 0)])
    assert set(bench.ready(case, "forward")) == {"ours", "wrong"}
    assert [note.split(": ")[0] for note in bench.notes] == ["case, wrong", "case, broken"]
    assert "differs from ours by 0.1" in bench.notes[0]


def test_stolen_samples_are_left_out_where_enough_remain(module):
    of = module("timing").Timing.of
    assert of([(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (90.0, 0.9)]).median == 2
    assert of([(1.0, 0.0), (3.0, 0.0), (90.0, 0.9)]).samples == 3
