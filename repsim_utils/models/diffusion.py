"""Diffusion models: diffusers' UNet, which tells the noise in a noisy image, and what it makes of an image on the way.

The model of Ho et al. (2020), with a class, or none, to go by (Ho and Salimans 2022).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repsim_utils.models import seeded

VERSION = 1  # raised when the same arguments and seed give another network, or noise of a timestep is other noise
TIMESTEPS = 1000  # from hardly any noise (0) to hardly anything else (999)
Schedule = Literal["linear", "squaredcos_cap_v2"]


class Denoiser(nn.Module):
    """A UNet that is given a noisy image, the timestep and a class, and tells the noise.

    Pixels are between -1 and 1.

    Parameters
    ----------
    unet : diffusers.UNet2DModel
        With one class more than there are: the last, `null`, says nothing of the image. Or without classes.
    schedule : {"linear", "squaredcos_cap_v2"}
        How noise grows with the timestep, by diffusers' names.

    Attributes
    ----------
    null : int or None
        The class that says nothing; None of a UNet without classes.

    Raises
    ------
    ValueError
        If the UNet is conditioned on something else than numbers of classes.
    """

    def __init__(self, unet: Any, schedule: Schedule) -> None:
        from diffusers import DDPMScheduler

        super().__init__()
        n_classes, other = unet.config.num_class_embeds, getattr(unet.config, "class_embed_type", None)
        if other is not None:
            raise ValueError(f"the UNet is conditioned on {other!r}: only numbers of classes, or nothing, can be given")
        self.unet = unet
        self.schedule = schedule
        self.null: int | None = None if n_classes is None else n_classes - 1
        self._noising: Any = DDPMScheduler(TIMESTEPS, beta_schedule=schedule)

    @property
    def untold(self) -> int:
        """`null`, of a UNet that has classes; ValueError of one without, which can be measured alone."""
        if self.null is None:
            raise ValueError("the UNet has no classes: its images can be represented, but not drawn or trained here")
        return self.null

    @property
    def alphas_cumprod(self) -> Tensor:
        """Share of the image in the variance, by timestep: float32 (`TIMESTEPS`,), on the CPU; the rest is noise."""
        return self._noising.alphas_cumprod.cpu()

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Noise in images: (n, 3, h, w), int64 (n,), int64 (n,) to (n, 3, h, w). Labels count if there are classes."""
        return self.unet(noisy, timesteps, class_labels=None if self.null is None else labels).sample

    def noisy(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Images with the noise of a timestep each; (n, 3, h, w), (n, 3, h, w), int64 (n,)."""
        return self._noising.add_noise(images, noise, timesteps)

    def represent(self, noisy: Tensor, timesteps: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """Means and standard deviations, over pixels, of the channels of the last activation, for the null class.

        Parameters
        ----------
        noisy : Tensor
            (n, 3, h, w).
        timesteps : Tensor
            int64 (n,).
        layers : bool
            Of every block as well, from the first to the last.

        Returns
        -------
        dict
            From ``last``, what the output convolution is given, and the names of blocks (``down 1``, …, ``middle``,
            ``up 1``, …) to (n, 2 d), for the d channels of that layer.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, given: Any, output: Any) -> None:
            planes = (output[0] if isinstance(output, tuple) else output).float()
            found[name] = torch.cat([planes.mean((2, 3)), planes.std((2, 3), correction=0)], 1)

        blocks: dict[str, nn.Module] = {}
        if layers:
            blocks |= {f"down {i}": block for i, block in enumerate(self.unet.down_blocks, 1)}
            blocks |= {} if self.unet.mid_block is None else {"middle": self.unet.mid_block}
            blocks |= {f"up {i}": block for i, block in enumerate(self.unet.up_blocks, 1)}
        places = blocks | {"last": self.unet.conv_act}
        handles = [module.register_forward_hook(partial(keep, name)) for name, module in places.items()]
        try:
            labels = None if self.null is None else torch.full_like(timesteps, self.null)
            self(noisy.to(self.unet.dtype), timesteps, labels)
        finally:
            for handle in handles:
                handle.remove()
        return found


