"""The first steps of every recipe of the laptop profile, and what they gave: ``python -m tests.replay`` writes it."""

import contextlib
import json
import tempfile
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from repsim_utils import profiles
from repsim_utils.experiments import EXPERIMENTS, engine, policy
from repsim_utils.features import represent, represent_noisy, represent_text
from repsim_utils.metrics import cka
from repsim_utils.models import adapters
from repsim_utils.models.diffusion import Denoiser
from repsim_utils.models.language import GPT
from repsim_utils.store import Store
from repsim_utils.training import language

STEPS = 20
FEWER = {  # processors round otherwise, and training amplifies it: with AVX2 in place of AVX-512 later losses part
    "dataset_overlap_vision, small_resnet": 8,
    "task_only, small_resnet": 8,
    "amount_of_photographs, 25 a class, width 16": 8,
    "lora_grid, lr x 4": 8,
    "dataset_overlap_finetuned, small_corpus": 2,  # 135 million parameters, of which 20 steps take minutes
}
N_IMAGES, N_WINDOWS = 100, 12  # of what the pair is measured on
WRITTEN = Path(__file__).with_suffix(".json")


class Enough(Exception):
    """So many steps have been made."""


@contextlib.contextmanager
def first_steps(steps):
    """Within it, every training stops after its first steps; what it gives are their losses."""
    losses, backward, evaluate = [], torch.Tensor.backward, language.evaluate

    def recorded(loss, *args, **options):
        losses.append(float(loss.detach()))
        return backward(loss, *args, **options)

    def count(*_):
        if len(losses) == steps:
            raise Enough

    hook = register_optimizer_step_post_hook(count)
    torch.Tensor.backward, language.evaluate = recorded, lambda *args: 0.0  # held-out losses take longer
    try:
        with contextlib.suppress(Enough):
            yield losses
    finally:
        hook.remove()
        torch.Tensor.backward, language.evaluate = backward, evaluate


def begun(model, store, steps):
    """A network after the first steps of its training, and their losses; a base is kept for what begins with it."""
    network = model.build(store)
    with first_steps(steps) as losses:
        model.fit(network, store, progress=False)
    network.eval()
    if isinstance(network, GPT):
        store.save(model.kind, model.config(), {}, adapters.learned(network))
    return network, losses


def represented(network, pair):
    """Representation of some of what the pair is measured on."""
    if isinstance(network, GPT):
        return represent_text(network, tokens(pair))[0]
    if hasattr(pair, "own_probes"):
        images = next(iter(pair.own_probes(N_IMAGES).values()))
    else:  # of a pair that nobody knows, pixels drawn at random
        shape, generator = (N_IMAGES, 3, *2 * [pair.first.size().length]), torch.Generator().manual_seed(0)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if isinstance(network, Denoiser):
        return next(iter(represent_noisy(network, images, seed=0).values()))
    return represent(network, images)


def tokens(pair):
    """Windows of held-out text; of a policy, dialogues that the first model reads."""
    if isinstance(pair.first, engine.Model) and hasattr(pair.first, "model"):
        member = pair.first.model
        rows = policy.chat(member.policy).tokens(member.read()[:N_WINDOWS], member.policy.context)
        return torch.from_numpy(rows.astype("int64"))
    return next(iter(pair.probes().values()))[:N_WINDOWS]


def recipes():
    """By name, the first pair of every recipe, its models, each after those that it needs, and how many steps."""
    seen, found = set(), {}
    for name, experiment in EXPERIMENTS.items():
        for pair in experiment.pairs(profiles.load("laptop", name)):
            both = [getattr(one, "model", one) for one in (pair.first, pair.second)]  # of suffixes, the model attacked
            models = [*engine.models(both), *both]
            models = [model for model in dict.fromkeys(models) if model.kind == "models"]
            learned = {_recipe(model) for model in both}
            if not learned <= seen:
                seen |= learned
                label = f"{name}, {pair.architecture}"
                found[label] = pair, models, FEWER.get(label, STEPS)
    return found


def _recipe(model):
    about = model.model_dump(mode="json")
    fields = ("network", "recipe", "lora", "policy", "base", "pretraining", "own", "versions")
    return json.dumps([type(model).__name__, *(about.get(name) for name in fields)], sort_keys=True)


def replayed(pair, models, steps):
    """Losses of every model's first steps, and CKA of the pair's two networks after them; with a single thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = [begun(model, Store(folder), steps) for model in models]
            x, y = (represented(network, pair) for network, _ in done[-2:])
    finally:
        torch.set_num_threads(threads)
    return {"losses": [losses for _, losses in done], "cka": cka(x, y)}


if __name__ == "__main__":
    found = {}
    for name, recipe in recipes().items():
        start = time.perf_counter()
        found[name] = replayed(*recipe)
        print(f"{name}: {time.perf_counter() - start:.1f} s, CKA {found[name]['cka']:.3f}", flush=True)
    WRITTEN.write_text(json.dumps(found, indent=1) + "\n")
