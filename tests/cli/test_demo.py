"""`morphlightning demo`."""

import sys

from morphlightning.cli import main


def test_demo_trains_and_says_where_results_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["morphlightning"])
    assert main(["demo", "--epochs", "1", "--run", "out"]) == 0
    printed = capsys.readouterr().out
    for word in ("accuracy", "psnr", "ssim", "tensorboard --logdir out"):
        assert word in printed
    for model, figure in (("classifier", "confusion_matrix"), ("denoiser", "reconstructions")):
        figures = [path.name for path in (tmp_path / "out" / model / "figures").iterdir()]
        for name in (figure, "structuring_functions", "learning_curves"):
            assert any(path.startswith(name) for path in figures), name
        assert (tmp_path / "out" / model / "checkpoints/last.ckpt").exists()
    assert main(["demo", "--run", "out"]) == 1
    assert "exists already" in capsys.readouterr().err
