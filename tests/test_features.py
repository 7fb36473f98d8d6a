"""Representations of a model on a probe."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from repsim_utils.features import load, represent
from repsim_utils.models.vision import build

IMAGES = torch.randint(0, 256, (11, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_type_and_shape():
    result = represent(build("small_resnet", 5, seed=0, width=4), IMAGES)
    assert result.shape == (11, 16) and result.dtype == torch.float32 and result.device.type == "cpu"
    assert not result.requires_grad


def test_it_is_what_the_head_sees():
    model = build("small_resnet", 5, seed=0, width=4).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.head(represent(model, IMAGES)), model(IMAGES / 255))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 500])
def test_batches_do_not_matter(batch_size):
    """Not even for a model left in training mode, where batch norm would mix the images of a batch."""
    model = build("small_resnet", 5, seed=0, width=4).train()
    alone = torch.cat([represent(model.train(), image[None]) for image in IMAGES])
    torch.testing.assert_close(represent(model.train(), IMAGES, batch_size=batch_size), alone)


def test_neither_the_model_nor_the_probe_is_changed():
    model, images = build("small_resnet", 5, seed=0, width=4).train(), IMAGES.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    represent(model, images)
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class TestLoad:
    """Every format gives back what was stored, and a careless user is told what is wrong."""

    X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)

    def test_npy(self, tmp_path):
        np.save(tmp_path / "x.npy", self.X)
        np.testing.assert_array_equal(load(tmp_path / "x.npy"), self.X)

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "x.npz", first=self.X, second=2 * self.X)
        np.testing.assert_array_equal(load(f"{tmp_path}/x.npz:second"), 2 * self.X)
        np.savez(tmp_path / "one.npz", self.X)
        np.testing.assert_array_equal(load(tmp_path / "one.npz"), self.X)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_safetensors(self, tmp_path, dtype):
        x = torch.from_numpy(self.X).to(dtype)
        save_file({"layer.4": x, "layer.5": x + 1}, tmp_path / "x.safetensors")
        assert torch.equal(load(f"{tmp_path}/x.safetensors:layer.5"), x + 1)

    def test_parquet_of_columns(self, tmp_path):
        pd.DataFrame(self.X, columns=list("abc")).to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), self.X)

    def test_parquet_of_lists(self, tmp_path):
        table = pd.DataFrame({"id": range(7), "embedding": list(self.X)})
        table.to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), self.X)
        np.testing.assert_array_equal(load(f"{tmp_path}/x.parquet:embedding"), self.X)

    def test_a_colon_in_the_path(self, tmp_path):
        (tmp_path / "a:b").mkdir()
        np.save(tmp_path / "a:b" / "x.npy", self.X)
        np.testing.assert_array_equal(load(f"{tmp_path}/a:b/x.npy"), self.X)

    def test_what_cannot_be_read(self, tmp_path):
        np.savez(tmp_path / "two.npz", first=self.X, second=self.X)
        np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        for suffix in (".npy", ".npz", ".safetensors", ".parquet"):
            (tmp_path / f"text{suffix}").write_text("not a table at all, only a few words of text")
            with pytest.raises(ValueError, match=f"text{suffix}: cannot be read as {suffix}"):
                load(tmp_path / f"text{suffix}")
        for source, message in (
            ("none.npy", r"none.npy: there is no such file"),
            ("x.pt", r"x.pt: not one of the formats .npy, .npz, .safetensors, .parquet"),
            ("two.npz", r"holds several arrays; name one: .*two.npz:first, .*two.npz:second"),
            ("two.npz:third", r"holds no third; there is first, second"),
            ("pickled.npy", r"pickled.npy: cannot be read as .npy \(.*allow_pickle=False"),
        ):
            with pytest.raises(ValueError, match=message):
                load(f"{tmp_path}/{source}")
