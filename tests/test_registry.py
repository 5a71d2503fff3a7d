from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from morphlightning import interfaces, registry
from morphlightning.errors import (
    ConfigError,
    PluginAmbiguousError,
    PluginApiError,
    PluginContractError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
    PluginParameterError,
    PluginWarning,
    ShapeError,
)
from morphlightning.interfaces import DerivativeRule, Heuristic, Initializer, Loop, Regularizer

RULE = """
    from __future__ import annotations
    from dataclasses import dataclass
    from morphlightning.interfaces import DerivativeRule

    @dataclass(frozen=True)
    class Rule(DerivativeRule):
        \"\"\"A rule for tests.

        More of it.
        \"\"\"
        keep: float = 0.5
        sizes: tuple[int, ...] = ()
        def __post_init__(self):
            if not 0 <= self.keep <= 1:
                raise ValueError(f"keep must lie in [0, 1], got {self.keep}")
        def route(self, chunk, u):
            return u[chunk.owner], u[chunk.owner]
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Lay out a distribution as pip does, in a folder of its own at the end of sys.path."""
    modules = set(sys.modules)

    def make(
        name: str = "acme-morph",
        version: str = "0.3",
        entry_points: str = "[morphlightning.derivatives]\nacme = acme_morph:Rule\n",
        code: str = RULE,
        *,
        folder: str = "site",
        info: str | None = None,
    ) -> Path:
        site = tmp_path / folder
        module = re.sub(r"[-.]", "_", name)
        meta = site / (info or f"{module}-{version}.dist-info")
        meta.mkdir(parents=True)
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (meta / "entry_points.txt").write_bytes(entry_points.encode("utf-8", "surrogateescape"))
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        if str(site) not in sys.path:
            monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        registry.refresh()
        return meta / "entry_points.txt"

    yield make
    monkeypatch.undo()
    for module in set(sys.modules) - modules:
        if module.endswith(("acme_morph", "zeta", "broken_one")):
            del sys.modules[module]
    registry.refresh()


@dataclass(frozen=True)
class Half(DerivativeRule):
    """The winner keeps a share."""

    keep: float = 0.5

    def route(self, chunk: Any, u: Any) -> Any:
        return u[chunk.owner], u[chunk.owner]


@dataclass(frozen=True, slots=True)
class Slotted(Half):
    extra: int = 1


class Curve(nn.Module):
    """A pointwise curve."""

    api_version = "1.0"

    def __init__(self, channels: int | None = None, *, sizes: Any = 3, table: Any = None) -> None:
        super().__init__()
        self.channels, self.sizes = channels, sizes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ------------------------------------------------------------------------------------------------------ finding
