"""Weights from data: one layer after another learns its start from what reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from morphlightning.errors import ConfigError, DataError, ShapeError
from morphlightning.functional.dense import dilation, erosion
from morphlightning.layers.base import MorphLayer
from morphlightning.ops.eager import BUDGET

Target = Callable[[str, Any], Tensor | None]


@dataclass(frozen=True)
class Rows:
    """Rows of one layer's maxima; see :class:`morphlightning.interfaces.SiteBatch`."""

    x: Tensor
    wanted: Tensor | None
    draw: Tensor

    @property
    def y(self) -> Tensor:
        """What the units should give."""
        if self.wanted is None:
            raise ConfigError("an initializer with data = 'inputs' asked for what the layer should give; set 'pairs'")
        return self.wanted

    def least(self) -> Tensor:
        """Minimum over rows of y - x: an erosion of y over the rows, with x in place of the weights."""
        return erosion(_rows_last(self.y), _rows_last(self.x)).contiguous()

    def greatest(self) -> Tensor:
        """Maximum over rows of y - x."""
        minus_x = torch.where(self.x > -math.inf, -self.x, -math.inf)
        return dilation(_rows_last(self.y), _rows_last(minus_x)).contiguous()


def initialize(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    target: Target | None = None,
    max_batches: int | None = None,
    seed: int | None = None,
) -> list[str]:
    """Let the layers of ``module`` whose initializers ask for data learn their weights.

    Layers learn in the order in which the module calls them, each from what reaches it once those before have learned,
    in as many passes as its initializer makes. The module runs in evaluation mode without gradients, and nothing else
    of it changes. A DataLoader over a map-style dataset with one of torch's own samplers is read in an order of our
    own, each process its share: the loader's state stays as it is, and the result does not depend on the number of
    processes. Any other iterable is read as it is. What was initialized, trained or loaded before is left alone.

    Args:
        module: A module with layers of ours; it is called with the first entry of each batch.
        loader: Batches, tensors or (inputs, target, ...); it has to begin anew each time it is iterated.
        target: Tells what a layer, by name, should give for a batch, None for what it does not know. The layer
            whose output is the module's gets the batch's target, classes as 1 for the class and 0 for the others.
        max_batches: Read at most so many batches a process and pass; None for all.
        seed: Seed of what initializers draw; None for torch's initial seed, of process 0.

    Returns:
        The names of the layers that learned, in their order.

    Raises:
        DataError: There are no batches, no targets, or values that are NaN or infinite.
        ConfigError: A layer is never called, nobody knows what it should give, or the batches can be read only once.
        ShapeError: Targets do not fit a layer's output.
    """
    waiting = {name: layer for name, layer in module.named_modules() if isinstance(layer, MorphLayer)}
    waiting = {name: layer for name, layer in waiting.items() if layer.awaits_data}
    if not waiting:
        return []
    seed = _of_all_processes(torch.initial_seed() if seed is None else seed)[0] % 2**62  # a seed drawn by torch has 64
    with torch.no_grad(), _evaluation(module):
        data = _Batches(module, loader, max_batches)
        order = _order_of_calls(module, waiting, data)
        if missing := [name for name in waiting if name not in order]:
            raise ConfigError(
                f"the initializers of {', '.join(missing)} ask for data, but the module does not call these layers for "
                "a batch; remove them, or give them an initializer that needs none, such as 'upper'"
            )
        for number, name in enumerate(order):
            _learn(module, name, waiting[name], data, target, seed + number)
    return order


def _learn(module: nn.Module, name: str, layer: MorphLayer, data: _Batches, target: Target | None, seed: int) -> None:
    spec, initializer = layer.spec, layer.initializer
    w = layer.effective_weight.detach()
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    state: dict[str, Tensor] = {}
    for _ in range(initializer.passes):
        state = initializer.begin(spec, w, state)
        for batch in data:
            for rows in _observe(module, name, layer, batch, target, seed):
                initializer.update(state, rows)
        _reduce(state, initializer.reduce)
    layer.start_from_data(initializer.finish(spec, w, state, torch.Generator().manual_seed(seed)))
    if _processes() > 1:
        dist.broadcast(layer.weight.detach(), 0)
        dist.broadcast(layer.mask, 0)


