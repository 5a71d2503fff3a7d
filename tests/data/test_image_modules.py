"""The data modules over labelled images, on files made here."""

from __future__ import annotations

import gzip
import inspect
import lzma
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import morphlightning.data as data
from morphlightning.errors import ConfigError, DataError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def write_idx(path: Path, values: np.ndarray, suffix: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.with_name(path.name + suffix).write_bytes(COMPRESS[suffix](content))


def write_mnist(folder: Path, suffix: str = "", train: int = 40, test: int = 10, side: int = 28) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", images, suffix)
        write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8), suffix)


def mnist(folder: Path, **settings: Any) -> data.MNIST:
    write_mnist(folder)
    module = data.MNIST(folder, download=False, **settings)
    module.setup()
    return module


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_mnist_reads_local_files(tmp_path: Path, suffix: str, inside: str) -> None:
    write_mnist(tmp_path / inside, suffix)
    module = data.MNIST(tmp_path)
    module.prepare_data()  # everything is there: neither torchvision nor a connection is needed
    module.setup()
    images, labels = next(iter(module.train_dataloader()))
    assert (images.shape, images.dtype) == ((36, 1, 28, 28), torch.float32)
    assert (labels.shape, labels.dtype) == ((36,), torch.int64)
    assert images.min() >= 0
    assert images.max() == 1
    assert len(module.val_dataloader().dataset) == 4
    assert len(module.test_dataloader().dataset) == 10


@pytest.mark.parametrize("name", ["FashionMNIST", "KMNIST"])
def test_the_kin_have_folders_of_their_own(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    module = getattr(data, name)(tmp_path, download=False)
    with pytest.raises(DataError, match=name):
        module.setup("fit")
    write_mnist(tmp_path / name / "raw", train=20)
    module.setup("fit")
    assert len(module.train_dataloader().dataset) == 18
    assert len(module.class_names) == module.num_classes == 10


def test_a_missing_data_set_is_explained(tmp_path: Path) -> None:
    module = data.MNIST(tmp_path / "nowhere", download=False)
    module.prepare_data()
    with pytest.raises(DataError) as caught:
        module.setup("fit")
    message = str(caught.value)
    for part in (str(tmp_path / "nowhere"), "train-images-idx3-ubyte", ".gz and .xz", "data_dir", "download=True"):
        assert part in message


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **datasets: Any) -> None:
    module = types.ModuleType("torchvision")
    module.__file__ = __file__
    module.datasets = types.SimpleNamespace(**datasets)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_what_is_missing_is_downloaded_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(root: str, train: bool, download: bool) -> None:
        calls.append((root, train, download))
        write_mnist(Path(root) / "MNIST" / "raw")

    fake_torchvision(monkeypatch, MNIST=download)
    module = data.MNIST(tmp_path)
    module.prepare_data()
    module.setup("fit")
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    module.prepare_data()
    assert len(calls) == 2
    assert len(module.train_dataloader().dataset) == 36


def test_a_download_that_fails_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    fake_torchvision(monkeypatch, MNIST=offline)
    with pytest.raises(DataError, match=r"download of MNIST by torchvision failed.*Error downloading.*data_dir"):
        data.MNIST(tmp_path).prepare_data()


def test_a_download_without_torchvision_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphlightning.vision._folder", lambda: None)
    with pytest.raises(DataError, match=r"morphlightning\[vision\].*data_dir"):
        data.KMNIST(tmp_path).prepare_data()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"train": 0}, "0 samples"),
        ({"side": 20}, r"images of shape \(1, 20, 20\), expected \(1, 28, 28\)"),
        ({"train": 1}, "leaves none of 1 sample"),
    ],
)
def test_unfit_files_are_refused(tmp_path: Path, broken: dict[str, int], message: str) -> None:
    write_mnist(tmp_path, **broken)
    with pytest.raises(DataError, match=message):
        data.MNIST(tmp_path, download=False).setup("fit")


