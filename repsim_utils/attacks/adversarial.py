"""Adversarial images within an L∞ ball, made by following the sign of a model's gradient.

Images are float in [0, 1] and models own their normalisation, so that ε means the same for every model. All methods
are one loop with different options. (Libraries were tried: at the time of writing torchattack 1.7.2 divides by zero
where a gradient vanishes, computes the gradients of all weights as well, and does not accumulate the momentum of its
NI, SI and TI variants.)
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim_utils.models import evaluating

log = logging.getLogger(__name__)
VERSION = 1  # raised when the same arguments give other images
BATCH = 100  # images; larger batches are slower on a CPU
Model = Callable[[Tensor], Any]  # a module, or a function, of images; see `logits`
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
    model: Model,
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
    model : Module or callable
        Maps float images (n, 3, h, w) in [0, 1] to logits, in any way that `logits` reads. A module is put into
        evaluation mode for the time of the attack, and so are modules that a function calls; afterwards it is as it
        was, and so are the gradients of its weights. Weights in half precision see images of their kind; the steps are
        taken in float32.
    images : Tensor
        float32 (n, 3, h, w) in [0, 1]; float64 is kept, less becomes float32.
    labels : Tensor
        Integers (n,): the right ones, or where `targeted`, those that the model should give.
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
        float32 (n, 3, h, w) in [0, 1], on the device of `images`; it wants no gradient, whatever they do.

    Raises
    ------
    ValueError
        If the method or an option is unknown, a number is out of range, images, labels or what the model returns are
        not as above, or a label is none of its classes.
    """
    how, steps = _checked(method, epsilon, steps, options)
    sign = -1.0 if targeted else 1.0
    step = sign * epsilon / 255 * (1 / steps if how.step is None else how.step)
    generator = torch.Generator().manual_seed(seed)
    made = []
    with _at_rest(model) as still:
        images, labels = as_images(images), as_labels(labels, len(images))
        ask = partial(logits, still, labels=extremes(labels))
        walk = partial(_walk, ask, epsilon=epsilon / 255, step=step, steps=steps, how=how)
        last = _channels_last(still)
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            x = placed(still, x)
            x, y = x.to(memory_format=torch.channels_last) if last else x, y.to(x.device)
            tries = [walk(x, y, generator=generator) for _ in range(how.restarts)]
            made.append(_best(ask, tries, y, sign).to(images.device))
        result = torch.cat(made)
    if epsilon and (stuck := int(unmoved(images, result).sum())):
        log.warning("%d of %d images have no gradient and did not move: they are not robust", stuck, len(images))
    return result


