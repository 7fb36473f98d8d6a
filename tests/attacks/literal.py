"""The attacks as their papers write them: one image at a time, in float64, with nothing shared with the package."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, interpolate


def gradient(model, x, label):
    leaf = x.clone().requires_grad_()
    cross_entropy(model(leaf[None]), torch.tensor([label])).backward()
    return leaf.grad


def clip(x, start, epsilon):
    return x.clamp(start - epsilon, start + epsilon).clamp(0, 1)


def momentum(model, x, label, *, epsilon, steps, mu):
    """Dong et al. 2018, eq. 6 and 7, the gradient divided by its L1 norm."""
    start, g = x, torch.zeros_like(x)
    for _ in range(steps):
        new = gradient(model, x, label)
        g = mu * g + new / new.abs().sum()
        x = clip(x + epsilon / steps * g.sign(), start, epsilon)
    return x


def nesterov(model, x, label, *, epsilon, steps, copies=1):
    """Lin et al. 2020, eq. 6 to 9; steps ahead by the accumulated gradient in units of its mean."""
    start, g, alpha = x, torch.zeros_like(x), epsilon / steps
    for _ in range(steps):
        ahead = x + alpha * g
        new = sum(gradient_scaled(model, ahead, label, 2**i) for i in range(copies)) / copies
        g = g + new / new.abs().mean()
        x = clip(x + alpha * g.sign(), start, epsilon)
    return x


def gradient_scaled(model, x, label, divisor):
    leaf = x.clone().requires_grad_()
    cross_entropy(model(leaf[None] / divisor), torch.tensor([label])).backward()
    return leaf.grad


def smoothed(model, x, label, *, epsilon, steps, width=15):
    """Dong et al. 2019, eq. 8, with the momentum of 2018; the kernel from -3 to 3 standard deviations."""
    start, g = x, torch.zeros_like(x)
    line = np.exp(-(np.linspace(-3, 3, width) ** 2) / 2)
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    for _ in range(steps):
        new = torch.from_numpy(convolved(gradient(model, x, label).numpy(), kernel))
        g = g + new / new.abs().mean()
        x = clip(x + epsilon / steps * g.sign(), start, epsilon)
    return x


def convolved(image, kernel):
    half = len(kernel) // 2
    padded = np.pad(image, ((0, 0), (half, half), (half, half)))
    out = np.zeros_like(image)
    for channel, row, column in np.ndindex(image.shape):
        window = padded[channel, row : row + len(kernel), column : column + len(kernel)]
        out[channel, row, column] = (window * kernel).sum()
    return out


def diverse(model, x, label, *, epsilon, steps, placed):
    """Xie et al. 2019: at each step the image at another size, somewhere on a black square."""
    start, g, size = x, torch.zeros_like(x), x.shape[-1]
    for chosen, largest, left, top in placed:
        leaf = x.clone().requires_grad_()
        square = torch.zeros(1, 3, largest, largest, dtype=x.dtype)
        small = interpolate(leaf[None], (chosen, chosen), mode="bilinear", align_corners=False)
        square[:, :, top : top + chosen, left : left + chosen] = small
        seen = interpolate(square, (size, size), mode="bilinear", align_corners=False)
        cross_entropy(model(seen), torch.tensor([label])).backward()
        g = g + leaf.grad / leaf.grad.abs().mean()
        x = clip(x + epsilon / steps * g.sign(), start, epsilon)
    return x
