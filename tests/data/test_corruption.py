"""Noise and missing pixels: their laws, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import Generator, Philox

from morphlightning.data.corruption import Corruption

CLEAN = torch.full((6, 2, 5, 7), 0.5)
EPOCHS = [0, 0, 1, 1, 2, 0]
SAMPLES = [0, 1, 0, 1, 2**40, 5]


@pytest.mark.parametrize("task", ["denoising", "inpainting"])
def test_a_sample_does_not_depend_on_its_batch(task: str) -> None:
    corrupt = Corruption(task, noise=0.2, missing=0.5, seed=3)
    whole = corrupt(CLEAN, EPOCHS, SAMPLES)
    for i in reversed(range(len(CLEAN))):
        assert torch.equal(corrupt(CLEAN[i : i + 1], EPOCHS[i : i + 1], SAMPLES[i : i + 1])[0], whole[i])


@pytest.mark.parametrize("task", ["denoising", "inpainting"])
def test_seed_stream_epoch_and_sample_each_change_the_draw(task: str) -> None:
    def draw(seed: int = 0, stream: int = 0, epoch: int = 0, sample: int = 0, fixed: bool = False) -> torch.Tensor:
        return Corruption(task, 0.2, 0.5, seed, stream, fixed)(CLEAN[:1], [epoch], [sample])

    draws = [draw(), draw(seed=1), draw(stream=1), draw(epoch=1), draw(sample=1), draw(seed=2**62)]
    for i, first in enumerate(draws):
        assert all(not torch.equal(first, other) for other in draws[i + 1 :])
    assert torch.equal(draw(epoch=9, fixed=True), draw())


def test_noise_is_the_documented_stream_of_philox() -> None:
    noisy = Corruption("denoising", noise=1.0, seed=5, stream=1)(torch.zeros(1, 1, 4, 4), [3], [7])
    bits = Philox(key=np.array([5, 1], dtype=np.uint64), counter=np.array([0, 0, 3, 7], dtype=np.uint64))
    expected = Generator(bits).standard_normal(16, dtype=np.float32)
    assert np.array_equal(noisy.flatten().numpy(), expected)


def test_noise_has_the_law_that_was_asked_for() -> None:
    clean = torch.zeros(50, 1, 40, 40)
    noise = Corruption("denoising", noise=0.2)(clean, [0] * 50, range(50)) / 0.2
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs(torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)).max() < 0.15  # samples are independent


def test_missing_pixels_are_zero_in_all_channels_and_as_many_as_asked_for() -> None:
    clean = torch.full((50, 3, 40, 40), 0.5)
    masked = Corruption("inpainting", missing=0.25)(clean, [0] * 50, range(50))
    assert set(masked.unique().tolist()) == {0.0, 0.5}
    assert torch.equal(masked[:, 0], masked[:, 2])
    assert abs((masked[:, 0] == 0).float().mean() - 0.25) < 5 * (0.25 * 0.75 / masked[:, 0].numel()) ** 0.5


@pytest.mark.parametrize("task", ["classification", "reconstruction"])
def test_other_tasks_leave_images_alone(task: str) -> None:
    assert Corruption(task, noise=1.0, missing=0.9)(CLEAN, EPOCHS, SAMPLES) is CLEAN


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(1)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    Corruption("denoising", noise=0.1)(CLEAN, EPOCHS, SAMPLES)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)


def test_levels_are_uniform_in_their_range_and_scale_the_noise() -> None:
    corrupt = Corruption("denoising", noise=(0.1, 0.3), seed=2)
    samples = list(range(2000))
    levels = corrupt.levels([0] * 2000, samples)
    assert levels.dtype == torch.float32
    assert 0.1 <= levels.min() < 0.11
    assert 0.29 < levels.max() <= 0.3
    assert abs(levels.mean() - 0.2) < 5 * 0.2 / (12 * 2000) ** 0.5
    noise = corrupt(torch.zeros(2000, 1, 8, 8), [0] * 2000, samples)
    unit = Corruption("denoising", noise=1.0, seed=2)(torch.zeros(2000, 1, 8, 8), [0] * 2000, samples)
    torch.testing.assert_close(noise, levels.view(-1, 1, 1, 1) * unit)


def test_a_level_depends_on_seed_stream_epoch_and_sample_alone() -> None:
    def level(seed: int = 0, stream: int = 0, epoch: int = 0, sample: int = 0, fixed: bool = False) -> float:
        made = Corruption("denoising", noise=(0.0, 1.0), seed=seed, stream=stream, fixed=fixed)
        return made.levels([epoch], [sample]).item()

    draws = [level(), level(seed=1), level(stream=1), level(epoch=1), level(sample=1)]
    assert len(set(draws)) == len(draws)
    assert level(epoch=9, fixed=True) == level()
    corrupt = Corruption("denoising", noise=(0.0, 1.0))
    assert corrupt.levels([0, 1, 0], [0, 0, 1]).tolist() == [draws[0], draws[3], draws[4]]
