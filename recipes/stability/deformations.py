"""Networks see digits deformed by random fields tau with sup|grad tau| = kappa, known exactly.

D is the mean squared change of the logits over the mean squared distance between the logits of two images: 0 is
invariance, 1 as far as another image. G is the same for Gaussian noise of the size of each deformation, R = D / G. C is
the largest |f(x) - f(deformed x)| / (kappa |x|) that was seen, in units of the logits, which networks do not share.
These are measurements, no bounds; R says nothing without D, for a network that reacts to noise has a small one.
"""

from __future__ import annotations

import plots
from shared.report import Report, spread
from study import Study
from torch import Tensor

from morphlightning.guarantees.stability import DisplacementField, deform
from morphlightning.metrics import DeformationStability


def run(study: Study, report: Report) -> None:
    gradients = study.setting.gradients
    curves: dict[str, list[dict[str, Tensor]]] = {}
    rows = []
    for name, seed, network in report.track(study.each()):
        metric = DeformationStability(gradients, quantiles=(0.5, 1.0))
        for images in study.batches():
            metric.update(network, images)
        curve = metric.curve()
        curves.setdefault(name, []).append(curve)
        rows += [
            {"network": name, "seed": seed, "kappa": kappa} | {key: float(values[i]) for key, values in curve.items()}
            for i, kappa in enumerate(gradients)
        ]
    report.runs(rows)
    about = f"mean and deviation over {len(study.seeds)} seed(s)"
    lines = [
        {"kappa": f"{kappa:g}", "network": name}
        | {key: spread([float(curve[key][i]) for curve in found], 4) for key in ("D", "G")}
        | {"R": spread([float(curve["R"][i]) for curve in found], 2)}
        | {"largest C": spread([float(curve["C100"][i]) for curve in found], 2)}
        for i, kappa in enumerate(gradients)
        for name, found in curves.items()
    ]
    report.table(f"Stability to max-entropy deformations and to noise, {about}", lines)
    report.figure("curves", plots.curves(gradients, curves))
    report.figure("digits", plots.digits(_examples(study)))


def _examples(study: Study, count: int = 8) -> dict[str, Tensor]:
    """The first digits, and what fields of each gradient make of them; the same field, scaled."""
    images = study.test[0][:count]
    shown = {"images": images}
    for kappa in study.setting.gradients:
        field = DisplacementField(gradient=kappa).draw((28, 28), len(images), seed=0)
        shown[f"κ = {kappa:g}, ≤ {float(field.amplitude.max()):.1f} px"] = deform(images, field)
    return shown
