"""Classifiers of signed layers: bounds that hold, training that certifies, hardening, resuming."""

import math
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from morphlightning.callbacks import BetaSchedule
from morphlightning.data import Digits
from morphlightning.errors import ConfigError, ShapeError
from morphlightning.layers import Dilation, SignedDilation, SignedErosion, SoftSignedDilation
from morphlightning.lipschitz import certify
from morphlightning.models import CertifiedClassifier
from morphlightning.models.certified import moved

SHAPE = (1, 8, 8)
OPTIMIZER = {"name": "adam", "lr": 0.06, "schedule": "cosine"}
SETTINGS = {"in_shape": SHAPE, "hidden": (64,), "eps": 0.1, "harden_at": 0.7, "max_shift": 0, "optimizer": OPTIMIZER}


def classifier(**options) -> CertifiedClassifier:
    torch.manual_seed(0)
    return CertifiedClassifier(**(SETTINGS | options))


def trainer(tmp_path, **options) -> L.Trainer:
    plain = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=tmp_path, **(plain | {"enable_checkpointing": False} | options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model, data = classifier(), Digits(batch_size=64)
    fit = trainer(tmp_path_factory.mktemp("fit"), max_epochs=25, limit_val_batches=0)
    fit.fit(model, data)
    return model, data, fit


@pytest.mark.parametrize("beta", [1.0, 30.0, math.inf])
def test_it_is_1_lipschitz_in_the_sup_norm_at_every_temperature(beta) -> None:
    model = classifier(beta=(0.5, 0.5)).eval()
    for module in model.modules():
        if isinstance(module, SoftSignedDilation):
            module.set_beta(beta)
    assert certify(model.network, "linf").constant == 1
    x = torch.rand(20, *SHAPE)
    y = (x + 0.3 * torch.randn_like(x)).clamp(0, 1)
    moved_by = (model(x) - model(y)).abs().amax(1)
    assert (moved_by <= (x - y).abs().flatten(1).amax(1) + 1e-5).all()


def test_training_certifies_most_of_the_test_set(trained) -> None:
    model, data, fit = trained
    before = trainer(fit.default_root_dir).test(classifier(), data, verbose=False)[0]
    after = fit.test(model, data, verbose=False)[0]
    assert before["test/certified@0.1"] < 0.2
    assert after["test/certified@0.1"] > 0.7
    assert after["test/accuracy"] > 0.82


def test_training_ends_with_the_hard_network(trained) -> None:
    model, _, _ = trained
    hard = model.hardened()
    assert [type(layer) for layer in hard if isinstance(layer, Dilation)] == [SignedDilation]
    assert isinstance(hard[-1], SignedErosion)
    images = torch.rand(50, *SHAPE)
    mode = model.training
    assert torch.equal(hard(images), model.eval()(images))
    model.train(mode)
    assert not hard.training
    assert next(hard.parameters()) is not next(model.network.parameters())


def test_beta_and_the_weight_of_the_cross_entropy_follow_the_training(tmp_path) -> None:
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_) -> None:
            (beta,) = {float(m.beta) for m in module.modules() if hasattr(m, "beta")}
            seen.append((beta, float(module.data_loss.cross_entropy)))

    model = classifier(beta=(2.0, 8.0), harden_at=0.75, cross_entropy=(1.0, 0.1))
    fit = trainer(tmp_path, max_steps=8, callbacks=[Watch()], limit_val_batches=0)
    fit.fit(model, Digits(batch_size=64))
    betas, weights = zip(*seen, strict=True)
    assert betas[0] == 2.0
    assert betas[:6] == tuple(sorted(betas[:6]))
    assert max(betas[:6]) <= 8
    assert betas[6:] == (math.inf, math.inf)
    assert weights == pytest.approx([0.1 ** (step / 8) for step in range(8)])


def test_a_schedule_of_the_trainer_wins(tmp_path) -> None:
    model = classifier()
    fit = trainer(tmp_path, max_steps=2, callbacks=[BetaSchedule(3.0, 3.0)], limit_val_batches=0)
    fit.fit(model, Digits(batch_size=64))
    assert {float(m.beta) for m in model.modules() if hasattr(m, "beta")} == {3.0}


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path) -> None:
    def run(steps, **options):
        model = classifier(max_shift=1)
        saving = ModelCheckpoint(tmp_path, "at-{step}", every_n_train_steps=3, save_top_k=-1)
        fit = trainer(tmp_path, max_epochs=2, callbacks=[saving], enable_checkpointing=True, limit_val_batches=0)
        fit.limit_train_batches = steps
        fit.fit(model, Digits(batch_size=64, train_size=256), **options)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = run(4)
        again = run(4, ckpt_path=tmp_path / "at-step=3.ckpt", weights_only=True)
    for (name, one), other in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_gives_the_model_back(trained, tmp_path) -> None:
    model, _, fit = trained
    fit.save_checkpoint(tmp_path / "model.ckpt")
    again = CertifiedClassifier.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    x = torch.rand(5, *SHAPE)
    mode = model.training
    assert torch.equal(again(x), model.eval()(x))
    model.train(mode)


def test_each_image_moves_by_itself() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 1, 5, 5)
    images[:, :, 2, 2] = 1
    places = moved(images, 1).flatten(1).argmax(1)
    assert set(places.tolist()) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert moved(images, 0) is images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8.0}, r"eps=8.0 must lie between 0 and the width of clip=\(0.0, 1.0\).*8/255"),
        ({"num_classes": 1}, "num_classes must be >= 2"),
        ({"hidden": (0,)}, "hidden"),
        ({"cross_entropy": (1.0, 0.0)}, "cross_entropy must be > 0"),
        ({"beta": (0.0, 1.0)}, "start and end must be finite numbers > 0"),
        ({"harden_at": 0.0}, "harden_at must lie in"),
    ],
)
def test_settings_that_cannot_work(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        classifier(**options)


def test_wrong_images_and_trainings_without_an_end(tmp_path) -> None:
    with pytest.raises(ShapeError, match=r"built for in_shape=\(1, 8, 8\)"):
        classifier()(torch.zeros(2, 1, 9, 9))
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        trainer(tmp_path, max_epochs=-1, max_time="00:00:00:01").fit(classifier(), Digits(batch_size=64))


def test_a_schedule_needs_soft_layers(tmp_path) -> None:
    from morphlightning.models import MorphologicalClassifier

    fit = trainer(tmp_path, max_steps=1, callbacks=[BetaSchedule()])
    with pytest.raises(ConfigError, match="has no soft layer"):
        fit.fit(MorphologicalClassifier(SHAPE, channels=(4,)), Digits(batch_size=64))
