"""Models and samples as other people have them: tiny ones in the real layouts."""

import numpy as np
import pytest
import torch
from PIL import Image

TEXTS = [
    "the red square stands left of the blue circle",
    "a circle",
    "seven small green triangles and one large one, all of them in a row",
    "blue",
    "two squares of which one is red",
    "the quick brown fox jumps over the lazy dog and over seven more of them",
    "no triangle is a circle",
    "a red one, a blue one, a green one",
    "small squares are squares",
    "of all the shapes here the circle is the roundest",
    "left of the square",
    "one of them is large and red, the others are small and blue",
]


@pytest.fixture(scope="session")
def other_models(tmp_path_factory):
    """A folder of models as `save_pretrained` and timm write them."""
    import timm
    import transformers as hf
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers.models import BPE

    root = tmp_path_factory.mktemp("others")
    tokens = Tokenizer(BPE(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    tokens.train_from_iterator(TEXTS, trainer)
    size = {"vocab_size": 120, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32}
    picture = {"image_size": 16, "patch_size": 4}
    vision = {name: size[name] for name in size if name != "vocab_size"} | picture
    torch.manual_seed(0)
    made = {
        "gpt2": hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=120, n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=1
            )
        ),
        "roberta": hf.RobertaForMaskedLM(
            hf.RobertaConfig(**size, max_position_embeddings=12, pad_token_id=2, bos_token_id=1, eos_token_id=1)
        ).to(torch.bfloat16),
        "t5": hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=120, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        "vit": hf.ViTModel(hf.ViTConfig(**vision)),
        "clip": hf.CLIPModel(
            hf.CLIPConfig(
                text_config=size | {"max_position_embeddings": 40, "bos_token_id": 1, "eos_token_id": 1},
                vision_config=vision,
                projection_dim=8,
            )
        ),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        if name != "vit":
            special = {"unk_token": "<unk>", "eos_token": "</s>"} | ({} if name == "gpt2" else {"pad_token": "<pad>"})
            hf.PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(root / name)
        if name in ("vit", "clip"):
            square = {"height": 16, "width": 16}
            hf.ViTImageProcessor(size=square).save_pretrained(root / name)
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=0), str(root / "timm"), safe_serialization=True)
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of twelve pictures of several kinds, one of them in a folder within."""
    folder = tmp_path_factory.mktemp("my pictures #1")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for i, mode in enumerate(["RGB", "L", "RGBA", "P"] * 3):
        values = rng.integers(256, size=(20, 24, 3), dtype=np.uint8) // (1 + i)
        path = folder / ("more" if i == 5 else ".") / f"{i}.png"
        Image.fromarray(values).convert(mode).save(path)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A file with a text a line."""
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path
