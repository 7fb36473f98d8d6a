"""Training of image classifiers: the textbook's loop on whole batches of uint8 images that stay in memory."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from tqdm import tqdm

from repsim_utils.models.vision import Classifier, as_float, device

VERSION = 1  # raised when the same recipe and seed give another model


class Recipe(BaseModel):
    """How a classifier is trained: SGD with a learning rate that rises to one peak and falls to zero.

    Lengths of `translate` and `cutout` are in pixels; `jitter` is the largest relative change of brightness, contrast
    and saturation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        If images and labels do not match, are fewer than one batch, or the loss is not finite.
    """
    n = len(images)
    if len(labels) != n or n < recipe.batch_size:
        raise ValueError(f"training needs as many labels as images and at least one batch of {recipe.batch_size}; "
                         f"got {n} images and {len(labels)} labels")  # fmt: skip
    model.to(device()).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    steps = n // recipe.batch_size
    for epoch in (bar := tqdm(range(recipe.epochs), desc="train", unit="epoch", leave=False, disable=not progress)):
        order = torch.randperm(n, generator=generator)
        for step in range(steps):
            when = epoch + step / steps
            optimizer.param_groups[0]["lr"] = np.interp(when, [0, recipe.peak_epoch, recipe.epochs], [0, recipe.lr, 0])
            batch = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            x = augment(as_float(images[batch]), recipe, generator)
            y = labels[batch].to(x.device)
            loss = F.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise ValueError(f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}; lower lr = {recipe.lr}")
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


@torch.no_grad()
def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Change a batch at random, each image in its own way.

    Parameters
    ----------
    images : Tensor
        float (n, 3, h, w) in [0, 1].
    recipe : Recipe
    generator : Generator
        On the CPU.

    Returns
    -------
    Tensor
        float (n, 3, h, w) in [0, 1], channels last.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)).to(images.device)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n, 1, 1), generator=generator).to(images.device)

    if recipe.jitter:
        brightness, contrast, saturation = (uniform(1 - recipe.jitter, 1 + recipe.jitter) for _ in range(3))
        gray, mean = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
        images = brightness * contrast * (saturation * images + (1 - saturation) * gray)
        images = (images + (1 - contrast) * brightness * mean).clamp_(0, 1)
    rows = torch.arange(height, device=images.device).view(1, height, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, width)
    if recipe.translate or recipe.flip:  # one look-up moves and mirrors; pixels from beyond the edge repeat it
        r = (rows + whole(-recipe.translate, recipe.translate)).clamp_(0, height - 1)
        c = (columns + whole(-recipe.translate, recipe.translate)).clamp_(0, width - 1)
        if recipe.flip:
            c = torch.where(whole(0, 1) == 1, width - 1 - c, c)
        image = torch.arange(n, device=images.device).view(n, 1, 1)
        images = images.permute(0, 2, 3, 1)[image, r, c].permute(0, 3, 1, 2)
    if recipe.cutout:
        top, left = whole(-recipe.cutout + 1, height - 1), whole(-recipe.cutout + 1, width - 1)
        hole = (rows >= top) & (rows < top + recipe.cutout) & (columns >= left) & (columns < left + recipe.cutout)
        images = images.masked_fill(hole.unsqueeze(1), 0.5)
    return images


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