@contextmanager
def _at_rest(model: Model) -> Iterator[Model]:
    """Evaluation mode, and weights that want no gradient, which saves a twentieth of the time; then all as before.

    Gradients are to be had inside, whatever is so outside. Weights that were made in inference mode give none: of such
    a model a copy is lent.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if any(weight.is_inference() for weight in _weights(model)):
            model = copy.deepcopy(model)
        with evaluating(model):
            for weight in model.parameters() if isinstance(model, nn.Module) else ():
                weight.requires_grad_(False)
            yield model


def _weights(model: Model) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())


def _channels_last(model: Model) -> bool:
    """Whether kernels of a model are, as those of all networks of `repsim_utils.models.vision`."""
    kernels = (weight for weight in _weights(model) if weight.ndim == 4 and not weight.is_contiguous())
    return any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def placed(model: Model, images: Tensor) -> Tensor:
    """Images on the device of a model; contiguous, as a `.view` needs them, unless its kernels are channels last."""
    images = images.to(next((weight.device for weight in _weights(model)), images.device))
    return images if _channels_last(model) else images.contiguous()


def logits(model: Model, images: Tensor, *, labels: Sequence[int] = ()) -> Tensor:
    """What a model says of images, which are in its precision for it: (n, number of classes), in float32 or more.

    Parameters
    ----------
    model : callable
        Returns logits, a tuple or list that begins with them, or something that has them by the name ``logits``: a
        mapping, a dataclass.
    images : Tensor
        float (n, …), on the device of the model.
    labels : sequence of int
        Each is to be one of its classes.

    Raises
    ------
    ValueError
        If it returns something else, or a label is none of its classes.
    """
    kinds = (weight.dtype for weight in _weights(model) if weight.ndim and weight.is_floating_point())
    said = model(images.to(next(kinds, images.dtype)))
    found = said.get("logits") if isinstance(said, Mapping) else getattr(said, "logits", said)
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
        what = f"{type(found).__name__} {tuple(found.shape)}" if isinstance(found, Tensor) else type(said).__name__
        what += f" of {', '.join(map(str, said))}" if isinstance(said, Mapping) else ""
        raise ValueError(
            f"the model is to return logits ({len(images)}, number of classes), alone, first of a tuple or by the name "
            f"logits, but it returned {what}: wrap it in a function that does"
        )
    for label in labels:
        if not 0 <= label < found.shape[1]:
            raise ValueError(f"labels must be from 0 to {found.shape[1] - 1} of {found.shape[1]} classes, got {label}")
    return found.to(torch.promote_types(found.dtype, torch.float32))


def as_images(images: Any) -> Tensor:
    """Images as attacks take them, float (n, 3, h, w) in [0, 1], in float32 or more, apart from any graph.

    Raises
    ------
    ValueError
        If they are something else; it says what to do.
    """
    images = as_float(images)
    if images.ndim != 4 or not images.numel():
        hint = "; of one image give image[None]" if images.ndim == 3 else ""
        hint = hint if images.numel() else "; there is none"
        raise ValueError(f"images must be float (n, 3, h, w), got {images.dtype} {tuple(images.shape)}{hint}")
    if images.shape[1] > 4 >= images.shape[3]:
        raise ValueError(f"images must be (n, 3, h, w), got {tuple(images.shape)}; give images.permute(0, 3, 1, 2)")
    if not (images.min() >= 0 and images.max() <= 1):
        if missing := int(images.isnan().any(1).any(1).any(1).sum()):
            raise ValueError(f"images must be in [0, 1], got nan in {missing} of {len(images)}; leave those out")
        raise ValueError(
            f"images must be in [0, 1], got {images.min():.3g} to {images.max():.3g}; the model owns its "
            "normalisation, and pixels of 0 … 255 are to be divided by 255"
        )
    return images


def as_float(images: Any) -> Tensor:
    """A tensor of float32 or more, apart from any graph and of no inference mode; ValueError for what is none."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"images must be a float tensor (n, 3, h, w), got {type(images).__name__}; give torch.as_tensor(images)"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images must be float (n, 3, h, w), got {images.dtype} {tuple(images.shape)}; of pixels of 0 … 255 give "
            "images.float() / 255"
        )
    with torch.inference_mode(False):
        images = images.clone() if images.is_inference() else images.detach()
        return images.to(torch.promote_types(images.dtype, torch.float32))


def as_labels(labels: Any, n: int) -> Tensor:
    """Labels of n images as attacks take them, int64 (n,); ValueError, which says what to do, if they are no integers.

    Whether they are classes of a model is seen when it is asked: see `logits`.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be int64 ({n},), got {type(labels).__name__}; give torch.as_tensor(labels)")
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if labels.shape != (n,) or not whole:
        hint = "" if whole else "; give labels.long()"
        if labels.ndim == 2 and len(labels) == n:
            hint = "; give labels.flatten()" if labels.shape[1] == 1 else "; of one-hot labels give labels.argmax(1)"
        raise ValueError(f"labels must be int64 ({n},), got {labels.dtype} {tuple(labels.shape)}{hint}")
    with torch.inference_mode(False):
        return labels.clone().long() if labels.is_inference() else labels.long()


def extremes(labels: Tensor) -> tuple[int, int]:
    """Smallest and largest label."""
    return int(labels.min()), int(labels.max())


def _checked(method: str, epsilon: float, steps: int | None, options: dict[str, Any]) -> tuple[Options, int]:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if unknown := sorted(set(options) - set(Options._fields)):
        raise ValueError(f"unknown option {', '.join(unknown)}; there are {', '.join(Options._fields)}")
    how = METHODS[method]._replace(**options)
    if steps is None:
        steps = 1 if method == "fgsm" else 10
    if steps < 1 or (method == "fgsm" and steps > 1):
        raise ValueError(f"steps must be 1 or more, and 1 for fgsm, got {steps} for {method}")
    if how.restarts < 1 or how.copies < 1 or (how.smoothing and (how.smoothing < 3 or how.smoothing % 2 == 0)):
        raise ValueError(f"restarts and copies must be 1 or more, smoothing 0 or odd and at least 3, got {how}")
    if how.resize < 1 or not 0 <= how.diversity <= 1 or (how.step is not None and how.step <= 0):
        raise ValueError(f"resize must be 1 or more, diversity in [0, 1] and step above 0, got {how}")
    _check_epsilon(epsilon)
    return how, steps


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 255:
        raise ValueError(f"epsilon is in units of 1/255 and must be from 0 to 255, got {epsilon}")
    if 0 < epsilon < 1:
        told = "epsilon is in units of 1/255: %.2g is %.2g of the pixel range; for 8/255 give 8"
        log.warning(told, epsilon, epsilon / 255)


def _best(model: Model, tries: list[Tensor], labels: Tensor, sign: float) -> Tensor:
    """Of several attempts, each image's that the model likes least (most, where the sign is negative)."""
    best = tries[0]
    for other in tries[1:]:
        with torch.no_grad():
            losses = [F.cross_entropy(model(x), labels, reduction="none") for x in (best, other)]
        better = sign * losses[1] > sign * losses[0]
        best = torch.where(better[:, None, None, None], other, best)
    return best


