"""Adversarial images within an L∞ ball, made by following the sign of a model's gradient.

Images are float in [0, 1] and models own their normalisation, so that ε means the same for every model. All methods
are one loop with different options. (Libraries were tried: at the time of writing torchattack 1.7.2 divides by zero
where a gradient vanishes, computes the gradients of all weights as well, and does not accumulate the momentum of its
NI, SI and TI variants.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same arguments give other images
BATCH = 100  # images; larger batches are slower on a CPU
_TINY = torch.finfo(torch.float32).tiny


class Options(NamedTuple):
    """What distinguishes one method from another.

    Attributes
    ----------
    step : float
        Length of a step, as a share of ε; None for one over the number of steps.
    momentum : float
        μ: how much of the accumulated direction a step keeps. Gradients are divided by their mean absolute value
        before they are added up (Dong et al. 2018, eq. 6, where it is the sum: the sign is the same).
    nesterov : bool
        Take the gradient where the momentum will lead (Lin et al. 2020, eq. 6–8).
    random_start : bool
        Start at a random point of the ball instead of at the image.
    restarts : int
        Starts to be tried; of each image the one with the highest loss on the model is kept.
    diversity : float
        Probability that the gradient is taken of a batch resized by up to `resize` and padded (Xie et al. 2019).
    resize : float
        Largest ratio of sizes.
    smoothing : int
        Width in pixels of the Gaussian kernel by which gradients are smoothed, from -3 to 3 standard deviations; odd,
        or 0 for none (Dong et al. 2019).
    copies : int
        Gradients are averaged over the image and copies with intensity 1/2, 1/4 … (Lin et al. 2020, eq. 9).
    """

    step: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    random_start: bool = False
    restarts: int = 1
    diversity: float = 0.0
    resize: float = 1.1
    smoothing: int = 0
    copies: int = 1


METHODS = {
    "fgsm": Options(),  # one step: Goodfellow et al. 2015
    "i-fgsm": Options(),  # Kurakin et al. 2017
    "mi-fgsm": Options(momentum=1.0),  # Dong et al. 2018; the paper's
    "ni-fgsm": Options(momentum=1.0, nesterov=True),
    "pgd": Options(step=0.25, random_start=True),  # Madry et al. 2018
    "di-fgsm": Options(momentum=1.0, diversity=0.5),
    "ti-fgsm": Options(momentum=1.0, smoothing=15),
    "si-fgsm": Options(momentum=1.0, nesterov=True, copies=5),
}


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    method: str = "mi-fgsm",
    *,
    epsilon: float = 8,
    steps: int | None = None,
    targeted: bool = False,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Images that a model gets wrong, or calls what they are not, each within ε of the one it was made from.

    Parameters
    ----------
    model : Module
        Maps float images (n, 3, h, w) in [0, 1] to logits. It is put into evaluation mode for the time of the attack;
        afterwards it is as it was, and so are the gradients of its weights.
    images : Tensor
        float32 (n, 3, h, w) in [0, 1].
    labels : Tensor
        int64 (n,): the right ones, or where `targeted`, those that the model should give.
    method : str
        One of `METHODS`.
    epsilon : float
        Largest change of a pixel, in units of 1/255.
    steps : int, optional
        By default 10, and 1 for ``fgsm``.
    targeted : bool
    seed : int
        Of random starts and random resizing.
    **options
        Fields of `Options` that shall differ from the method's.

    Returns
    -------
    Tensor
        float32 (n, 3, h, w) in [0, 1], on the device of `images`.

    Raises
    ------
    ValueError
        If the method or an option is unknown, a number is out of range, or images or labels are not as above.
    """
    how, steps = _checked(images, labels, method, epsilon, steps, options)
    device = next(model.parameters()).device
    sign = -1.0 if targeted else 1.0
    step = sign * epsilon / 255 * (1 / steps if how.step is None else how.step)
    walk = partial(_walk, model, epsilon=epsilon / 255, step=step, steps=steps, how=how)
    generator = torch.Generator().manual_seed(seed)
    made = []
    with _at_rest(model):
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
            tries = [walk(x, y, generator=generator) for _ in range(how.restarts)]
            made.append(_best(model, tries, y, sign).to(images.device))
    result = torch.cat(made)
    if epsilon and (still := int(unmoved(images, result).sum())):
        log.warning("%d of %d images have no gradient and did not move: they are not robust", still, len(images))
    return result


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and weights that want no gradient, which saves a twentieth of the time; then all as before."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight in learning:
            weight.requires_grad_(True)


