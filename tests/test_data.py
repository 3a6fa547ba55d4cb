"""Sources of images, the cache, and the randomness of batches."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, png, split_tree, write_folder, write_tar, write_zip
from PIL import Image

from scratchnn import data
from scratchnn.data import augment, cache, cifar10, decode
from scratchnn.data.atomic import remove_leftovers, replace_file, replace_text
from scratchnn.data.layout import arrange, stratified_split
from scratchnn.errors import UserError


@pytest.fixture
def load(tmp_path: Path):
    """:func:`scratchnn.data.load` for 16x16 images, with a cache of its own."""

    def load_small(source: object, size: int = 16) -> data.Dataset:
        return data.load(str(source), size, tmp_path / "cache")

    return load_small


def same(a: data.Dataset, b: data.Dataset) -> bool:
    return a.digest() == b.digest() and a.classes == b.classes


# ---- folders and archives


def test_folder_with_train_and_test(load, tmp_path: Path) -> None:
    dataset = load(write_folder(split_tree(train=5, test=2), tmp_path / "colours"))
    assert dataset.name == "colours"
    assert dataset.classes == ("blue", "red")
    assert dataset.train.images.shape == (10, 3, 16, 16)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5
    assert dataset.test.labels.tolist() == [0] * 2 + [1] * 2
    expected = torch.from_numpy(np.asarray(picture(3, 2)).copy()).permute(2, 0, 1)
    assert torch.equal(dataset.train.images[3], expected)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_archive_gives_what_its_folder_gives(load, tmp_path: Path, name: str) -> None:
    tree = split_tree()
    write = write_zip if name.endswith(".zip") else write_tar
    # Another order, and a folder around everything.
    archive = write({f"around/{key}": tree[key] for key in reversed(tree)}, tmp_path / name)
    assert same(load(archive), load(write_folder(tree, tmp_path / "folder")))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cache", "folder", name])


@pytest.mark.parametrize("test_name", ["val", "valid", "validation"])
def test_other_names_of_the_test_split(load, tmp_path: Path, test_name: str) -> None:
    tree = {key.replace("test/", f"{test_name}/"): content for key, content in split_tree().items()}
    assert len(load(write_folder(tree, tmp_path / "a")).test) == 8


def test_files_that_are_not_images_are_passed_over(load, tmp_path: Path) -> None:
    extra = {
        "README.md": b"#",
        "train/.DS_Store": b"",
        "train/red/._000.png": b"",
        "__MACOSX/train/x.png": b"",
    }
    assert same(
        load(write_tar(split_tree() | extra, tmp_path / "a.tar")),
        load(write_tar(split_tree(), tmp_path / "b.tar")),
    )


def test_unused_split_is_told(load, tmp_path: Path) -> None:
    dataset = load(write_folder(split_tree() | {"val/red/1.png": png(1, 0)}, tmp_path / "a"))
    assert any("not used: val" in note for note in dataset.notes)
    assert len(dataset.test) == 8


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_test_images_a_fifth_of_each_class_is_set_apart(load, tmp_path: Path, prefix: str) -> None:
    tree = {f"{prefix}{name}/{n}.png": png(n, c) for name, c, m in (("a", 0, 20), ("b", 1, 10)) for n in range(m)}
    first = load(write_tar(tree, tmp_path / "first.tar"))
    assert first.train.labels.bincount().tolist() == [16, 8]
    assert first.test.labels.bincount().tolist() == [4, 2]
    assert any("6 of its 30 images, 20% of each class" in note for note in first.notes)
    torch.manual_seed(99)  # the split is not the business of any seed
    assert same(first, load(write_tar(dict(reversed(tree.items())), tmp_path / "second.tar")))


def test_split_is_a_partition() -> None:
    labels = torch.tensor([2, 0, 1, 0, 0, 2, 2, 2, 2, 0, 0, 3])
    train, test = stratified_split(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(12))
    assert labels[test].bincount(minlength=4).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images"),
        (["a/1.png", "a/2.png"], "the class a only"),
        (["a/1.png", "b/1.png"], "one image a class"),
        (["1.png", "a/2.png"], "the image 1.png, which is in no class's folder"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "the class c in test/ but not in train/"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "the image test/1.png, which is in no class's"),
        (["train/a/1.png", "test/a/1.png"], "the class a only"),
    ],
)
def test_layouts_that_are_none(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        arrange(names, Path("somewhere"))


# ---- images


def test_sizes_modes_and_orientation() -> None:
    wide = Image.new("RGB", (48, 16), (255, 0, 0))
    wide.paste((0, 0, 255), (16, 0, 32, 16))
    grey = Image.new("L", (20, 20), 77)
    deep = Image.fromarray(np.full((16, 16), 77 * 257, dtype=np.uint16))
    clear = Image.new("RGBA", (16, 16), (1, 2, 3, 0))
    palette = Image.new("RGB", (16, 16), (9, 99, 199)).quantize(4)

    def decoded(image: Image.Image) -> np.ndarray:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return decode.decode_image(buffer.getvalue(), 16, "x")

    assert decoded(wide).shape == (3, 16, 16)
    assert (decoded(wide)[2] == 255).all()  # the middle square is the blue one
    assert (decoded(grey) == 77).all()
    assert (decoded(deep) == 77).all()
    assert decoded(clear)[:, 0, 0].tolist() == [1, 2, 3]
    assert decoded(palette)[:, 0, 0].tolist() == [9, 99, 199]


def test_image_size(load, tmp_path: Path) -> None:
    tree = {f"{name}/{n}.png": png(n, 0, size=(20 + n, 40)) for name in "ab" for n in range(3)}
    folder = write_folder(tree, tmp_path / "mixed")
    assert load(folder, 24).train.images.shape[1:] == (3, 24, 24)
    assert load(folder, 16).train.images.shape[1:] == (3, 16, 16)  # not the cached array of another size


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_corrupt_image_is_named(load, tmp_path: Path, damage: str, kind: str) -> None:
    tree = split_tree()
    bad = "train/red/003.png"
    tree[bad] = {"truncated": tree[bad][:200], "text": b"not an image", "empty": b""}[damage]
    source = {
        "folder": lambda: write_folder(tree, tmp_path / "a"),
        "tar": lambda: write_tar(tree, tmp_path / "a.tar"),
        "zip": lambda: write_zip(tree, tmp_path / "a.zip"),
    }[kind]()
    with pytest.raises(UserError, match=f"the image {bad} of {source} cannot be decoded"):
        load(source)
    assert not (tmp_path / "cache").exists()


# ---- archives that were made to harm, or broke


@pytest.mark.parametrize("name", ["../out.png", "train/red/../../../out.png", "/tmp/out.png"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_member_that_points_outside_is_refused(load, tmp_path: Path, name: str, kind: str) -> None:
    tree = split_tree() | {name: png(0, 0)}
    archive = tmp_path / f"bad.{kind}"
    (write_tar if kind == "tar" else write_zip)(tree, archive)
    with pytest.raises(UserError, match=f"its member {name} points outside"):
        load(archive)
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_member_that_is_a_link_is_refused(load, tmp_path: Path, kind: bytes) -> None:
    path = write_tar(split_tree(), tmp_path / "links.tar")
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/red/link.png")
        member.type, member.linkname = kind, "/etc/hostname"
        archive.addfile(member)
    with pytest.raises(UserError, match=r"its member train/red/link.png is not a plain file"):
        load(path)


def test_member_too_large_for_an_image_is_refused(load, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("scratchnn.data.tree._LARGEST_FILE", 100)
    for path in (write_tar(split_tree(), tmp_path / "a.tar"), write_zip(split_tree(), tmp_path / "a.zip")):
        with pytest.raises(UserError, match="more than the 100 that an image may have"):
            load(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.zip"])
def test_broken_archive(load, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (write_zip if name == "a.zip" else write_tar)(split_tree(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 5])
    with pytest.raises(UserError, match=f"the archive {path} is damaged"):
        load(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=f"the archive {path} is damaged"):
        load(path)


# ---- the cache


def test_second_load_decodes_nothing(load, tmp_path: Path, monkeypatch) -> None:
    archive = write_tar(split_tree(), tmp_path / "a.tar")
    first = load(archive)
    monkeypatch.setattr(cache, "decode_image", lambda *_, **__: pytest.fail("decoded again"))
    assert same(first, load(archive))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_changed_source_is_decoded_again(load, tmp_path: Path, kind: str) -> None:
    def write(tree: dict[str, bytes]) -> Path:
        return write_folder(tree, tmp_path / "a") if kind == "folder" else write_tar(tree, tmp_path / "a.tar")

    before = load(write(split_tree()))
    after = load(write(split_tree() | {"train/red/000.png": png(77, 0)}))
    assert not torch.equal(before.train.images, after.train.images)


def test_moved_archive_is_found_in_the_cache(load, tmp_path: Path, monkeypatch) -> None:
    archive = write_tar(split_tree(), tmp_path / "a.tar")
    first = load(archive)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(cache, "decode_image", lambda *_, **__: pytest.fail("decoded again"))
    assert same(first, load(archive.rename(tmp_path / "elsewhere" / "a.tar")))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other"])
def test_damaged_cache_is_made_anew(load, tmp_path: Path, damage: str) -> None:
    archive = write_tar(split_tree(), tmp_path / "a.tar")
    first = load(archive)
    [kept] = (tmp_path / "cache").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes({"truncated": content[:999], "flipped": content, "other": b"hello"}[damage])
    assert same(first, load(archive))
    assert not any("decoded" in note for note in load(archive).notes)


def test_no_room_for_the_cache_is_no_failure(tmp_path: Path) -> None:
    archive = write_tar(split_tree(), tmp_path / "a.tar")
    (tmp_path / "file").write_text("in the way")
    dataset = data.load(str(archive), 16, tmp_path / "file" / "cache")
    assert len(dataset.train) == 24
    assert any("not cached" in note for note in dataset.notes)


def test_default_cache_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / "scratchnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_directory() == tmp_path / ".cache" / "scratchnn"


def test_replaced_file_is_the_old_one_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace_text(path, "old")

    def give_up() -> None:
        with replace_file(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        give_up()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_killed_while_replacing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace_text(path, "old")
    script = (
        "import os, signal, sys; from pathlib import Path; from scratchnn.data.atomic import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---- digits, CIFAR-10, auto


def test_digits(load) -> None:
    digits = load("digits", 32)
    assert digits.train.images.shape == (1438, 3, 32, 32)
    assert len(digits.test) == 359
    assert digits.classes == tuple("0123456789")
    assert not digits.mirrored
    assert digits.train.images.max() > 250
    assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])
    assert same(digits, load("digits", 32))


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch) -> Path:
    """A CIFAR-10 of 3 images a file in the real format, with checksums to match."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root" / cifar10.FOLDER
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    def batch(seed: int) -> dict:
        pixels = np.random.default_rng(seed).integers(0, 256, (3, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [seed % 10, 1, 2]}

    train = [[f"data_batch_{n}", write(f"data_batch_{n}", batch(n))] for n in range(1, 6)]
    meta = write("batches.meta", {"label_names": [f"class{n}" for n in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(9))]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return tmp_path / "root"


def test_cifar10_from_the_disk(load, cifar_root: Path) -> None:
    dataset = load(cifar_root, 32)
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("cifar10", 15, 3)
    pixels = np.random.default_rng(9).integers(0, 256, (3, 3072), dtype=np.uint8).reshape(3, 3, 32, 32)
    assert np.array_equal(dataset.test.images.numpy(), pixels)
    assert dataset.train.labels[:3].tolist() == [1, 1, 2]
    assert same(dataset, load(cifar_root / cifar10.FOLDER, 32))
    assert load(cifar_root, 16).train.images.shape == (15, 3, 16, 16)


def test_cifar10_that_is_damaged(load, cifar_root: Path) -> None:
    (cifar_root / cifar10.FOLDER / "data_batch_3").write_bytes(b"oops")
    with pytest.raises(UserError, match=f"CIFAR-10 cannot be read from {cifar_root}"):
        load(cifar_root)


def test_cifar10_without_a_network(load, tmp_path: Path, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(UserError, match=r"CIFAR-10 cannot be downloaded to .*cache \(no route to host\)"):
        load("cifar10")


def test_auto_takes_what_is_there_and_downloads_nothing(cifar_root: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "torchvision.datasets.cifar.download_and_extract_archive", lambda *_, **__: pytest.fail("download")
    )
    monkeypatch.chdir(tmp_path)
    assert data.load("auto", 32, cache=cifar_root).name == "cifar10"
    assert data.load("auto", 32, cache=tmp_path / "empty").name == "digits"
    assert data.load("auto", 32, cache=tmp_path / "empty").notes[0].startswith("digits of scikit-learn")
    cifar_root.rename(tmp_path / "data")
    found = data.load("auto", 32, cache=tmp_path / "empty")
    assert (found.name, found.source) == ("cifar10", str(tmp_path / "data"))


@pytest.mark.parametrize("size", [0, -1, 15, 513])
def test_image_size_out_of_range(load, size: int) -> None:
    with pytest.raises(UserError, match=f"image size must be from 16 to 512, got {size}"):
        load("digits", size)


def test_paths_that_are_no_data(load, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data at /nowhere"):
        load("/nowhere")
    with pytest.raises(UserError, match="holds no images"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt is neither a folder nor an archive"):
        load(tmp_path / "notes.txt")


# ---- statistics, order, augmentation


def test_mean_and_std_are_those_of_the_training_images() -> None:
    images = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8)
    mean, std = data.channel_mean_and_std(images)
    scaled = images.double() / 255
    torch.testing.assert_close(mean, scaled.mean(dim=(0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(std, scaled.std(dim=(0, 2, 3), correction=0), rtol=1e-12, atol=0)
    constant = torch.full((2, 3, 4, 4), 9, dtype=torch.uint8)
    assert data.channel_mean_and_std(constant)[1].min() > 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalise(memory_format: torch.memory_format) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8)
    before = images.clone()
    mean, std = data.channel_mean_and_std(images)
    result = data.normalise(images, mean, std, memory_format)
    assert torch.equal(images, before)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory_format)
    expected = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(data.epoch_batches(50, 8, seed, epoch)).tolist()

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert first == order(0, 0)
    assert sorted(first) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert [len(batch) for batch in data.epoch_batches(50, 8, 0, 0)] == [8] * 6 + [2]


def test_augmentation_is_a_function_of_seed_epoch_and_step() -> None:
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)

    def augmented(*place: int) -> bytes:
        return augment.random_crop_flip(images, data.augmentation_generator(*place)).numpy().tobytes()

    torch.manual_seed(1)
    first = augmented(0, 0, 0)
    torch.manual_seed(2)
    assert first == augmented(0, 0, 0)
    assert len({augmented(s, e, b) for s in range(2) for e in range(2) for b in range(2)}) == 8


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_windows_of_the_padded_image(flip: bool) -> None:
    images = torch.randint(1, 256, (40, 3, 8, 6), dtype=torch.uint8)
    crops = augment.random_crop_flip(images, torch.Generator().manual_seed(0), padding=2, flip=flip)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    mirrored, places = 0, set()
    for padded_image, crop in zip(padded, crops, strict=True):
        windows = {
            (top, left, side): padded_image[:, top : top + 8, left : left + 6].flip(2)
            if side
            else padded_image[:, top : top + 8, left : left + 6]
            for top in range(5)
            for left in range(5)
            for side in (0, 1)
        }
        [(top, left, side)] = [place for place, window in windows.items() if torch.equal(window, crop)]
        mirrored += side
        places.add((top, left))
    assert 10 <= mirrored <= 30 if flip else mirrored == 0
    assert len(places) >= 12


def test_disk_full_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace_text(path, "old")
    # A limit on the size of files stands in for a full disk: both fail in the write itself.
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from scratchnn.data.atomic import replace_text; from scratchnn.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        "try: replace_text(Path(sys.argv[1]), 'new' * 99)\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
