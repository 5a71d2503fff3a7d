"""Log-sum-exp from scores: the maximum first, then exponentials of what is below it, some candidates at a time."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from morphlightning.backends import backend_for
from morphlightning.ops import eager
from morphlightning.ops.geometry import Geometry, Window


class Direct(ABC):
    """Log-sum-exp of x with w, of one dtype; exact at any beta, for infinite and missing values too."""

    def __init__(self, x: Tensor, w: Tensor, beta: Tensor, geometry: Geometry) -> None:
        self.x, self.w, self.beta, self.geometry, self.dtype = eager.bounded(x), w, beta, geometry, x.dtype
        self.top = backend_for(x).value(x, w, geometry)
        self.lost = self.top.isinf()  # nothing to compete, or a candidate of +inf: sends nothing

    def value(self) -> Tensor:
        """(samples, out, ...)."""
        return torch.where(self.lost, self.top, self.top + self.total().log() / self.beta)

    @abstractmethod
    def total(self) -> Tensor:
        """The sum of e^{beta (s - top)} over the candidates."""

    @abstractmethod
    def pull(self, gy: Tensor, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message to the candidates by their shares: gradients for x and w."""

    @abstractmethod
    def pull_again(self, ux: Tensor, uw: Tensor, gy: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adjoint derivative of :meth:`pull` at cotangents ux and uw, for gy, x and w."""

    def _raise(self, scores: Tensor, top: Tensor) -> Tensor:
        """e^{beta (s - top)} in place; 0 under an infinite maximum."""
        return scores.sub_(top).mul_(self.beta).exp_().masked_fill_(top.isinf(), 0)

    def _messages(self, gy: Tensor, total: Tensor, lost: Tensor) -> Tensor:
        return (gy / total).masked_fill_(lost, 0)


class DirectDense(Direct):
    """All candidates of some samples at a time."""

    def total(self) -> Tensor:
        """The sum of e^{beta (s - top)} over the candidates."""
        return torch.cat([e.sum(-1) for _, e in self._exponentials()])

    def pull(self, gy: Tensor, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message to the candidates by their shares: gradients for x and w."""
        gx, gw = torch.empty_like(self.x), torch.zeros_like(self.w)
        for rows, e in self._exponentials():
            e *= self._messages(gy[rows], e.sum(-1), self.lost[rows])[..., None]
            gx[rows] = e.sum(1)
            gw += e.sum(0)
        return gx, gw

    def pull_again(self, ux: Tensor, uw: Tensor, gy: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adjoint derivative of :meth:`pull` at cotangents ux and uw, for gy, x and w."""
        mean, hx, hw = torch.empty_like(gy), torch.empty_like(self.x), torch.zeros_like(self.w)
        for rows, e in self._exponentials():
            u = ux[rows][:, None] + uw
            share = self._messages(torch.ones_like(gy[rows]), e.sum(-1), self.lost[rows])[..., None] * e
            mean[rows] = (share * u).sum(-1)
            share *= (u - mean[rows][..., None]) * (beta * gy[rows])[..., None]
            hx[rows] = share.sum(1)
            hw += share.sum(0)
        return mean, hx, hw

    def _exponentials(self) -> Iterator[tuple[slice, Tensor]]:
        """e^{beta (s - top)}, shape (samples, out, in), for some samples."""
        at_once = eager.rows_at_once(self.w)
        for start in range(0, len(self.x), at_once):
            rows = slice(start, start + at_once)
            scores = self.x[rows][:, None] + self.w
            yield rows, self._raise(scores, self.top[rows][..., None])


class DirectWindow(Direct):
    """One tap of all windows at a time."""

    geometry: Window

    def total(self) -> Tensor:
        """The sum of e^{beta (s - top)} over the candidates."""
        total = torch.zeros_like(self.top)
        for _, _, e in self._exponentials():
            total += e.flatten(1, 2)
        return total

    def pull(self, gy: Tensor, want_x: bool = True, want_w: bool = True) -> tuple[Tensor, Tensor]:
        """Send each message to the candidates by their shares: gradients for x and w."""
        gx, gw = torch.zeros_like(self.x), torch.zeros_like(self.w)
        sent = self._split(self._messages(gy, self.total(), self.lost))
        for cells, taps, e in self._exponentials():
            self._send(gx, gw, cells, taps, e.mul_(sent))
        return gx, gw

    def pull_again(self, ux: Tensor, uw: Tensor, gy: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adjoint derivative of :meth:`pull` at cotangents ux and uw, for gy, x and w."""
        share = self._split(self._messages(torch.ones_like(gy), self.total(), self.lost))
        mean, hx, hw = torch.zeros_like(share), torch.zeros_like(self.x), torch.zeros_like(self.w)
        for cells, taps, e in self._exponentials():
            mean += e.mul_(share) * (self._cells(ux, cells) + self._taps(uw, taps))
        sent = share * self._split(gy) * beta
        for cells, taps, e in self._exponentials():
            u = self._cells(ux, cells) + self._taps(uw, taps)
            self._send(hx, hw, cells, taps, e.mul_(sent).mul_(u - mean))
        return mean.flatten(1, 2), hx, hw

    def _exponentials(self) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], Tensor]]:
        """For each tap: the cells it meets, where it stands, and e^{beta (s - top)} in the shape of :meth:`_split`."""
        where, top, extents = self.geometry, self._split(self.top), self.top.shape[2:]
        for channel, *offset in itertools.product(*(range(n) for n in self.w.shape[1:])):
            sides = zip(offset, where.spacing, extents, where.stride, strict=True)
            window = (slice(q * d, q * d + (n - 1) * s + 1, s) for q, d, n, s in sides)
            cells, taps = (slice(channel, channel + 1), *window), (channel, *offset)
            scores = self._cells(self.x, cells) + self._taps(self.w, taps)
            yield cells, taps, self._raise(scores, top)

    def _split(self, y: Tensor) -> Tensor:
        """(samples, out, ...) as (samples, groups, out of a group, ...)."""
        return y.view(len(y), self.geometry.groups, -1, *y.shape[2:])

    def _cells(self, x: Tensor, cells: tuple[Any, ...]) -> Tensor:
        """The cells that a tap meets: (samples, groups, 1, ...), a view."""
        everything = slice(None)
        return self._split(x)[(everything, everything, *cells)]

    def _taps(self, w: Tensor, taps: tuple[Any, ...]) -> Tensor:
        """The weights of a tap: (groups, out of a group, 1, ...)."""
        return w[:, *taps].view(self.geometry.groups, -1, *(1,) * (self.top.ndim - 2))

    def _send(self, gx: Tensor, gw: Tensor, cells: tuple[Any, ...], taps: tuple[Any, ...], sent: Tensor) -> None:
        at = self._cells(gx, cells)
        at += sent.sum(2, keepdim=True)
        gw[:, *taps] = sent.flatten(3).sum((0, 3)).flatten()


def direct(x: Tensor, w: Tensor, beta: Tensor, geometry: Geometry) -> Direct:
    """Log-sum-exp from scores for a geometry."""
    return (DirectWindow if isinstance(geometry, Window) else DirectDense)(x, w, beta, geometry)
