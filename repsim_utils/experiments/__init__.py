"""The book's experiments, by name."""

from functools import partial

from repsim_utils.experiments import (
    adversarial_transfer,
    changes,
    diffusion,
    finetuned,
    jailbreak_finetuned,
    jailbreak_transfer,
    language,
    task_only,
    vision,
)
from repsim_utils.experiments.common import Experiment


def _vision(kind: vision.Kind) -> Experiment:
    pairs = partial(vision.pairs, kind=kind)
    return Experiment(pairs, vision.trained, vision.measure_pair, vision.size, vision.SUMMARY, vision.prepare)


def _language(kind: language.Kind) -> Experiment:
    pairs = partial(language.pairs, kind=kind)
    return Experiment(pairs, language.trained, language.measure_pair, language.size, language.SUMMARY, language.prepare)


def _diffusion(kind: diffusion.Kind) -> Experiment:
    pairs = partial(diffusion.pairs, kind=kind)
    what = diffusion.trained, diffusion.measure_pair, diffusion.size, diffusion.SUMMARY, vision.prepare
    # Models that know different classes make no common picture.
    return Experiment(pairs, *what, diffusion.gallery if kind == diffusion.DATASET else None)


def _finetuned(kind: finetuned.Kind) -> Experiment:
    pairs = partial(finetuned.pairs, kind=kind)
    measure, prepare = changes.measure_pair, finetuned.prepare
    return Experiment(pairs, finetuned.trained, measure, finetuned.size, changes.SUMMARY, prepare)


EXPERIMENTS = {
    task_only.EXPERIMENT: Experiment(
        task_only.pairs, task_only.trained, task_only.measure_pair, task_only.size, ("metric", "overlap", "pair")
    ),
    vision.DATASET: _vision(vision.DATASET),
    vision.TASK: _vision(vision.TASK),
    language.DATASET: _language(language.DATASET),
    language.TASK: _language(language.TASK),
    finetuned.DATASET: _finetuned(finetuned.DATASET),
    finetuned.TASK: _finetuned(finetuned.TASK),
    finetuned.GRID: _finetuned(finetuned.GRID),
    diffusion.DATASET: _diffusion(diffusion.DATASET),
    diffusion.TASK: _diffusion(diffusion.TASK),
    adversarial_transfer.EXPERIMENT: Experiment(
        adversarial_transfer.pairs,
        vision.trained,
        adversarial_transfer.measure_pair,
        vision.size,
        adversarial_transfer.SUMMARY,
        vision.prepare,
    ),
    jailbreak_transfer.EXPERIMENT: Experiment(
        jailbreak_transfer.pairs,
        jailbreak_transfer.trained,
        jailbreak_transfer.measure_pair,
        jailbreak_transfer.size,
        jailbreak_transfer.SUMMARY,
    ),
    jailbreak_finetuned.EXPERIMENT: Experiment(
        jailbreak_finetuned.pairs,
        finetuned.trained,
        jailbreak_finetuned.measure_pair,
        finetuned.size,
        jailbreak_finetuned.SUMMARY,
        jailbreak_finetuned.prepare,
    ),
}
