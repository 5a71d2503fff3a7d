"""Trains a model on two processes and on one, and says whether both agree; started by test_models_ddp.py.

Usage: fit_models.py <folder> <case> <devices>. Process 0 writes <folder>/<case>-<devices>.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from morphlightning import SafeCheckpointIO
from morphlightning.data import Digits
from morphlightning.models import (
    CertifiedClassifier,
    MorphologicalAutoencoder,
    MorphologicalClassifier,
    NormalizingFlow,
    PluginTraining,
    RidgeRegularizerDenoiser,
)

SHAPE, STEPS, BATCH = (1, 8, 8), 20, 16
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


def classifier(**settings: Any) -> PluginTraining:
    return MorphologicalClassifier(SHAPE, **{"channels": (4, 6), "optimizer": SGD} | settings)


CASES: dict[str, dict[str, Any]] = {
    "default": {"optimizer": {"name": "adam", "lr": 1e-3, "schedule": "one_cycle"}},
    "count_normalized": {
        "heuristic": "count_normalized",
        "diagnostics": [{"name": "gradient_density", "every_n_steps": 1}],
    },
    "bouligand": {"derivative": {"name": "bouligand", "eps": 0.02}, "head": "max_plus", "head_units": 30},
    "everything": {
        "derivative": {"name": "bouligand", "eps": 0.02},
        "heuristic": "count_normalized",
        "regularizers": ["l1"],
        "diagnostics": [
            {"name": name, "every_n_steps": 1}
            for name in ("gradient_density", "tie_monitor", "radius_monitor", "decrease_monitor")
        ],
    },
    "activation_information": {
        "regularizers": [{"name": "activation_information", "weight": 0.01, "noise": 0.5}],
    },
    "morph_sgd": {
        "optimizer": {"name": "morph_sgd", "lr": 0.3, "morph_momentum": 0.5, "radius_clip": 0.3, "other_lr": 0.05},
        "derivative": {"name": "bouligand", "eps": 0.02},
    },
    "sup_norm": {
        "optimizer": {"name": "morph_sgd", "lr": 0.01, "sup_norm": True, "morph_decay": 0.1, "schedule": "cosine"},
        "head": "max_plus",
        "head_units": 30,
    },
    "radius_clipped": {"heuristic": "count_normalized+radius_clipped"},
    "signum": {"optimizer": {"name": "signum", "lr": 1e-3}, "heuristic": "count_normalized"},
    "prototype": {"channels": (), "hidden": (12,), "initializer": "prototype"},
    "splines": {
        "activation": {"name": "linear_spline", "constraint": "lipschitz", "projection": "step", "metric": "l2"},
        "regularizers": [{"name": "tv2", "weight": 0.02, "mode": "prox"}],
        "diagnostics": [{"name": "spline_monitor", "every_n_steps": 1}],
    },
    "learned_knots": {
        "activation": {
            "name": "nonuniform_spline",
            "constraint": "lipschitz",
            "learn_knots": True,
            "learn_scale": True,
            "extrapolation": "constant",
        },
    },
    "certified": {"hidden": (24, 12), "eps": 0.1, "max_shift": 0, "harden_at": 0.6},
    "denoiser": {},
    "flow": {},
    "ridge": {"training": "equilibrium"},
    "ridge_steps": {"training": "steps", "weak_convexity": 0.0, "shared": False},
}
TASKS = {"denoiser": "denoising", "flow": "reconstruction", "ridge": "denoising", "ridge_steps": "denoising"}


def build(case: str) -> PluginTraining:
    if case == "denoiser":
        return MorphologicalAutoencoder(SHAPE, channels=(4,), optimizer=SGD)
    if case == "flow":
        return NormalizingFlow(SHAPE, layers=2, hidden=(16,), levels=17, optimizer={"name": "adam", "lr": 1e-3})
    if case == "certified":
        return CertifiedClassifier(SHAPE, **CASES[case])
    if case.startswith("ridge"):
        rates = {"activation": 1e-4, "scale": 1e-2}
        optimizer = {"name": "adam", "lr": 5e-3, "rates": rates}
        return RidgeRegularizerDenoiser((1, 6), 3, noise=0.3, optimizer=optimizer, **CASES[case])
    return classifier(**CASES[case])


class Logged(Callback):
    """Keeps what diagnostics logged at each step."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        logged = trainer.callback_metrics
        self.kept += [float(logged[name]) for name in sorted(logged) if name.startswith("diagnostics/")]


def run(folder: Path, case: str, devices: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, task = build(case), TASKS.get(case, "classification")
    logged = Logged()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_steps=STEPS,
        max_epochs=-1,
        limit_val_batches=0 if case.startswith("ridge") else 2,  # digits are too small for SSIM
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[SafeCheckpointIO()],
        callbacks=[logged, ModelCheckpoint(folder, f"{case}-{devices}", save_top_k=1, every_n_train_steps=STEPS)],
    )
    data = Digits(batch_size=BATCH * 2 // devices, train_size=BATCH * 2 * 7, task=task)  # 20 steps: nearly three epochs
    trainer.fit(model, data)
    if trainer.is_global_zero:
        result = {
            "parameters": dict(model.named_parameters()),
            "diagnostics": logged.kept,
            "steps": trainer.global_step,
        }
        torch.save(result, folder / f"{case}-{devices}.pt")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