def build(
    n_classes: int,
    *,
    seed: int,
    size: int,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2, 2),
    depth: int = 1,
    attention: int = 1,
    groups: int = 8,
    schedule: Schedule = "linear",
) -> Denoiser:
    """A freshly initialised diffusion model.

    Parameters
    ----------
    n_classes : int
    seed : int
        Of the initial weights; the global random state is left alone.
    size : int
        Height and width of images, which are halved between stages.
    width : int
        Channels of the first stage, a multiple of `groups`.
    multipliers : tuple of int
        Channels of every stage, in multiples of `width`.
    depth : int
        Residual blocks of a stage on the way down; there is one more on the way up.
    attention : int
        How many of the last stages have attention; the middle has it always.
    groups : int
        Of channels that are normalised together.
    schedule : {"linear", "squaredcos_cap_v2"}

    Raises
    ------
    ValueError
        If the size cannot be halved so often, the width is no multiple of `groups`, or there are fewer stages than
        should have attention.
    """
    from diffusers import UNet2DModel

    check(size, width=width, multipliers=multipliers, attention=attention, groups=groups)
    n = len(multipliers)
    with seeded(seed):
        unet: Any = UNet2DModel(
            sample_size=size,
            layers_per_block=depth,
            block_out_channels=tuple(width * m for m in multipliers),
            down_block_types=("DownBlock2D",) * (n - attention) + ("AttnDownBlock2D",) * attention,
            up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * (n - attention),
            norm_num_groups=groups,
            num_class_embeds=n_classes + 1,
        )
    return Denoiser(unet.to(memory_format=torch.channels_last), schedule)


def check(size: int, *, width: int, multipliers: tuple[int, ...], attention: int, groups: int) -> None:
    """What `build` asks of its arguments, before anything is built."""
    n = len(multipliers)
    if size % 2 ** (n - 1):
        raise ValueError(f"size must be a multiple of {2 ** (n - 1)} for {n} stages, got {size}")
    if width % groups:
        raise ValueError(f"width must be a multiple of groups = {groups}, got {width}")
    if not 0 <= attention <= n:
        raise ValueError(f"attention is of 0 to {n} stages, got {attention}")


def as_pixels(images: Tensor) -> Tensor:
    """Images uint8 as floats between -1 and 1."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


@torch.no_grad()
def sample(
    model: Denoiser,
    labels: Tensor,
    *,
    size: int,
    seed: int,
    steps: int = 50,
    guidance: float = 3.0,
    batch_size: int = 100,
) -> Tensor:
    """Draw an image for each label: DDIM (Song et al. 2021) with classifier-free guidance.

    Parameters
    ----------
    model : Denoiser
    labels : Tensor
        int64 (n,).
    size : int
        Height and width in pixels.
    seed : int
        Of the noise that sampling begins with: the same for every model.
    steps : int
        Of the `TIMESTEPS`, evenly spaced.
    guidance : float
        How far to go from what the null class says towards what the label says, and beyond: 1 is the label's alone.
    batch_size : int

    Returns
    -------
    Tensor
        uint8 (n, 3, size, size), on the CPU.
    """
    from diffusers import DDIMScheduler

    where = next(model.parameters()).device
    model.eval()
    start = torch.randn(len(labels), 3, size, size, generator=torch.Generator().manual_seed(seed))
    drawn = []
    for x, y in zip(start.split(batch_size), labels.split(batch_size), strict=True):
        schedule: Any = DDIMScheduler(TIMESTEPS, beta_schedule=model.schedule)
        schedule.set_timesteps(steps)
        x, y = x.to(where, memory_format=torch.channels_last), y.to(where)
        classes = torch.cat([y, torch.full_like(y, model.untold)])
        for t in schedule.timesteps:
            given, free = model(torch.cat([x, x]), t.to(where).expand(len(classes)), classes).chunk(2)
            x = schedule.step(free + guidance * (given - free), t, x).prev_sample
        drawn.append(x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu())
    return torch.cat(drawn)
