"""Data modules: images for classification, denoising, inpainting and reconstruction, as Lightning data modules.

Every module serves batches ``(input, target)`` of channel-first float32 images in [0, 1]; the order of training, the
splits and the noise depend on the seed alone, never on the number of workers or processes, and a run that resumes from
the middle of an epoch sees exactly the batches it would have seen. Models that keep variables for each sample get
batches ``(input, target, indices)``, see :class:`OwnedLoader`; :func:`indexed` makes them from any other data.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphlightning.data.base import ImageDataModule
    from morphlightning.data.folder import ImageFolderDenoising
    from morphlightning.data.images import CIFAR10, KMNIST, MNIST, Digits, FashionMNIST
    from morphlightning.data.loader import ResumableLoader
    from morphlightning.data.owned import OwnedLoader, indexed
    from morphlightning.data.toy import ToyDensity

_HOMES = {
    "CIFAR10": "images",
    "Digits": "images",
    "FashionMNIST": "images",
    "ImageDataModule": "base",
    "ImageFolderDenoising": "folder",
    "KMNIST": "images",
    "MNIST": "images",
    "OwnedLoader": "owned",
    "ResumableLoader": "loader",
    "ToyDensity": "toy",
    "indexed": "owned",
}

__all__ = [
    "CIFAR10",
    "KMNIST",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolderDenoising",
    "OwnedLoader",
    "ResumableLoader",
    "ToyDensity",
    "indexed",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
