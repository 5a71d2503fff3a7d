"""Checks of diagnostics: callbacks that measure, log, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from morphlightning import registry
from morphlightning.layers import Dilation
from morphlightning.models import MorphologicalClassifier
from morphlightning.testing import _training
from morphlightning.testing._subject import Subject, is_documented, is_saved_by_name, require_equal


def changes_no_bit_of_training(subject: Subject) -> None:
    """With and without it, parameters and random states (torch, numpy, Python) end up equal bit for bit."""
    without, with_it = _classifier(), _classifier()
    _training.fit(without)
    expected = _training.random_states()
    _training.fit(with_it, callbacks=[subject.build(every_n_steps=1)])
    for name, seen, right in zip(("torch", "numpy", "random"), _training.random_states(), expected, strict=True):
        require_equal(seen, right, f"random state of {name}")
    _training.require_equal_parameters(with_it, without)


def logs_under_its_own_name(subject: Subject) -> None:
    """It logs at least one value, all of them under diagnostics/<name>/."""
    plain, watched = _training.KeyLogger(), _training.KeyLogger()
    _training.fit(_classifier(), logger=plain)
    _training.fit(_classifier(), callbacks=[subject.build(every_n_steps=1)], logger=watched)
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
    callback = subject.build(every_n_steps=1)
    for _ in range(2):
        _training.fit(_classifier(), epochs=1, callbacks=[callback])


CHECKS = (is_documented, is_saved_by_name, changes_no_bit_of_training, logs_under_its_own_name, works_twice)


def _classifier() -> MorphologicalClassifier:
    """With something to see for those that look at max-plus layers and for those that look at splines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        spline = registry.build("activations", "morphlightning:linear_spline")
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), spline, Dilation(6, 6))
        return MorphologicalClassifier((1, 2, 4), 3, backbone=backbone)