def _walk(
    model: Model,
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


def _gradient(model: Model, images: Tensor, labels: Tensor, how: Options, generator: torch.Generator) -> Tensor:
    """Gradient of the loss with respect to the images, averaged over copies of lower intensity."""
    leaf = images.detach().requires_grad_()
    for i in range(how.copies):
        seen = leaf / 2**i if i else leaf
        seen = _diverse(seen, how, generator) if how.diversity else seen
        loss = F.cross_entropy(model(seen), labels, reduction="sum")  # a sum keeps images independent of each other
        if not loss.requires_grad:
            raise ValueError("the model's logits have no gradient: is there a no_grad, a detach or a rounding in it?")
        loss.backward(inputs=[leaf])
    assert leaf.grad is not None
    return leaf.grad / how.copies if how.copies > 1 else leaf.grad


def _diverse(images: Tensor, how: Options, generator: torch.Generator) -> Tensor:
    """The batch at a random larger size, padded with black to the largest and brought back to its own."""
    size = (images.shape[-2], images.shape[-1])
    height, width = (max(int(length * how.resize), length + 1) for length in size)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    if torch.rand((), generator=generator) >= how.diversity:
        return images
    longest = draw(max(size), max(height, width) - 1)
    high, wide = (length * longest // max(size) for length in size)
    left, top = draw(0, width - wide), draw(0, height - high)
    larger = F.interpolate(images, (high, wide), mode="bilinear", align_corners=False)
    padded = F.pad(larger, (left, width - wide - left, top, height - high - top))
    return F.interpolate(padded, size, mode="bilinear", align_corners=False)


def _smooth(gradient: Tensor, width: int) -> Tensor:
    """Convolution with a Gaussian kernel, channel by channel."""
    at = torch.arange(width, device=gradient.device, dtype=gradient.dtype) - width // 2
    line = torch.exp(-0.5 * (6 * at / (width - 1)) ** 2)
    line = (line / line.sum()).expand(gradient.shape[1], 1, 1, width)
    half = F.conv2d(gradient, line, padding=(0, width // 2), groups=gradient.shape[1])
    return F.conv2d(half, line.transpose(2, 3), padding=(width // 2, 0), groups=gradient.shape[1])


def input_gradients(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's loss with respect to its pixels: float32 (n, 3, h, w). All are as in `attack`."""
    with _at_rest(model) as still:
        images, labels = as_images(images), as_labels(labels, len(images))
        ask = partial(logits, still, labels=extremes(labels))
        found = []
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            x = placed(still, x)
            found.append(_gradient(ask, x, y.to(x.device), Options(), torch.Generator()))
        return torch.cat(found).to(images.device)


def random_signs(images: Tensor, *, epsilon: float, seed: int = 0) -> Tensor:
    """A control: every pixel moved by ±ε (in units of 1/255) at random, as far as [0, 1] allows."""
    images = as_images(images)
    _check_epsilon(epsilon)
    signs = 2.0 * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(seed)) - 1
    return (images + epsilon / 255 * signs.to(images.device)).clamp(0, 1)


def shuffled(images: Tensor, adversarial: Tensor, *, seed: int = 0) -> Tensor:
    """A control: every image with the perturbation that was made for another one, as far as [0, 1] allows."""
    images, adversarial = as_images(images), as_images(adversarial)
    n = len(images)
    if n < 2:
        raise ValueError("perturbations of fewer than 2 images cannot be exchanged")
    if images.shape != adversarial.shape:
        raise ValueError(f"every image needs one attacked image, got {images.shape} and {adversarial.shape}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)  # nobody keeps its own
    return (images + (adversarial - images)[partner.to(images.device)]).clamp(0, 1)


def unmoved(images: Tensor, adversarial: Tensor) -> Tensor:
    """Which images were not changed at all: bool (n,)."""
    return (images == adversarial).flatten(1).all(1)