def test_importing_the_registry_loads_no_plugin_and_no_lightning() -> None:
    code = (
        "import sys, morphlightning.registry as r; r.names('derivatives');"
        "print([m for m in sys.modules if m.split('.')[0] in ('lightning', 'morphlightning_plugins', 'torchmetrics')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_distribution_is_found_by_name_and_loaded_on_demand(install: Install) -> None:
    install()
    assert "acme" in registry.names("derivatives")
    assert "acme_morph" not in sys.modules
    rule = registry.build("derivatives", {"name": "acme", "keep": 0.25})
    assert rule.keep == 0.25
    assert registry.get("derivatives", "acme-morph:acme") is type(rule)
    assert registry.get("derivatives", "Acme_Morph:acme") is type(rule)


def test_the_built_in_components_are_what_pyproject_says() -> None:
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
    wanted = {
        (group.removeprefix("morphlightning."), name, value)
        for group, entries in declared.items()
        if group.startswith("morphlightning.")
        for name, value in entries.items()
    }
    found = {(k, n, v) for k, n, v, distribution, _ in registry.inventory() if distribution == "morphlightning"}
    assert found == wanted, "reinstall the project: pip install -e ."


def test_every_built_in_component_is_ok() -> None:
    states = {(i.kind, i.name): (i.state, i.error) for i in registry.survey() if i.distribution == "morphlightning"}
    assert len(states) > 10
    assert {key: value for key, value in states.items() if value != ("ok", "")} == {}


def test_built_in_components_have_a_summary_and_the_version_of_the_distribution() -> None:
    from importlib.metadata import version

    for info in registry.survey():
        if info.distribution == "morphlightning":
            assert info.summary.endswith("."), info
            assert info.version == version("morphlightning")
            assert info.api_version == interfaces.API_VERSION


def test_describe_and_survey_say_what_a_component_is(install: Install) -> None:
    install()
    info = registry.describe("derivatives", "acme")
    assert info == registry.PluginInfo(
        "derivatives", "acme", "acme-morph", "0.3", "acme_morph:Rule", "ok", "A rule for tests.", "1.5", ""
    )
    assert info.qualified == "acme-morph:acme"
    assert info in registry.survey()
    assert info in registry.survey("derivatives")
    assert all(i.kind == "heuristics" for i in registry.survey("heuristics"))


def test_unknown_kind_and_name_have_near_misses(install: Install) -> None:
    install()
    with pytest.raises(ConfigError, match="no kind of component 'derivative'; did you mean 'derivatives'"):
        registry.names("derivative")
    with pytest.raises(PluginNotFoundError) as caught:
        registry.build("derivatives", "acne")
    message = str(caught.value)
    assert "'acne'; did you mean 'acme'" in message
    assert "Known: acme," in message
    assert "morphlightning plugins --kind derivatives" in message
    with pytest.raises(PluginNotFoundError, match="There is a 'acme' among the derivatives"):
        registry.get("heuristics", "acme")
    with pytest.raises(PluginNotFoundError, match="did you mean 'acme-morph:acme'"):
        registry.get("derivatives", "acme-morf:acme")


def test_a_name_claimed_twice_is_an_error_unless_qualified(install: Install) -> None:
    install()
    install("zeta", "2.0", "[morphlightning.derivatives]\nacme = zeta:Rule\nbouligand = zeta:Rule\n")
    with pytest.raises(PluginAmbiguousError, match=r"acme-morph:acme \(acme-morph 0.3\), zeta:acme \(zeta 2.0\)"):
        registry.build("derivatives", "acme")
    with pytest.raises(PluginAmbiguousError, match=r"morphlightning:bouligand.*zeta:bouligand"):
        registry.get("derivatives", "bouligand")
    assert registry.get("derivatives", "zeta:acme").__module__ == "zeta"
    assert registry.get("derivatives", "acme-morph:acme").__module__ == "acme_morph"
    listed = registry.names("derivatives")
    assert {"acme-morph:acme", "zeta:acme", "zeta:bouligand", "morphlightning:bouligand"} <= set(listed)
    assert "acme" not in listed
    assert registry.describe("derivatives", "zeta:acme").state == "ambiguous"
    assert "Use a qualified name" in registry.describe("derivatives", "zeta:acme").error


@pytest.mark.parametrize(
    "code", ["import nothing_of_that_name", "raise RuntimeError('boom')", "import sys; sys.exit(3)", ""]
)
def test_a_broken_import_breaks_nothing_but_itself(install: Install, code: str) -> None:
    install()
    install("broken-one", "1.1", "[morphlightning.derivatives]\nsad = broken_one:Rule\n", code)
    with pytest.raises(PluginLoadError) as caught:
        registry.build("derivatives", "sad")
    message = str(caught.value)
    assert "derivatives 'sad' from broken-one 1.1 (broken_one:Rule) failed to import" in message
    assert "pip install -U broken-one" in message
    assert caught.value.__cause__ is not None
    assert registry.describe("derivatives", "sad").state == "broken"
    assert registry.describe("derivatives", "sad").error == message
    assert registry.describe("derivatives", "acme").state == "ok"
    assert {i.name for i in registry.survey("derivatives")} >= {"sad", "acme"}


@pytest.mark.parametrize(
    ("version", "advice"),
    [("1.99", "upgrade morphlightning"), ("2.0", "upgrade morphlightning"), ("0.9", "upgrade the plugin")],
)
def test_other_api_versions_are_refused(install: Install, version: str, advice: str) -> None:
    install(code=textwrap.dedent(RULE) + f"\nRule.api_version = {version!r}\n")
    with pytest.raises(PluginApiError, match=f"plugin API {version}, this morphlightning speaks 1.5: {advice}"):
        registry.build("derivatives", "acme")
    assert registry.describe("derivatives", "acme").state == "incompatible"


def test_an_older_minor_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "API_VERSION", "1.5")
    with registry.registered("derivatives", "half", Half):
        assert registry.build("derivatives", "half") == Half()


