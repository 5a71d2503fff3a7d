"""Trains a LipschitzNetwork on two processes; each saves its parameters and what the certificate says."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from morphlightning.lipschitz import LipschitzNetwork
from morphlightning.splines import LinearSpline


def train(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    spline = partial(LinearSpline, constraint="lipschitz", knots=9)
    network = LipschitzNetwork((1, 6, 6), (5,), 1, channels=(3,), activation=spline)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.1)
    for _ in range(5):
        x = torch.randn(8, 1, 6, 6)
        optimizer.zero_grad()
        (wrapped(x) - 10 * x.sum((1, 2, 3))[:, None].sin()).square().mean().backward()
        optimizer.step()
    torch.save({"state": network.state_dict(), "constant": network.lipschitz_spec().constant}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(train, (Path(sys.argv[1]),), nprocs=2)
