"""Certificates by four methods, attacks, integers: what is measured of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import training
from rich.progress import Progress
from shared.report import Report
from torch import Tensor, nn
from training import Setting

from morphlightning.guarantees.robustness import PGD, Agreement, Attacked, agreement, certified_margins, export_int16
from morphlightning.metrics import AttackGap
from morphlightning.metrics.certified import wilson
from morphlightning.models import CertifiedClassifier

METHODS = ("lipschitz", "interval", "exact", "int16")
CHUNK = 250
SHOWN = 8
"""Worst cases that are kept for the figure."""


class Counted(NamedTuple):
    """A share of the test images, and the ends of its 95 % confidence interval."""

    share: float
    low: float
    high: float


class Attack(NamedTuple):
    """What an attack leaves, and what lies between that and the certificates."""

    upper: float
    gap: float


class Case(NamedTuple):
    """An image that an attack has changed into another class."""

    image: Tensor
    changed: Tensor
    label: int
    taken_for: int


@dataclass(frozen=True)
class Examined:
    """What is known of one network.

    Attributes:
        count: Images.
        accuracy: Share that is classified rightly.
        radii: Radii at which certificates are counted.
        certified: Certified accuracy by method and radius.
        margins: Least margins of the right class, of the network and all images, sorted.
        attacked: What attacks left, by radius.
        integer: How the integer network agrees with the network.
        broken: Worst cases at eps.
    """

    count: int
    accuracy: float
    radii: tuple[float, ...]
    certified: Mapping[tuple[str, float], Counted]
    margins: Tensor
    attacked: Mapping[float, Attack]
    integer: Agreement
    broken: list[Case]
    methods: tuple[str, ...] = METHODS

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Every number, for a CSV."""
        return [
            {
                "seed": seed,
                "eps": eps,
                "accuracy": self.accuracy,
                **{
                    f"{method} {key}": v
                    for method in METHODS
                    for key, v in self.certified[method, eps]._asdict().items()
                },
                **(self.attacked[eps]._asdict() if eps in self.attacked else {}),
            }
            for eps in self.radii
        ]


def examine(model: CertifiedClassifier, setting: Setting, report: Report) -> Examined:
    """Certify, export and attack a trained network."""
    network = model.hardened()
    images, labels = images_of(setting)
    radii = tuple(round(multiple * setting.eps, 4) for multiple in setting.radii)
    exported = export_int16(network)
    with Progress(console=report.console, transient=True, disable=not report.console.is_terminal) as progress:
        with torch.no_grad():
            logits = torch.cat([network(part) for part in images.split(CHUNK)])
        holds: dict[tuple[str, float], Tensor] = {}
        task = progress.add_task("certify", total=len(METHODS) * len(radii))
        for eps in radii:
            for method in METHODS:
                holds[method, eps] = _certified(method, eps, network, exported, images, labels)
                progress.advance(task)
        attacked, broken = _attack(setting, network, exported, images, labels, holds, progress)
    rivals = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    margins = logits.gather(1, labels[:, None])[:, 0] - rivals
    return Examined(
        len(images),
        float((margins > 0).double().mean()),
        radii,
        {key: _counted(found) for key, found in holds.items()},
        margins.sort().values,
        attacked,
        agreement(network, exported, images),
        broken,
    )


def images_of(setting: Setting) -> tuple[Tensor, Tensor]:
    """Test images and labels."""
    module = training.data(setting)
    module.prepare_data()
    module.setup("test")
    images, labels = zip(*module.test_dataloader(), strict=True)
    return torch.cat(images)[: setting.images], torch.cat(labels)[: setting.images]


def _certified(method: str, eps: float, network: nn.Module, exported: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Which images are certified."""
    if method == "int16":
        levels = exported.whole_levels(eps, images)
        parts = [exported.margins(x, y, levels) for x, y in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)]
    else:
        pairs = zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
        parts = [certified_margins(network, x, y, eps, method) for x, y in pairs]  # type: ignore[arg-type]
    return torch.cat(parts) > 0


def _attack(
    setting: Setting,
    network: nn.Module,
    exported: nn.Module,
    images: Tensor,
    labels: Tensor,
    holds: Mapping[tuple[str, float], Tensor],
    progress: Progress,
) -> tuple[dict[float, Attack], list[Case]]:
    """Attack the network, and the integer network by its gradients; a broken certificate ends the run."""
    found: dict[float, Attack] = {}
    broken: list[Case] = []
    x, y = images[: setting.attacked], labels[: setting.attacked]
    for eps in sorted({round(setting.eps / 3, 4), setting.eps}):
        pgd = PGD(eps, steps=setting.steps, restarts=setting.restarts)
        left = pgd(network, x, y, progress=_bar(progress, f"attack at {eps:g}"))
        by_floats = torch.stack([holds[method, eps][: len(x)] for method in METHODS[:-1]]).any(0)
        found[eps] = Attack(left.accuracy, gap_between(left, by_floats))
        of_integers = pgd(exported, x, y, surrogate=network, progress=_bar(progress, f"integers at {eps:g}"))
        gap_between(of_integers, holds["int16", eps][: len(x)])
        if eps == setting.eps:
            broken = _worst(network, x, y, left)
    return found, broken


def gap_between(left: Attacked, certified: Tensor) -> float:
    """Accuracy under attack less certified accuracy; a certified image that was broken ends the run."""
    gap = AttackGap()
    gap.update(left, certified)
    return float(gap.compute())


def _bar(progress: Progress, name: str) -> Callable[[int, int], None]:
    task = progress.add_task(name)
    return lambda done, count: progress.update(task, completed=done, total=count)


def _worst(network: nn.Module, images: Tensor, labels: Tensor, left: Attacked) -> list[Case]:
    """Images that were classified rightly and that the attack has moved furthest into another class."""
    with torch.no_grad():
        right = torch.cat([network(part).argmax(1) for part in images.split(CHUNK)]) == labels
        order = left.margins.masked_fill(~right | left.robust, torch.inf).argsort()[:SHOWN]
        order = order[~left.robust[order] & right[order]]
        taken = network(left.examples[order]).argmax(1) if len(order) else labels[:0]
    rows = zip(images[order], left.examples[order], labels[order], taken, strict=True)
    return [Case(image, changed, int(label), int(other)) for image, changed, label, other in rows]


def _counted(found: Tensor) -> Counted:
    hits, count = found.sum(), torch.tensor(len(found))
    low, high = wilson(hits, count)
    return Counted(float(hits / count), float(low), float(high))
