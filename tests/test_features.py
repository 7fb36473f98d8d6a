"""Representations of a model on a probe."""

import re
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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

    def test_a_parquet_file_of_numbers_with_other_columns_beside(self, tmp_path, caplog):
        beside = {
            "id": np.arange(7) * 1000,
            "label": [True] * 7,
            "word": list("abcdefg"),
            "kind": pd.Categorical([0.5] * 7),
        }
        beside |= {"when": pd.Timestamp("2020"), "__index_level_0__": range(7)}
        table = pd.DataFrame(beside | {f"f{i}": self.X[:, i] for i in range(3)})
        table.to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), self.X)
        left = "id (int64); label (bool); word (large_string); kind (double); when (timestamp[us])"
        told = f"{tmp_path}/x.parquet: features are 3 columns, f0, f1, f2; left out: {left}\n"
        assert [record.levelname for record in caplog.records] == ["WARNING"] and told in caplog.text
        assert "__index" not in caplog.text
        caplog.clear()
        for name, wanted in (("f2,f0", self.X[:, [2, 0]]), ("f*", self.X), ("id", np.arange(7)[:, None] * 1000)):
            np.testing.assert_array_equal(load(f"{tmp_path}/x.parquet:{name}"), wanted)
        np.testing.assert_array_equal(load(f"{tmp_path}/x.parquet:id, f1"), np.c_[np.arange(7) * 1000, self.X[:, 1]])
        assert not caplog.records  # what is named needs no word

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, bool])
    def test_a_parquet_file_of_codes(self, tmp_path, dtype, caplog):
        codes = np.random.default_rng(0).integers(0, 2 if dtype is bool else 100, (7, 12)).astype(dtype)
        table = pd.DataFrame(codes, columns=[f"c{i}" for i in range(12)])
        table.to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), codes)
        assert not caplog.records
        table.insert(0, "sample", np.arange(7).astype(dtype))  # of the same type, and one word says what to write
        table.to_parquet(tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=r"Name the features, such as .*x.parquet:c\*$"):
            load(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(f"{tmp_path}/x.parquet:c*"), codes)

    def test_which_columns_are_meant_is_asked(self, tmp_path):
        whole, lists = pd.Series(range(7)), list(self.X)
        fractions = {f"f{i}": self.X[:, i] for i in range(3)}
        for columns, message in (
            ({"a": whole, "b": whole}, r"a, b \(int64\): whole numbers may be .* such as .*x.parquet:a,b$"),
            ({"c0": whole, "c1": whole.astype("int8")}, r"such as .*x.parquet:c0$"),
            ({"id": whole, "word": list("abcdefg")}, r"id \(int64\); word \(.*string\).* such as .*x.parquet:id$"),
            ({"a": whole, "b": whole, "f": self.X[:, 0]}, r"such as .*x.parquet:f or .*x.parquet:a,b$"),
            ({"label": whole} | {str(i): whole.astype("int8") for i in range(9)}, r"such as .*x.parquet:\[0-9\]\*$"),
            ({"u": lists, "v": lists}, r"holds several arrays; name one: .*x.parquet:u, .*x.parquet:v"),
            ({"tokens": [[1, 2]] * 7, **fractions}, r"such as .*x.parquet:tokens or .*x.parquet:f0,f1,f2$"),
            ({"word": list("abcdefg")}, r"holds no column of numbers; there is word \("),
        ):
            pd.DataFrame(columns).to_parquet(tmp_path / "x.parquet")
            with pytest.raises(ValueError, match=message) as told:
                load(tmp_path / "x.parquet")
            for suggested in re.findall(r"\S+x.parquet:\S+", str(told.value)):  # which works
                assert len(load(suggested.rstrip(","))) == 7

    def test_a_number_of_the_sample_that_became_a_fraction_is_no_feature(self, tmp_path, caplog):
        x = np.random.default_rng(0).normal(size=(20, 3))
        table = pd.DataFrame(x, columns=list("abc"))
        table.assign(number=np.arange(20.0)[::-1]).to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), x)
        assert "left out: number (double)" in caplog.text
        table.assign(d=np.arange(20) % 3 * 1.0).to_parquet(
            tmp_path / "x.parquet"
        )  # a label, or a unit that fires in steps
        caplog.clear()
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), np.c_[x, np.arange(20) % 3])
        assert "all of d is whole numbers and counts as features; name the others if not" in caplog.text
        table.assign(d=0.0, e=7.0).to_parquet(tmp_path / "x.parquet")  # units that never fire need no word
        caplog.clear()
        assert load(tmp_path / "x.parquet").shape == (20, 5) and not caplog.records

    @pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "tensor", "float16", "decimal", "whole", "sliced"])
    def test_parquet_of_lists_of_every_kind(self, tmp_path, kind):
        rows, x = [list(map(float, row)) for row in self.X], self.X.astype(np.float64)
        if kind == "fixed":
            column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)
        elif kind == "tensor":
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
        elif kind == "float16":
            x = x.astype(np.float16)
            column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)
        elif kind == "decimal":
            x = x.round(3)
            column = pa.array([[Decimal(str(value)) for value in row] for row in x], pa.list_(pa.decimal128(9, 3)))
        elif kind == "whole":
            x = (10 * x).astype(np.int8)
            column = pa.array([list(row) for row in x], pa.list_(pa.int8()))
        else:
            column = pa.array(rows, pa.large_list(pa.float64()) if kind == "large_list" else pa.list_(pa.float64()))
        if kind == "sliced":
            column, x = column[2:], x[2:]
        pq.write_table(pa.table({"label": [1] * len(x), "emb": column}), tmp_path / "x.parquet")
        np.testing.assert_allclose(load(tmp_path / "x.parquet"), x, rtol=1e-15 if kind == "decimal" else 0)

    @pytest.mark.parametrize("dtype", ["Float32", "Float64", "Int8", "float32"])
    def test_parquet_of_numbers_with_and_without_a_gap(self, tmp_path, dtype):
        x = self.X.round() if dtype == "Int8" else self.X.astype(np.float64 if dtype == "Float64" else np.float32)
        table = pd.DataFrame(x, columns=["f0", "f1", "f2"]).astype(dtype)
        table.to_parquet(tmp_path / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "x.parquet"), x)
        table.loc[4:5, "f1"] = None
        table.to_parquet(tmp_path / "x.parquet")
        with pytest.raises(
            ValueError, match=r"column f1 has no value in row 4 \(2 of 7 are missing\): fill them, or leave"
        ):
            load(tmp_path / "x.parquet")

    def test_decimals_are_numbers(self, tmp_path):
        x = self.X.astype(np.float64).round(3)
        columns = {f"f{i}": [Decimal(str(value)) for value in x[:, i]] for i in range(3)}
        pq.write_table(pa.table({"id": [Decimal(i) for i in range(7)], **columns}), tmp_path / "x.parquet")
        np.testing.assert_allclose(load(tmp_path / "x.parquet"), x, rtol=1e-15)

    def test_what_is_wrong_with_a_parquet_file_is_named(self, tmp_path):
        rows = [list(map(float, row)) for row in self.X]
        for column, message in (
            ([*rows[:5], [1.0], rows[6]], "column emb: the list of row 5 has 1 entries, others have 3"),
            ([*rows[:5], None, rows[6]], r"column emb has no value in row 5 \(1 of 7 are missing\)"),
            ([*rows[:5], [1.0, None, 2.0], rows[6]], "column emb: the list of row 5 has no value at 1"),
            ([[row, row] for row in rows], "column emb holds lists of lists: average or flatten each"),
        ):
            pq.write_table(pa.table({"emb": column, "word": list("abcdefg")}), tmp_path / "x.parquet")
            with pytest.raises(ValueError, match=message):
                load(tmp_path / "x.parquet")
        for name, message in (
            ("word", "column word holds string: features are numbers"),
            ("word,emb", "column word holds string"),
            ("none", r"holds no none; there is emb \(list\); word \(string\)"),
        ):
            with pytest.raises(ValueError, match=message):
                load(f"{tmp_path}/x.parquet:{name}")
        pq.write_table(pa.table([[0.5], [1.5]], names=["f", "f"]), tmp_path / "x.parquet")
        with pytest.raises(ValueError, match="has two columns called f: rename one"):
            load(tmp_path / "x.parquet")

    def test_a_folder_of_a_partition_adds_no_column(self, tmp_path):
        (tmp_path / "year=2024").mkdir()
        pd.DataFrame(self.X, columns=list("abc")).to_parquet(tmp_path / "year=2024" / "x.parquet")
        np.testing.assert_array_equal(load(tmp_path / "year=2024" / "x.parquet"), self.X)

    def test_keys_with_colons_and_slashes(self, tmp_path):
        np.savez(tmp_path / "x.npz", **{"dense/kernel:0": self.X, "layer4": 2 * self.X})
        np.testing.assert_array_equal(load(f"{tmp_path}/x.npz:dense/kernel:0"), self.X)
        (tmp_path / "a.npz:b").mkdir()
        np.save(tmp_path / "a.npz:b" / "x.npy", self.X)
        np.testing.assert_array_equal(load(f"{tmp_path}/a.npz:b/x.npy"), self.X)
        np.savez(tmp_path / "a.npz:b" / "x.npz", **{"h:0.npy": self.X, "g": 2 * self.X})
        np.testing.assert_array_equal(load(f"{tmp_path}/a.npz:b/x.npz:h:0.npy"), self.X)

    def test_suffixes_in_capitals_and_a_wrong_one(self, tmp_path):
        for write, name in ((np.save, "X.NPY"), (np.savez, "X.NPZ"), (np.savez, "archive.npy")):
            with open(tmp_path / name, "wb") as file:
                write(file, self.X)
            np.testing.assert_array_equal(load(tmp_path / name), self.X)

    def test_an_array_is_read_whatever_lies_beside_it(self, tmp_path):
        names = np.array(["a", None], dtype=object)
        np.savez(tmp_path / "x.npz", features=self.X, names=names)
        np.testing.assert_array_equal(load(f"{tmp_path}/x.npz:features"), self.X)
        with pytest.raises(ValueError, match="allow_pickle=False"):
            load(f"{tmp_path}/x.npz:names")

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".PT"])
    def test_what_can_execute_code_is_refused_with_a_way_that_works(self, suffix, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        x = torch.from_numpy(self.X).bfloat16()
        torch.save(x, f"x{suffix}")
        for source in (f"x{suffix}", f"x{suffix}:layer"):
            with pytest.raises(
                ValueError, match=r"can execute code. Convert it .*: x = torch.load\(.*weights_only=True"
            ) as told:
                load(source)
        exec(str(told.value).partition("tensors): ")[2], {"torch": torch, "numpy": np})
        np.testing.assert_array_equal(load("x.npy"), x.double().numpy())

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
            ("x.csv", r"x.csv: not one of the formats .npy, .npz, .safetensors, .parquet; save it with numpy.save"),
            ("x.npy:h", r"x.npy: there is no such file"),
            ("two.npz", r"holds several arrays; name one: .*two.npz:first, .*two.npz:second"),
            ("two.npz:third", r"holds no third; there is first, second"),
            ("two.npz:a/b:0", r"holds no a/b:0; there is first, second"),
            (
                "pickled.npy",
                r"pickled.npy: cannot be read as .npy \(.*allow_pickle=False\); it holds Python objects: save num",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                load(f"{tmp_path}/{source}")
