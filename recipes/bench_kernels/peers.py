"""Other people's packages, each used where it is installed; what is missing is listed with the reason."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from cases import Candidate

PEERS = {
    "kornia": "kornia.morphology",
    "tropical-gemm": "tropical_gemm.pytorch",
    "scipy": "scipy.ndimage",
    "scikit-image": "skimage.morphology",
    "opencv-python-headless": "cv2",
    "deepinv": "deepinv.models.deal",
    "deepsplines": "deepsplines.ds_modules.deepBspline",
}
"""Distributions, and the module that is used of each."""

missing: dict[str, str] = {}
"""Distributions that a case asked for in vain, and why."""


def offered(distribution: str, make: Callable[[Any], list[Candidate]]) -> list[Candidate]:
    """What can be made of a distribution's module; nothing where it is not installed or refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(PEERS[distribution])
            if hasattr(module, "setNumThreads"):  # OpenCV has a pool of its own
                module.setNumThreads(torch.get_num_threads())
            return make(module)
    except Exception as error:  # an installation may be broken in any way, and ours are to be timed nevertheless
        missing[distribution] = f"{type(error).__name__}: {error}".splitlines()[0]
        return []