def test_an_api_version_that_is_none_is_refused() -> None:
    class Odd(Half):
        api_version = 1  # type: ignore[assignment]

    with (
        pytest.raises(PluginApiError, match=r"declares api_version = 1; expected a string such as '1.5'"),
        registry.registered("derivatives", "odd", Odd),
    ):
        pass


def test_every_fault_of_a_contract_is_listed_at_once(install: Install) -> None:
    install(code="class Rule:\n    support = 'some'\n")
    with pytest.raises(PluginContractError) as caught:
        registry.get("derivatives", "acme")
    message = str(caught.value)
    for fault in (
        "is not a subclass of morphlightning.interfaces.DerivativeRule",
        "has no method route()",
        "is not a dataclass: decorate it with @dataclass(frozen=True)",
        "support = 'some', expected one of 'first', 'active'",
        "acme-morph 0.3 (acme_morph:Rule)",
    ):
        assert fault in message
    assert registry.describe("derivatives", "acme").state == "invalid"


class NoStage(Heuristic):
    pass


@dataclass(frozen=True)
class WrongStage(Heuristic):
    stage = "update"
    needs = frozenset({"colour"})


@dataclass
class Thawed(Initializer):
    def fill(self, spec: Any, generator: Any) -> Any:
        return torch.zeros(spec.shape)


@dataclass(frozen=True)
class FrozenLoopless(Regularizer):
    pass


@dataclass(frozen=True)
class Curious(Initializer):
    data = "pairs"

    def fill(self, spec: Any, generator: Any) -> Any: ...


@dataclass(frozen=True)
class Greedy(Curious):
    data = "all"  # type: ignore[assignment]


class PlainLoop(Loop):
    pass


def half_function() -> None:
    """Not a class."""


@pytest.mark.parametrize(
    ("kind", "component", "faults"),
    [
        ("derivatives", half_function, ["is a function, expected a subclass"]),
        ("heuristics", NoStage, ["declares no stage", "is not a dataclass"]),
        ("heuristics", WrongStage, ["stage 'update' but does not define update()", "needs = frozenset({'colour'})"]),
        ("initializers", Thawed, ["not frozen"]),
        ("initializers", Curious, ["does not define begin()", "define update()", "define finish()", "reduce = {}"]),
        ("initializers", Greedy, ["data = 'all', expected one of 'none', 'inputs', 'pairs'"]),
        ("regularizers", FrozenLoopless, ["does not define term()"]),
        ("optimizers", PlainLoop, ["does not define bind()", "does not define step()", "decorate it with @dataclass"]),
        ("optimizers", Half, ["is not a subclass of morphlightning.interfaces.TorchOptimizer or"]),
        ("activations", nn.ReLU, ["has no api_version"]),
        ("activations", Half, ["not a subclass of torch.nn.Module"]),
        ("activations", 3, ["is a int, expected a class or a function", "has no api_version"]),
        ("diagnostics", half_function, ["has no api_version", "reads = None, expected a frozenset"]),
    ],
)  # fmt: skip
def test_contract_of_each_kind(kind: str, component: Any, faults: list[str]) -> None:
    with pytest.raises(PluginContractError) as caught, registry.registered(kind, "wrong", component):
        pass
    for fault in faults:
        assert fault in str(caught.value)


# ---------------------------------------------------------------------------------------------------- metadata
GOOD = "[morphlightning.derivatives]\nacme = acme_morph:Rule\n"


@pytest.mark.parametrize(
    "damaged",
    [
        "acme = no section header\n",
        "[console_scripts]\na = b:c\na = b:d\n",
        "[console_scripts]\na = b:c\n[console_scripts]\nd = b:c\n",
        "[morphlightning.derivatives]\nodd = zeta:%(Rule)s\n",
        "[console_scripts]\nn\udcff = b:c\n",
    ],
    ids=["no-section", "key-twice", "section-twice", "percent", "not-utf8"],
)
def test_one_damaged_distribution_hides_no_other(install: Install, damaged: str) -> None:
    path = install("zeta", "2.0", damaged)
    install()
    registry.refresh()
    with pytest.warns(PluginWarning) as caught:
        assert "acme" in registry.names("derivatives")
    assert "bouligand" in registry.names("derivatives")
    text = " ".join(str(w.message) for w in caught)
    assert str(path.parent) in text or "zeta 2.0" in text or "%(Rule)s" in text
    assert len([w for w in caught if "cannot be read" in str(w.message)]) == 1


