"""PSNR and SSIM on Set12, and total variation tuned as well as it can be."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from networks import Dncnn
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from training import Setting

from morphlightning.errors import TrainingWarning
from morphlightning.inverse import TotalVariation
from morphlightning.inverse.operators import Identity
from morphlightning.models import RidgeRegularizerDenoiser

LEVELS = (5, 15, 25)
"""Noise levels of the tables, in grey values of 255."""
SMALL = 256
"""Side of seven of the twelve images."""
SHOWN = (25, 5)
"""Level and number of the image of which pictures are kept."""
Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Score:
    """Of one image."""

    method: str
    level: int
    image: int
    side: int
    psnr: float
    ssim: float
    seconds: float


@dataclass(frozen=True)
class Picture:
    """What a method makes of the image that is shown."""

    noisy: Tensor
    clean: Tensor
    output: Tensor


def denoiser(model: object) -> Denoise:
    """A trained network as a function of a noisy image (1, 1, H, W) and its noise level; white is 1."""
    if isinstance(model, Dncnn):
        return torch.no_grad()(model)
    assert isinstance(model, RidgeRegularizerDenoiser)
    return lambda y, sigma: model.denoise(y, sigma).x


def pairs(setting: Setting, level: int, part: str = "test", count: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Noisy and clean images (1, 1, H, W); the noise of an image is the same for all methods and levels."""
    data = setting.images(eval_noise=level / 255)
    data.setup("test" if part == "test" else "fit")
    loader = data.test_dataloader() if part == "test" else data.val_dataloader()
    assert not isinstance(loader, list)
    return [(noisy, clean) for noisy, clean, _ in loader][:count]


def scores(name: str, denoise: Denoise, setting: Setting, quick: bool) -> tuple[list[Score], Picture]:
    """Scores of all levels and images, and the picture of one; kept, so that a resumed run need not find them anew."""
    path = setting.folder / name / "scores.pt"
    if path.exists():
        kept, tensors = torch.load(path)
        return [Score(**score) for score in kept], Picture(*tensors)
    found, picture = [], None
    warnings.simplefilter("ignore", TrainingWarning)  # some networks have learned one level, and others follow from it
    for level in LEVELS:
        for number, (noisy, clean) in enumerate(pairs(setting, level, count=SHOWN[1] if quick else None), start=1):
            began = time.process_time()
            output = denoise(noisy, level / 255).clamp(0, 1)
            seconds = time.process_time() - began
            similar = float(ssim(output, clean, data_range=1.0))
            found.append(Score(name, level, number, clean.shape[-1], psnr(output, clean), similar, seconds))
            if (level, number) == SHOWN:
                picture = Picture(noisy, clean, output)
    assert picture is not None
    path.parent.mkdir(exist_ok=True)
    torch.save(([asdict(score) for score in found], [picture.noisy, picture.clean, picture.output]), path)
    return found, picture


def psnr(output: Tensor, clean: Tensor) -> float:
    """Of images in [0, 1], dB."""
    return -10 * math.log10(float((output - clean).square().mean()))


def mean(found: Sequence[Score], level: int, side: int | None = None) -> float:
    """Mean PSNR over the images of a side, or all."""
    values = [score.psnr for score in found if score.level == level and side in (None, score.side)]
    return sum(values) / len(values) if values else math.nan


class TunedTotalVariation:
    """Total variation with the weight that is best on four validation images, found anew for each level."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.weights = setting, dict[float, float]()

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        """Denoised images, shape of y."""
        if sigma not in self.weights:
            self.weights[sigma] = self.tuned(sigma)
        return self.denoise(y, self.weights[sigma])

    def denoise(self, y: Tensor, weight: float) -> Tensor:
        return TotalVariation(Identity(), weight, tolerance=1e-4, max_iterations=300)(y).x

    def tuned(self, sigma: float) -> float:
        images = pairs(self.setting, round(255 * sigma), "val", 4)

        def quality(log_weight: float) -> float:
            return sum(psnr(self.denoise(noisy, math.exp(log_weight)), clean) for noisy, clean in images)

        return math.exp(golden(quality, math.log(0.2 * sigma), math.log(2 * sigma), steps=6))


def golden(quality: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """Where a function with one maximum is largest, by golden sections."""
    ratio = (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [quality(x) for x in inner]
    for _ in range(steps):
        if values[0] > values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = quality(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = quality(inner[1])
    return sum(inner) / 2
