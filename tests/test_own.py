"""Models of other people: the right rows, by sample, or a refusal that says what to do."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from repsim_utils import own
from repsim_utils.datasets import folders, probes
from repsim_utils.models import named
from repsim_utils.models.vision import WeightsError
from tests.others import TEXTS


def alone(model, tokenizer, text, longest):
    """The mean over the tokens of one text, without a batch or padding, in float64."""
    tokens = torch.tensor([tokenizer(text)["input_ids"][:longest]])
    with torch.no_grad():
        return model.double().eval()(input_ids=tokens).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize(("name", "longest"), [("gpt2", 40), ("roberta", 9), ("t5", 512)])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_padding_and_batches_change_nothing_of_a_text(other_models, texts, name, longest, batch_size, caplog):
    import transformers

    found = own.represent(str(other_models / name), probes.read(texts), batch_size=batch_size)
    model = transformers.AutoModel.from_pretrained(other_models / name)
    model = model.get_encoder() if name == "t5" else model
    tokenizer = transformers.AutoTokenizer.from_pretrained(other_models / name)
    expected = np.stack([alone(model, tokenizer, text, longest) for text in TEXTS])
    assert found.output.numpy() == pytest.approx(expected, abs=2e-5) and found.output.dtype == torch.float32
    cut = [text for text in caplog.messages if "longer texts are cut" in text]
    assert len(cut) == (name == "roberta")  # of 12 positions, the first three are of no use to it
    assert not cut or "reads 9 tokens at most" in cut[0]


def test_pictures_go_through_the_model_s_own_preprocessing(other_models, pictures):
    import transformers

    paths = [pictures / name for name in probes.read(pictures).ids]
    opened = [folders.decoded(path, str(path)).convert("RGB") for path in paths]
    model = transformers.ViTModel.from_pretrained(other_models / "vit").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(other_models / "vit")
    with torch.no_grad():
        expected = [model(**processor(one, return_tensors="pt")).last_hidden_state[0].mean(0) for one in opened]
    found = own.represent(str(other_models / "vit"), probes.read(pictures), batch_size=5)
    assert found.output.numpy() == pytest.approx(torch.stack(expected).numpy(), abs=1e-5)


def test_a_timm_model_has_its_weights_and_transform(other_models, pictures):
    import timm

    network = timm.create_model("test_vit", num_classes=0).eval()
    network.load_state_dict(load_file(other_models / "timm" / "model.safetensors"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    path = pictures / "0.png"
    with torch.no_grad():
        expected = network(transform(Image.open(path).convert("RGB"))[None])[0]
    found = own.represent(str(other_models / "timm"), probes.read(pictures))
    assert found.output[found.ids.index("0.png")].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_torchvision_model_without_its_classifier(pictures, name):
    found = own.represent(f"torchvision:{name}", probes.read(pictures), untrained=True)
    assert found.output.shape == (12, 512 if name == "resnet18" else 1000)
    again = own.represent(f"torchvision:{name}", probes.read(pictures), untrained=True)
    other = own.represent(f"torchvision:{name}", probes.read(pictures), untrained=True, seed=1)
    assert torch.equal(found.output, again.output) and not torch.allclose(found.output, other.output)


def test_layers_by_name_and_all_of_them(other_models, pictures, texts):
    source = str(other_models / "gpt2")
    found = own.represent(source, probes.read(texts), layers=["h.*", "h.0.mlp.c_fc"])
    assert list(found.layers) == ["h.0", "h.0.mlp.c_fc", "h.1", "output"]
    assert found.layers["h.0.mlp.c_fc"].shape == (12, 64)
    every = own.represent(source, probes.read(texts), layers=own.ALL)
    assert list(every.layers)[-1] == "output" and torch.equal(every.output, found.output)
    assert torch.equal(every.layers["h.0.mlp.c_fc"], found.layers["h.0.mlp.c_fc"]) and len(every.layers) == 10
    with pytest.raises(ValueError, match=r"no layer blocks\.\*; there is wte, wpe"):
        own.represent(source, probes.read(texts), layers=["blocks.*"])


def test_flattened_maps_are_the_positions_side_by_side(other_models, pictures, texts):
    source, probe = str(other_models / "vit"), probes.read(pictures)
    flat = own.represent(source, probe, pool="flatten", batch_size=5).output
    mean = own.represent(source, probe).output
    assert flat.shape == (12, 17 * 16)  # a class token and 16 patches
    assert torch.allclose(flat.reshape(12, 17, 16).mean(1), mean, atol=1e-6)
    with pytest.raises(ValueError, match="pool must be mean or flatten, got 'positions': a sample has one row"):
        own.represent(source, probe, pool="positions")
    with pytest.raises(ValueError, match="pool='mean'"):
        own.represent(str(other_models / "gpt2"), probes.read(texts), pool="flatten")


def test_clip_reads_both_with_one_half_each(other_models, pictures, texts):
    found = [own.represent(str(other_models / "clip"), probes.read(probe)).output.shape for probe in (pictures, texts)]
    assert found == [(12, 16), (12, 16)]


def test_what_reads_the_other_kind_is_refused(other_models, pictures, texts):
    for name, probe, message in (
        ("vit", texts, "does not read text: give a folder of pictures as the probe"),
        ("gpt2", pictures, "does not read pictures: give a file of text as the probe"),
    ):
        with pytest.raises(ValueError, match=message):
            own.represent(str(other_models / name), probes.read(probe))
    with pytest.raises(ValueError, match="timm:resnet18 reads pictures, and the probe is text"):
        named.find("timm:resnet18", "text")


def test_what_reads_sound_is_refused(texts, pictures, tmp_path):
    import transformers

    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 30}
    tokens = {"decoder_start_token_id": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.WhisperConfig(**size | tokens, decoder_attention_heads=2, num_mel_bins=8)
    transformers.WhisperModel(config).save_pretrained(tmp_path)
    for probe in (texts, pictures):
        with pytest.raises(ValueError, match="it reads input_features, and only pictures and text can be given"):
            own.represent(str(tmp_path), probes.read(probe))


def test_pictures_of_four_channels_are_refused(pictures, tmp_path):
    network = timm.create_model("test_vit", in_chans=4)
    settings = {"input_size": (4, 160, 160), "mean": (0.5,) * 4, "std": (0.5,) * 4}
    timm.models.save_for_hf(network, str(tmp_path), model_args={"in_chans": 4}, model_config=settings)
    with pytest.raises(ValueError, match="it reads pictures of 4 channels, and files have 1 or 3"):
        own.represent(str(tmp_path), probes.read(pictures))


def test_unknown_models_name_those_that_are_near(tmp_path):
    for source, message in (
        ("timm:resnet118", "timm has no model resnet118; is it resnet18 or"),
        ("torchvision:resnet_18", "torchvision has no model resnet_18; is it resnet18"),
        ("timm:", "there is no such model; a model is timm:NAME"),
        (str(tmp_path), r"this is no model, as it has no config\.json that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            named.find(source, "pictures")


def test_no_network_is_one_line_that_says_what_to_do(monkeypatch):
    import timm
    import transformers

    def fail(*arguments, **options):
        raise OSError("We couldn't connect\nCheck your connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for source, kind in (("hf:some/model", "text"), ("timm:resnet18", "pictures")):
        with pytest.raises(WeightsError) as caught:
            named.find(source, kind)
        assert str(caught.value).startswith(f"{source} cannot be had (We couldn't connect): try again with a network")
        assert ("--untrained" in str(caught.value)) == source.startswith("timm") and "\n" not in str(caught.value)


def test_the_number_of_tokens_is_the_least_that_anything_says(texts, tmp_path, caplog, other_models):
    import transformers

    config = transformers.OPTConfig(
        vocab_size=120, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, word_embed_proj_dim=16, bos_token_id=1, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path)
    for path in (other_models / "gpt2").glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    own.represent(str(tmp_path), probes.read(texts))  # its table of positions has two rows more, which are of no use
    assert "reads 6 tokens at most" in caplog.text


def test_random_numbers_in_a_forward_pass_are_refused(pictures, tmp_path, other_models):
    import transformers

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTMAEConfig(**size, image_size=16, patch_size=4, mask_ratio=0.75)
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    shutil.copy(other_models / "vit" / "preprocessor_config.json", tmp_path)
    with pytest.raises(ValueError, match=r"another row alone than in a batch, by .*: padding or random numbers count"):
        own.represent(str(tmp_path), probes.read(pictures))


class TestTokenizers:
    def test_without_its_files_a_model_is_refused(self, other_models, texts, tmp_path):
        shutil.copytree(other_models / "roberta", tmp_path, dirs_exist_ok=True)
        for path in tmp_path.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(
            ValueError, match=r"its tokenizer has . tokens and the model 120: put the tokenizer's files"
        ):
            own.represent(str(tmp_path), probes.read(texts))

    def test_a_text_without_tokens_is_named(self, other_models):
        probe = probes.Probe("lines", probes.TEXT, *[("a circle", " ")] * 3)
        for size in (1, 2):
            with pytest.raises(ValueError, match="has no token for the text ' ': leave it out"):
                own.represent(str(other_models / "roberta"), probe, batch_size=size)

    def test_a_token_for_padding_that_the_model_has_not_learned(self, other_models, texts, tmp_path):
        import transformers

        shutil.copytree(other_models / "gpt2", tmp_path, dirs_exist_ok=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(tmp_path)
        found, right = (own.represent(str(path), probes.read(texts)) for path in (tmp_path, other_models / "gpt2"))
        assert torch.allclose(found.output, right.output, atol=1e-6)


class TestUnsafe:
    def test_code_of_a_repository_is_not_executed(self, texts, tmp_path):
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}})
        )
        (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
        with pytest.raises(ValueError, match=r"needs code of its repository, which is never executed here"):
            own.represent(str(tmp_path), probes.read(texts))
        assert not (tmp_path / "executed").exists()

    def test_pickled_weights_are_refused(self, other_models, texts, tmp_path):
        shutil.copytree(other_models / "gpt2", tmp_path, dirs_exist_ok=True)
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"put config\.json, model\.safetensors and the tokenizer"):
            own.represent(str(tmp_path), probes.read(texts))

    def test_weights_that_are_missing_do_not_stay_random(self, other_models, texts, tmp_path):
        shutil.copytree(other_models / "gpt2", tmp_path, dirs_exist_ok=True)
        weights = load_file(tmp_path / "model.safetensors")
        lacking = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
        save_file({name: x for name, x in weights.items() if name != lacking}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"lacks 1 weights of a GPT2Model, such as h\.1\.mlp\.c_fc\.weight"):
            own.represent(str(tmp_path), probes.read(texts))

    def test_a_timm_model_with_a_head_and_without_a_block(self, pictures, tmp_path):
        import timm

        timm.models.save_for_hf(timm.create_model("test_vit"), str(tmp_path), safe_serialization=True)
        whole = own.represent(str(tmp_path), probes.read(pictures))
        assert whole.output.shape == (12, 64)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: x for name, x in weights.items() if not name.startswith("blocks.1.")}
        save_file(kept, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match="cannot be loaded"):
            own.represent(str(tmp_path), probes.read(pictures))

    def test_torchvision_sets_what_belongs_to_its_weights(self, pictures, monkeypatch):
        from torchvision import models as vision

        torch.manual_seed(0)
        state = vision.get_model("googlenet", init_weights=False).state_dict()
        asked = []
        for place in ("torch.hub", "torchvision.models._api"):
            name = f"{place}.load_state_dict_from_url"
            monkeypatch.setattr(name, lambda url, **options: asked.append(options) or dict(state))
        found = own.represent("torchvision:googlenet", probes.read(pictures), batch_size=4)
        assert asked[0]["weights_only"] and asked[0]["check_hash"]
        right = vision.get_model("googlenet", weights="DEFAULT").eval()
        right.fc = torch.nn.Identity()
        transform = vision.GoogLeNet_Weights.DEFAULT.transforms()
        picture = folders.decoded(pictures / "0.png", "0.png").convert("RGB")
        with torch.no_grad():
            expected = right(transform(picture)[None])[0]
        assert right.transform_input and torch.allclose(found.output[found.ids.index("0.png")], expected, atol=1e-4)

    def test_a_pooler_that_a_checkpoint_lacks_is_no_layer(self, other_models, texts):
        found = own.represent(str(other_models / "roberta"), probes.read(texts), layers=own.ALL)
        assert len(found.layers) > 10 and not [name for name in found.layers if "pooler" in name]


class TestFiles:
    @pytest.fixture
    def represented(self, other_models, texts):
        return own.represent(str(other_models / "gpt2"), probes.read(texts), layers=["h.*"])

    def test_written_and_read_again(self, represented, tmp_path):
        path = tmp_path / "a #1.safetensors"
        own.write(represented, path)
        whole, one = own.read(str(path), layers=own.ALL), own.read(str(path))
        assert list(whole.layers) == ["h.0", "h.1", "output"] and list(one.layers) == ["output"]
        for name, x in whole.layers.items():
            assert torch.equal(x, represented.layers[name])
        assert (whole.ids, whole.checksums, whole.about) == (
            represented.ids,
            represented.checksums,
            represented.about,
        )
        assert list(own.read(f"{path}:h.1").layers) == ["h.1"]
        with pytest.raises(ValueError, match=r"let the name end in \.safetensors"):
            own.write(represented, tmp_path / "a.npy")

    def test_rows_are_matched_by_the_ids_of_samples(self, represented):
        order = np.random.default_rng(0).permutation(12)
        other = own.Represented(
            "other",
            {name: x[order] for name, x in represented.layers.items()},
            tuple(np.array(represented.ids)[order].tolist()),
            tuple(np.array(represented.checksums)[order].tolist()),
        )
        _, found = own.matched([represented, other])
        assert found.ids == represented.ids and torch.equal(found.output, represented.output)

    def test_other_samples_are_refused(self, represented):
        ids, sums = list(represented.ids), list(represented.checksums)
        fewer = own.Represented("fewer", {"output": represented.output[1:]}, tuple(ids[1:]), tuple(sums[1:]))
        changed = own.Represented("changed", represented.layers, tuple(ids), ("x", *sums[1:]))
        for pair, message in (
            ([represented, fewer], "fewer lacks 1 of the 12 samples of .*, such as 'line 1': represent the same probe"),
            ([fewer, represented], "fewer lacks 1 of the 12 samples"),
            ([represented, changed], "1 samples hold something else in changed than in .*, such as 'line 1'"),
        ):
            with pytest.raises(ValueError, match=message):
                own.matched(pair)

    def test_a_file_without_ids_in_front_does_not_keep_others_from_being_matched(self, represented):
        order = list(range(11, -1, -1))
        plain = own.Represented("plain", {"output": represented.output})
        other = own.Represented(
            "other",
            {"output": represented.output[order]},
            tuple(represented.ids[i] for i in order),
            tuple(represented.checksums[i] for i in order),
        )
        found = own.matched([plain, represented, other])
        assert all(torch.equal(one.output, represented.output) for one in found)

    def test_layers_of_a_file_by_name(self, represented, tmp_path):
        own.write(represented, tmp_path / "a.safetensors")
        assert list(own.read(str(tmp_path / "a.safetensors"), layers=["h.1"]).layers) == ["h.1", "output"]
        with pytest.raises(ValueError, match=r"no layer nosuch; there is h\.0, h\.1"):
            own.read(str(tmp_path / "a.safetensors"), layers=["nosuch"])

    def test_labels_do_not_collide(self, represented, tmp_path):
        names = ["a.safetensors", "a.safetensors (2).safetensors"]
        for name in names:
            own.write(represented, tmp_path / name)
        sources = [str(tmp_path / name) for name in (*names, names[0], names[0])]
        found, _ = own.gather(sources)
        assert len({one.source for one in found}) == 4

    def test_without_ids_rows_are_matched_by_their_place(self, represented, tmp_path, caplog):
        np.save(tmp_path / "b.npy", represented.output.numpy())
        _, other = own.matched([represented, own.read(str(tmp_path / "b.npy"))])
        assert np.array_equal(other.output, represented.output.numpy())
        assert "b.npy does not name its samples: its rows count as those of" in caplog.text


def test_the_control_has_other_weights_and_the_same_samples(other_models, texts):
    sources = [str(other_models / "gpt2")] * 2
    found, control = own.gather(sources, probes.read(texts), untrained=True)
    every = [one.output for one in (*found, *control)]
    assert [one.source for one in found] == [sources[0], f"{sources[0]} (2)"]
    assert not any(torch.allclose(every[i], every[j]) for i in range(4) for j in range(i))
    with pytest.raises(ValueError, match="is a model and needs samples: add --probe"):
        own.gather(sources)