def _order_of_calls(module: nn.Module, layers: Mapping[str, MorphLayer], data: _Batches) -> list[str]:
    """Names in the order of their first calls, the same on all processes."""
    batch = next(iter(data), None)
    called: dict[str, None] = {}
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name)) for name, layer in layers.items()
    ]
    try:
        if batch is not None:
            module(_inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
    for order in _of_all_processes(None if batch is None else list(called)):
        if order is not None:  # a process may be without a batch
            return list(order)
    raise DataError("there is no batch to initialize from: the loader is empty")


# ------------------------------------------------------------------------------------------- what a layer sees
def _observe(
    module: nn.Module, name: str, layer: MorphLayer, batch: Any, target: Target | None, seed: int
) -> Iterator[Rows]:
    """The rows of a layer for one batch, a chunk of samples at a time."""
    calls: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
        x = next(iter((*args, *kwargs.values())))
        calls.append((x.clone(), output[0] if isinstance(output, tuple) else output))  # x may be changed in place

    handle = layer.register_forward_hook(note, with_kwargs=True)
    try:
        result = module(_inputs(batch))
    finally:
        handle.remove()
    pairs = layer.initializer.data == "pairs"
    if pairs and len(calls) != 1:
        raise ConfigError(
            f"layer {name!r} learns from pairs, but the module calls it {len(calls)} times for one batch, and nobody "
            "knows what it should give each time; choose an initializer without targets, such as 'upper'"
        )
    numbers = _mixed(_numbers(_inputs(batch)) + _mixed(torch.tensor(seed)).item())
    for x, output in calls:
        y = _wanted(name, layer, batch, output, result, target) if pairs else None
        yield from _rows(name, layer, x, y, numbers)


def _rows(name: str, layer: MorphLayer, x: Tensor, y: Tensor | None, numbers: Tensor) -> Iterator[Rows]:
    event = layer.weight.ndim - 1
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.to(dtype).reshape(-1, *x.shape[-event:])
    y = None if y is None else y.to(dtype).reshape(-1, *y.shape[-event:])
    for what, values in (("receives", x), ("should give", y)):
        if values is not None and not values.isfinite().all():
            raise DataError(f"layer {name!r} {what} values that are NaN or infinite; its initializer cannot use them")
    if len(x) % len(numbers):
        raise ShapeError(
            f"layer {name!r} receives {len(x)} samples for a batch of {len(numbers)}; its initializer needs the same "
            "number for each sample, sample after sample"
        )
    numbers = _mixed(numbers[:, None] + torch.arange(len(x) // len(numbers), device=numbers.device)).flatten()
    size = max(1, BUDGET // layer.candidates(x[:1]).numel())
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        candidates = layer.candidates(x[part])
        positions = torch.arange(len(candidates) // len(x[part]), device=numbers.device)
        draw = _mixed(numbers[part, None] + positions).flatten().to(candidates.device)
        yield Rows(candidates, None if y is None else layer.wanted(y[part]), draw)


def _wanted(name: str, layer: MorphLayer, batch: Any, output: Tensor, result: Any, target: Target | None) -> Tensor:
    """What a layer should give, in the shape of its output."""
    y = None if target is None else target(name, batch)
    if y is None:
        last = isinstance(result, Tensor) and _same_values(result, output)
        if not last:
            raise ConfigError(
                f"layer {name!r} learns from pairs ({type(layer.initializer).__name__}), but its output is not the "
                "model's, so nobody knows what it should give: define site_target(name, batch) on the model (target= "
                "of initialize), or choose an initializer without targets, such as 'upper' or 'prototype'"
            )
        if isinstance(batch, Tensor) or len(batch) < 2:
            raise DataError(
                f"layer {name!r} learns from pairs, but the batches hold no targets; pass batches (inputs, target)"
            )
        y = batch[1]
        if y.shape == result.shape:
            y = y.reshape(output.shape)
    if not y.is_floating_point() and y.shape == output.shape[:-1] and output.ndim == 2:
        return _one_hot(name, y, output)
    if y.shape != output.shape or not y.is_floating_point():
        raise ShapeError(
            f"layer {name!r} gives {tuple(output.shape)}, its targets are {y.dtype} of shape {tuple(y.shape)}; "
            "expected floating-point targets of that shape, or classes (batch,)"
        )
    return y.to(output.device)


def _same_values(result: Tensor, output: Tensor) -> bool:
    """Whether the module hands out the layer's output, or a view of all of it."""
    return result.data_ptr() == output.data_ptr() and result.numel() == output.numel()


def _one_hot(name: str, classes: Tensor, output: Tensor) -> Tensor:
    count = output.shape[1]
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise DataError(
            f"layer {name!r} has {count} units, the targets hold classes from {int(classes.min())} to "
            f"{int(classes.max())}; expected 0 to {count - 1}"
        )
    return nn.functional.one_hot(classes.long(), count).to(output)


def _numbers(inputs: Tensor) -> Tensor:
    """A number for each sample, int64, computed from its bits alone."""
    flat = inputs.contiguous().reshape(len(inputs), -1)
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]).long()
    return (bits * (2 * _mixed(torch.arange(bits.shape[1], device=bits.device)) + 1)).sum(1)


def _mixed(numbers: Tensor) -> Tensor:
    """Scramble int64 numbers to pseudo-random ones >= 0 (in the way of splitmix64; products wrap around)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        numbers = (numbers ^ (numbers >> shift)) * factor
    return (numbers ^ (numbers >> 31)) & (2**63 - 1)


def _rows_last(t: Tensor) -> Tensor:
    """(rows, groups, n) as (groups, n, rows)."""
    return t.permute(1, 2, 0).contiguous()


# ------------------------------------------------------------------------------------------------------- data
class _Batches:
    """The batches of this process, on the module's device and in its dtype; they can be read again and again."""

    def __init__(self, module: nn.Module, loader: Iterable[Any], max_batches: int | None) -> None:
        if max_batches is not None and max_batches < 1:
            raise ConfigError(f"max_batches={max_batches}, expected at least 1, or None for all")
        if isinstance(loader, Iterator):
            raise ConfigError(
                f"initialize reads its batches several times, and a {type(loader).__name__} can be read only once; "
                "pass a DataLoader or a list of batches"
            )
        like = next(module.parameters())
        self._loader, self._most = _ordered(loader), max_batches
        self._device, self._dtype = like.device, like.dtype

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self._loader, self._most):
            yield self._placed(batch) if isinstance(batch, Tensor) else [self._placed(part) for part in batch]

    def _placed(self, part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        return part.to(self._device, self._dtype) if part.is_floating_point() else part.to(self._device)


def _inputs(batch: Any) -> Tensor:
    inputs = batch if isinstance(batch, Tensor) else batch[0]
    if not isinstance(inputs, Tensor):
        raise ConfigError(f"expected batches that are tensors or (inputs, target), got {type(inputs).__name__} first")
    return inputs


def _ordered(loader: Iterable[Any]) -> Iterable[Any]:
    """A loader of the same samples in a fixed order without padding, this process's share; others as they are."""
    ours = (RandomSampler, SequentialSampler, DistributedSampler)
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or not isinstance(loader.sampler, ours)
        or loader.batch_size is None
    ):
        return loader
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    rank = dist.get_rank() if _processes() > 1 else 0
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        sampler=order[rank :: _processes()].tolist(),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),  # so that torch's global one is not asked for a seed
    )


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and after it each submodule in the mode it was in."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes:
            child.training = mode


# -------------------------------------------------------------------------------------------------- processes
def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_processes(value: Any) -> list[Any]:
    values = [value] * _processes()
    if _processes() > 1:
        dist.all_gather_object(values, value)
    return values


def _reduce(state: dict[str, Tensor], how: Mapping[str, str]) -> None:
    """Reduce a state over processes, in place."""
    if _processes() == 1:
        return
    for entry in sorted(how):
        if how[entry] == "gather":
            gathered = [torch.empty_like(state[entry]) for _ in range(_processes())]
            dist.all_gather(gathered, state[entry].contiguous())
            state[entry] = torch.cat(gathered)
        else:
            dist.all_reduce(state[entry], getattr(dist.ReduceOp, how[entry].upper()))
