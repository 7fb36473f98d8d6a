"""What becomes of adversarial images on another model: crafted on each of a pair, tried on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim_utils.attacks import adversarial

VERSION = 1  # raised when the same input gives another result
RATES = ("transfer", "white_box", "transfer_given_fooled", "same_mistake", "unmoved")
Perturb = Callable[[nn.Module, Tensor, Tensor], Tensor]


class InClasses(nn.Module):
    """A classifier that answers in the classes of the data set, where its own labels are numbers of some of them.

    Parameters
    ----------
    model : Module
        Its logits are (n, number of labels).
    names : mapping
        Label of every class that it has learned. All others get no probability.
    n_classes : int
    """

    def __init__(self, model: nn.Module, names: Mapping[int, int], n_classes: int) -> None:
        super().__init__()
        self.model, self.n_classes = model, n_classes
        self.register_buffer("classes", torch.tensor(sorted(names, key=lambda c: names[c])))

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, 3, h, w) in [0, 1] to (n, n_classes)."""
        logits = self.model(images)
        return logits.new_full((len(images), self.n_classes), -torch.inf).index_copy(1, self.classes, logits)


class Outcome(NamedTuple):
    """What became of attacked images, both directions of a pair one after the other; all (m,).

    Attributes
    ----------
    image : Tensor
        Row in the probe.
    label, source, victim : Tensor
        The right class, and the answers of the model that the image was made on and of the other one.
    moved : Tensor
        Whether the image was changed at all.
    """

    image: Tensor
    label: Tensor
    source: Tensor
    victim: Tensor
    moved: Tensor

    def among(self, images: Tensor) -> Outcome:
        """The outcomes of some images, given as bool (n,)."""
        return Outcome(*(values[images[self.image]] for values in self))


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Class that a model in evaluation mode sees in every image, float (n, 3, h, w): int64 (n,), on the CPU."""
    return torch.cat([model(batch).argmax(1).cpu() for batch in images.split(500)])


def attack_pair(
    first: nn.Module,
    second: nn.Module,
    images: Tensor,
    labels: Tensor,
    perturb: Perturb,
    *,
    only_right: bool = True,
) -> Outcome:
    """Make adversarial images on each model of a pair, and try them on the other.

    Parameters
    ----------
    first, second : Module
        In evaluation mode, both answering in the same classes (see `InClasses`).
    images : Tensor
        float32 (n, 3, h, w) in [0, 1], on the device of the models.
    labels : Tensor
        int64 (n,), on the CPU.
    perturb : callable
        ``perturb(source, images, labels)`` returns the images to be tried on the victim.
    only_right : bool
        Attack only images that both models classify correctly: what is wrong already cannot be made wrong.

    Returns
    -------
    Outcome
    """
    chosen = torch.ones(len(labels), dtype=torch.bool)
    if only_right:
        chosen = (answers(first, images) == labels) & (answers(second, images) == labels)
    rows = torch.nonzero(chosen)[:, 0]
    x, y = images[rows.to(images.device)], labels[rows]
    parts = []
    for source, victim in ((first, second), (second, first)) if len(rows) else ():
        made = perturb(source, x, y)
        moved = ~adversarial.unmoved(x, made).cpu()
        parts.append(Outcome(rows, y, answers(source, made), answers(victim, made), moved))
    return Outcome(*(torch.cat(values) for values in zip(*parts, strict=True))) if parts else Outcome(*[rows] * 5)


def rates(outcome: Outcome) -> dict[str, float]:
    """What an outcome comes to; empty if there is no image.

    Returns
    -------
    dict
        transfer: share of images that the victim gets wrong. white_box: share that the source gets wrong.
        transfer_given_fooled: the former among the latter. same_mistake: share in which both give the same wrong class.
        unmoved: share of images that the attack did not change.
    """
    if not len(outcome.image):
        return {}
    fooled, missed = outcome.source != outcome.label, outcome.victim != outcome.label
    found = {
        "transfer": missed,
        "white_box": fooled,
        "same_mistake": missed & (outcome.source == outcome.victim),
        "unmoved": ~outcome.moved,
    }
    if fooled.any():
        found["transfer_given_fooled"] = missed[fooled]
    return {name: float(values.double().mean()) for name, values in found.items()}


def gradient_cosine(first: nn.Module, second: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cosine of two models' loss gradients with respect to the same image."""
    x, y = (adversarial.input_gradients(model, images, labels).flatten(1) for model in (first, second))
    return float(F.cosine_similarity(x, y).mean())
