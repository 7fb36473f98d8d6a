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

STEPS = 20
STEPS_OF_LARGE = 2  # of a network of more than 100 million parameters, of which 20 steps take minutes
N_PROBE = 100
WRITTEN = Path(__file__).with_suffix(".json")


class Enough(Exception):
    """So many steps have been made."""


@contextlib.contextmanager
def first_steps(steps):
    """Within it, every training stops after its first steps; what it gives are their losses."""
    losses, backward = [], torch.Tensor.backward

    def recorded(loss, *args, **options):
        losses.append(float(loss.detach()))
        return backward(loss, *args, **options)

    def count(optimizer, args, options):
        if len(losses) == steps:
            raise Enough

    hook = register_optimizer_step_post_hook(count)
    torch.Tensor.backward = recorded
    try:
        with contextlib.suppress(Enough):
            yield losses
    finally:
        hook.remove()
        torch.Tensor.backward = backward


def begun(model, store):
    """A network after the first steps of its training, and their losses; a base is kept for what begins with it."""
    network = model.build(store)
    large = sum(parameter.numel() for parameter in network.parameters()) > 100_000_000
    with first_steps(STEPS_OF_LARGE if large else STEPS) as losses:
        model.fit(network, store, progress=False)
    network.eval()
    if isinstance(network, GPT):
        store.save(model.kind, model.config(), {}, adapters.learned(network))
    return network, losses


def represented(network, pair):
    """Representation of some of what the pair is measured on."""
    if isinstance(network, GPT):
        return represent_text(network, tokens(pair))[0]
    images = next(iter(pair.own_probes(N_PROBE).values()))
    if isinstance(network, Denoiser):
        return next(iter(represent_noisy(network, images, seed=0).values()))
    return represent(network, images)


def tokens(pair):
    """Windows of held-out text; of a policy, dialogues that the first model reads."""
    if isinstance(pair.first, engine.Model) and hasattr(pair.first, "model"):
        member = pair.first.model
        rows = policy.chat(member.policy).tokens(member.read()[:N_PROBE], member.policy.context)
        return torch.from_numpy(rows.astype("int64"))
    return next(iter(pair.probes().values()))[:N_PROBE]


def recipes():
    """The first pair of every recipe: its name, the pair, and its models, each after those that it needs."""
    seen, found = set(), {}
    for name, experiment in EXPERIMENTS.items():
        for pair in experiment.pairs(profiles.load("laptop", name)):
            both = [getattr(one, "model", one) for one in (pair.first, pair.second)]  # of suffixes, the model attacked
            models = [*engine.models(both), *both]
            models = [model for model in dict.fromkeys(models) if model.kind == "models"]
            learned = {_recipe(model) for model in both}
            if not learned <= seen:
                seen |= learned
                found[f"{name}, {pair.architecture}"] = pair, models
    return found


def _recipe(model):
    about = model.model_dump(mode="json")
    fields = ("network", "recipe", "lora", "policy", "base", "pretraining", "own", "versions")
    return json.dumps([type(model).__name__, *(about.get(name) for name in fields)], sort_keys=True)


def replayed(pair, models):
    """Losses of every model's first steps, and CKA of the pair's two networks after them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = [begun(model, Store(folder)) for model in models]
            x, y = (represented(network, pair) for network, _ in done[-2:])
    finally:
        torch.set_num_threads(threads)
    return {"losses": [losses for _, losses in done], "cka": cka(x, y)}


if __name__ == "__main__":
    found = {}
    for name, (pair, models) in recipes().items():
        start = time.perf_counter()
        found[name] = replayed(pair, models)
        print(f"{name}: {time.perf_counter() - start:.1f} s, CKA {found[name]['cka']:.3f}", flush=True)
    WRITTEN.write_text(json.dumps(found, indent=1) + "\n")
