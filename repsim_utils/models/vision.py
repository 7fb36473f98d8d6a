"""Image classifiers: a body that yields the representation, and a linear head.

Models take float images in [0, 1] and own their normalisation, so that features, attacks and training all speak of
the same pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim_utils import RepsimError, reason
from repsim_utils.models import seeded
from repsim_utils.models.device import device

VERSION = 1  # raised when the same name and seed give another network
SMALL = ("small_resnet", "small_vit")
RESNETS = ("resnet18", "resnet50", "resnet101", "resnet152")
VITS = ("vit_tiny_patch16_224", "vit_small_patch32_224", "vit_base_patch32_224", "vit_large_patch32_224")
NAMES = (*SMALL, *RESNETS, *VITS)
STEMS = ("imagenet", "cifar")


class WeightsError(RepsimError):
    """Pretrained weights could not be had."""


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
    resolution : int, optional
        Height and width that the body needs: images of another size are resized first.
    """

    def __init__(
        self, body: Any, width: int, n_classes: int, mean: float = 0.5, std: float = 0.25, resolution: int | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, n_classes)
        self.mean, self.std, self.resolution = mean, std, resolution

    def represent(self, images: Tensor) -> Tensor:
        """Penultimate representation, after global pooling: (n, 3, h, w) in [0, 1] to (n, d)."""
        if self.resolution is not None and images.shape[-2:] != (self.resolution, self.resolution):
            images = F.interpolate(images, (self.resolution, self.resolution), mode="bilinear", align_corners=False)
        return self.body((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, 3, h, w) in [0, 1] to (n, n_classes)."""
        return self.head(self.represent(images))


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut.

    With fewer than 16 channels the shortcut skips pixels before its convolution: a strided 1×1 convolution of so few,
    channels last, writes past its workspace on CPUs (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.skip = stride if n_in < 16 else 1
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            convolution = nn.Conv2d(n_in, n_out, 1, stride // self.skip, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = self.shortcut(x[:, :, :: self.skip, :: self.skip])
        return F.relu(self.norm2(self.conv2(y)).add_(x), inplace=True)


def _halved(n_in: int, n_out: int) -> list[nn.Module]:
    """A convolution that halves the resolution, normalised and rectified."""
    return [nn.Conv2d(n_in, n_out, 3, 2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]


def _small_resnet(width: int, depth: int) -> nn.Module:
    """A stem at half resolution, then three stages of `depth` blocks with 1, 2 and 4 times `width` channels."""
    blocks = [_Block(width, width, stride=1) for _ in range(depth)]
    for n in (2 * width, 4 * width):
        blocks += [_Block(n // 2, n, stride=2), *(_Block(n, n, stride=1) for _ in range(depth - 1))]
    return nn.Sequential(*_halved(3, width), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build(
    name: str,
    n_classes: int,
    *,
    seed: int,
    width: int = 16,
    depth: int = 1,
    stem: str = "imagenet",
    pretrained: bool = False,
    download: bool = True,
) -> Classifier:
    """A freshly initialised classifier, or one whose body was trained on ImageNet.

    Parameters
    ----------
    name : str
        One of `NAMES`: a residual network or a vision transformer for CPUs, torchvision's ResNets, or timm's vision
        transformers. Transformers take images of one size and resize others, 28 pixels for the small one and 224 for
        timm's; pretrained ResNets see 224 pixels as well, and all else the images as they are.
    n_classes : int
    seed : int
        Of the initial weights; the global random state is left alone.
    width, depth : int
        Of the small networks. ResNet: channels of its first stage, and blocks in each of its three stages. Transformer:
        its embedding, a multiple of 32, and its blocks.
    stem : {"imagenet", "cifar"}
        Of torchvision's ResNets: 7×7 convolution and max-pooling, or a 3×3 convolution that keeps the resolution.
    pretrained : bool
        ImageNet weights of torchvision or timm, downloaded once; the head is always new.
    download : bool
        False builds a pretrained network without its weights, to count its parameters or to load others.

    Returns
    -------
    Classifier
        On the CPU, in channels-last memory format.

    Raises
    ------
    ValueError
        If the name or stem is unknown, a size is not allowed, or there are no pretrained weights for this network.
    WeightsError
        If the weights cannot be downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"model must be one of {NAMES}, got {name!r}")
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {STEMS}, got {stem!r}")
    if min(width, depth, n_classes) < 1:
        raise ValueError(f"width, depth and n_classes must be positive, got {width}, {depth} and {n_classes}")
    if pretrained and (name in SMALL or stem == "cifar"):
        raise ValueError(f"there are no pretrained weights for {name} with the {stem} stem")
    with seeded(seed):
        if name == "small_resnet":
            model = Classifier(_small_resnet(width, depth), 4 * width, n_classes)
        elif name == "small_vit":
            model = Classifier(_small_vit(width, depth), width, n_classes, resolution=_SMALL_VIT_SIZE)
        elif name in RESNETS:
            model = _resnet(name, n_classes, stem, pretrained, download)
        else:
            import timm

            body: Any = _downloaded(name, lambda: timm.create_model(name, pretrained and download, num_classes=0))
            model = Classifier(body, body.num_features, n_classes, **_AS_PUBLISHED)
    return model.to(memory_format=torch.channels_last)


_SMALL_VIT_SIZE = 28
_AS_PUBLISHED: Any = {"mean": 127 / 255, "std": 127 / 255, "resolution": 224}  # pixels 0 … 255 as (x - 127) / 127


def _small_vit(width: int, depth: int) -> nn.Module:
    """A vision transformer on 4×4 tokens from a convolutional stem, which learns from few images (Xiao et al. 2021)."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    if width % 32:
        raise ValueError(f"width of small_vit must be a multiple of 32, got {width}")
    stem: Any = nn.Sequential(*_halved(3, 32), *_halved(32, 64), *_halved(64, 64))
    stem.num_features = 64
    tokens: Any = {"img_size": _SMALL_VIT_SIZE, "patch_size": 1, "num_classes": 0, "global_pool": "avg"}
    tokens["embed_layer"] = partial(HybridEmbed, stem, feature_size=(4, 4))
    return VisionTransformer(embed_dim=width, depth=depth, num_heads=width // 32, **tokens)


def _resnet(name: str, n_classes: int, stem: str, pretrained: bool, download: bool) -> Classifier:
    from torchvision import models as torchvision_models

    body = getattr(torchvision_models, name)()
    if pretrained and download:
        weights = torchvision_models.get_model_weights(name).IMAGENET1K_V1
        state = _downloaded(name, lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
        body.load_state_dict(state)
    width, body.fc = body.fc.in_features, nn.Identity()
    if stem == "cifar":
        body.conv1, body.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return Classifier(body, width, n_classes, **_AS_PUBLISHED if pretrained else {})


def _downloaded(name: str, get: Any) -> Any:
    try:
        return get()
    except OSError as error:  # no network, or a download that broke off
        raise WeightsError(
            f"the pretrained weights of {name} could not be downloaded ({reason(error)}); "
            "try again with a network, or train from scratch with pretrained: false"
        ) from None


def as_float(images: Tensor) -> Tensor:
    """Pixels 0 … 255 as float32 in [0, 1], channels last."""
    return images.to(device(), torch.float32, memory_format=torch.channels_last).div_(255)
