"""Representations of a model on a probe."""

from __future__ import annotations

import torch
from torch import Tensor

from repsim_utils.models.vision import Classifier, as_float, device


@torch.no_grad()
def represent(model: Classifier, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Penultimate representation of every image.

    Parameters
    ----------
    model : Classifier
    images : Tensor
        uint8 (n, 3, h, w), the probe.
    batch_size : int

    Returns
    -------
    Tensor
        float32 (n, d), on the CPU.
    """
    model.to(device()).eval()
    return torch.cat([model.represent(as_float(batch)).cpu() for batch in images.split(batch_size)])
