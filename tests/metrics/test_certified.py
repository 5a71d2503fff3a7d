from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from morphlightning.errors import ConfigError, NotCertifiable
from morphlightning.guarantees.robustness import certified_margins
from morphlightning.layers import MeanShift, SignedDilation, SignedErosion
from morphlightning.metrics import CertifiedAccuracy, CertifiedRadius


def classifier(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, images and labels, some of them wrong."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), SignedDilation(16, 8), MeanShift(8), SignedErosion(8, 3)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.4)
    x = torch.rand(60, 1, 4, 4)
    labels = network(x).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return network, x, labels


@pytest.mark.parametrize("method", ["lipschitz", "interval", "exact"])
def test_counts_certificates_over_batches(method: str) -> None:
    network, x, labels = classifier()
    metric = CertifiedAccuracy([0.01, 0.05], method)
    for part in (slice(0, 13), slice(13, 60)):
        metric.update(network, x[part], labels[part])
    found = metric.compute()
    assert float(found["accuracy"]) == pytest.approx(float((network(x).argmax(1) == labels).double().mean()))
    for eps in (0.01, 0.05):
        hits = int((certified_margins(network, x, labels, eps, method) > 0).sum())  # type: ignore[arg-type]
        assert 0 < hits < 60
        assert float(found[f"certified@{eps}"]) == pytest.approx(hits / 60)
        interval = binomtest(hits, 60).proportion_ci(method="wilson")
        assert float(found[f"certified@{eps}/low"]) == pytest.approx(interval.low, abs=1e-6)
        assert float(found[f"certified@{eps}/high"]) == pytest.approx(interval.high, abs=1e-6)
    assert found["certified@0.05"] <= found["certified@0.01"] <= found["accuracy"]


def test_all_and_none_have_intervals_too() -> None:
    network, x, _ = classifier()
    wrong = (network(x).argmax(1) + 1) % 3
    for chosen, share in ((network(x).argmax(1), 1.0), (wrong, 0.0)):
        metric = CertifiedAccuracy(1e-6, confidence=0.99)
        metric.update(network, x, chosen)
        found = metric.compute()
        interval = binomtest(int(60 * share), 60).proportion_ci(0.99, method="wilson")
        assert float(found["accuracy"]) == share
        assert float(found["accuracy/low"]) == pytest.approx(interval.low, abs=1e-6)
        assert float(found["accuracy/high"]) == pytest.approx(interval.high, abs=1e-6)


def test_radii_say_what_accuracies_say() -> None:
    network, x, labels = classifier()
    radii = CertifiedRadius(limit=0.2)
    for part in (slice(0, 13), slice(13, 60)):
        radii.update(network, x[part], labels[part])
    found = radii.compute()
    eps = torch.linspace(0, 0.2, 2001, dtype=torch.float64)
    curve = radii.curve(eps)
    assert float(found["area"]) == pytest.approx(float(torch.trapezoid(curve, eps)) / 0.2, abs=1e-3)
    assert found["quantile@0.1"] == 0  # one in seven is wrong
    assert found["quantile@0.5"] <= found["quantile@0.9"]
    accuracy = CertifiedAccuracy([0.02, 0.05], "lipschitz")
    accuracy.update(network, x, labels)
    for radius in (0.02, 0.05):
        certified = float(accuracy.compute()[f"certified@{radius}"])
        assert float(radii.curve(torch.tensor([radius]))) == pytest.approx(certified)


def test_interval_radii_stop_at_the_limit() -> None:
    network, x, labels = classifier()
    metric = CertifiedRadius(0.03, "interval", quantiles=(1.0,))
    metric.update(network, x, labels)
    assert float(metric.compute()["quantile@1"]) == pytest.approx(0.03)


def test_units_and_layers_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"8 grey levels of 255 were meant, that is eps=0\.03137"):
        CertifiedAccuracy(8)
    with pytest.raises(ConfigError, match=r"eps=0 is no radius"):
        CertifiedAccuracy([0.1, 0])
    with pytest.raises(ConfigError, match="some eps"):
        CertifiedAccuracy([])
    with pytest.raises(ConfigError, match="need a limit"):
        CertifiedRadius(clip=None)
    assert CertifiedAccuracy(8, clip=(0, 255)).eps == (8.0,)
    network, x, labels = classifier()
    network.append(nn.Softmax(1))
    with pytest.raises(NotCertifiable, match="Softmax"):
        CertifiedAccuracy(0.1).update(network, x, labels)


SCRIPT = """
import sys, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_certified import classifier
from morphlightning.metrics import CertifiedAccuracy, CertifiedRadius

def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, x, labels = classifier()
    metrics = CertifiedAccuracy([0.01, 0.05]), CertifiedRadius()
    part = slice(0, 13) if rank == 0 else slice(13, 60)
    for metric in metrics:
        metric.update(network, x[part], labels[part])
    torch.save([metric.compute() for metric in metrics], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.slow
def test_two_processes_count_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    network, x, labels = classifier()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for metric, values in zip((CertifiedAccuracy([0.01, 0.05]), CertifiedRadius()), found, strict=True):
            metric.update(network, x, labels)
            for name, value in metric.compute().items():
                assert math.isclose(float(value), float(values[name]), rel_tol=1e-6), name