def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(39, dtype=np.uint8))
    with pytest.raises(DataError, match="40 images and 39 labels"):
        data.MNIST(tmp_path, download=False).setup("fit")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(40, 10, dtype=np.uint8))
    with pytest.raises(DataError, match="a label 10, expected 0 to 9"):
        data.MNIST(tmp_path, download=False).setup("fit")


def test_the_split_is_disjoint_complete_and_seeded(tmp_path: Path) -> None:
    def parts(seed: int) -> tuple[list[int], list[int]]:
        module = mnist(tmp_path, seed=seed, val_fraction=0.25)
        return module._sets["train"].rows.tolist(), module._sets["val"].rows.tolist()  # type: ignore[union-attr]

    train, val = parts(0)
    assert sorted(train + val) == list(range(40))
    assert len(val) == 10
    assert parts(0) == (train, val)
    assert parts(1) != (train, val)


def test_train_size_caps_training_and_leaves_validation_alone(tmp_path: Path) -> None:
    whole, capped = mnist(tmp_path), mnist(tmp_path, train_size=5)
    assert len(capped.train_dataloader().dataset) == 5
    assert torch.equal(capped._sets["val"].rows, whole._sets["val"].rows)  # type: ignore[union-attr]
    assert len(mnist(tmp_path, train_size=1000).train_dataloader().dataset) == 36


def test_no_validation(tmp_path: Path) -> None:
    module = mnist(tmp_path, val_fraction=0)
    assert module.val_dataloader() == []
    assert len(module.train_dataloader().dataset) == 40


@pytest.mark.parametrize("task", ["denoising", "inpainting", "reconstruction"])
def test_the_target_of_restoration_is_the_clean_image(tmp_path: Path, task: Any) -> None:
    clean = {image.numpy().tobytes() for image in mnist(tmp_path).read(train=True)[0].float() / 255}
    module = mnist(tmp_path, task=task)
    inputs, targets = next(iter(module.train_dataloader()))
    assert all(target.numpy().tobytes() in clean for target in targets)
    assert torch.equal(inputs, targets) == (task == "reconstruction")
    if task == "denoising":
        assert abs((inputs - targets).std() - 0.3) < 0.01
    if task == "inpainting":
        assert ((inputs == targets) | (inputs == 0)).all()


def test_noise_in_training_is_new_in_each_epoch_and_fixed_in_evaluation(tmp_path: Path) -> None:
    def of(loader: Any, epoch: int) -> dict[bytes, bytes]:
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        pairs = [pair for batch in loader for pair in zip(*batch, strict=True)]
        return {clean.numpy().tobytes(): noisy.numpy().tobytes() for noisy, clean in pairs}

    def common(first: dict[bytes, bytes], second: dict[bytes, bytes]) -> int:
        assert first.keys() == second.keys()
        return sum(first[key] == second[key] for key in first)

    module = mnist(tmp_path, task="denoising")
    train, val = module.train_dataloader(), module.val_dataloader()
    assert common(of(train, 0), of(train, 1)) == 0
    assert common(of(train, 1), of(mnist(tmp_path, task="denoising").train_dataloader(), 1)) == 36
    assert common(of(val, 0), of(val, 1)) == 4
    fixed = mnist(tmp_path, task="denoising", fixed_noise=True).train_dataloader()
    assert common(of(fixed, 0), of(fixed, 1)) == 36


def test_noise_does_not_depend_on_workers_batches_or_split(tmp_path: Path) -> None:
    settings = [{"num_workers": 2}, {"batch_size": 3}, {"val_fraction": 0}, {"train_size": 30}]
    modules = [mnist(tmp_path, task="denoising", **setting) for setting in [{}, *settings]]
    noisy = []
    for module in modules:
        pairs = [pair for batch in module.train_dataloader() for pair in zip(*batch, strict=True)]
        noisy.append({target.numpy().tobytes(): image.numpy().tobytes() for image, target in pairs})
    assert all(other[key] == noisy[0][key] for other in noisy[1:] for key in noisy[0].keys() & other.keys())
    assert all(len(noisy[0].keys() & other.keys()) >= 30 for other in noisy[1:])


