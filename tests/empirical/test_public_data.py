"""Public data sets through small files in their real formats on disk: what is read, what is refused, what is never run."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from empirical import data
from empirical.commands.data import data as commands
from empirical.data import cifar
from empirical.data.cifar import PIXELS, images_and_labels, unpack
from ufm.errors import RequestError


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision (extra 'vision') is not installed")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("UFM_DATA", str(tmp_path))
    return tmp_path


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


# --- CIFAR: the object streams of Python 2, written opcode by opcode -------------------------------------------------


def short(text):
    return b"U" + bytes([len(text)]) + text


def batch(images, labels, key=b"labels", name=b"training batch 1 of 5"):
    """The stream that Python 2's cPickle wrote, protocol 2: batch label, labels, data (a numpy array), file names."""
    numbers = b"(" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    raw = images.reshape(len(images), -1).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + short(b"b") + b"\x87Rq\n"
        b"(K\x01M" + struct.pack("<H", len(images)) + b"M" + struct.pack("<H", PIXELS) + b"\x86"
        b"cnumpy\ndtype\nq\x0b"
        + short(b"u1")
        + b"K\x00K\x01\x87Rq\x0c(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    )
    files = b"]q\x0e(" + b"".join(short(b"image_%d.png" % i) for i in range(len(images))) + b"e"
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(name) + b"q\x03" + short(key) + b"q\x04]q\x05" + numbers
        + short(b"data") + b"q\x06" + array + short(b"filenames") + b"q\x0d" + files + b"u."
    )  # fmt: skip


def put_cifar10(root, monkeypatch, labels=range(10)):
    """Write five train batches of 20 images and one test batch; the published checksums become those of these files."""
    folder = root / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, known = pixels(6, 20, 3, 32, 32), {}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        content = batch(images[i], list(labels) * 2)
        (folder / name).write_bytes(content)
        known[name] = hashlib.md5(content).hexdigest()
    test = {"test_batch": known.pop("test_batch")}
    monkeypatch.setitem(cifar.FILES, "cifar10", ("cifar-10-batches-py", "labels", known, test))
    return images


def test_the_written_stream_is_what_python_loads():
    """The oracle of the fakes: Python's own loader gives the same arrays."""
    images = pixels(5, 3, 32, 32)
    stream = batch(images, [3, 1, 4, 1, 5])
    loaded = pickle.loads(stream, encoding="bytes")
    assert loaded[b"labels"] == [3, 1, 4, 1, 5] and np.array_equal(loaded[b"data"], images.reshape(5, -1))
    ours = images_and_labels(Path("x"), stream, "labels")
    assert np.array_equal(ours[0], images) and ours[1].tolist() == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_batch_written_by_a_newer_python_reads_the_same(protocol):
    images = pixels(3, 3, 32, 32)
    content = pickle.dumps({"labels": [7, 300, 2], "data": images.reshape(3, -1)}, protocol=protocol)
    read = images_and_labels(Path("x"), content, "labels")
    assert np.array_equal(read[0], images) and read[1].tolist() == [7, 300, 2]


def test_cifar10_is_read_whole_and_channels_first(root, monkeypatch):
    images = put_cifar10(root, monkeypatch)
    train, test, info = data.load("cifar10", seed=0)
    assert np.array_equal(train.inputs, images[:5].reshape(100, 3, 32, 32)) and np.array_equal(test.inputs, images[5])
    assert train.labels.tolist() == list(range(10)) * 10 and info["counts"] == [10] * 10


def test_cifar100_takes_the_fine_labels(root, monkeypatch):
    folder = root / "cifar100" / "cifar-100-python"
    folder.mkdir(parents=True)
    known = []
    for name in ("train", "test"):
        coarse = b"".join(b"K" + bytes([k % 20]) for k in range(100))
        content = batch(pixels(100, 3, 32, 32), range(100), key=b"fine_labels")[:-2]
        content += short(b"coarse_labels") + b"]q\x0f(" + coarse + b"eu."
        assert pickle.loads(content, encoding="bytes")[b"coarse_labels"][21] == 1
        (folder / name).write_bytes(content)
        known.append({name: hashlib.md5(content).hexdigest()})
    monkeypatch.setitem(cifar.FILES, "cifar100", ("cifar-100-python", "fine_labels", *known))
    train, _, info = data.load("cifar100", seed=0)
    assert train.classes == 100 and train.labels.tolist() == list(range(100)) and info["shape"] == [3, 32, 32]


def test_torchvision_reads_the_same_files(torchvision, root, monkeypatch):
    from torchvision.datasets import CIFAR10

    images = put_cifar10(root, monkeypatch)
    _, _, known, test = cifar.FILES["cifar10"]
    monkeypatch.setattr(CIFAR10, "train_list", [list(pair) for pair in known.items()])
    monkeypatch.setattr(CIFAR10, "test_list", [list(pair) for pair in test.items()])
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    theirs = CIFAR10(str(root / "cifar10"), train=True)
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), images[:5].reshape(100, 3, 32, 32))
    assert theirs.targets == data.load("cifar10", seed=0)[0].labels.tolist()


