"""Networks with a named representation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed, on the CPU; the global random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Evaluation mode; afterwards every part has its mode again, and every weight its gradient and its wish for one.

    Of what is no module, such as a function of several, it is the modules that are called which do not train.
    """
    owned = [model for model in models if isinstance(model, nn.Module)]
    modes = [(part, part.training) for model in owned for part in model.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for model in owned for weight in model.parameters()]

    def stop(part: nn.Module, _: Any) -> None:
        if part.training:
            modes.append((part, True))
            part.training = False

    hook = register_module_forward_pre_hook(stop) if len(owned) < len(models) else None
    try:
        for model in owned:
            model.eval()
        for weight, _, gradient in weights:
            if gradient is not None:
                weight.grad = None  # what is added to it inside would stay
        yield
    finally:
        if hook is not None:
            hook.remove()
        for part, mode in modes:
            part.training = mode
        for weight, wanted, gradient in weights:
            if weight.requires_grad != wanted:
                weight.requires_grad_(wanted)
            if weight.grad is not gradient:
                weight.grad = gradient
