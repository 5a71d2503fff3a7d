"""Print the CPU seconds that the first training step of a process takes: ``python first_call.py DEVICE``."""

from __future__ import annotations

import os
import sys

import torch

from morphlightning.functional import dilation


def seconds() -> float:
    """Of this process and of compilers that it started."""
    return sum(os.times()[:4])


device = sys.argv[1]
x, w = (torch.ones(64, 64, device=device, requires_grad=True) for _ in range(2))
began = seconds()
dilation(x, w).sum().backward()
print(seconds() - began)
