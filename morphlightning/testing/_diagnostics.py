"""Checks of diagnostics: callbacks that measure, log, and change nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from morphlightning import registry
from morphlightning.errors import MorphLightningError
from morphlightning.guarantees.optimality import GainDilation, ParallelSum
from morphlightning.layers import Dilation
from morphlightning.models import CertifiedClassifier, LiftedModule, MorphologicalClassifier, PluginTraining
from morphlightning.testing import _training
from morphlightning.testing._subject import Subject, is_documented, is_saved_by_name, require_equal


def changes_no_bit_of_training(subject: Subject) -> None:
    """With and without it, parameters and random states (torch, numpy, Python) end up equal bit for bit."""
    make = _trained_by(subject)
    without, with_it = make(), make()
    _fit(without)
    expected = _training.random_states()
    _fit(with_it, callbacks=[_often(subject)])
    for name, seen, right in zip(("torch", "numpy", "random"), _training.random_states(), expected, strict=True):
        require_equal(seen, right, f"random state of {name}")
    _training.require_equal_parameters(with_it, without)


def logs_under_its_own_name(subject: Subject) -> None:
    """It logs at least one value, all of them under diagnostics/<name>/."""
    make = _trained_by(subject)
    plain, watched = _training.KeyLogger(), _training.KeyLogger()
    _fit(make(), logger=plain)
    _fit(make(), callbacks=[_often(subject)], logger=watched)
    prefix = "diagnostics/"
    if isinstance(subject.spec, str | Mapping):
        name = subject.spec if isinstance(subject.spec, str) else subject.spec["name"]
        prefix += name.rpartition(":")[2] + "/"
    new = watched.keys - plain.keys
    assert new, "nothing was logged"
    stray = sorted(key for key in new if not key.startswith(prefix))
    assert not stray, f"logged {stray}, expected keys that begin with {prefix!r}"


def works_twice(subject: Subject) -> None:
    """One callback can watch two trainings in a row."""
    make, callback = _trained_by(subject), _often(subject)
    for _ in range(2):
        _fit(make(), epochs=1, callbacks=[callback])


CHECKS = (is_documented, is_saved_by_name, changes_no_bit_of_training, logs_under_its_own_name, works_twice)


def _often(subject: Subject) -> Any:
    """The diagnostic at each step, where it has a period in steps."""
    periodic = "every_n_steps" in inspect.signature(subject.factory()).parameters
    return subject.build(**({"every_n_steps": 1} if periodic else {}))


def _trained_by(subject: Subject) -> Callable[[], PluginTraining]:
    """What makes the first model of the kit that the diagnostic does not refuse."""
    refusals = []
    for make in (_classifier, _sum_of_slices, _signed_classifier):
        try:
            _fit(make(), epochs=1, callbacks=[_often(subject)])
        except MorphLightningError as refusal:
            refusals.append(str(refusal))
        else:
            return make
    raise AssertionError("every model of the kit was refused: " + "; ".join(refusals))


def _fit(model: PluginTraining, **settings: Any) -> None:
    """Train; sums of slices in one batch, as what is proved of them asks for."""
    whole = isinstance(model, LiftedModule)
    _training.fit(model, loader=_training.data(1) if whole else None, **settings)


def _classifier() -> MorphologicalClassifier:
    """With something to see for those that look at max-plus layers and for those that look at splines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        spline = registry.build("activations", "morphlightning:linear_spline")
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), spline, Dilation(6, 6))
        return MorphologicalClassifier((1, 2, 4), 3, backbone=backbone)


def _sum_of_slices() -> LiftedModule:
    """For those that look at sums of homogeneous subnetworks."""
    slices = ParallelSum(GainDilation(8, 3), 2, generator=torch.Generator().manual_seed(1))
    network = nn.Sequential(nn.Flatten(), slices)
    decay = "morphlightning:matched_decay"
    return LiftedModule(network, "cross_entropy", "morphlightning:adam", num_classes=3, regularizers=[decay])


def _signed_classifier() -> CertifiedClassifier:
    """For those that look at chains of max-plus layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return CertifiedClassifier((1, 2, 4), 3, hidden=(5,), clip=(0.0, 2.0), max_shift=0)
