"""Image classifiers: a body that yields the representation, and a linear head.

Models take float images in [0, 1] and own their normalisation, so that features, attacks and training all speak of
the same pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

VERSION = 1  # raised when the same name and seed give another network
NAMES = ("small_resnet", "resnet18")
STEMS = ("imagenet", "cifar")


class Classifier(nn.Module):
    """A body from images to (n, d) features, and a linear head on them.

    Parameters
    ----------
    body : Module
        Maps normalised images (n, 3, h, w) to features (n, `width`).
    width : int
        Dimension d of the representation.
    n_classes : int
    mean, std : float
        Normalisation of pixels, the same for the three channels.
    """

    def __init__(self, body: nn.Module, width: int, n_classes: int, mean: float = 0.5, std: float = 0.25) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, n_classes)
        self.mean, self.std = mean, std

    def represent(self, images: Tensor) -> Tensor:
        """Penultimate representation, after global pooling: (n, 3, h, w) in [0, 1] to (n, d)."""
        return self.body((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, 3, h, w) in [0, 1] to (n, n_classes)."""
        return self.head(self.represent(images))


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)).add_(self.shortcut(x)), inplace=True)


class _SmallResNet(nn.Sequential):
    """A stem at half resolution, then three stages of `depth` blocks with 1, 2 and 4 times `width` channels."""

    def __init__(self, width: int, depth: int) -> None:
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(depth):
                n_out = width * 2**stage
                blocks.append(_Block(channels, n_out, stride=2 if stage and not block else 1))
                channels = n_out
        stem = [nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(
    name: str, n_classes: int, *, seed: int, width: int = 16, depth: int = 1, stem: str = "imagenet"
) -> Classifier:
    """A freshly initialised classifier.

    Parameters
    ----------
    name : {"small_resnet", "resnet18"}
        A residual network for CPUs, or torchvision's ResNet-18.
    n_classes : int
    seed : int
        Of the initial weights; the global random state is left alone.
    width, depth : int
        Of the small network: channels of its first stage, and blocks in each of its three stages.
    stem : {"imagenet", "cifar"}
        Of ResNet-18: 7×7 convolution and max-pooling, or a 3×3 convolution that keeps the resolution.

    Returns
    -------
    Classifier
        On the CPU, in channels-last memory format.

    Raises
    ------
    ValueError
        If the name or stem is unknown, or a size is not positive.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {NAMES}, got {name!r}")
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {STEMS}, got {stem!r}")
    if min(width, depth, n_classes) < 1:
        raise ValueError(f"width, depth and n_classes must be positive, got {width}, {depth} and {n_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "small_resnet":
            model = Classifier(_SmallResNet(width, depth), 4 * width, n_classes)
        else:
            body = resnet18()
            body.fc = nn.Identity()
            if stem == "cifar":
                body.conv1, body.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
            model = Classifier(body, 512, n_classes)
    return model.to(memory_format=torch.channels_last)


def device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_float(images: Tensor) -> Tensor:
    """Pixels 0 … 255 as float32 in [0, 1], channels last."""
    return images.to(device(), torch.float32, memory_format=torch.channels_last).div_(255)
