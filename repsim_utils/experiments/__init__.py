"""The book's experiments, by name; a module below that registers one is named here."""

from importlib import import_module

from repsim_utils.experiments.engine import EXPERIMENTS

__all__ = ["EXPERIMENTS"]

MODULES = (
    "vision",
    "task_only",
    "language",
    "finetuned",
    "diffusion",
    "adversarial_transfer",
    "together",
    "jailbreak_transfer",
    "jailbreak_finetuned",
)
for name in MODULES:
    import_module(f"{__name__}.{name}")
