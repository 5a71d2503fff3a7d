"""Pruning of max-plus heads to the filters that win."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from morphlightning.errors import ConfigError, DataError
from morphlightning.layers import Dilation
from morphlightning.ops.dispatch import maxplus_with_provenance
from morphlightning.ops.geometry import DENSE
from morphlightning.structure.chains import Pair, count_parameters, keep_filters, last_pair

M = TypeVar("M", bound=nn.Module)
_AT_ONCE = 1024
"""Samples of a tensor that are looked at together."""


class PruningReport(NamedTuple):
    """What :func:`prune_head` saw and kept.

    Attributes:
        kept: Indices of the filters that were kept, increasing.
        wins: How often each filter won for each predicted class, (classes, filters) int64; a row adds up to the number
            of samples of which this class was predicted.
        rescued: Classes of which no filter won often enough, or that were never predicted: they keep their best one.
        parameters: Number of parameters before and after, see :func:`count_parameters`.
    """

    kept: Tensor
    wins: Tensor
    rescued: tuple[int, ...]
    parameters: tuple[int, int]


class _Wins(NamedTuple):
    """Counts (classes, filters): of the predicted class alone, and of every class for every sample."""

    predicted: Tensor
    unit: Tensor


def prune_head(module: M, data: Any, threshold: float = 0.0, *, mask_weights: bool = False) -> tuple[M, PruningReport]:
    r"""A copy of ``module`` whose max-plus head has only the filters that win, and what they were.

    The head gives :math:`y_c = \max_k z_k + w_{ck}` of filters z; ties go to the lowest index, in the maximum and in
    the prediction. Filter k is kept if, for some class c, it wins :math:`y_c` for more than the share ``threshold`` of
    the samples whose prediction is c. A class for which no filter passes keeps the one that wins it most often.

    With ``threshold=0`` the largest logit of every sample of ``data`` stays as it is and no other one grows, so every
    prediction on these samples stays, right or wrong, up to the rounding of a linear layer of another size.

    Args:
        module: An nn.Sequential that ends with filters (an nn.Linear, or a convolution and nn.Flatten; activations
            without parameters may follow) and the Dilation that reads them; or a model that has such a head and returns
            its output. It is not changed.
        data: Inputs of ``module``: a tensor; batches, each a tensor or a tuple or list that begins with it (a
            DataLoader); or a LightningDataModule, of which the training loader is taken as it is. Labels are not used.
        threshold: Share of the samples of a class, in [0, 1).
        mask_weights: Let weights (class, filter) go missing too where the filter does not pass for that class.

    Returns:
        The copy, in the same mode (training or not), and the report. A MorphologicalClassifier stays one that can be
        trained, tested, saved and loaded.

    Raises:
        ConfigError: There is no such head, its output is not the module's, or the threshold is out of range.
        DataError: There are no data, or there is NaN among the logits.

    Source: to prune by the filters that win is the idea of Zhang et al., arXiv 1903.08072; what stays unchanged is
    derived in docs/structure.md, "Heads".
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"prune_head: threshold={threshold!r}, expected a share in [0, 1)")
    wins = _count_wins(module, data)
    samples = wins.predicted.sum(1, keepdim=True)
    passes = wins.predicted > threshold * samples
    rescued = (~passes.any(1)).nonzero()[:, 0]
    best = torch.where(samples > 0, wins.predicted, wins.unit).argmax(1)
    passes[rescued, best[rescued]] = True
    kept = passes.any(0).nonzero()[:, 0]
    pruned = keep_filters(module, kept)
    if mask_weights:
        pair, head = _head(pruned)
        head.mask = head.mask & passes[:, kept].repeat_interleave(pair.positions, 1).to(head.mask.device)
    sizes = count_parameters(module), count_parameters(pruned)
    return pruned, PruningReport(kept, wins.predicted, tuple(rescued.tolist()), sizes)


@torch.no_grad()
def _count_wins(module: nn.Module, data: Any) -> _Wins:
    model = copy.deepcopy(module).eval()
    pair, head = _head(model)
    seen: list[tuple[Tensor, Tensor]] = []
    head.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    wins = _Wins(*torch.zeros(2, head.out_features, pair.filters, dtype=torch.int64))
    for inputs in _inputs(data):
        logits = model(inputs.to(head.weight.device))
        if isinstance(logits, Tensor) and logits.isnan().any():
            raise DataError("prune_head: there is NaN among the logits; check the data and the weights")
        if not (len(seen) == 1 and isinstance(logits, Tensor) and logits.ndim == 2 and torch.equal(seen[0][1], logits)):
            raise ConfigError(
                f"prune_head: {type(module).__name__} does not return the output (batch, classes) of its Dilation, so "
                "what wins there does not tell its predictions; pass the head and its inputs"
            )
        _add_batch(wins, pair, head, *seen.pop())
    if not wins.unit.any():
        raise DataError("prune_head: there are no samples in data; pass those whose predictions shall stay")
    return wins


def _head(module: nn.Module) -> tuple[Pair, Dilation]:
    pair = last_pair("prune_head", module)
    head = pair.chain[pair.second]
    if not isinstance(head, Dilation):
        raise ConfigError(
            f"prune_head: the last filters of {type(module).__name__} are read by {type(head).__name__}, where none of "
            "them wins; expected a Dilation (keep_filters takes other layers)"
        )
    return pair, head


def _add_batch(wins: _Wins, pair: Pair, head: Dilation, features: Tensor, logits: Tensor) -> None:
    _, winner = maxplus_with_provenance(features, head.effective_weight, DENSE, head.pipeline.policy)
    filters, predicted = (winner // pair.positions).cpu(), logits.argmax(1).cpu()
    won = torch.arange(head.out_features) * pair.filters + filters  # (class, filter) as one number
    for counts, cells in ((wins.unit, won.flatten()), (wins.predicted, won.gather(1, predicted[:, None])[:, 0])):
        counts += torch.bincount(cells, minlength=counts.numel()).view_as(counts)


def _inputs(data: Any) -> Iterator[Tensor]:
    """Inputs of a module, a batch at a time."""
    if isinstance(data, Tensor):
        yield from data.split(_AT_ONCE)
        return
    if isinstance(data, LightningDataModule):
        data.prepare_data()
        data.setup("fit")
        data = data.train_dataloader()
    if not isinstance(data, Iterable):
        raise ConfigError(
            f"prune_head: data is a {type(data).__name__}, expected a tensor, a DataLoader, batches or a "
            "LightningDataModule"
        )
    for batch in data:
        first = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(first, Tensor):
            raise ConfigError(
                f"prune_head: a batch is a {type(batch).__name__}, expected a tensor of inputs or a tuple or list that "
                "begins with it"
            )
        yield first
