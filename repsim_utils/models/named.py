"""Models of other people, by name or from a folder, each with its own preprocessing or tokenizer.

Weights come as safetensors, or of torch as plain tensors (``weights_only``); no code of a repository is executed.
"""

from __future__ import annotations

import difflib
import json
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from repsim_utils import reason
from repsim_utils.datasets.probes import PICTURES
from repsim_utils.models import seeded
from repsim_utils.models.device import device
from repsim_utils.models.vision import WeightsError

log = logging.getLogger(__name__)
PREFIXES = ("timm:", "torchvision:", "hf:")
HOW = "timm:NAME, torchvision:NAME, hf:REPO, or a folder with the config.json of Hugging Face"


class Named(NamedTuple):
    """A network, and how a list of pictures or texts becomes what it is called with."""

    network: nn.Module
    prepare: Callable[[list[Any]], Any]


def is_model(source: str) -> bool:
    """Whether this names a model, and not a file of features."""
    return source.startswith(PREFIXES) or Path(source).is_dir()


def find(source: str, kind: str, *, untrained: bool = False, seed: int = 0) -> Named:
    """A model by its name.

    Parameters
    ----------
    source : str
        ``timm:NAME`` or ``torchvision:NAME``, without its classifier; ``hf:REPO``, or a folder in the layout of
        Hugging Face (of transformers, or of timm), without its head.
    kind : {"pictures", "text"}
        What it is to read; of a model of both, such as CLIP, one half.
    untrained : bool
        With weights at random, which is no download but for the configuration of ``hf:REPO``.
    seed : int
        Of these weights.

    Returns
    -------
    Named
        The network in float32, on the device, in evaluation mode.

    Raises
    ------
    ValueError
        If there is no such model, or it does not read this kind.
    WeightsError
        If its weights cannot be had.
    """
    family, _, name = source.partition(":") if source.startswith(PREFIXES) else ("folder", "", source)
    if not name or not is_model(source):
        raise ValueError(f"{source}: there is no such model; a model is {HOW}")
    if family == "folder" and "architecture" in (_config(Path(name))):
        family, name = "timm", f"local-dir:{name}"
    if family in ("timm", "torchvision") and kind != PICTURES:
        raise ValueError(f"{source} reads pictures, and the probe is {kind}: give a folder of pictures as the probe")
    make = {"timm": _timm, "torchvision": _torchvision}.get(family)
    with _had(source), _hub(), seeded(seed):
        found = make(name, untrained) if make else _transformers(name, kind, untrained)
    found.network.to(device()).float().eval()
    return found


def _config(folder: Path) -> dict[str, Any]:
    """What a folder says of its model."""
    try:
        told: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: this is no model, as it has no config.json that can be read ({reason(error)})"
        ) from None
    return told


@contextmanager
def _had(source: str) -> Iterator[None]:
    """What goes wrong while weights are fetched and read, in one line that says what to do."""
    try:
        yield
    except WeightsError:
        raise
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise ValueError(f"{source}: {reason(error).removeprefix(f'{source}: ')}") from None
        raise ValueError(
            f"{source} needs code of its repository, which is never executed here: save its features, and compare files"
        ) from None
    except (RuntimeError, TypeError) as error:
        raise WeightsError(f"{source} cannot be loaded ({reason(error)})") from None
    except OSError as error:  # no network, no such repository, or a download that broke off
        what = "try again with a network, or give a folder that holds it"
        if Path(source).is_dir():
            what = "put config.json, model.safetensors and the tokenizer or preprocessor there"
        elif not source.startswith("hf:"):
            what += ", or take it with --untrained weights"
        raise WeightsError(f"{source} cannot be had ({reason(error).partition('. ')[0].rstrip('.')}): {what}") from None
    except ImportError as error:
        raise WeightsError(f"{source} needs a package that is not installed ({reason(error)})") from None


@contextmanager
def _hub() -> Iterator[None]:
    """Where the hub's name is not known, only what is cached is looked for, without half a minute of further tries."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        if not getproxies():
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _unknown(source: str, name: str, names: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, names, 3)
    return ValueError(f"{source} has no model {name}{'; is it ' + ' or '.join(near) if near else ''}")


def _timm(name: str, untrained: bool) -> Named:
    import timm

    if not name.startswith(("local-dir:", "hf-hub:")) and not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    network: Any = timm.create_model(name, pretrained=not untrained)  # with its head, or timm would not miss a weight
    network.reset_classifier(0)
    told = timm.data.resolve_model_data_config(network)
    if (channels := told["input_size"][0]) not in (1, 3):
        raise ValueError(f"it reads pictures of {channels} channels, and files have 1 or 3")
    transform: Any = timm.data.create_transform(**told, is_training=False)
    mode = "L" if channels == 1 else "RGB"
    return Named(network, lambda pictures: torch.stack([transform(picture.convert(mode)) for picture in pictures]))


def _torchvision(name: str, untrained: bool) -> Named:
    from torchvision import models

    if name not in (names := models.list_models(module=models)):
        raise _unknown("torchvision", name, names)
    weights: Any = models.get_model_weights(name).DEFAULT
    if untrained:
        options: dict[str, Any] = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
        options |= {"image_size": min(weights.meta["min_size"])} if name.startswith("vit_") else {}
        network = models.get_model(name, **options)
    else:
        with patch.object(models.WeightsEnum, "get_state_dict", _plain_weights):
            network = models.get_model(name, weights=weights)  # which sets what belongs to the weights
    last = [path for path, part in network.named_modules() if isinstance(part, nn.Linear) and part.out_features == 1000]
    for path in last:  # classifiers, of which some have one more to train with
        parent, _, attribute = path.rpartition(".")
        setattr(network.get_submodule(parent), attribute, nn.Identity())
    transform = weights.transforms()
    return Named(network, lambda pictures: torch.stack([transform(picture.convert("RGB")) for picture in pictures]))


def _plain_weights(weights: Any, *_: Any, **options: Any) -> Any:
    """The download of torchvision's weights, of which nothing is unpickled but tensors."""
    return torch.hub.load_state_dict_from_url(weights.url, **options | {"weights_only": True, "progress": False})


