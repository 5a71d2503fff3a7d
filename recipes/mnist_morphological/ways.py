"""What is compared: our way of training, plain autograd, and ours with one ingredient removed at a time."""

from __future__ import annotations

from training import Way

OURS = Way("ours")
PLAIN = Way("plain autograd", beta=None)
"""Maxima, whose gradient goes to one winner: what torch gives. Its learning rate and start are looked for."""
RATES = (0.003, 0.01, 0.03, 0.1)
SPREADS = (0.1, 0.35, 1.0)

WITHOUT = (
    OURS.but("gradient to one winner", beta=None),
    OURS.but("log-sum-exp for values too, beta from 10 to 40", soft_values=True, beta=(10.0, 40.0)),
    OURS.but("without annealing: beta = 10", beta=(10.0, 10.0)),
    OURS.but("without annealing: beta = 3", beta=(3.0, 3.0)),
    OURS.but("without complements", {"complement": False}),
    OURS.but("without centring", {"centred": False}),
    OURS.but("one erosion a class", {"terms": 1}),
    OURS.but("start with a wide spread", {"spread": 1.0}),
    OURS.but("constant learning rate", anneal=False),
    OURS.but("without shifted images", shifts=0.0),
)
