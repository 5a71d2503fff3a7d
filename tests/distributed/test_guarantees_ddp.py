"""Guarantees on two processes say what one process says of all samples, and fail on both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from morphlightning.errors import BrokenCertificateError
from morphlightning.guarantees.robustness import Attacked
from morphlightning.metrics import AttackGap, GeneralizationGap


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=generator), torch.randint(4, (30,), generator=generator)


def gap(margins: torch.Tensor, certified: torch.Tensor, names: torch.Tensor) -> AttackGap:
    metric = AttackGap()
    metric.update(Attacked(margins, margins), certified, names)
    return metric


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    logits, labels = samples()
    own = slice(0, 9) if rank == 0 else slice(9, 30)
    generalization = GeneralizationGap()
    generalization.update(logits[own], labels[own], train=rank == 0)  # one process has one part alone
    names = torch.arange(30)
    margins = logits.amax(1)
    attack = gap(margins[own], margins[own] > 1, names[own])
    broken = gap(margins[own] - 2.0 * rank, margins[own] > 1, names[own])  # on process 1 alone
    result = {"generalization": generalization.compute(), "gap": attack.compute()}
    with pytest.raises(BrokenCertificateError) as error:
        broken.compute()
    result["broken"] = str(error.value)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    mp.spawn(process, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    logits, labels = samples()
    one = GeneralizationGap()
    one.update(logits[:9], labels[:9], train=True)
    one.update(logits[9:], labels[9:], train=False)
    margins = logits.amax(1)
    expected = gap(margins, margins > 1, torch.arange(30)).compute()
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["generalization"], one.compute())
        torch.testing.assert_close(result["gap"], expected)
        named = [int(n) for n in torch.arange(9, 30)[(margins[9:] > 1) & (margins[9:] <= 2)]]
        assert f"{named[0]} (margin" in result["broken"]
        assert f"{len(named)} of {int((margins > 1).sum())} certified samples" in result["broken"]


@pytest.mark.slow
def test_a_constant_that_one_process_refutes_fails_both(tmp_path: Path) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    script = Path(__file__).with_name("fit_audit.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=inherited | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for rank in (0, 1):
        assert "moved apart by the factor 1, above the certified 0.5" in (tmp_path / f"{rank}.txt").read_text()