def _transformers(name: str, kind: str, untrained: bool) -> Named:
    import transformers

    safe: Any = {"trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(name, **safe)
    if config.model_type == "timm_wrapper":
        return _timm(f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}", untrained)
    if untrained:
        network: Any = transformers.AutoModel.from_config(config, **safe)
    else:
        network, told = transformers.AutoModel.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **safe
        )
        _check_whole(network, name, told["missing_keys"])
    half = getattr(network, "vision_model" if kind == PICTURES else "text_model", None)
    if isinstance(half, nn.Module):  # of a model of both
        network, config = half, half.config
    elif getattr(config, "is_encoder_decoder", False):
        network = network.get_encoder()
    wanted = {"pixel_values": "a folder of pictures", "input_ids": "a file of text"}
    if (reads := network.main_input_name) not in wanted:
        raise ValueError(f"it reads {reads}, and only pictures and text can be given")
    if (reads == "pixel_values") != (kind == PICTURES):
        raise ValueError(f"it does not read {kind}: give {wanted[reads]} as the probe")
    if kind == PICTURES:
        return Named(network, _Pictures(transformers.AutoImageProcessor.from_pretrained(name, **safe)))
    return Named(network, _Texts(transformers.AutoTokenizer.from_pretrained(name, **safe), network, name))


def _check_whole(network: Any, name: str, missing: Iterable[str]) -> None:
    """Refuse a network of which a part stayed random; a pooler alone is taken off."""
    missing = sorted(missing)
    if missing and all(key.startswith("pooler.") for key in missing):
        network.pooler = None
    elif missing:
        raise WeightsError(
            f"{name} lacks {len(missing)} weights of a {type(network).__name__}, such as {missing[0]}, which would be "
            "random: save the model anew with save_pretrained"
        )


POSITIONS = ("position_embeddings", "wpe", "embed_positions")  # what tables of positions are called


def _longest(network: Any, tokenizer: Any) -> int:
    """How many tokens a network reads at most, by all that says so."""
    said = [tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None)]
    for name, part in network.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            said.append(part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1))
    return min(limit for limit in said if limit is not None and limit > 0)


class _Pictures:
    """Pictures as a model's own processor has them."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, pictures: list[Any]) -> dict[str, Any]:
        done = self.processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return {"pixel_values": done["pixel_values"]}


class _Texts:
    """Texts as tokens, padded on the right, with the mask that says so; a warning says when texts are cut."""

    def __init__(self, tokenizer: Any, network: Any, name: str) -> None:
        self.tokenizer, self.name, self.told = tokenizer, name, False
        self.known = network.get_input_embeddings().num_embeddings
        if 2 * len(tokenizer) < self.known:
            raise ValueError(
                f"its tokenizer has {len(tokenizer)} tokens and the model {self.known}: put the tokenizer's files there"
            )
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token is None:  # any will do, as the mask leaves it out
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        self.longest = _longest(network, tokenizer)

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        lists = self.tokenizer(texts, verbose=False)["input_ids"]
        if not all(lists):
            raise ValueError(f"{self.name} has no token for the text {texts[lists.index([])]!r}: leave it out")
        if not self.told and (most := max(map(len, lists))) > self.longest:
            self.told = True
            told = "%s reads %d tokens at most: longer texts are cut there, such as one of %d"
            log.warning(told, self.name, self.longest, most)
        cut: Any = {"truncation": True, "max_length": self.longest} if self.told else {}
        done = self.tokenizer(texts, padding=True, return_tensors="pt", **cut)
        ids, mask = done["input_ids"], done["attention_mask"]
        if self.tokenizer.pad_token_id >= self.known:  # added, and not learned
            ids = ids.masked_fill(mask == 0, 0)
        if int(ids.max()) >= self.known:
            raise ValueError(
                f"{self.name} has {self.known} tokens, and its tokenizer gives the number {int(ids.max())}"
            )
        return {"input_ids": ids, "attention_mask": mask}