def test_the_published_checksums_are_torchvisions(torchvision):
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        folder, _, train, test = cifar.FILES[name]
        assert folder == theirs.base_folder
        assert list(train.items()) == [tuple(pair) for pair in theirs.train_list]
        assert list(test.items()) == [tuple(pair) for pair in theirs.test_list]


class Evil:
    """Loading it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_in_a_cifar_file_is_run(root, monkeypatch, tmp_path):
    put_cifar10(root, monkeypatch)
    mark = tmp_path / "ran"
    evil = pickle.dumps({"x": Evil(str(mark)), "labels": [0] * 20, "data": pixels(20, PIXELS)}, protocol=2)
    file = root / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(evil)
    with pytest.raises(RequestError, match="data_batch_3 is not the published file"):
        data.load("cifar10", seed=0)
    folder, key, train, test = cifar.FILES["cifar10"]  # and even if somebody made the checksums agree
    train["data_batch_3"] = hashlib.md5(evil).hexdigest()
    monkeypatch.setitem(cifar.FILES, "cifar10", (folder, key, train, test))
    data.load("cifar10", seed=0)
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists()  # the attack is a real one


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a CIFAR batch"),
        (b"\x80\x02}q\x01.", "0 bytes of pixels for 0 labels"),
        (batch(pixels(4, 3, 32, 32), range(4))[:-40], "not a CIFAR batch"),
        (batch(pixels(4, 3, 32, 32), range(3)), "for 3 labels"),
        (pickle.dumps({"labels": [1], "data": "short"}, protocol=2), "0 bytes of pixels for 1 labels"),
    ],
)
def test_a_file_that_is_no_batch_is_one_line(content, words):
    with pytest.raises(RequestError, match=words) as caught:
        images_and_labels(Path("data_batch_1"), content, "labels")
    assert "\n" not in str(caught.value) and "fetch" in str(caught.value)


def test_a_missing_batch_names_its_file(root, monkeypatch):
    put_cifar10(root, monkeypatch)
    (root / "cifar10" / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(RequestError, match=r"test_batch cannot be read \(No such file"):
        data.load("cifar10", seed=0)


def test_an_archive_is_unpacked_whole_and_without_links(tmp_path):
    def pack(name, *members):
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as archive:
            for member, content in members:
                archive.addfile(member, io.BytesIO(content))
        return path

    file = tarfile.TarInfo("set/data")
    file.size = 3
    unpack(pack("good.tar.gz", (file, b"abc")), tmp_path, "set")
    assert (tmp_path / "set" / "data").read_bytes() == b"abc"
    link = tarfile.TarInfo("other/out")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(tarfile.FilterError):
        unpack(pack("bad.tar.gz", (link, b"")), tmp_path, "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar.gz", "good.tar.gz", "set"]


# --- MNIST, Fashion, SVHN, STL-10: torchvision reads the files -------------------------------------------------------


def idx(array):
    """The IDX format: two zero bytes, 8 for unsigned bytes, the number of axes, each length big-endian, the bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def put_idx(root, name, family, labels=range(10), side=28):
    folder = root / name / family / "raw"
    folder.mkdir(parents=True)
    images = pixels(2, 2 * len(labels), side, side)
    for i, part in enumerate(("train", "t10k")):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[i]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array([*labels, *labels], np.uint8)))
    return images


