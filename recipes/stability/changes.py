"""Predictions kept under changes of the image, and how far each layer is from commuting with them.

A change of brightness adds a constant to all pixels, beyond [0, 1] too. Shifts are by one pixel in all eight
directions. Relative defects are mean squared |f(Tx) - T f(x)| over the mean squared distance between the outputs of two
images, of each layer on the inputs that it gets; a shift is to leave logits as they are. "exact" is 0 bit for bit, or
but for rounding, as the layer claims; a claim that is false stops the run. A layer without an entry sees no images, or
is nowhere far enough from the border.
"""

from __future__ import annotations

from shared.report import Report, spread
from study import Study
from torch import nn

from morphlightning.guarantees.stability import Change, change, evaluating
from morphlightning.metrics import EquivarianceDefect, ShiftConsistency

CHANGES: dict[str, tuple[Change, float]] = {
    "brightness +0.1": ("brightness", 0.1),
    "brightness +0.3": ("brightness", 0.3),
    "brightness -0.5": ("brightness", -0.5),
    "gain 0.5": ("gain", 0.5),
    "square root": ("contrast", 0.5),
}
GROUPS: tuple[Change, ...] = ("shift", "brightness", "gain", "contrast", "sup")


def run(study: Study, report: Report) -> None:
    rows: list[dict[str, object]] = []
    kept: dict[str, list[dict[str, float]]] = {}
    defects: dict[tuple[str, str], dict[str, str]] = {}
    for name, seed, network in report.track(study.each()):
        found = predictions_kept(network, study)
        kept.setdefault(name, []).append(found)
        rows += [{"network": name, "seed": seed, "change": key, "kept": share} for key, share in found.items()]
        for group in GROUPS:
            metric = EquivarianceDefect(group)
            for images in study.batches():
                metric.update(network, images)
            values = metric.compute()  # raises where a claim is false
            claimed = dict(zip(metric.layers, metric.excess.isfinite().tolist(), strict=True))
            for layer in metric.layers:
                numbers = {key: float(values[f"{layer}/{key}"]) for key in ("max", "mean", "relative")}
                rows.append({"network": name, "seed": seed, "change": group, "layer": layer} | numbers)
                if seed == study.seeds[0]:
                    text = "exact" if claimed[layer] else f"{numbers['relative']:.2g}"
                    defects.setdefault((name, layer), {})[group] = text
    report.runs(rows)
    about = f"mean and deviation over {len(study.seeds)} seed(s)"
    lines = [
        {"network": name} | {f"{key}, %": spread([one[key] for one in found], 1) for key in found[0]}
        for name, found in kept.items()
    ]
    report.table(f"Predictions kept, right and wrong ones, {about}", lines)
    for name, networks in study.networks.items():
        layers = [layer for network, layer in defects if network == name]
        lines = [
            {"layer": _described(networks[0], layer)} | {group: defects[name, layer].get(group, "") for group in GROUPS}
            for layer in sorted(layers, key=_place)
        ]
        report.table(f"{name}: relative defects, seed {study.seeds[0]}", lines)


def predictions_kept(network: nn.Module, study: Study) -> dict[str, float]:
    """Shares of the test images in percent: shifts by one pixel, the mean over them and all at once, and changes."""
    consistency = ShiftConsistency(1)
    agree = dict.fromkeys(CHANGES, 0)
    for images in study.batches():
        consistency.update(network, images)
        with evaluating(network):
            classes = network(images).argmax(1)
            for name, (kind, amount) in CHANGES.items():
                agree[name] += int((network(change(images, kind, amount)).argmax(1) == classes).sum())
    shifts = consistency.compute()
    found = {"1 px": float(shifts["mean"]), "all 1 px": float(shifts["all"])}
    found |= {name: count / len(study.test[1]) for name, count in agree.items()}
    return {name: 100 * share for name, share in found.items()}


def _place(layer: str) -> tuple[bool, int]:
    return layer == "network", int(layer) if layer.isdigit() else 0


def _described(network: nn.Module, layer: str) -> str:
    return layer if layer == "network" else f"{layer} {type(network.get_submodule(layer)).__name__}"
