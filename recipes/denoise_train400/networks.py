"""What splines are compared with: ridge regularizers with ReLU, and a network that is trained freely."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio

from morphlightning.models import RidgeRegularizerDenoiser
from morphlightning.splines import SplineTable


@dataclass(frozen=True, eq=False)
class ReluTable(SplineTable):
    """slope max(x - bias_c, 0) as splines with the knots bias_c - 1, bias_c, bias_c + 1, computed as what they are."""

    def __call__(self, x: Tensor, channel_dim: int = 1, out: Tensor | None = None) -> Tensor:
        bias, slope = self._columns(x, channel_dim)
        if out is None:
            return (x - bias).relu() * slope
        return torch.sub(x, bias, out=out).relu_().mul_(slope)

    def slope(self, x: Tensor, channel_dim: int = 1) -> Tensor:
        bias, slope = self._columns(x, channel_dim)
        return (x >= bias) * slope

    def on_grid(self) -> ReluTable:
        return self

    def detach(self) -> ReluTable:
        return ReluTable(self.knots.detach(), self.values.detach())

    def _columns(self, x: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
        bias = self.knots[:, 1].repeat_interleave(x.shape[channel_dim] // len(self))
        return bias.view(-1, *[1] * (x.ndim - 1 - channel_dim)), self.values[0, 2]


class BiasedRelu(nn.Module):
    """phi_c(x) = slope max(x - bias_c, 0): a slope > 0 that all share and a bias for each feature, learned."""

    api_version = "1.4"
    roles: ClassVar[dict[str, str]] = {"bias": "activation", "log_slope": "scale"}

    def __init__(self, features: int, slope: float = 1.0, bias: float = 0.02) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((features,), bias))
        self.log_slope = nn.Parameter(torch.tensor(slope).log())

    def table(self) -> ReluTable:
        steps = self.bias.new_tensor([-1.0, 0.0, 1.0])
        return ReluTable(self.bias[:, None] + steps, (self.log_slope.exp() * steps.relu()).expand(len(self.bias), 3))

    def tv2(self) -> Tensor:
        return self.table().tv2()

    def forward(self, x: Tensor) -> Tensor:
        return self.table()(x)


def with_relu(model: RidgeRegularizerDenoiser) -> RidgeRegularizerDenoiser:
    """The same network with ReLU, which sees one sign: the first half of the filters begins with either."""
    weight: Tensor = model.regularizer.filters.layers[-1].weight  # type: ignore[assignment]
    model.regularizer.activation = BiasedRelu(len(weight))
    with torch.no_grad():
        half = len(weight) // 2
        weight[half : 2 * half] = -weight[:half]
    return model


class Dncnn(L.LightningModule):
    """Convolutions and ReLU that predict the noise from the noisy image and a map of its level.

    Batches are (noisy, clean, sigma). Nothing bounds what it does: no energy, no Lipschitz constant.

    Source: Zhang et al., arXiv 1608.03981 (residual learning), 1710.04026 (map of the level).
    """

    def __init__(self, width: int = 32, depth: int = 7, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        widths = [2, *[width] * (depth - 1), 1]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        nn.init.zeros_(self.network[-1].weight)  # type: ignore[arg-type]
        self.psnr = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))

    def forward(self, y: Tensor, sigma: Tensor | float) -> Tensor:
        """Denoised images, shape of y; sigma is a number or (N,), white is 1."""
        level = torch.as_tensor(sigma, dtype=y.dtype, device=y.device).view(-1, 1, 1, 1).expand_as(y)
        noise: Tensor = self.network(torch.cat([y, level], 1))
        return y - noise

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        noisy, clean, sigma = batch
        loss = F.mse_loss(self(noisy, sigma), clean)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noisy, clean, sigma = batch
        self.psnr.update(self(noisy, sigma).clamp(0, 1), clean)
        self.log("val/psnr", self.psnr, batch_size=len(noisy))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
