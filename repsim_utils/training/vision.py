"""Training of image classifiers: the textbook's loop on whole batches of uint8 images that stay in memory."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from tqdm import tqdm

from repsim_utils.models.device import device, training_device
from repsim_utils.models.vision import Classifier, as_float

VERSION = 1  # raised when the same recipe and seed give another model


class Recipe(BaseModel):
    """How a classifier is trained: a learning rate that rises to one peak and falls to zero.

    `batch_size` is the largest: fewer images make one batch. `momentum` is of SGD; AdamW has its usual averages (0.9,
    0.999). Lengths of `translate` and `cutout` are in pixels; `jitter` is the largest relative change of brightness,
    contrast and saturation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    lr: float = Field(gt=0)
    peak_epoch: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    jitter: float = Field(0.0, ge=0, lt=1)
    translate: int = Field(0, ge=0)
    cutout: int = Field(0, ge=0)
    optimizer: Literal["sgd", "adamw"] = Field("sgd", exclude_if=lambda name: name == "sgd")  # came later: see store

    @model_validator(mode="after")
    def _peak_within(self) -> Recipe:
        if self.peak_epoch > self.epochs:
            raise ValueError(f"peak_epoch must not be after the last of {self.epochs} epochs, got {self.peak_epoch}")
        return self


def train(
    model: Classifier, images: Tensor, labels: Tensor, recipe: Recipe, *, seed: int, progress: bool = True
) -> Classifier:
    """Train a classifier in place.

    Parameters
    ----------
    model : Classifier
    images : Tensor
        uint8 (n, 3, h, w).
    labels : Tensor
        int64 (n,).
    recipe : Recipe
    seed : int
        Of the order of batches and of the augmentation.
    progress : bool
        Show a progress bar, with the loss.

    Returns
    -------
    Classifier
        The same model, in evaluation mode.

    Raises
    ------
    ValueError
        If images and labels do not match, there are fewer than two, or the loss is not finite.
    """
    n = len(images)
    if len(labels) != n or n < 2:
        raise ValueError(f"training needs two images or more, and as many labels; got {n} images, {len(labels)} labels")
    batch_size = min(recipe.batch_size, n)
    where = training_device()
    model.to(where).train()
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = _optimizer(model, recipe)
    generator = torch.Generator().manual_seed(seed)
    steps = n // batch_size
    for epoch in (bar := tqdm(range(recipe.epochs), desc="train", unit="epoch", leave=False, disable=not progress)):
        order = torch.randperm(n, generator=generator)
        for step in range(steps):
            when = epoch + step / steps
            optimizer.param_groups[0]["lr"] = np.interp(when, [0, recipe.peak_epoch, recipe.epochs], [0, recipe.lr, 0])
            batch = order[step * batch_size : (step + 1) * batch_size]
            x = augment(images[batch].to(where), recipe, generator)
            y = labels[batch].to(where)
            loss = F.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise ValueError(
                f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}; lower lr = {recipe.lr}"
            )
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _optimizer(model: Classifier, recipe: Recipe) -> torch.optim.Optimizer:
    options: Any = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **options)


@torch.no_grad()
def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Change a batch at random, each image in its own way.

    Parameters
    ----------
    images : Tensor
        uint8 (n, 3, h, w).
    recipe : Recipe
    generator : Generator
        On the CPU.

    Returns
    -------
    Tensor
        float32 (n, 3, h, w) in [0, 1], channels last, on the images' device.
    """
    n, _, height, width = images.shape
    where = images.device
    rows, columns = torch.arange(height, device=where).view(1, -1, 1), torch.arange(width, device=where).view(1, 1, -1)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n, 1, 1), generator=generator).to(where)

    pixels = images.permute(0, 2, 3, 1)
    if recipe.translate or recipe.flip:  # one look-up moves and mirrors; pixels from beyond the edge repeat it
        r = (rows + whole(-recipe.translate, recipe.translate)).clamp_(0, height - 1)
        c = (columns + whole(-recipe.translate, recipe.translate)).clamp_(0, width - 1)
        if recipe.flip:
            c = torch.where(whole(0, 1) == 1, width - 1 - c, c)
        pixels = pixels[torch.arange(n, device=where).view(n, 1, 1), r, c]
    floats = pixels.reshape(n, height * width, 3).float()
    floats = _jitter(floats, recipe.jitter, generator) if recipe.jitter else floats / 255
    result = floats.view(n, height, width, 3).permute(0, 3, 1, 2)
    if recipe.cutout:
        top, left = whole(-recipe.cutout + 1, height - 1), whole(-recipe.cutout + 1, width - 1)
        hole = (rows >= top) & (rows < top + recipe.cutout) & (columns >= left) & (columns < left + recipe.cutout)
        result.masked_fill_(hole.unsqueeze(1), 0.5)
    return result


def _jitter(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation of (n, pixels, 3) in 0 … 255, as one 3 × 3 matrix an image; to [0, 1]."""
    draws = 1 + strength * (2 * torch.rand(3, len(pixels), 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = (draws / torch.tensor([255.0, 1, 1]).view(3, 1, 1, 1)).to(pixels.device)
    mix = saturation * torch.eye(3, device=pixels.device) + (1 - saturation) / 3
    mean = pixels.mean((1, 2), keepdim=True)
    offset = (brightness * (1 - contrast) * mean).expand(-1, 1, 3)
    return torch.baddbmm(offset, pixels, brightness * contrast * mix).clamp_(0, 1)


@torch.inference_mode()
def accuracy(model: Classifier, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Share of images whose class the model names.

    Parameters
    ----------
    model : Classifier
    images : Tensor
        uint8 (n, 3, h, w).
    labels : Tensor
        int64 (n,).
    batch_size : int

    Returns
    -------
    float
        In [0, 1].
    """
    model.to(device()).eval()
    guesses = torch.cat([model(as_float(batch)).argmax(1).cpu() for batch in images.split(batch_size)])
    return float((guesses == labels).double().mean())
