"""What becomes of adversarial images on another model: crafted on each of a pair, tried on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim_utils.attacks import adversarial
from repsim_utils.attacks.adversarial import Model
from repsim_utils.models import evaluating

VERSION = 1  # raised when the same models and images have another outcome, or an outcome other rates
RATES = ("transfer", "white_box", "transfer_given_fooled", "same_mistake", "unmoved")
Perturb = Callable[[Any, Tensor, Tensor], Tensor]


class InClasses(nn.Module):
    """A classifier that answers in the classes of the data set, where its own labels are numbers of some of them.

    Parameters
    ----------
    model : Module or callable
        Its logits are (n, number of labels), returned in any way that `adversarial.logits` reads.
    names : mapping
        Label of every class that it has learned. All others get no probability.
    n_classes : int
    """

    classes: Tensor

    def __init__(self, model: Model, names: Mapping[int, int], n_classes: int) -> None:
        super().__init__()
        self.model, self.n_classes = model, n_classes
        self.register_buffer("classes", torch.tensor(sorted(names, key=lambda c: names[c])))

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (n, 3, h, w) in [0, 1] to (n, n_classes)."""
        logits = adversarial.logits(self.model, images)
        if logits.shape[1] != len(self.classes):
            raise ValueError(f"names has {len(self.classes)} classes, but the model {logits.shape[1]}")
        classes = self.classes.to(logits.device)
        return logits.new_full((len(images), self.n_classes), -torch.inf).index_copy(1, classes, logits)


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


def answers(model: Model, images: Tensor) -> Tensor:
    """Class that a model in evaluation mode sees in every image, float (n, 3, h, w): int64 (n,), on the CPU."""
    return _answers(model, adversarial.as_float(images))


@torch.no_grad()
def _answers(model: Model, images: Tensor, labels: Sequence[int] = ()) -> Tensor:
    """With labels that are to be among the classes."""
    with evaluating(model):
        batches = (adversarial.placed(model, batch) for batch in images.split(500))
        return torch.cat([adversarial.logits(model, batch, labels=labels).argmax(1).cpu() for batch in batches])


def attack_pair(
    first: Model, second: Model, images: Tensor, labels: Tensor, perturb: Perturb, *, only_right: bool = True
) -> Outcome:
    """Make adversarial images on each model of a pair, and try them on the other.

    Parameters
    ----------
    first, second : Module or callable
        Both answering in the same classes (see `InClasses`). Modules are in evaluation mode for the time, as in
        `adversarial.attack`, and afterwards as they were.
    images : Tensor
        float32 (n, 3, h, w) in [0, 1], on the device of the models.
    labels : Tensor
        Integers (n,), classes of both.
    perturb : callable
        ``perturb(source, images, labels)`` returns the images to be tried on the victim.
    only_right : bool
        Attack only images that both models classify correctly: what is wrong already cannot be made wrong.

    Returns
    -------
    Outcome
    """
    images = adversarial.as_images(images)
    labels = adversarial.as_labels(labels, len(images)).cpu()
    allowed = adversarial.extremes(labels)
    parts = []
    with torch.inference_mode(False), torch.enable_grad(), evaluating(first, second):
        chosen = torch.ones(len(labels), dtype=torch.bool)
        if only_right:
            chosen = (_answers(first, images, allowed) == labels) & (_answers(second, images, allowed) == labels)
        rows = torch.nonzero(chosen)[:, 0]
        x, y = images[rows.to(images.device)], labels[rows]
        for source, victim in ((first, second), (second, first)) if len(rows) else ():
            made = perturb(source, x, y)
            moved = ~adversarial.unmoved(x, made).cpu()
            parts.append(Outcome(rows, y, _answers(source, made), _answers(victim, made), moved))
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


def gradient_cosine(first: Model, second: Model, images: Tensor, labels: Tensor) -> float:
    """Mean cosine of two models' loss gradients with respect to the same image."""
    x, y = (adversarial.input_gradients(model, images, labels).flatten(1) for model in (first, second))
    return float(F.cosine_similarity(x, y).mean())
