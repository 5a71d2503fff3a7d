from __future__ import annotations

import math
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
import torch
from scipy.ndimage import grey_dilation
from torch import Tensor

from morphlightning.errors import ShapeError
from morphlightning.metrics import DilationCommutation


def brute_force(code: Tensor, atoms: Tensor, images: Tensor, footprint: np.ndarray) -> float:
    """The definition, image by image, with scipy's dilation."""

    def dilate(x: Tensor) -> np.ndarray:
        planes = [
            [grey_dilation(p, footprint=footprint, mode="constant", cval=-math.inf) for p in image]
            for image in x.double().numpy()
        ]
        return np.array(planes)

    dilated, parts = dilate(images), dilate(atoms)
    approximation = sum(code[:, k].double().numpy()[:, None, None, None] * parts[k] for k in range(code.shape[1]))
    return float(((dilated - approximation) ** 2).sum() / ((dilated - dilated.mean()) ** 2).sum())


def draw(samples: int = 12, channels: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    code = torch.rand(samples, 5, generator=generator, dtype=dtype)
    atoms = torch.rand(5, channels, 9, 7, generator=generator, dtype=dtype)
    return code, atoms, torch.rand(samples, channels, 9, 7, generator=generator, dtype=dtype)


def spots(distance: int) -> Tensor:
    """Four atoms, each one pixel, so far apart."""
    atoms = torch.zeros(4, 1, 12, 12)
    for k in range(4):
        atoms[k, 0, 2 + k // 2 * distance, 2 + k % 2 * distance] = 1 + k
    return atoms


@pytest.mark.parametrize(
    ("window", "footprint"),
    [
        (3, np.ones((3, 3))),
        ((1, 5), np.ones((1, 5))),
        (torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).bool(), np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])),
        (torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool(), np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])),
    ],
)
def test_agrees_with_the_definition_over_batches(window: int | Tensor, footprint: np.ndarray) -> None:
    code, atoms, images = draw()
    metric = DilationCommutation(window)
    for batch in (slice(0, 5), slice(5, 6), slice(6, 12)):
        metric.update(code[batch], atoms, images[batch])
    assert metric.compute().item() == pytest.approx(brute_force(code, atoms, images, footprint), rel=1e-12)


def test_distant_parts_commute_and_near_ones_do_not() -> None:
    code = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    for distance, commutes in ((3, True), (2, False)):
        atoms = spots(distance)
        metric = DilationCommutation(3)
        metric.update(code, atoms, (code @ atoms.flatten(1)).view(6, 1, 12, 12))
        assert (metric.compute() < 1e-12) == commutes


def test_one_is_the_constant_mean_and_scale_does_not_matter() -> None:
    code, atoms, images = draw()
    mean = brute_force(code * 0, atoms, images, np.ones((3, 3)))
    flat = torch.ones_like(atoms)
    dilated_mean = torch.nn.functional.max_pool2d(images, 3, 1, 1).mean()
    metric = DilationCommutation(3)
    metric.update(torch.full((12, 5), dilated_mean.item() / 5, dtype=torch.float64), flat, images)
    assert metric.compute().item() == pytest.approx(1.0)
    assert mean > 1
    scaled, plain = DilationCommutation(3), DilationCommutation(3)
    scaled.update(7 * code, atoms, 7 * images)
    plain.update(code, atoms, images)
    assert scaled.compute().item() == pytest.approx(plain.compute().item(), rel=1e-10)


def test_constant_images_have_no_variance() -> None:
    atoms, images = torch.ones(1, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    metric = DilationCommutation()
    metric.update(torch.full((2, 1), 0.5), atoms, images)
    assert metric.compute() == 0
    metric.update(torch.full((2, 1), 0.7), atoms, images)
    assert metric.compute() == math.inf


def test_merged_states_are_those_of_all_samples() -> None:
    code, atoms, images = draw()
    whole, first, second = (DilationCommutation(3) for _ in range(3))
    whole.update(code, atoms, images)
    first.update(code[:4], atoms, images[:4])
    second.update(code[4:], atoms, images[4:])
    first.merge_state(second)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_summed_in_single_precision(dtype: torch.dtype) -> None:
    code, atoms, images = (t.to(dtype) for t in draw())
    metric = DilationCommutation(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(code, atoms, images)
    exact = brute_force(code, atoms, images, np.ones((3, 3)))
    assert metric.compute().dtype == torch.float32
    assert metric.compute().item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("code", "atoms", "images", "message"),
    [
        ((3, 4), (4, 16), (3, 1, 4, 4), "reshape decoder weights"),
        ((3, 4), (4, 1, 4, 4), (2, 1, 4, 4), "axis 0 of code and images"),
        ((3, 5), (4, 1, 4, 4), (3, 1, 4, 4), "axis 1 of code and axis 0 of atoms"),
        ((3, 4), (4, 1, 4, 5), (3, 1, 4, 4), "axes 1 to 3"),
    ],
)
def test_shapes_are_checked(
    code: tuple[int, ...], atoms: tuple[int, ...], images: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        DilationCommutation().update(torch.zeros(code), torch.zeros(atoms), torch.zeros(images))


SCRIPT = """
import sys, torch, torch.distributed as dist, torch.multiprocessing as mp
from morphlightning.metrics import DilationCommutation, Sparsity

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    code, atoms, images = torch.load(f"{folder}/data.pt")
    own = slice(0, 4) if rank == 0 else slice(4, 12)
    commutation, sparsity = DilationCommutation(3), Sparsity()
    commutation.update(code[own], atoms, images[own])
    sparsity.update(code[own])
    torch.save([commutation.compute(), sparsity.compute()], f"{folder}/result{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    from morphlightning.metrics import Sparsity

    code, atoms, images = draw()
    torch.save([code, atoms, images], tmp_path / "data.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    run([sys.executable, tmp_path / "script.py", tmp_path], check=True, timeout=120)
    whole, sparsity = DilationCommutation(3), Sparsity()
    whole.update(code, atoms, images)
    sparsity.update(code)
    for rank in range(2):
        result = [value.item() for value in torch.load(tmp_path / f"result{rank}.pt")]
        assert result == pytest.approx([whole.compute().item(), sparsity.compute().item()], rel=1e-12)