@pytest.mark.parametrize("value", ["acme-morph:Rule", "acme_morph", "acme_morph:"])
def test_an_entry_point_that_cannot_be_read_is_left_out_with_a_warning(install: Install, value: str) -> None:
    install(entry_points=f"{GOOD}odd = {value}\n")
    with pytest.warns(PluginWarning, match="derivatives 'odd' of acme-morph 0.3 is left out"):
        listed = registry.names("derivatives")
    assert "acme" in listed
    assert "odd" not in listed


def test_one_project_seen_twice_counts_once_and_the_first_wins(install: Install) -> None:
    install()
    install(version="0.2", entry_points=f"{GOOD}gone = acme_morph:Gone\n", folder="older")
    assert registry.names("derivatives").count("acme") == 1
    assert "gone" not in registry.names("derivatives")
    assert registry.describe("derivatives", "acme").version == "0.3"


@pytest.mark.parametrize(
    ("info", "version"),
    [("acme-morph-0.3.egg-info", "0.3"), ("acme_morph-0.3-py3.11.egg-info", "0.3"), ("acme_morph.egg-info", "0.3")],
)
def test_names_and_versions_of_egg_info_folders(install: Install, info: str, version: str) -> None:
    path = install(info=info)
    path.with_name("PKG-INFO").write_text(path.with_name("METADATA").read_text())
    registry.refresh()
    found = registry.describe("derivatives", "acme")
    assert (found.distribution, found.version) == ("acme-morph", version)


