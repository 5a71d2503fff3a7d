"""The methods with all their settings, and the grid on which each of them is tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

Value = float | str
TRAIN, VALIDATION = "train MSE", "validation PSNR"
SHORT = {"weight_decay": "wd", "tau_x": "tau x", "ridge_2": "ridge 2"}
NO_DECAY = ("weight_decay", 0.0)


@dataclass(frozen=True)
class Way:
    """A method with all its settings.

    Attributes:
        method: Which one: a key of ``methods.BUILDERS``.
        settings: Its settings by name, in alphabetical order; see :meth:`of`.
        centred: Train on inputs and targets less their means.
    """

    method: str
    settings: tuple[tuple[str, Value], ...] = ()
    centred: bool = False

    @classmethod
    def of(cls, method: str, centred: bool = False, **settings: Value) -> Way:
        return cls(method, tuple(sorted(settings.items())), centred)

    def but(self, **changes: Value) -> Way:
        """This way with changes."""
        return replace(self, settings=tuple(sorted({**dict(self.settings), **changes}.items())))

    def __getitem__(self, name: str) -> Value:
        return dict(self.settings)[name]

    def __str__(self) -> str:
        told = {name: value for name, value in self.settings if value != "constant" and (name, value) != NO_DECAY}
        parts = (
            value if isinstance(value, str) else f"{SHORT.get(name, name)} {value:g}" for name, value in told.items()
        )
        return ", ".join(parts)


@dataclass(frozen=True)
class Axis:
    """A setting that is tuned.

    Attributes:
        name: Of the setting.
        values: All that may be tried; in ascending order where they are numbers.
        start: Those that are tried in any case.
    """

    name: str
    values: tuple[Value, ...]
    start: tuple[Value, ...]

    def neighbours(self, value: Value) -> list[Value]:
        """The next smaller and the next larger number; of a choice, all others."""
        if isinstance(value, str):
            return [other for other in self.values if other != value]
        at = self.values.index(value)
        return [*self.values[max(0, at - 1) : at], *self.values[at + 1 : at + 2]]

    def at_end(self, value: Value) -> bool:
        """Whether better values may lie beyond: it is the first or the last number, and no zero."""
        return not isinstance(value, str) and value != 0 and value in (self.values[0], self.values[-1])


@dataclass(frozen=True)
class Family:
    """A method that is tuned along some axes, by each of some criteria.

    Attributes:
        name: What it is called.
        base: The settings that are not tuned.
        axes: Those that are.
        criteria: What may choose a winner.
    """

    name: str
    base: Way
    axes: tuple[Axis, ...] = ()
    criteria: tuple[str, ...] = (VALIDATION,)

    def start(self) -> list[Way]:
        """The product of what is tried in any case."""
        names = [axis.name for axis in self.axes]
        return [
            self.base.but(**dict(zip(names, values, strict=True)))
            for values in product(*(axis.start for axis in self.axes))
        ]

    def neighbours(self, way: Way, axis: Axis) -> list[Way]:
        return [way.but(**{axis.name: value}) for value in axis.neighbours(way[axis.name])]


def one_two_five(low: float, high: float) -> tuple[float, ...]:
    """The numbers 1, 2, 5 times powers of ten between two bounds."""
    found = [float(f"{digit}e{power}") for power in range(-9, 9) for digit in (1, 2, 5)]
    return tuple(value for value in found if low <= value <= high)


DECAYS = (0.0, *one_two_five(1e-6, 1e-2))
SCHEDULES = Axis("schedule", ("constant", "cosine"), ("constant",))
RIDGES = Axis(
    "ridge", (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0), (10.0, 30.0, 100.0, 300.0)
)
MUS = Axis("mu", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (1.0, 3.0, 10.0))


def baselines(centred: bool) -> list[Family]:
    """The optimizers of torch; those without axes of weight decay or a schedule know neither."""
    suffix, both = (" centred" if centred else ""), (TRAIN, VALIDATION)
    decay = Axis("weight_decay", DECAYS, (1e-4,))
    sgd = Axis("lr", one_two_five(0.1, 1000), (5.0, 10.0, 20.0))
    nesterov = Axis("lr", one_two_five(0.01, 1000), (2.0, 5.0, 10.0))
    momentum = Axis("momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995), (0.9,))
    adam = Axis("lr", one_two_five(1e-4, 1), (1e-3, 2e-3, 5e-3))

    def way(method: str, **settings: Value) -> Way:
        return Way.of(method, centred, **settings)

    plain = {"schedule": "constant", "weight_decay": 0.0}
    return [
        Family(f"SGD{suffix}", way("sgd", **plain), (sgd,), both),
        Family(f"Nesterov{suffix}", way("nesterov"), (nesterov, momentum, decay, SCHEDULES), both),
        Family(f"Adam{suffix}", way("adam", **plain), (adam,), both),
        Family(f"Adam + wd{suffix}", way("adam"), (adam, decay, SCHEDULES), both),
        Family(f"L-BFGS{suffix}", way("lbfgs"), (Axis("weight_decay", DECAYS, (0.0, 5e-5, 1e-4)),), both),
    ]


def lifted() -> list[Family]:
    """The lifted methods: the poster's, ours step by step, and those without multipliers."""
    literal = Way.of("badmm", order="ZWXM", mu=1.0, tau_x=1.0)
    ours = Way.of("badmm", order="ZXWM", tau_x=1.9)
    without = Way.of("mm", tau_x=1.9)
    both = (TRAIN, VALIDATION)
    return [
        Family(LITERAL, literal.but(ridge=1e-3, ridge_2=1e-3)),
        Family("BADMM literal + ridge", literal, (RIDGES,)),
        Family("BADMM mu 1 tuned", ours.but(mu=1.0), (RIDGES,)),
        Family(RECOMMENDED, ours.but(mu=3.0, ridge=100.0)),
        Family(TUNED, ours.but(mu=3.0), (RIDGES,), both),
        Family("BADMM mu 3 tuned, XZWM", ours.but(mu=3.0, order="XZWM"), (RIDGES,)),
        Family("BADMM mu 3 tuned, centred", replace(ours.but(mu=3.0), centred=True), (RIDGES,)),
        Family("BADMM mu, ridge tuned", ours, (MUS, RIDGES)),
        Family("lifted MM mu 1 tuned", without.but(mu=1.0), (RIDGES,)),
        Family(MM, without.but(mu=3.0, ridge=100.0)),
        Family("lifted MM mu 3 tuned", without.but(mu=3.0), (RIDGES,), both),
        Family("lifted MM mu, ridge tuned", without, (MUS, RIDGES)),
    ]


LITERAL, RECOMMENDED, TUNED, MM = "BADMM literal", "BADMM recommended", "BADMM mu 3 tuned", "lifted MM recommended"
"""Names of what the conditions and the figures look for; what is recommended is not tuned."""


def families(keep: Callable[[str], bool] = lambda method: True) -> list[Family]:
    """All, or those whose method is to be kept."""
    return [family for family in [*baselines(False), *baselines(True), *lifted()] if keep(family.base.method)]
