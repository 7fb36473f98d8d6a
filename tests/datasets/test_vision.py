"""Real images: every format on disk, folders, the cache, and what is said when something is wrong."""

import errno
import gzip
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST

from repsim_utils import RepsimError
from repsim_utils.datasets import archives, folders, vision
from repsim_utils.datasets import cache as caching
from repsim_utils.datasets.vision import ABOUT, NAMES, DataError, fingerprint, load

DOWNLOADED = [name for name in NAMES if name != "digits"]
N = {"train": 12, "test": 6}
DIGIT_NAMES = tuple("0123456789")
PACKAGE = archives.FASHION_MNIST  # of the system: no test reads it unless it says so


class Reached(OSError):
    pass


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test reaches a network or the user's own cache."""

    def refuse(*_, **__):
        raise Reached("no network in tests")

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setenv("REPSIM_DATA", str(tmp_path / "data"))
        patch.setattr(archives, "FASHION_MNIST", PACKAGE._replace(folder=tmp_path / "package"))
        yield patch


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


# Small files in the published formats


def md5(content):
    return hashlib.md5(content).hexdigest()


def encoded(image, kind="JPEG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


def sample(shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tar_gz(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def cifar(patch, kind):
    batches, label_key = ["train"], "fine_labels"
    classes = tuple(f"thing {k}" for k in range(100 if kind is CIFAR100 else 10))
    if kind is CIFAR10:
        batches, label_key = [f"data_batch_{k}" for k in range(1, 6)], "labels"
    expected, contents, lists = {}, {}, {}
    for split, names in (("train", batches), ("test", ["test" if kind is CIFAR100 else "test_batch"])):
        images = sample((len(names) * N[split], 3, 32, 32), N[split])
        labels = sample(len(images), 7) % len(classes)
        lists[split] = []
        for k, name in enumerate(names):
            rows = slice(k * N[split], (k + 1) * N[split])
            batch = {"data": images[rows].reshape(N[split], -1), label_key: labels[rows].tolist()}
            contents[name] = pickle.dumps(batch, protocol=2)
            lists[split].append([name, md5(contents[name])])
        expected[split] = images, labels
    contents[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: list(classes)}, protocol=2)
    archive = tar_gz({f"{kind.base_folder}/{name}": content for name, content in contents.items()})
    patch.setattr(kind, "tgz_md5", md5(archive))
    patch.setattr(kind, "train_list", lists["train"])
    patch.setattr(kind, "test_list", lists["test"])
    patch.setattr(kind, "meta", kind.meta | {"md5": md5(contents[kind.meta["filename"]])})
    return {kind.filename: archive}, expected, classes


def mnist(patch, kind=MNIST):
    contents, expected = {}, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = sample((N[split], 28, 28), N[split]), sample(N[split], 2) % 10
        head = struct.pack(">4I", 2051, N[split], 28, 28)
        contents[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(head + images.tobytes())
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(
            struct.pack(">2I", 2049, N[split]) + labels.tobytes()
        )
        expected[split] = np.repeat(images[:, None], 3, 1), labels
    patch.setattr(kind, "resources", [(name, md5(content)) for name, content in contents.items()])
    return contents, expected, DIGIT_NAMES if kind is MNIST else tuple(FashionMNIST.classes)


def svhn(patch):
    contents, expected, table = {}, {}, dict(SVHN.split_list)
    for split in N:
        images, labels = sample((N[split], 3, 32, 32), N[split]), np.arange(N[split]) % 10
        buffer = io.BytesIO()
        on_disk = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        scipy.io.savemat(buffer, on_disk)
        url, name, _ = SVHN.split_list[split]
        contents[name] = buffer.getvalue()
        table[split] = [url, name, md5(contents[name])]
        expected[split] = images, labels
    patch.setattr(SVHN, "split_list", table)
    return contents, expected, DIGIT_NAMES


def tiny_imagenet(patch, words=True):
    top, wnids = "tiny-imagenet-200", ["n02", "n01", "n03"]  # not sorted: their order in wnids.txt counts
    contents = {f"{top}/wnids.txt": "\n".join(wnids).encode()}
    if words:
        contents[f"{top}/words.txt"] = b"n01\tgoldfish, Carassius auratus\nn02\tnewt\nn03\tcoot\nn99\tnot among them\n"
    smooth = [np.asarray(Image.fromarray(sample((4, 4, 3), k)).resize((64, 64))) for k in range(N["train"] + N["test"])]
    jpegs = [encoded(Image.fromarray(image[..., 0] if k % 4 == 0 else image)) for k, image in enumerate(smooth)]
    train, test, lines = {}, [], []
    for k in range(N["train"]):
        wnid = wnids[k % 3]
        train[f"{top}/train/{wnid}/images/{wnid}_{k}.JPEG"] = jpegs[k], k % 3
        contents[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_{k}.JPEG\t0\t0\t63\t63\n".encode()
    for k in range(N["test"]):
        name, label, jpeg = f"val_{N['test'] - k}.JPEG", (k + 1) % 3, jpegs[N["train"] + k]
        test.append((jpeg, label))
        contents[f"{top}/val/images/{name}"] = jpeg
        contents[f"{top}/test/images/test_{k}.JPEG"] = jpeg
        lines.append(f"{name}\t{wnids[label]}\t0\t0\t63\t63\n")
    contents[f"{top}/val/val_annotations.txt"] = "".join(lines).encode()
    contents |= {name: jpeg for name, (jpeg, _) in train.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    patch.setattr(archives, "TINY_IMAGENET", archives.TINY_IMAGENET._replace(md5=md5(buffer.getvalue())))
    in_order = [train[name] for name in sorted(train)]
    expected = {
        split: (np.stack([decoded(jpeg) for jpeg, _ in found]), np.array([label for _, label in found]))
        for split, found in (("train", in_order), ("test", test))
    }
    classes = ("newt", "goldfish, Carassius auratus", "coot") if words else tuple(wnids)
    return {archives.TINY_IMAGENET.file: buffer.getvalue()}, expected, classes


MAKERS = {
    "cifar10": lambda patch: cifar(patch, CIFAR10),
    "cifar100": lambda patch: cifar(patch, CIFAR100),
    "mnist": mnist,
    "fashion_mnist": lambda patch: mnist(patch, FashionMNIST),
    "svhn": svhn,
    "tinyimagenet": tiny_imagenet,
}


def place(name, patch, root):
    """Write the archives of a data set where its user would; gives what is in them."""
    contents, expected, classes = MAKERS[name](patch)
    (root / name).mkdir(parents=True)
    for file, content in contents.items():
        (root / name / file).write_bytes(content)
    return expected, classes


def assert_same(images, expected, classes):
    pixels, labels = expected
    assert images.images.dtype == torch.uint8 and images.labels.dtype == torch.int64
    np.testing.assert_array_equal(images.images, pixels)
    np.testing.assert_array_equal(images.labels, labels)
    assert images.classes == classes


@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_published_format_is_read(name, offline, root):
    expected, classes = place(name, offline, root)
    for split in N:
        assert_same(load(name, split, root=root), expected[split], classes)
    assert {path.name for path in root.iterdir()} == {name, f"{name}-{ABOUT[name].size}", f".{name}.lock"}


def test_tiny_imagenet_without_words_has_its_ids_as_names(offline, root):
    contents, expected, classes = tiny_imagenet(offline, words=False)
    (root / "tinyimagenet").mkdir(parents=True)
    (root / "tinyimagenet" / archives.TINY_IMAGENET.file).write_bytes(*contents.values())
    assert_same(load("tinyimagenet", "test", root=root), expected["test"], classes)


def test_the_training_and_test_files_are_not_mixed(offline, root):
    for name in DOWNLOADED:
        expected, _ = place(name, offline, root)
        train, test = ({image.tobytes() for image in load(name, split).images.numpy()} for split in N)
        assert not train & test and len(train) == len(expected["train"][0])


@pytest.mark.parametrize("size", [16, 48])
def test_resizing_is_bilinear_with_antialiasing(size, offline, root):
    expected, _ = place("tinyimagenet", offline, root)
    pixels = torch.from_numpy(expected["train"][0]).float()
    wanted = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).round()
    images = load("tinyimagenet", "train", size=size, root=root).images
    assert images.shape == wanted.shape
    assert (images.float() - wanted).abs().max() <= 1  # rounding of the two passes


def test_sizes_are_kept_apart(offline, root):
    place("svhn", offline, root)
    assert [load("svhn", "test", size=size, root=root).images.shape[-1] for size in (None, 8, None, 8)] == [32, 8] * 2
    assert (root / "svhn-32").is_dir() and (root / "svhn-8").is_dir()


# Fashion-MNIST from a package


def packaged(patch):
    """Write a small package: the published files, compressed once more."""
    contents, expected, classes = MAKERS["fashion_mnist"](patch)
    unpacked = {name: gzip.decompress(content) for name, content in contents.items()}
    package = archives.FASHION_MNIST._replace(md5={name: md5(content) for name, content in unpacked.items()})
    patch.setattr(archives, "FASHION_MNIST", package)
    package.folder.mkdir()
    for name, content in unpacked.items():
        (package.folder / name).write_bytes(gzip.compress(content, 1))
    return package.folder, contents, expected, classes


def test_a_package_is_found(offline, root):
    _, _, expected, classes = packaged(offline)
    for split in N:
        assert_same(load("fashion_mnist", split, root=root), expected[split], classes)
    assert not list((root / "fashion_mnist").iterdir())


def test_a_file_may_be_placed_beside_a_package(offline, root):
    folder, contents, expected, classes = packaged(offline)
    name = "t10k-images-idx3-ubyte.gz"
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"apt-get install dataset-fashion-mnist\. Or place .*: {name} \(md5"):
        load("fashion_mnist", "test", root=root)
    (root / "fashion_mnist" / name).write_bytes(contents[name])
    assert_same(load("fashion_mnist", "test", root=root), expected["test"], classes)


def truncated(content):
    return content[: len(content) // 2]


def damaged(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def of_other_photographs(content):
    return gzip.compress(bytes(reversed(gzip.decompress(content))))


@pytest.mark.parametrize("spoil", [truncated, damaged, of_other_photographs])
def test_a_bad_file_of_a_package_is_named_in_one_line(spoil, offline, root):
    folder, *_ = packaged(offline)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        load("fashion_mnist", "test", root=root)
    assert str(caught.value).startswith(f"{path} is damaged (") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("): apt-get install --reinstall dataset-fashion-mnist")
    assert not (root / "fashion_mnist-28").exists()


@pytest.mark.skipif(not PACKAGE.folder.is_dir() and "CI" not in os.environ, reason="needs dataset-fashion-mnist")
def test_the_package_of_debian_holds_what_torchvision_reads(offline, root, tmp_path):
    offline.setattr(archives, "FASHION_MNIST", PACKAGE)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in PACKAGE.md5:
        (raw / name).with_suffix("").write_bytes(gzip.decompress((PACKAGE.folder / name).read_bytes()))
    for split in N:
        theirs = FashionMNIST(tmp_path, train=split == "train")
        ours = load("fashion_mnist", split, root=root)
        assert len(ours.labels) == len(theirs) == {"train": ABOUT["fashion_mnist"].n_train, "test": 10_000}[split]
        assert (ours.images == theirs.data[:, None]).all() and ours.labels.equal(theirs.targets)
        assert torch.bincount(ours.labels).unique().numel() == 1 and ours.classes == tuple(theirs.classes)


def test_a_contact_sheet_has_a_row_for_each_class():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 6)
    sheet = vision.contact_sheet(vision.Images(images, torch.tensor([0, 1, 0, 1, 0]), ("a", "b")), 3)
    assert sheet.size == (2 * 3 * 6, 2 * 2 * 4)
    shown = np.asarray(sheet)[::8, ::12]
    assert shown[..., 0].tolist() == [[0, 2, 4], [1, 3, 255]] and (shown == shown[..., :1]).all()


# scikit-learn's digits


def test_digits_need_neither_network_nor_disk(root):
    train, test = load("digits", "train", root=root), load("digits", "test", root=root)
    assert not root.exists()
    about = ABOUT["digits"]
    assert train.images.shape == (about.n_train, 3, 8, 8) and test.images.shape == (about.n_test, 3, 8, 8)
    assert train.classes == test.classes == DIGIT_NAMES and train.images.max() == 255 and train.images.min() == 0
    grey = torch.cat([train.images, test.images])
    assert (grey == grey[:, :1]).all()
    labels = torch.cat([train.labels, test.labels])
    found = hashlib.sha256(grey[:, 0].numpy().tobytes() + labels.numpy().astype("<i8").tobytes()).hexdigest()
    assert found == vision.DIGITS_SHA256
    assert load("digits", "test", size=20).images.shape == (797, 3, 20, 20)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="digits come with scikit-learn: pip install scikit-learn"):
        load("digits", "test")


# Folders


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def plain(color, size=(32, 32)):
    return Image.new("RGB", size, color)


def flat_folder(folder, n=(10, 7)):
    """Classes of one-colored images, each of a color of its own."""
    for label, (name, count) in enumerate(zip(("cat", "dog"), n, strict=True)):
        for k in range(count):
            save(folder / name / f"{k:02d}.png", plain((label, k, 99)))
    return folder


def split_folder(folder, held_out="test"):
    for split, value in (("train", 0), (held_out, 200)):
        for label, name in enumerate(("cat", "dog")):
            for k in range(3):
                save(folder / split / name / f"{k}.png", plain((value, label, k)))
    return folder


def colors(images):
    """Color of every one-colored image, with its label."""
    return [(*image[:, 0, 0].tolist(), int(label)) for image, label in zip(images.images, images.labels, strict=True)]


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    folder = flat_folder(tmp_path / "pets", (10, 7))
    train, test = load(folder, "train"), load(folder, "test")
    assert train.classes == test.classes == ("cat", "dog") and train.images.shape == (14, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [2, 1]
    everything = {(label, k, 99, label) for label, n in ((0, 10), (1, 7)) for k in range(n)}
    assert set(colors(train)) | set(colors(test)) == everything and len(colors(train) + colors(test)) == 17
    assert colors(test) != sorted(everything)[:2] + sorted(everything)[10:11]  # not just the first ones


def test_at_least_one_image_of_a_class_is_held_out(tmp_path):
    folder = flat_folder(tmp_path / "pets", (2, 3))
    assert torch.bincount(load(folder, "train").labels).tolist() == [1, 2]
    assert torch.bincount(load(folder, "test").labels).tolist() == [1, 1]


def test_the_split_depends_only_on_the_names(tmp_path):
    folders = [flat_folder(tmp_path / "one"), tmp_path / "two"]
    for path in sorted(folders[0].glob("*/*"), reverse=True):  # written in another order
        save(folders[1] / path.relative_to(folders[0]), Image.open(path))
    first, second = (load(folder, "test", root=tmp_path / f"{folder.name} data") for folder in folders)
    assert colors(first) == colors(second)


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folders_that_are_split_already_are_used_as_they_are(held_out, tmp_path):
    folder = split_folder(tmp_path / "pets", held_out)
    for split, value in (("train", 0), ("test", 200)):
        assert colors(load(folder, split)) == [(value, label, k, label) for label in (0, 1) for k in range(3)]


def test_test_comes_before_validation_and_may_lack_a_class(tmp_path):
    folder = split_folder(tmp_path / "pets")
    save(folder / "val" / "dog" / "a.png", plain("white"))
    assert len(load(folder, "test").labels) == 6
    for path in [*(folder / "test" / "cat").iterdir(), folder / "test" / "cat"]:
        path.rmdir() if path.is_dir() else path.unlink()
    images = load(folder, "test")
    assert images.classes == ("cat", "dog") and images.labels.tolist() == [1, 1, 1]


def test_a_class_may_be_called_train(tmp_path):
    folder = flat_folder(tmp_path / "vehicles")
    (folder / "cat").rename(folder / "train")
    assert load(folder, "train").classes == ("dog", "train")


def test_what_is_hidden_or_no_image_is_ignored(tmp_path):
    folder = flat_folder(tmp_path / "pets")
    before = fingerprint(folder)
    (folder / "README.md").write_text("mine")
    (folder / "cat" / "notes.txt").write_text("mine")
    (folder / "cat" / "._00.png").write_bytes(b"left by a file manager")
    (folder / "cat" / "folder.png").mkdir()
    (folder / ".git").mkdir()
    assert fingerprint(folder) == before
    assert len(load(folder, "train").labels) == 14 and load(folder, "train").classes == ("cat", "dog")


def test_what_is_left_out_is_counted_once(tmp_path, caplog):
    folder = flat_folder(tmp_path / "pets")
    for name in ("Thumbs.db", "cat/desktop.ini", "cat/.hidden.heic", "cat/@eaDir/00.png", "__MACOSX/cat/._00.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left by a file manager")
    before = fingerprint(folder)
    assert len(load(folder, "train").labels) == 14 and not caplog.records
    for name in ("cat/a.heic", "dog/b.HEIC", "cat/c.svg", "loose.png", "dog/LICENSE"):
        (folder / name).write_bytes(b"")
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    assert fingerprint(folder) == before == fingerprint(folder)
    counts = (
        "2 .heic files, 1 .svg files, 1 files without a suffix, 1 images outside of class folders, 1 links that lead"
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{folder}: 17 images are read, and left out are {counts} nowhere" in caplog.text


def test_what_is_left_out_beside_a_division_is_named(tmp_path, caplog):
    folder = split_folder(tmp_path / "pets")
    save(folder / "val" / "dog" / "a.png", plain("white"))
    (folder / "train" / "loose.gif").write_bytes(b"")
    assert len(load(folder, "test").labels) == 6
    told = "12 images are read, and left out are folder val, 1 images outside of class folders"
    assert told in caplog.text and len(caplog.records) == 1


def test_the_fingerprint_of_what_was_always_read_is_as_ever(tmp_path):
    """Recorded stores depend on it: this value is that of the first version."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i, suffix in enumerate((".png", ".JPG", ".bmp")):
            (tmp_path / "pets" / name / f"{i}{suffix}").write_bytes(f"{name}{i}".encode())
    assert (fingerprint(tmp_path / "pets"), fingerprint(tmp_path / "pets", 64)) == (
        "9e6530f232e08692",
        "f5de80702a0d4ad9",
    )
    (tmp_path / "pets" / "cat" / "more.tif").write_bytes(b"is read now")
    assert fingerprint(tmp_path / "pets") != "9e6530f232e08692"


def test_images_in_folders_within_a_class_folder_are_of_that_class(tmp_path):
    folder = flat_folder(tmp_path / "pets")
    before = fingerprint(folder)
    for name, blue in (("more/a.png", 1), ("more/still/b.png", 2)):
        save(folder / "cat" / name, plain((200, 0, blue)))
    assert fingerprint(folder) != before
    found = colors(load(folder, "train")) + colors(load(folder, "test"))
    assert len(found) == 19 and {(200, 0, 1, 0), (200, 0, 2, 0)} < set(found)
    (folder / "cat" / "more").rename(folder / "cat" / "Test")
    with pytest.raises(DataError, match=f"class folder {folder}/cat has a folder Test: make it Test/cat instead"):
        load(folder, "train")


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("Train", "Test"),
        ("train", "valid"),
        ("training", "testing"),
        ("TRAINING", "eval"),
        ("training_set", "test_set"),
    ],
)
def test_divisions_of_other_names_are_understood(train, held_out, tmp_path):
    folder = split_folder(tmp_path / "pets", held_out)
    (folder / "train").rename(folder / train)
    for split, value in (("train", 0), ("test", 200)):
        images = load(folder, split)
        assert images.classes == ("cat", "dog")
        assert colors(images) == [(value, label, k, label) for label in (0, 1) for k in range(3)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train2017", "val2017"),
            "class folder .*/train2017 has 0 images of its own, only in cat, dog: put the images",
        ),
        (("fold1", "fold2"), "class folder .*/fold1 has 0 images of its own, only in cat, dog"),
        (("Test", "Valid"), "has Test, Valid, but no folder train in which there is one for each class"),
        (("dogs", "Test"), "has Test, but no folder train"),
        (("Train", "heldout"), "has a folder Train, but none of test, val, validation, testing, valid"),
    ],
)
def test_a_division_is_never_taken_for_classes(names, message, tmp_path):
    folder = split_folder(tmp_path / "pets")
    for old, new in zip(("train", "test"), names, strict=True):
        (folder / old).rename(folder / new)
    with pytest.raises(DataError, match=message):
        load(folder, "train")


def test_a_division_without_class_folders_is_refused(tmp_path):
    for name in ("Training", "val"):
        save(tmp_path / "pets" / name / "a.png", plain("red"))
        save(tmp_path / "pets" / name / "b.png", plain("blue"))
    with pytest.raises(DataError, match="has Training, val, but no folder train in which there is one for each class"):
        fingerprint(tmp_path / "pets")


def test_links_in_a_circle_are_not_followed(tmp_path):
    folder = flat_folder(tmp_path / "pets")
    (folder / "again").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "cat" / "loop.png").symlink_to(folder / "cat" / "loop.png")
    assert load(folder, "train").classes == ("cat", "dog") and len(load(folder, "train").labels) == 14


@pytest.mark.parametrize(
    "suffix",
    [
        "png",
        "jpg",
        "jpeg",
        "webp",
        "bmp",
        "PNG",
        "JPG",
        "gif",
        "tif",
        "TIFF",
        "ppm",
        "pnm",
        "jfif",
        "jpe",
        "jp2",
        "apng",
        "avif",
    ],
)
def test_kinds_of_files(suffix, tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        for k in range(2):
            save(tmp_path / "pets" / name / f"{k}.{suffix}", plain(color))
    images = load(tmp_path / "pets", "train", size=4).images.float()
    wanted = torch.tensor([[255, 0, 0], [0, 0, 255]]).view(2, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(images, wanted.float(), atol=4, rtol=0)


def as_loaded(image, tmp_path, suffix="png", size=8, **options):
    """Pixels that come of one image in a folder."""
    for name in ("a", "b"):
        for k in range(2):
            path = tmp_path / "kinds" / name / f"{k}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)
    return load(tmp_path / "kinds", "train", size=size).images[0].numpy()


def test_grey_images_get_three_equal_channels(tmp_path):
    grey = sample((8, 8), 5)
    np.testing.assert_array_equal(as_loaded(Image.fromarray(grey), tmp_path), np.stack([grey] * 3))


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    grey = sample((8, 8), 5)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(as_loaded(deep, tmp_path), np.stack([grey] * 3))


def grey_tiff(path, values, tags):
    """A TIFF of one strip, written out: little-endian, uncompressed, with the tags that matter."""
    about = {256: 8, 257: 8, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: values.nbytes} | tags
    about[273] = 8 + 2 + 12 * len(about) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(about.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(about)) + entries + b"\0\0\0\0" + values.tobytes())


@pytest.mark.parametrize(("photometric", "dtype"), [(1, "<u2"), (0, "<u2"), (1, "<u4"), (1, "<i2"), (1, "<f4")])
def test_deep_grey_in_tiff(photometric, dtype, tmp_path):
    """Sixteen bits are scaled, also where 0 is white; what has no known white is refused."""
    grey = sample((8, 8), 5)
    values = (
        grey.astype(np.float64) / 255 if dtype == "<f4" else grey.astype(np.int64) * 257 // (2 if "i" in dtype else 1)
    )
    tags = {258: 8 * np.dtype(dtype).itemsize, 262: photometric, 339: {"u": 1, "i": 2, "f": 3}[dtype[1]]}
    grey_tiff(tmp_path / "x.tif", values.astype(dtype), tags)
    if dtype != "<u2":
        with pytest.raises(DataError, match=r"x.tif cannot be read as an image .its pixels"):
            folders.decoded(tmp_path / "x.tif", "x.tif")
        return
    wanted = grey if photometric else 255 - grey
    np.testing.assert_array_equal(np.asarray(folders.decoded(tmp_path / "x.tif", "x.tif")), wanted)


def test_twelve_bits_in_sixteen_are_said(tmp_path, caplog):
    deep = Image.fromarray(np.full((8, 8), 4095, np.uint16))
    assert (as_loaded(deep, tmp_path) == 16).all()
    assert caplog.text.count("has nothing in the upper four") == 2  # once a class folder
    caplog.clear()
    assert (as_loaded(Image.fromarray(np.full((8, 8), 4096, np.uint16)), tmp_path) == 16).all() and not caplog.records


def test_sixteen_bits_in_pgm(tmp_path):
    grey = sample((8, 8), 5)
    content = b"P5 8 8 65535\n" + (grey.astype(np.uint16) * 257).astype(">u2").tobytes()
    np.testing.assert_array_equal(np.asarray(folders.decoded(io.BytesIO(content), "x.pgm")), grey)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_an_animation_is_its_first_picture(suffix, tmp_path):
    first, *others = (plain(color, (8, 8)) for color in ("red", "blue", "lime"))
    options = {"lossless": True} if suffix == "webp" else {}
    loaded = as_loaded(first, tmp_path, suffix, save_all=True, append_images=others, **options)
    assert (loaded[0] == 255).all() and (loaded[1:] == 0).all()


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "LA", "1", "P", "RGB"])
def test_kinds_of_pixels_in_tiff(mode, tmp_path):
    image = plain((200, 30, 0), (8, 8))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    wanted = {"LA": 77, "1": None}.get(mode, (200, 30, 0))  # 0.299 * 200 + 0.587 * 30 = 77.4
    loaded = as_loaded(image, tmp_path, "tif")
    if mode == "1":  # dithered: black and white, as bright as the color
        assert set(loaded.ravel()) <= {0, 255} and loaded.mean() == pytest.approx(77, abs=15)
    else:
        np.testing.assert_allclose(loaded, np.broadcast_to(np.reshape(wanted, (-1, 1, 1)), (3, 8, 8)), atol=2)


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(sample((8, 8, 3), 5) // 128 * 255).quantize(16)
    assert image.mode == "P"
    wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(as_loaded(image, tmp_path), wanted)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(mode, tmp_path):
    image, options = Image.new("RGBA", (8, 8), (0, 0, 0, 255)), {}
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    if mode == "P":
        image, options = Image.new("P", (8, 8), 1), {"transparency": 0}
        image.putpalette([10, 10, 10, 0, 0, 0])
        image.paste(0, (0, 0, 4, 8))
    elif mode == "LA":
        image = image.convert("LA")
    loaded = as_loaded(image, tmp_path, **options)
    assert (loaded[..., :4] == 255).all() and (loaded[..., 4:] == 0).all()


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    loaded = as_loaded(Image.new("RGBA", (8, 8), (0, 100, 200, 128)), tmp_path)
    np.testing.assert_allclose(loaded[:, 0, 0], [127, 177, 227], atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_the_orientation_of_the_camera_is_honoured(suffix, tmp_path):
    image = plain("black", (8, 8))
    image.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    loaded = as_loaded(image, tmp_path, suffix, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert (loaded[..., 4:] == 255).all() and (loaded[..., :4] == 0).all()


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_the_middle_square_is_taken(shape, tmp_path):
    image = plain("white", shape)
    middle = (16, 0, 24, 8) if shape[0] > shape[1] else (0, 16, 8, 24)
    image.paste("red", middle)
    loaded = as_loaded(image, tmp_path)
    assert (loaded[0] == 255).all() and (loaded[1:] == 0).all()


def broken_image(folder):
    path = folder / "dog" / "03.png"
    path.write_bytes(encoded(Image.fromarray(sample((32, 32, 3), 1)), "PNG")[:1500])
    return rf"{path} cannot be read as an image \(.*truncated"


def empty_image(folder):
    path = folder / "cat" / "01.png"
    path.write_bytes(b"")
    return f"{path} cannot be read as an image"


def other_format(folder):
    path = folder / "cat" / "01.png"
    plain("red").save(path, "EPS")  # a program, which nothing here runs
    return f"{path} cannot be read as an image"


def too_few(folder):
    for path in sorted((folder / "cat").iterdir())[1:]:
        path.unlink()
    return f"class folder {folder / 'cat'} has 1 images .*, needs 2"


def another_kind(folder):
    for path in sorted((folder / "cat").iterdir())[1:]:
        path.rename(path.with_suffix(".heic"))
    return f"class folder {folder / 'cat'} has 1 images .*, needs 2; beside them are 9 .heic files"


def one_class(folder):
    for path in (folder / "dog").iterdir():
        path.unlink()
    (folder / "dog").rmdir()
    return f"{folder} has only one class, cat: at least two"


def no_classes(folder):
    for name in ("cat", "dog"):
        (folder / name).rename(folder / f".{name}")
    return f"{folder} has no class folders"


def no_folder(folder):
    folder.rename(f"{folder} moved")
    return f"there is no folder {folder}; data sets known by name are fashion_mnist, .*digits"


def a_file(folder):
    no_folder(folder)
    folder.write_text("not a folder")
    return f"there is no folder {folder};"


@pytest.mark.parametrize(
    "spoil", [broken_image, empty_image, other_format, too_few, another_kind, one_class, no_classes, no_folder, a_file]
)
def test_what_is_wrong_with_a_folder_is_named(spoil, tmp_path, root):
    folder = flat_folder(tmp_path / "pets")
    message = spoil(folder)
    for split in N:
        with pytest.raises(DataError, match=message):
            load(folder, split, root=root)
    assert not [path for path in root.glob("*") if not path.name.endswith(".lock")]  # nothing half made stays behind


def test_what_is_wrong_with_a_split_folder_is_named(tmp_path):
    folder = split_folder(tmp_path / "pets")
    save(folder / "test" / "bird" / "0.png", plain("red"))
    with pytest.raises(DataError, match=f"{folder} has classes to test that are not in train: bird"):
        load(folder, "train")
    (folder / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=f"class folder {folder / 'train' / 'bird'} has 0 images .*, needs 1"):
        load(folder, "train")
    (folder / "test").rename(folder / "held out")
    with pytest.raises(DataError, match=f"{folder} has a folder train, but none of test, val, validation"):
        fingerprint(folder)


@pytest.mark.parametrize("pixels", [900, 500])  # Pillow warns from its limit on, and refuses from twice the limit on
def test_decompression_bombs_are_refused(pixels, tmp_path, monkeypatch):
    folder = flat_folder(tmp_path / "pets")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(DataError, match=r"pets/cat/\d\d.png cannot be read as an image \(.*decompression bomb"):
        load(folder, "train")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder = flat_folder(tmp_path / "pets")
    monkeypatch.setattr(vision.files, "sha256", refuse)
    with pytest.raises(DataError, match=r"pets/cat/00.png cannot be read \(Permission denied\)"):
        load(folder, "train")


def test_a_folder_that_changes_while_it_is_read(tmp_path, root, monkeypatch):
    folder, original = flat_folder(tmp_path / "pets"), vision.in_folder

    def changing(folder):
        plain("red").save(folder / "cat" / "00.png")
        return original(folder)

    monkeypatch.setattr(vision, "in_folder", changing)
    with pytest.raises(DataError, match="pets changed while it was read; load it again"):
        load(folder, "train", root=root)
    assert not list(root.glob("folder-*"))


def test_a_changed_folder_is_parsed_anew(tmp_path):
    folder = flat_folder(tmp_path / "pets")
    assert (0, 4, 99, 0) in colors(load(folder, "train")) + colors(load(folder, "test"))
    plain((77, 77, 77)).save(folder / "cat" / "04.png")
    assert (77, 77, 77, 0) in colors(load(folder, "train")) + colors(load(folder, "test"))


# Fingerprints


def test_fingerprints_of_named_data_sets():
    known = {
        "fashion_mnist": "fashion_mnist@212a3b6d-28",
        "cifar10": "cifar10@c58f3010-32",
        "cifar100": "cifar100@eb9058c3-32",
        "mnist": "mnist@d69e13c1-28",
        "svhn": "svhn@473353b6-32",
        "tinyimagenet": "tinyimagenet@90528d7c-64",
        "digits": "digits@0b7e9c32-8",
    }
    assert {name: fingerprint(name) for name in NAMES} == known
    assert fingerprint("cifar100", 16) == "cifar100@eb9058c3-16" and fingerprint("mnist", 28) == known["mnist"]


def test_the_fingerprint_of_a_folder_follows_names_contents_and_size(tmp_path):
    folder = flat_folder(tmp_path / "pets")
    first = fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert fingerprint(str(folder)) == fingerprint(folder, 32) == first == fingerprint(flat_folder(tmp_path / "copy"))
    found = [first, fingerprint(folder, 16)]
    plain((1, 2, 3)).save(folder / "cat" / "05.png")
    found.append(fingerprint(folder))
    (folder / "cat" / "05.png").rename(folder / "cat" / "50.png")
    found.append(fingerprint(folder))
    (folder / "cat" / "50.png").rename(folder / "dog" / "50.png")
    found.append(fingerprint(folder))
    assert len(set(found)) == 5


def test_contents_are_hashed_once_until_something_changes(tmp_path, monkeypatch):
    folder, hashed, original = flat_folder(tmp_path / "pets"), [], vision.files.sha256
    monkeypatch.setattr(vision.files, "sha256", lambda path: (hashed.append(path), original(path))[1])
    first = fingerprint(folder)
    assert len(hashed) == 17
    assert fingerprint(folder, 16) != first and fingerprint(folder) == first and len(hashed) == 17
    os.utime(folder / "cat" / "03.png", ns=(1, 1))
    assert fingerprint(folder) == first and len(hashed) == 34


def test_a_folder_named_like_a_data_set_is_meant_by_a_path(tmp_path, monkeypatch):
    flat_folder(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    assert load(Path("mnist"), "train").classes == ("cat", "dog")
    assert "@" not in fingerprint(Path("mnist")) and fingerprint("mnist").startswith("mnist@")


# What is kept


def test_images_are_mapped_from_disk_and_cannot_be_written(offline, root):
    place("cifar10", offline, root)
    images = load("cifar10", "train", root=root).images
    mapped = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    for span, rights, *_, name in (fields for fields in mapped if len(fields) == 6):
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= images.data_ptr() < high:
            assert name == str(root / "cifar10-32" / "train-images.npy") and rights.startswith("r-")
            return
    pytest.fail("no file is mapped where the images are")


def test_torch_does_not_warn_of_the_read_only_map(offline, root):
    place("cifar10", offline, root)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            load("cifar10", "train", root=root)
    finally:
        torch.set_warn_always(False)


def test_the_second_time_nothing_is_parsed_locked_or_hashed(offline, root, monkeypatch):
    expected, classes = place("cifar100", offline, root)
    load("cifar100", "train", root=root)
    load("cifar100", "test", root=root)
    for path in (root / "cifar100").iterdir():
        path.unlink()
    monkeypatch.setattr(vision.files, "lock", None)
    monkeypatch.setattr(vision.files, "sha256", None)
    for split in N:
        assert_same(load("cifar100", split, root=root), expected[split], classes)


def test_files_are_arrays_and_a_manifest(offline, root):
    place("mnist", offline, root)
    load("mnist", "train", size=8, root=root)
    names = {f"{split}-{what}.npy" for split in N for what in ("images", "labels")}
    cache = root / "mnist-8"
    assert {path.name for path in cache.iterdir()} == names | {"manifest.json"}
    manifest = json.loads((cache / "manifest.json").read_text())
    assert manifest["classes"] == list(DIGIT_NAMES) and manifest["version"] == vision.VERSION
    for name in names:
        content = (cache / name).read_bytes()
        assert manifest["files"][name] == {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def cut(cache):
    os.truncate(cache / "train-images.npy", 3000)


def flip_a_bit(cache):
    content = bytearray((cache / "train-images.npy").read_bytes())
    content[-1] ^= 1
    (cache / "train-images.npy").write_bytes(content)


def lose_labels(cache):
    (cache / "train-labels.npy").unlink()


def lose_the_manifest(cache):
    (cache / "manifest.json").unlink()


def cut_the_manifest(cache):
    os.truncate(cache / "manifest.json", 50)


def empty_the_manifest(cache):
    (cache / "manifest.json").write_text("[]")


def change_the_manifest(**changes):
    def change(cache):
        manifest = json.loads((cache / "manifest.json").read_text())
        (cache / "manifest.json").write_text(json.dumps(manifest | changes))

    return change


def other_array(cache):
    """Whole by its checksum, but not an array of such images."""
    np.save(cache / "train-images.npy", np.zeros((60, 3, 32, 31), np.uint8))
    content = (cache / "train-images.npy").read_bytes()
    manifest = json.loads((cache / "manifest.json").read_text())
    sums = {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_the_manifest(files=manifest["files"] | {"train-images.npy": sums})(cache)


@pytest.mark.parametrize(
    "spoil",
    [
        cut, flip_a_bit, lose_labels, lose_the_manifest, cut_the_manifest, empty_the_manifest, other_array,
        change_the_manifest(version=0), change_the_manifest(files={}),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_noticed_and_made_again(spoil, offline, root, caplog):
    expected, classes = place("cifar10", offline, root)
    load("cifar10", "train", root=root)
    cache = root / "cifar10-32"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    spoil(cache)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        images = load("cifar10", "train", root=root)
    assert re.fullmatch(f"{cache} is damaged or unfinished and is made again .*", *caplog.messages)
    assert_same(images, expected["train"], classes)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_damage_of_the_same_length_and_time_is_noticed_by_another_process(offline, root, caplog, monkeypatch):
    expected, classes = place("cifar10", offline, root)
    load("cifar10", "train", root=root)
    path = root / "cifar10-32" / "train-images.npy"
    stat = path.stat()
    flip_a_bit(path.parent)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    monkeypatch.setattr(vision.files, "_verified", set())  # as in a process that has just begun
    assert_same(load("cifar10", "train", root=root), expected["train"], classes)
    assert "train-images.npy does not match its checksum" in caplog.text


def test_another_length_is_noticed_each_time(offline, root, caplog):
    expected, classes = place("cifar10", offline, root)
    load("cifar10", "train", root=root)
    path = root / "cifar10-32" / "train-images.npy"
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"?")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_same(load("cifar10", "train", root=root), expected["train"], classes)
    assert "train-images.npy does not match its checksum" in caplog.text


def test_images_that_are_in_use_survive_mending(offline, root):
    expected, classes = place("cifar10", offline, root)
    images = load("cifar10", "train", root=root)
    lose_labels(root / "cifar10-32")
    load("cifar10", "train", root=root)
    assert_same(images, expected["train"], classes)


def test_a_full_disk_leaves_nothing_behind(offline, root, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place("cifar10", offline, root)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=rf"the data folder {root} cannot be used \(.*No space left.*REPSIM_DATA"):
        load("cifar10", "train", root=root)
    assert {path.name for path in root.iterdir()} == {"cifar10", ".cifar10.lock"}


def test_a_data_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=f"the data folder {tmp_path / 'file'} cannot be used"):
        load(flat_folder(tmp_path / "pets"), "train", root=tmp_path / "file")


PROCESS = """
import sys, time
from pathlib import Path
from repsim_utils.datasets import vision

original = vision.in_folder

def slow(folder):
    print("parses", flush=True)
    time.sleep({seconds})
    return original(folder)

vision.in_folder = slow
print("ready", flush=True)
sys.stdin.readline()
images = vision.load({folder!r}, "train", root={root!r})
print(int(images.images.sum()), images.labels.tolist())
"""


def start(folder, root, seconds):
    code = PROCESS.format(folder=str(folder), root=str(root), seconds=seconds)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    return process


def go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")


def test_of_two_processes_at_once_one_parses_and_both_read(tmp_path, root):
    folder = flat_folder(tmp_path / "pets")
    processes = [start(folder, root, 1) for _ in range(2)]
    for process in processes:
        go(process)
    printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(lines.count("parses") for lines in printed) == 1
    images = load(folder, "train", root=root)
    assert {lines[-1] for lines in printed} == {f"{int(images.images.sum())} {images.labels.tolist()}"}
    assert not list(root.glob("*.tmp")) and not list(root.glob(".*.tmp"))


def test_a_killed_process_neither_blocks_nor_leaves_rubbish(tmp_path, root):
    folder = flat_folder(tmp_path / "pets")
    process = start(folder, root, 600)
    go(process)
    assert process.stdout.readline() == "parses\n"
    assert len(list(root.glob(".*.tmp"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(load(folder, "train", root=root).labels) == 14
    assert {path.name for path in root.iterdir() if not path.name.endswith(".lock")} == {
        f"folder-{fingerprint(folder)}-32"
    }


# Downloads


@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_a_network_the_message_says_what_to_place_where(name, root):
    with pytest.raises(DataError) as caught:
        load(name, "test", root=root)
    message = str(caught.value)
    published = {
        "fashion_mnist": [(FashionMNIST.mirrors[0], *resource) for resource in FashionMNIST.resources],
        "cifar10": [("https://www.cs.toronto.edu/~kriz/", "cifar-10-python.tar.gz", CIFAR10.tgz_md5)],
        "cifar100": [("https://www.cs.toronto.edu/~kriz/", "cifar-100-python.tar.gz", CIFAR100.tgz_md5)],
        "mnist": [(mirror, *resource) for mirror in MNIST.mirrors for resource in MNIST.resources],
        "svhn": [("http://ufldl.stanford.edu/housenumbers/", *SVHN.split_list[split][1:]) for split in N],
        "tinyimagenet": [("http://cs231n.stanford.edu/", "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")],
    }[name]
    assert message.startswith(f"{name} could not be downloaded from {published[0][0]}{published[0][1]} (")
    place = "Install a package: apt-get install dataset-fashion-mnist. Or place" if name == "fashion_mnist" else "Place"
    assert f"{place} by hand in the folder {root / name}: " in message and "no network in tests" in message
    assert "ColorShapeDigit (color_shape_digit) and digits need no download." in message
    for address, file, checksum in published:
        assert address in message and f"{file} (md5 {checksum})" in message
    assert isinstance(caught.value, RepsimError) and caught.value.__context__ is None  # no traceback of others
    assert not (root / f"{name}-{ABOUT[name].size}").exists()


def test_only_what_is_missing_is_asked_for(offline, root):
    place("mnist", offline, root)
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz \(md5") as caught:
        load("mnist", "test", root=root)
    assert "train-images" not in str(caught.value)


def test_placing_the_file_after_a_failure_is_enough(offline, root, caplog):
    with pytest.raises(DataError):
        load("mnist", "test", root=root)
    contents, expected, classes = mnist(offline)
    for file, content in contents.items():
        (root / "mnist" / file).write_bytes(content)
    assert_same(load("mnist", "test", root=root), expected["test"], classes)
    assert not caplog.records


@pytest.mark.parametrize("name", DOWNLOADED)
def test_a_file_with_another_checksum_is_named_and_kept(name, offline, root):
    place(name, offline, root)
    path = sorted((root / name).iterdir())[-1]
    wanted, content = md5(path.read_bytes()), path.read_bytes()[:-1]
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} has md5 {md5(content)}, expected was {wanted}: remove it"):
        load(name, "test", root=root)
    assert path.read_bytes() == content


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("known", ["nothing", "the archive"])
def test_nothing_is_unpickled_whose_checksum_is_another(known, offline, root, tmp_path):
    place("cifar10", offline, root)
    trap = tmp_path / "sprung"
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list] + [CIFAR10.meta["filename"]]
    archive = tar_gz({f"{CIFAR10.base_folder}/{name}": pickle.dumps(Trap(trap)) for name in names})
    (root / "cifar10" / CIFAR10.filename).write_bytes(archive)
    if known == "the archive":
        offline.setattr(CIFAR10, "tgz_md5", md5(archive))
    with pytest.raises(
        DataError, match="has md5" if known == "nothing" else r"cifar10 in .* cannot be read: .*corrupt"
    ):
        load("cifar10", "train", root=root)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # the trap works


def test_servers_are_not_waited_for_long_and_the_setting_is_restored(root, monkeypatch):
    seen = []

    def silent(url, *_):
        seen.append((url, socket.getdefaulttimeout()))
        raise TimeoutError("timed out")

    monkeypatch.setattr(archives, "download_url", silent)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz \(timed out\)"):
        load("cifar10", "test", root=root)
    assert seen == [(CIFAR10.url, archives.TIMEOUT)] and socket.getdefaulttimeout() is None


@pytest.fixture
def server(offline, tmp_path):
    """Address of a server on this machine, and the folder that it serves."""
    offline.undo()
    offline.setenv("REPSIM_DATA", str(tmp_path / "data"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/", folder
        serving.shutdown()
        thread.join()


def test_what_is_missing_is_downloaded_and_kept(server, offline, root):
    address, served = server
    contents, expected, classes = mnist(offline)
    for file, content in contents.items():
        (served / file).write_bytes(content)
    offline.setattr(MNIST, "mirrors", [f"{address}nowhere/", address])
    assert_same(load("mnist", "train", root=root), expected["train"], classes)
    assert {path.name: path.read_bytes() for path in (root / "mnist").iterdir()} == contents


def test_a_download_with_another_checksum_is_not_kept(server, offline, root):
    address, served = server
    contents, _, _ = tiny_imagenet(offline)
    file, content = next(iter(contents.items()))
    (served / file).write_bytes(content[:-9])
    offline.setattr(archives, "TINY_IMAGENET", archives.TINY_IMAGENET._replace(urls=(address + file,)))
    with pytest.raises(DataError, match=rf"could not be downloaded from {address}{file} \(.*corrupted"):
        load("tinyimagenet", "train", root=root)
    assert not list((root / "tinyimagenet").iterdir()) and not list(root.glob(".*.tmp"))


# Arguments


@pytest.mark.parametrize("source", ["cifar10", "digits", "folder"])
def test_bad_arguments_are_named(source):
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'test'\), got 'validation'"):
        load(source, "validation")
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load(source, "train", size=0)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got -3"):
        fingerprint(source, -3)


def test_where_data_are_kept_by_default(monkeypatch, tmp_path):
    assert caching.default_root() == tmp_path / "data"
    monkeypatch.delenv("REPSIM_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert caching.default_root() == Path("/cache/repsim/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert caching.default_root() == Path("/home/me/.cache/repsim/data")