def test_a_path_object_on_sys_path_does_no_harm(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(sys, "path", [Path("somewhere"), *sys.path])
    registry.refresh()
    assert "acme" in registry.names("derivatives")


def test_the_environment_decides_who_takes_part(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    install("zeta", "2.0", "[morphlightning.derivatives]\nzed = zeta:Rule\n")
    monkeypatch.setenv("MORPHLIGHTNING_PLUGINS", "none")
    assert {"acme", "zed"} & set(registry.names("derivatives")) == set()
    assert "bouligand" in registry.names("derivatives")
    monkeypatch.setenv("MORPHLIGHTNING_PLUGINS", "Acme_Morph, other")
    assert {"acme", "zed", "bouligand"} & set(registry.names("derivatives")) == {"acme", "bouligand"}
    with pytest.raises(PluginNotFoundError, match="switched off by MORPHLIGHTNING_PLUGINS=Acme_Morph, other: zeta:zed"):
        registry.get("derivatives", "zed")


def test_fingerprint_follows_what_is_installed(install: Install) -> None:
    before = registry.fingerprint()
    assert before == registry.fingerprint()
    install()
    assert registry.fingerprint() != before
    assert ("derivatives", "acme", "acme_morph:Rule", "acme-morph", "0.3") in registry.inventory()


# ----------------------------------------------------------------------------------------------------- building
def test_unknown_and_missing_parameters_show_the_signature() -> None:
    @dataclass(frozen=True)
    class Needy(Half):
        scale: float = field(kw_only=True)

    with registry.registered("derivatives", "needy", Needy), pytest.raises(PluginParameterError) as caught:
        registry.build("derivatives", {"name": "needy", "kep": 0.1})
    message = str(caught.value)
    assert "derivatives 'needy' from local" in message
    assert "there is no parameter 'kep'; did you mean 'keep'" in message
    assert "the parameter 'scale' is missing" in message
    assert "Its signature: needy(keep: float = 0.5, scale: float)" in message


def test_a_refused_value_names_component_parameter_and_value(install: Install) -> None:
    install()
    with pytest.raises(ConfigError, match=r"derivatives 'acme' from acme-morph 0.3: keep must lie in \[0, 1\], got 2"):
        registry.build("derivatives", {"name": "acme", "keep": 2})
    with pytest.raises(PluginParameterError, match=r"given: keep='much'.*acme\(keep: float = 0.5"):
        registry.build("derivatives", {"name": "acme", "keep": "much"})


def test_our_own_errors_pass_through_with_a_note() -> None:
    class Picky(Curve):
        def __init__(self, channels: int | None = None) -> None:
            raise ShapeError("channels has to be even")

    with registry.registered("activations", "picky", Picky), pytest.raises(ShapeError) as caught:
        registry.build("activations", "picky", channels=3)
    assert caught.value.__notes__ == ["while building activations 'picky' from local, given channels=3"]


def test_context_goes_where_it_is_taken_and_never_into_the_config() -> None:
    with registry.registered("activations", "curve", Curve):
        curve = registry.build("activations", {"name": "curve", "sizes": (1, 2)}, channels=7, channel_dim=-1)
        assert (curve.channels, curve.sizes) == (7, (1, 2))
        assert registry.config("activations", curve) == {"name": "curve", "sizes": [1, 2]}
        assert registry.build("activations", {"name": "curve", "channels": 2}, channels=7).channels == 2


@pytest.mark.parametrize("spec", [None, 3, True, ["acme"], {"eps": 0.1}, {"name": 3}, {"name": "half", 3: 4}])
def test_specifications_that_are_none(spec: Any) -> None:
    with pytest.raises(ConfigError, match="derivatives: "):
        registry.build("derivatives", spec)


@pytest.mark.parametrize(
    ("kind", "component", "fault"),
    [
        ("derivatives", Half, r"is the class Half, expected an object: Half\(\.\.\.\)"),
        ("derivatives", nn.ReLU(), "is not a subclass of morphlightning.interfaces.DerivativeRule"),
        ("activations", Half(), "is a Half, expected an nn.Module"),
        ("diagnostics", nn.ReLU(), "expected a lightning.pytorch.Callback"),
    ],
)
def test_objects_are_validated(kind: str, component: Any, fault: str) -> None:
    with pytest.raises(PluginContractError, match=fault):
        registry.build(kind, component)


def test_objects_pass_through() -> None:
    rule, act = Half(0.1), nn.GELU()
    assert registry.build("derivatives", rule) is rule
    assert registry.build("activations", act, channels=3) is act


def test_an_object_of_another_api_version_is_refused() -> None:
    class Future(Half):
        api_version = "7.0"

    with pytest.raises(PluginApiError, match=r"Future was written for plugin API 7.0"):
        registry.build("derivatives", Future())


def test_a_factory_that_builds_something_else_is_refused() -> None:
    def factory(channels: int | None = None) -> Any:
        return "no module"

    factory.api_version = "1.0"  # type: ignore[attr-defined]
    with (
        registry.registered("activations", "liar", factory),
        pytest.raises(PluginContractError, match=r"what it builds is a str, expected an nn.Module"),
    ):
        registry.build("activations", "liar")


def test_lists_from_yaml_become_hashable(install: Install) -> None:
    install()
    rule = registry.build("derivatives", {"name": "acme", "sizes": [1, 2]})
    assert rule.sizes == (1, 2)
    assert hash(rule) == hash(copy.deepcopy(rule))
    assert registry.config("derivatives", rule) == {"name": "acme", "sizes": [1, 2]}


def test_registered_names_end_with_the_block() -> None:
    with registry.registered("derivatives", "half", Half):
        assert registry.describe("derivatives", "half").distribution == "local"
        assert registry.build("derivatives", "local:half") == Half()
        with (
            pytest.raises(ConfigError, match="registered in this session already"),
            registry.registered("derivatives", "half", Half),
        ):
            pass
        assert "half" in registry.names("derivatives")
    assert "half" not in registry.names("derivatives")


def test_registered_does_not_shadow_a_built_in_name() -> None:
    with registry.registered("derivatives", "bouligand", Half):
        with pytest.raises(PluginAmbiguousError, match=r"local:bouligand.*morphlightning:bouligand"):
            registry.build("derivatives", "bouligand")
        assert registry.build("derivatives", "local:bouligand") == Half()


# ------------------------------------------------------------------------------------------------------- saving
@pytest.mark.parametrize("spec", ["half", "local:half", {"name": "half", "keep": 0.25}])
def test_config_gives_back_what_a_component_was_built_from(spec: Any) -> None:
    with registry.registered("derivatives", "half", Half):
        rule = registry.build("derivatives", spec)
        assert registry.config("derivatives", spec) == spec
        assert registry.config("derivatives", rule) == spec
        assert registry.config("derivatives", pickle.loads(pickle.dumps(rule))) == spec
        assert registry.build("derivatives", registry.config("derivatives", rule)) == rule
        json.dumps(registry.config("derivatives", rule))


def test_config_of_a_mapping_without_parameters_is_the_name() -> None:
    assert registry.config("derivatives", {"name": "half"}) == "half"


def test_config_of_a_dataclass_object_whose_class_is_registered(install: Install) -> None:
    with registry.registered("derivatives", "half", Half):
        assert registry.config("derivatives", Half(0.1)) == {"name": "half", "keep": 0.1}
    with registry.registered("derivatives", "slotted", Slotted):
        built = registry.build("derivatives", {"name": "slotted", "extra": 2})
        assert registry.config("derivatives", built) == {"name": "slotted", "extra": 2}
        assert registry.config("derivatives", Slotted()) == {"name": "slotted", "keep": 0.5, "extra": 1}
    install()
    rule = type(registry.build("derivatives", "acme"))(0.75)
    assert registry.config("derivatives", rule) == {"name": "acme", "keep": 0.75, "sizes": []}
    install("zeta", "2.0", "[morphlightning.derivatives]\nacme = zeta:Rule\n")
    assert registry.config("derivatives", rule)["name"] == "acme-morph:acme"  # type: ignore[index]


def test_config_asks_the_object() -> None:
    class Own(nn.Module):
        def to_config(self) -> Any:
            return {"name": "curve", "sizes": 5}

    class Odd(nn.Module):
        def to_config(self) -> Any:
            return 3

    assert registry.config("activations", Own()) == {"name": "curve", "sizes": 5}
    with pytest.raises(ConfigError, match=r"to_config.. of Odd.* gave 3"):
        registry.config("activations", Odd())


def test_config_refuses_what_has_no_plain_form() -> None:
    with pytest.raises(ConfigError, match=r"cannot be saved.*Give a name or a mapping.*to_config.*entry point"):
        registry.config("activations", nn.GELU())
    with pytest.raises(ConfigError, match=r"cannot be saved"):
        registry.config("derivatives", Half())
    with registry.registered("activations", "curve", Curve):
        curve = registry.build("activations", {"name": "curve", "table": torch.zeros(2)})
        with pytest.raises(ConfigError, match="activations 'curve': parameter 'table' is a Tensor"):
            registry.config("activations", curve)


def test_provenance_and_what_a_checkpoint_requires(install: Install) -> None:
    install()
    saved = [
        registry.provenance("derivatives", {"name": "acme", "keep": 0.1}),
        registry.provenance("derivatives", "first"),
    ]
    assert saved[0] == {
        "kind": "derivatives", "name": "acme", "distribution": "acme-morph", "version": "0.3", "api_version": "1.5",
    }  # fmt: skip
    assert registry.provenance("derivatives", registry.build("derivatives", "acme")) == saved[0]
    registry.require(saved, "last.ckpt")
    gone = [{**saved[0], "distribution": "gone-morph"}, {**saved[0], "distribution": "local", "version": ""}, saved[1]]
    with pytest.raises(PluginNotFoundError) as caught:
        registry.require(gone, "last.ckpt")
    message = str(caught.value)
    assert message.startswith("last.ckpt was made with")
    assert "derivatives 'acme' from gone-morph 0.3 (plugin API 1.5): pip install gone-morph==0.3" in message
    assert "from local: it was registered in the session" in message
    assert "first" not in message


def test_errors_are_one_family() -> None:
    for error in (PluginLoadError, PluginApiError, PluginContractError, PluginParameterError, PluginAmbiguousError):
        assert issubclass(error, PluginError)


def test_a_broken_plugin_does_not_break_the_import_of_the_package(install: Install) -> None:
    site = install(
        "broken-one", "1.1", "[morphlightning.derivatives]\nsad = broken_one:Rule\n", "raise RuntimeError"
    ).parents[1]
    env = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-W", "error", "-c", "import morphlightning"], env=env, check=True)