@pytest.mark.parametrize(("name", "family"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_idx_files(torchvision, root, name, family):
    images = put_idx(root, name, family)
    train, test, info = data.load(name, seed=0)
    assert np.array_equal(train.inputs[:, 0], images[0]) and np.array_equal(test.inputs[:, 0], images[1])
    assert train.labels.tolist() == [*range(10), *range(10)] and info["shape"] == [1, 28, 28]


@pytest.mark.parametrize(
    ("labels", "words"), [([*range(9), 10], "label 10 of sample 9 is out of range"), (range(9), "class 9 has no train sample")]
)
def test_wrong_labels_of_idx_files_are_one_line(torchvision, root, labels, words):
    put_idx(root, "mnist", "MNIST", labels)
    with pytest.raises(RequestError, match=f"^mnist: .*{words}"):
        data.load("mnist", seed=0)


def test_torn_idx_file_is_one_line(torchvision, root):
    put_idx(root, "mnist", "MNIST")
    file = root / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RequestError, match=r"mnist.*does not read.*fetch") as caught:
        data.load("mnist", seed=0)
    assert "\n" not in str(caught.value)


def test_svhn_matlab_files(torchvision, root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    (root / "svhn").mkdir()
    images = pixels(2, 32, 32, 3, 20)  # height, width, channel, sample
    labels = np.array([*range(1, 11)] * 2, np.uint8)[:, None]  # the digit 0 is written 10
    known = {}
    for part, image in zip(("train", "test"), images, strict=True):
        file = root / "svhn" / f"{part}_32x32.mat"
        savemat(file, {"X": image, "y": labels})
        known[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", known)
    train, _, _ = data.load("svhn", seed=0)
    assert np.array_equal(train.inputs, images[0].transpose(3, 2, 0, 1)) and train.labels[:10].tolist() == [*range(1, 10), 0]
    (root / "svhn" / "train_32x32.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(RequestError, match=r"svhn.*fetch"):
        data.load("svhn", seed=0)


def test_stl10_binary_files(torchvision, root, monkeypatch):
    from torchvision.datasets import STL10

    folder = root / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    images, labels = pixels(2, 10, 3, 96, 96), np.arange(1, 11, dtype=np.uint8)
    for part, image in zip(("train", "test"), images, strict=True):
        (folder / f"{part}_X.bin").write_bytes(image.transpose(0, 1, 3, 2).tobytes())  # column by column
        (folder / f"{part}_y.bin").write_bytes(labels.tobytes())
    known = {part: [[f"{part}_X.bin", None], [f"{part}_y.bin", None]] for part in ("train", "test")}
    monkeypatch.setattr(STL10, "train_list", known["train"])
    monkeypatch.setattr(STL10, "test_list", known["test"])
    (folder / "fold_indices.txt").write_text("")
    (folder / "class_names.txt").write_text("a\n")
    train, test, _ = data.load("stl10", seed=0)
    assert np.array_equal(train.inputs, images[0]) and np.array_equal(test.inputs, images[1])
    assert test.labels.tolist() == list(range(10))


# --- empirical data ------------------------------------------------------------------------------------------------


def rows_of(*arguments):
    result = CliRunner().invoke(commands, [*arguments, "--json"], standalone_mode=False)
    return json.loads(result.stdout), result


def test_the_list_tells_what_is_here_from_what_is_broken(root, monkeypatch):
    monkeypatch.setattr("empirical.commands.data.DATASETS", {n: data.DATASETS[n] for n in ("digits", "cifar10", "cifar100")})
    put_cifar10(root, monkeypatch)
    (root / "cifar10" / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"torn")
    rows, _ = rows_of("list")
    assert [row["state"] for row in rows] == ["present", "does not read", "not here"]
    assert rows[2]["get it"] == "empirical data fetch cifar100" and all(row["licence"] for row in rows)
    rows, result = rows_of("check")
    assert [row["name"] for row in rows] == ["digits", "cifar10"] and result.return_value == 1
    assert "data_batch_2 is not the published file" in result.stderr


def test_check_compares_with_the_published_files(torchvision, root, monkeypatch):
    from torchvision.datasets import MNIST

    put_cifar10(root, monkeypatch)
    put_idx(root, "mnist", "MNIST")
    raw = root / "mnist" / "MNIST" / "raw"
    files = sorted(raw.iterdir())
    assert [row["files"] for row in rows_of("check", "mnist", "cifar10")[0]] == ["not known: no archive", "as published"]
    for file in files:
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    known = [(f"{f.name}.gz", hashlib.md5((raw / f"{f.name}.gz").read_bytes()).hexdigest()) for f in files]
    monkeypatch.setattr(MNIST, "resources", known)
    ((row,), _) = rows_of("check", "mnist")
    assert row["files"] == "as published" and len(row["digest"]) == 64
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    files[0].write_bytes(content)
    ((row,), result) = rows_of("check", "mnist")
    assert result.return_value == 1 and f"{files[0].name} is not the published file" in row["reason"]


def test_fetching_cifar_unpacks_and_loads_nothing(torchvision, root, monkeypatch):
    """The download is replaced by one that writes a small archive; the rest is what a user gets."""
    from torchvision.datasets import utils

    images = put_cifar10(root, monkeypatch)
    folder = root / "cifar10" / "cifar-10-batches-py"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, md5))
        (Path(root) / filename).write_bytes(packed.getvalue())

    monkeypatch.setattr(utils, "download_url", download_url)
    monkeypatch.setattr(pickle, "load", None)
    result = CliRunner().invoke(commands, ["fetch", "cifar10"])
    assert result.exit_code == 0 and "licence: not stated" in result.stderr
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")]
    assert np.array_equal(data.load("cifar10", seed=0)[1].inputs, images[5])


def test_a_fetch_that_fails_is_one_line(torchvision, root, monkeypatch):
    from torchvision.datasets import utils

    def download_url(*arguments):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(utils, "download_url", download_url)
    with pytest.raises(RequestError, match=r"could not be fetched .*by hand$"):
        CliRunner().invoke(commands, ["fetch", "cifar100"], catch_exceptions=False, standalone_mode=False)
