"""Training of diffusion models, which goes on from its last checkpoint when it was killed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from repsim_utils import files
from repsim_utils.models.device import device
from repsim_utils.models.diffusion import TIMESTEPS, Denoiser, as_pixels

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same recipe and seed give another model
POINTS = 50  # of the loss curve


class Recipe(BaseModel):
    """How a diffusion model is trained: AdamW on the mean squared error of the noise, a warm-up, then a cosine to zero.

    `warmup` is in steps. `ema` is the decay of the moving average of the weights, which is what is kept; it rises to
    that from 0.1, as (1 + step) / (10 + step). `label_dropout` is the share of images whose class is not told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    label_dropout: float = Field(0.1, ge=0, le=1)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(np.cos(np.pi * done)))


class History(NamedTuple):
    """What training tells: points of the loss curve (``step``, mean ``loss`` since the last), and pictures by step."""

    curve: list[dict[str, float]]
    pictures: dict[int, Tensor]


def train(
    model: Denoiser,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_every: float = 60.0,
    draw: Callable[[Denoiser], Tensor] | None = None,
    draw_at: tuple[int, ...] = (),
    progress: bool = True,
) -> History:
    """Train a model in place; it is left with the moving average of its weights, in evaluation mode.

    What a step draws (images, timesteps, noise, whose class is told) depends on the seed and the number of the step
    alone, so that a training that goes on from a checkpoint comes to the weights of one that was never stopped.

    Parameters
    ----------
    model : Denoiser
    images : Tensor
        uint8 (n, 3, h, w).
    labels : Tensor
        int64 (n,).
    recipe : Recipe
    seed : int
    checkpoint : path, optional
        File that training goes on from, if it is there, and that it writes as it goes. Whoever has kept the result
        removes it.
    checkpoint_every : float
        Seconds from one checkpoint to the next.
    draw : callable, optional
        Pictures uint8 of the model with its averaged weights, taken after each of the steps in `draw_at`.
    draw_at : tuple of int
    progress : bool
        Show a progress bar, with the loss.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If images and labels do not match, there are none, or the loss is not finite.
    """
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"training needs images, and as many labels; got {len(images)} images, {len(labels)} labels")
    model.to(device()).train()
    state = _State(model, recipe)
    state.resume(checkpoint)
    bar = tqdm(total=recipe.steps, initial=state.step, desc="train", unit="step", leave=False, disable=not progress)
    written = time.monotonic()
    while state.step < recipe.steps:
        state.update(_loss(model, images, labels, recipe, seed, state.step))
        bar.update()
        if state.step % max(1, recipe.steps // POINTS) == 0 or state.step == recipe.steps:
            state.note_loss()
            bar.set_postfix(loss=f"{state.curve[-1]['loss']:.3f}")
        if draw is not None and state.step in draw_at:
            state.pictures[state.step] = state.averaged(draw)
        if checkpoint is not None and time.monotonic() - written >= checkpoint_every:
            state.keep(checkpoint)
            written = time.monotonic()
    bar.close()
    state.ema.copy_to(model.parameters())
    model.eval()
    return History(state.curve, state.pictures)


def _loss(model: Denoiser, images: Tensor, labels: Tensor, recipe: Recipe, seed: int, step: int) -> Tensor:
    """Mean squared error of the noise, on what this step draws."""
    n, where = recipe.batch_size, device()
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))
    rows = torch.randint(len(images), (n,), generator=generator)
    timesteps = torch.randint(TIMESTEPS, (n,), generator=generator)
    untold = torch.rand(n, generator=generator) < recipe.label_dropout
    noise = torch.randn(n, *images.shape[1:], generator=generator).to(where, memory_format=torch.channels_last)
    given = torch.where(untold, model.untold, labels[rows]).to(where)
    timesteps = timesteps.to(where)
    noisy = model.noisy(as_pixels(images[rows].to(where)), noise, timesteps)
    return F.mse_loss(model(noisy, timesteps, given), noise)


class _State:
    """All that a training is made of between two steps."""

    def __init__(self, model: Denoiser, recipe: Recipe) -> None:
        from diffusers.training_utils import EMAModel

        self.model, self.recipe = model, recipe
        self.parameters = list(model.parameters())
        self.ema = EMAModel(self.parameters, decay=recipe.ema)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        self.step = 0
        self.losses: list[Tensor] = []  # since the last point of the curve
        self.curve: list[dict[str, float]] = []
        self.pictures: dict[int, Tensor] = {}

    def update(self, loss: Tensor) -> None:
        """One step of the optimizer and of the average."""
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr_at(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.ema.step(self.parameters)
        self.step += 1
        self.losses.append(loss.detach())

    def note_loss(self) -> None:
        """A point of the loss curve."""
        mean = float(torch.stack(self.losses).mean())
        if not np.isfinite(mean):
            raise ValueError(f"training diverged by step {self.step}: lower lr = {self.recipe.lr}")
        self.curve.append({"step": self.step, "loss": mean})
        self.losses = []

    def averaged(self, draw: Callable[[Denoiser], Tensor]) -> Tensor:
        """What is drawn with the averaged weights; training goes on with its own."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        drawn = draw(self.model.eval())
        self.ema.restore(self.parameters)
        self.model.train()
        return drawn

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that steps change in place, by name."""
        found: dict[str, Tensor] = {}
        for i, (parameter, shadow) in enumerate(zip(self.parameters, self.ema.shadow_params, strict=True)):
            found |= {f"weight.{i}": parameter.data, f"average.{i}": shadow}
            found |= {f"{name}.{i}": tensor for name, tensor in self.optimizer.state[parameter].items()}
        return found

    def keep(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()}
        tensors |= {f"picture.{step}": picture.contiguous() for step, picture in self.pictures.items()}
        losses = [float(loss) for loss in self.losses]
        about = json.dumps({"step": self.step, "curve": self.curve, "losses": losses})
        files.write(path, save(tensors, {"about": about}))

    def resume(self, path: Path | None) -> None:
        """Go on from a checkpoint, if there is a whole one."""
        if path is None or not path.is_file():
            return
        try:
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("damaged checkpoint %s: training begins anew (%s)", path, error)
            return
        for parameter in self.parameters:  # as AdamW makes it at its first step, in the layout of the weights
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | zeros
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self.pictures = {int(name.split(".")[1]): tensors[name] for name in tensors if name.startswith("picture.")}
        self.step = self.ema.optimization_step = about["step"]
        self.curve = about["curve"]
        self.losses = list(torch.tensor(about["losses"], device=self.parameters[0].device))
