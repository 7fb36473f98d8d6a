"""What a diffusion model draws, judged: whether it is what was asked for, like real images, and a copy of one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from repsim_utils.features import represent
from repsim_utils.models.vision import Classifier, as_float

VERSION = 1  # raised when the same drawings are judged otherwise
JUDGE_SEED = 10_000  # is added to a seed: the judge's images are none that the models of that seed have seen


@torch.no_grad()
def quality(judge: Classifier, drawn: Tensor, asked: Tensor, real: Tensor, labels: Tensor) -> dict[str, float]:
    """How good drawings are, by a classifier that was trained on real images.

    Parameters
    ----------
    judge : Classifier
    drawn : Tensor
        uint8 (n, 3, h, w), classes in turn.
    asked : Tensor
        int64 (n,), the classes asked for.
    real : Tensor
        uint8 (m, 3, h, w), held out.
    labels : Tensor
        int64 (m,).

    Returns
    -------
    dict
        agreement : share of drawings that the judge takes for what was asked for; and of real images, likewise
        frechet : `frechet` distance of drawings from half of the real images, in the judge's representation
        frechet_real : that of as many images of the other half, the floor that a distance of so few images has
    """
    states = [represent(judge, images) for images in (drawn, real)]
    right = [judge.head(x.to(judge.head.weight.device)).argmax(1).cpu() for x in states]
    n = min(len(drawn), len(real) // 2)
    shuffled = some(states[1], len(real))
    reference, other = shuffled[: len(real) // 2], shuffled[len(real) // 2 :]
    return {
        "agreement": float((right[0] == asked).float().mean()),
        "agreement_real": float((right[1] == labels).float().mean()),
        "frechet": frechet(some(states[0], n), reference),
        "frechet_real": frechet(other[:n], reference),
    }


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the normal distributions that have the means and covariances of two samples, squared.

    As Heusel et al. (2017) use it, whose representation is another network's.

    Parameters
    ----------
    x, y : Tensor
        (n, d) and (m, d).
    """
    x, y = x.double(), y.double()
    a, b = torch.cov(x.T), torch.cov(y.T)
    shared = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * shared)


def nearest(drawn: Tensor, sets: Mapping[str, Tensor]) -> dict[str, float]:
    """Where the nearest image of each drawing is, by the squared distance of pixels.

    Parameters
    ----------
    drawn : Tensor
        uint8 (n, 3, h, w).
    sets : mapping
        From names to images uint8 (m, 3, h, w). Of each, as many are taken as the smallest has, so that by chance all
        are the nearest alike often.

    Returns
    -------
    dict
        Of each set, the share of drawings whose nearest image is in it.
    """
    m = min(len(images) for images in sets.values())
    pixels = as_float(drawn).flatten(1)
    least = torch.stack([torch.cdist(pixels, as_float(some(one, m)).flatten(1)).min(1).values for one in sets.values()])
    counts = torch.bincount(least.argmin(0).cpu(), minlength=len(sets)) / len(drawn)
    return dict(zip(sets, counts.tolist(), strict=True))


def copied(drawn: Tensor, seen: Tensor, unseen: Tensor) -> tuple[float, float]:
    """Share of drawings that are far nearer to an image the model has seen than to any of as many that it has not.

    Far nearer is at less than half the distance, in pixels. Second, what chance gives: the share that is as much nearer
    to an unseen image. Images are uint8 (n, 3, h, w).
    """
    m = min(len(seen), len(unseen))
    pixels = as_float(drawn).flatten(1)
    a, b = (torch.cdist(pixels, as_float(some(one, m)).flatten(1)).min(1).values for one in (seen, unseen))
    return float((a < b / 2).float().mean()), float((b < a / 2).float().mean())


def some(rows: Tensor, n: int) -> Tensor:
    """At most n of the rows, drawn at random, always the same ones: their order may go by class."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:n]]
