"""The networks that tell couplings what to do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from morphlightning import registry
from morphlightning.errors import ConfigError
from morphlightning.interfaces import Spec


class Conditioner(nn.Sequential):
    """Linear layers with an activation between them; the last starts at zero, so that a coupling starts as identity.

    Args:
        inputs: Numbers that come in.
        outputs: Numbers that go out.
        hidden: Widths of the hidden layers.
        activation: Component of kind activations.

    Raises:
        ConfigError: A width is below 1.
    """

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), activation: Spec = "relu") -> None:
        super().__init__()
        widths = [inputs, *hidden]
        if min(widths) < 1 or outputs < 1:
            raise ConfigError(f"Conditioner: widths {[*widths, outputs]}, expected at least 1 each")
        for before, after in pairwise(widths):
            self.append(nn.Linear(before, after))
            self.append(registry.build("activations", activation, channels=after, channel_dim=-1))
        last = nn.Linear(widths[-1], outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.append(last)