def _checked(
    images: Tensor, labels: Tensor, method: str, epsilon: float, steps: int | None, options: dict[str, Any]
) -> tuple[Options, int]:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if unknown := sorted(set(options) - set(Options._fields)):
        raise ValueError(f"unknown option {', '.join(unknown)}; there are {', '.join(Options._fields)}")
    how = METHODS[method]._replace(**options)
    if steps is None:
        steps = 1 if method == "fgsm" else 10
    if steps < 1 or (method == "fgsm" and steps > 1):
        raise ValueError(f"steps must be 1 or more, and 1 for fgsm, got {steps} for {method}")
    if not 0 <= epsilon <= 255:
        raise ValueError(f"epsilon is in units of 1/255 and must be from 0 to 255, got {epsilon}")
    if how.restarts < 1 or how.copies < 1 or (how.smoothing and (how.smoothing < 3 or how.smoothing % 2 == 0)):
        raise ValueError(f"restarts and copies must be 1 or more, smoothing 0 or odd and at least 3, got {how}")
    if how.resize < 1 or not 0 <= how.diversity <= 1 or (how.step is not None and how.step <= 0):
        raise ValueError(f"resize must be 1 or more, diversity in [0, 1] and step above 0, got {how}")
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(f"images must be float (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images must be in [0, 1], got {images.min():.3g} to {images.max():.3g}; the model owns its normalisation"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    return how, steps


def _best(model: nn.Module, tries: list[Tensor], labels: Tensor, sign: float) -> Tensor:
    """Of several attempts, each image's that the model likes least (most, where the sign is negative)."""
    best = tries[0]
    for other in tries[1:]:
        with torch.no_grad():
            losses = [F.cross_entropy(model(x), labels, reduction="none") for x in (best, other)]
        better = sign * losses[1] > sign * losses[0]
        best = torch.where(better[:, None, None, None], other, best)
    return best


def _walk(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    how: Options,
    generator: torch.Generator,
) -> Tensor:
    """From the images, or a random start, along the sign of an accumulated gradient; downhill if `step` is negative."""
    low, high = (images - epsilon).clamp_min(0), (images + epsilon).clamp_max(1)
    current, velocity = images, torch.zeros_like(images)
    if how.random_start:
        noise = torch.rand(images.shape, generator=generator).to(images.device)
        current = torch.clamp(images + epsilon * (2 * noise - 1), low, high)
    for _ in range(steps):
        ahead = current + step * how.momentum * velocity if how.nesterov else current
        gradient = _gradient(model, ahead, labels, how, generator)
        if how.smoothing:
            gradient = _smooth(gradient, how.smoothing)
        size = gradient.abs().mean((1, 2, 3), keepdim=True)
        velocity = how.momentum * velocity + gradient / size.clamp_min(_TINY)
        current = torch.clamp(current + step * velocity.sign(), low, high)
    return current


def _gradient(model: nn.Module, images: Tensor, labels: Tensor, how: Options, generator: torch.Generator) -> Tensor:
    """Gradient of the loss with respect to the images, averaged over copies of lower intensity."""
    leaf = images.detach().requires_grad_()
    for i in range(how.copies):
        seen = leaf / 2**i if i else leaf
        seen = _diverse(seen, how, generator) if how.diversity else seen
        loss = F.cross_entropy(model(seen), labels, reduction="sum")  # a sum keeps images independent of each other
        loss.backward(inputs=[leaf])
    assert leaf.grad is not None
    return leaf.grad / how.copies if how.copies > 1 else leaf.grad


def _diverse(images: Tensor, how: Options, generator: torch.Generator) -> Tensor:
    """The batch at a random larger size, padded with black to the largest and brought back to its own."""
    size = images.shape[-1]
    largest = max(int(size * how.resize), size + 1)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    if torch.rand((), generator=generator) >= how.diversity:
        return images
    chosen = draw(size, largest - 1)
    left, top = draw(0, largest - chosen), draw(0, largest - chosen)
    larger = F.interpolate(images, (chosen, chosen), mode="bilinear", align_corners=False)
    padded = F.pad(larger, (left, largest - chosen - left, top, largest - chosen - top))
    return F.interpolate(padded, (size, size), mode="bilinear", align_corners=False)


def _smooth(gradient: Tensor, width: int) -> Tensor:
    """Convolution with a Gaussian kernel, channel by channel."""
    at = torch.arange(width, device=gradient.device, dtype=gradient.dtype) - width // 2
    line = torch.exp(-0.5 * (6 * at / (width - 1)) ** 2)
    line = (line / line.sum()).expand(gradient.shape[1], 1, 1, width)
    half = F.conv2d(gradient, line, padding=(0, width // 2), groups=gradient.shape[1])
    return F.conv2d(half, line.transpose(2, 3), padding=(width // 2, 0), groups=gradient.shape[1])


def input_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's loss with respect to its pixels: float32 (n, 3, h, w)."""
    device = next(model.parameters()).device
    with _at_rest(model):
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        found = [_gradient(model, x.to(device), y.to(device), Options(), torch.Generator()) for x, y in parts]
    return torch.cat(found).to(images.device)


def random_signs(images: Tensor, *, epsilon: float, seed: int = 0) -> Tensor:
    """A control: every pixel moved by ±ε (in units of 1/255) at random, as far as [0, 1] allows."""
    signs = 2.0 * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(seed)) - 1
    return (images + epsilon / 255 * signs.to(images.device)).clamp(0, 1)


def shuffled(images: Tensor, adversarial: Tensor, *, seed: int = 0) -> Tensor:
    """A control: every image with the perturbation that was made for another one, as far as [0, 1] allows."""
    n = len(images)
    if n < 2:
        raise ValueError("perturbations of fewer than 2 images cannot be exchanged")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)  # nobody keeps its own
    return (images + (adversarial - images)[partner.to(images.device)]).clamp(0, 1)


def unmoved(images: Tensor, adversarial: Tensor) -> Tensor:
    """Which images were not changed at all: bool (n,)."""
    return (images == adversarial).flatten(1).all(1)