def test_validation_and_test_images_do_not_share_their_noise(tmp_path: Path) -> None:
    module = mnist(tmp_path, task="denoising")
    noise = [noisy - clean for part in ("train", "test") for noisy, clean in module._sets[part]]  # type: ignore[union-attr]
    distances = torch.cdist(torch.stack(noise).flatten(1), torch.stack(noise).flatten(1))
    assert distances.fill_diagonal_(torch.inf).min() > 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"val_fraction": 1.0}, r"\[0, 1\)"),
        ({"val_fraction": -0.1}, r"\[0, 1\)"),
        ({"seed": -1}, "integer in"),
        ({"num_workers": -1}, "0 or more"),
        ({"task": "segmentation"}, "classification, denoising, inpainting, reconstruction"),
        ({"noise": -0.1}, "standard deviation"),
        ({"noise": float("nan")}, "standard deviation"),
        ({"missing": 1.0}, "probability"),
        ({"train_size": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], expected: str) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"Digits: {name}=.*{expected}"):
        data.Digits(**setting)


def test_hyperparameters_are_plain_and_complete(tmp_path: Path) -> None:
    module = data.MNIST(tmp_path, noise=0.1)
    assert set(module.hparams) == set(inspect.signature(data.MNIST).parameters)
    assert module.hparams["data_dir"] == str(tmp_path)
    assert module.hparams["noise"] == 0.1
    assert all(isinstance(value, (str, int, float, bool, type(None))) for value in module.hparams.values())


def test_loaders_before_setup_say_what_is_missing() -> None:
    for loader, stage in (("train", "fit"), ("val", "fit"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(ConfigError, match=rf"setup\('{stage}'\)"):
            getattr(data.Digits(), f"{loader}_dataloader")()


def test_digits() -> None:
    module = data.Digits()
    module.prepare_data()
    module.setup()
    sizes = [len(loader.dataset) for loader in (module.train_dataloader(), module.val_dataloader())]
    assert sizes == [1294, 144]
    images, labels = zip(*module.test_dataloader(), strict=True)
    assert torch.cat(images).shape == (359, *module.in_shape)
    assert (torch.cat(images).min(), torch.cat(images).max()) == (0, 1)
    assert torch.cat(labels).unique().tolist() == list(range(module.num_classes))
    other = data.Digits(seed=1)
    other.setup("test")
    assert torch.equal(torch.cat([x for x, _ in other.test_dataloader()]), torch.cat(images))


def write_cifar(folder: Path) -> torch.Tensor:
    folder.mkdir(parents=True)
    records = torch.randint(0, 256, (12, 3073), dtype=torch.uint8)
    records[:, 0] = torch.arange(12) % 10
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, records.split(2), strict=True):
        (folder / name).write_bytes(part.numpy().tobytes())
    return records[:, 1:].view(12, 3, 32, 32)


def test_cifar_binary_version(tmp_path: Path) -> None:
    images = write_cifar(tmp_path / "cifar-10-batches-bin")
    module = data.CIFAR10(tmp_path)
    module.prepare_data()
    module.setup()
    assert torch.equal(next(iter(module.test_dataloader()))[0], images[10:].float() / 255)
    assert len(module.train_dataloader().dataset) == 9
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"looked for data_batch_3\.bin"):
        data.CIFAR10(tmp_path, download=False).setup("fit")


def test_cifar_python_version_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def cifar(root: str, train: bool, download: bool) -> types.SimpleNamespace:
        if not train:
            raise RuntimeError("Dataset not found or corrupted")
        return types.SimpleNamespace(data=pixels, targets=[0, 1, 2, 3])

    fake_torchvision(monkeypatch, CIFAR10=cifar)
    module = data.CIFAR10(tmp_path)
    module.prepare_data()
    images, labels = module.read(train=True)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"cifar-10-batches-py.*corrupted.*download=True"):
        module.setup("test")


def test_the_package_names_what_it_has() -> None:
    assert all(hasattr(data, name) for name in data.__all__)
    assert set(dir(data)) == set(data.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'SVHN'; it has CIFAR10"):
        data.SVHN
