"""The book's experiments, by name."""

from repsim_utils.experiments import (
    adversarial_transfer,
    diffusion,
    finetuned,
    jailbreak_finetuned,
    jailbreak_transfer,
    language,
    task_only,
    vision,
)
from repsim_utils.experiments.engine import EXPERIMENTS

__all__ = [
    "EXPERIMENTS",
    "adversarial_transfer",
    "diffusion",
    "finetuned",
    "jailbreak_finetuned",
    "jailbreak_transfer",
    "language",
    "task_only",
    "vision",
]
