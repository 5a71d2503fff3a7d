from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from morphlightning import registry
from morphlightning.cli import plugins as plugins_command
from morphlightning.interfaces import DerivativeRule


@dataclass(frozen=True)
class Tilted(DerivativeRule):
    """Prefers [bold] candidates.

    The second paragraph.
    """

    tilt: float = 0.5
    name_of_it: str = "x"

    def route(self, chunk: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        return u[chunk.owner], u[chunk.owner]


@dataclass(frozen=True)
class Bare(Tilted):
    pass


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        plugins_command.add_arguments(parser)
        code = plugins_command.run(parser.parse_args(words))
        return code, *capsys.readouterr()

    return call


def test_the_list_has_name_kind_distribution_version_state_and_summary(command: Command) -> None:
    code, out, _ = command()
    assert code == 0
    line = next(line for line in out.splitlines() if " bouligand " in line)
    for word in (
        "derivatives",
        "morphlightning",
        registry.describe("derivatives", "bouligand").version,
        "ok",
        "To lower",
    ):
        assert word in line
    assert "count_normalized" in out


def test_the_list_of_one_kind(command: Command) -> None:
    _, out, _ = command("--kind", "heuristics")
    assert "count_normalized" in out
    assert "bouligand" not in out


def test_the_list_as_json_is_plain_and_complete(command: Command, morph_register: Any) -> None:
    morph_register("derivatives", "tilted", Tilted)
    code, out, _ = command("--json")
    assert code == 0
    found = {entry["qualified"]: entry for entry in json.loads(out) if entry["kind"] == "derivatives"}
    assert found["local:tilted"]["summary"] == "Prefers [bold] candidates."
    assert found["morphlightning:first"]["state"] == "ok"
    assert {"kind", "name", "distribution", "version", "state", "summary", "error", "api_version"} <= set(
        found["local:tilted"]
    )


def test_faults_are_listed_below_the_table(command: Command, morph_register: Any) -> None:
    morph_register("derivatives", "first", Tilted)
    code, out, _ = command("--kind", "derivatives")
    assert code == 0
    assert "ambiguous: derivatives: the name 'first' is offered by 2 distributions" in out


def test_show_has_parameters_and_docstring(command: Command, morph_register: Any) -> None:
    morph_register("derivatives", "tilted", Tilted)
    code, out, _ = command("show", "tilted")
    assert code == 0
    assert "tilted  derivatives, local" in out
    assert "Prefers [bold] candidates." in out
    assert "The second paragraph." in out
    assert [line.split() for line in out.splitlines() if "float" in line] == [["tilt", "float", "0.5"]]
    assert "'x'" in out


def test_show_gives_every_kind_that_has_the_name_or_the_one_asked_for(command: Command) -> None:
    _, out, _ = command("show", "uniform")
    assert "uniform  derivatives" in out
    assert "uniform  initializers" in out
    for words in (("--kind", "initializers", "show", "uniform"), ("show", "uniform", "--kind", "initializers")):
        _, out, _ = command(*words)
        assert "uniform  derivatives" not in out
        assert "uniform  initializers" in out


def test_show_as_json(command: Command, morph_register: Any) -> None:
    morph_register("derivatives", "bare", Bare)
    _, out, _ = command("show", "bare", "--json")
    (entry,) = json.loads(out)
    assert entry["parameters"][0] == {"name": "tilt", "annotation": "float", "default": "0.5"}
    assert entry["doc"] == ""


def test_an_unknown_name_is_an_error_with_near_misses(command: Command) -> None:
    code, out, err = command("show", "boulligand")
    assert (code, out) == (1, "")
    assert "did you mean 'bouligand'" in err
    code, _, err = command("show", "zzzzzz")
    assert code == 1
    assert "no kind has a component 'zzzzzz'" in err


def test_a_component_that_cannot_be_loaded_is_shown_with_its_error(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphlightning.interfaces.API_VERSION", "9.0")
    registry.refresh()
    code, out, _ = command("show", "bouligand")
    registry.refresh()
    assert code == 0
    assert "incompatible" in out
    assert "upgrade the plugin" in out


def test_an_unknown_kind_is_refused_by_the_parser(command: Command) -> None:
    with pytest.raises(SystemExit):
        command("--kind", "rules")
