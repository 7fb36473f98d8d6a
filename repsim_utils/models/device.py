"""Where models compute, and how exactly: the one place that decides both."""

import torch


def device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_device() -> torch.device:
    """The same; from then on a GPU's matrix products are in TF32, as its convolutions are."""
    where = device()
    if where.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return where
