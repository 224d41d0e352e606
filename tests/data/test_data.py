"""Sources, verification, cache and the held-out split of `fmnist.data`.

Most tests use a tiny data set with the same file names. For it they replace the table of sizes and
checksums.
"""

import functools
import gzip
import hashlib
import http.server
import json
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist.data import fashion_mnist, sources

REAL_FILES, FROM_MIRROR, FROM_ARCHIVE = (
    fashion_mnist._FILES,
    sources._from_mirror,
    sources._from_archive,
)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = (file.name for file in REAL_FILES)


def idx(array):
    """The bytes of an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


def tiny_contents(train=40, test=20):
    generator = torch.Generator().manual_seed(0)
    arrays = []
    for count in (train, test):
        arrays.append(torch.randint(256, (count, 28, 28), generator=generator))
        arrays.append(torch.arange(count) % 10)
    return {file.name: idx(array) for file, array in zip(REAL_FILES, arrays, strict=True)}


def table(contents):
    """Return a table that makes ``contents`` the official data."""
    files = []
    for name, content in contents.items():
        dimensions = content[3]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        files.append(fashion_mnist._File(name, shape, hashlib.sha256(content).hexdigest()))
    return tuple(files)


def put(folder, contents, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return folder


TINY = tiny_contents()
TINY_FILES = table(TINY)


@pytest.fixture(scope="session")
def real():
    """The real data, from any source."""
    try:
        return fashion_mnist.load()
    except fashion_mnist.DataError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No source is available: the cache is empty, and there is no package or network."""

    def unreachable(scratch):
        raise sources.AbsentError("not in this test")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    monkeypatch.setattr(sources, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(sources, "_from_mirror", unreachable)
    monkeypatch.setattr(sources, "_from_archive", unreachable)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(fashion_mnist, "_FILES", TINY_FILES)
    packed = {n: gzip.compress(content, mtime=0) for n, content in TINY.items()}
    sums = {n: hashlib.sha256(content).hexdigest() for n, content in packed.items()}
    monkeypatch.setattr(sources, "PACKED_SHA256", sums)
    return dict(TINY)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "home" / "fmnist"


def assert_tiny(dataset):
    for split, images, labels in (
        (dataset.train, TRAIN_IMAGES, TRAIN_LABELS),
        (dataset.test, TEST_IMAGES, TEST_LABELS),
    ):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert split.images.shape[1:] == (1, 28, 28)
        assert idx(split.images[:, 0]) == TINY[images]
        assert idx(split.labels) == TINY[labels]


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# The real data


def test_shapes_and_labels_of_the_real_data(real):
    assert real.train.images.shape == (60_000, 1, 28, 28)
    assert real.test.images.shape == (10_000, 1, 28, 28)
    assert real.train.images.dtype == torch.uint8
    assert real.train.labels.dtype == torch.int64
    assert real.train.labels.bincount().tolist() == [6_000] * 10
    assert real.test.labels.bincount().tolist() == [1_000] * 10
    assert [fashion_mnist.CLASS_NAMES[i] for i in real.test.labels[:3]] == [
        "Ankle boot",
        "Pullover",
        "Trouser",
    ]
    assert real.source


def test_class_names_equal_those_of_torchvision():
    from torchvision.datasets import FashionMNIST

    assert list(fashion_mnist.CLASS_NAMES) == FashionMNIST.classes


# Sources


@pytest.mark.parametrize("packed", [False, True])
def test_data_in_a_named_folder_is_loaded_and_cached(tiny, tmp_path, packed, cache):
    folder = put(tmp_path / "named", tiny, packed)
    dataset = fashion_mnist.load(folder)
    assert_tiny(dataset)
    assert str(folder) in dataset.source
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == tiny


def test_data_in_a_folder_named_by_the_environment_is_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FMNIST_DATA", str(put(tmp_path / "named", tiny)))
    put(tmp_path / "debian", tiny)
    assert "named" in fashion_mnist.load().source
    with pytest.raises(fashion_mnist.DataError, match="elsewhere is no folder"):
        fashion_mnist.load(str(tmp_path / "elsewhere"))


def test_only_the_named_folder_is_tried(tiny, tmp_path):
    put(tmp_path / "debian", tiny)
    with pytest.raises(fashion_mnist.DataError) as caught:
        fashion_mnist.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} has neither {TRAIN_IMAGES} nor {TRAIN_IMAGES}.gz; ")
    assert "\n" not in message


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("spelling", ["idx-", "idx.", "upper"])
def test_usual_layouts_and_spellings_are_found(tiny, tmp_path, packed, place, spelling):
    """Torchvision has two folders around the files, and others name them ``.idx3-ubyte``."""
    folder = put(tmp_path / "data" / place, TINY, packed)
    for path in list(folder.iterdir()):
        name = path.name.replace("-idx", ".idx") if spelling == "idx." else path.name
        path.rename(folder / (name.upper() if spelling == "upper" else name))
    assert_tiny(fashion_mnist.load(tmp_path / "data"))


def test_the_official_name_comes_first_and_others_are_verified_too(tiny, tmp_path):
    put(tmp_path, {name.replace("-idx", ".idx"): b"other" for name in TINY})
    with pytest.raises(fashion_mnist.DataError, match=r"train-images\.idx3-ubyte is truncated"):
        fashion_mnist.load(tmp_path)
    put(tmp_path, TINY)
    assert_tiny(fashion_mnist.load(tmp_path))


def test_home_folder_is_expanded(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "mine", TINY)
    assert_tiny(fashion_mnist.load("~/mine"))
    monkeypatch.setenv("FMNIST_DATA", "~/mine")
    assert_tiny(fashion_mnist.load())
    with pytest.raises(fashion_mnist.DataError, match="home"):
        fashion_mnist.load("~nobody-of-this-name/mine")


def test_data_of_the_debian_package_is_cached(tiny, tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, "fmnist")
    debian = put(tmp_path / "debian", tiny, packed=True)
    assert fashion_mnist.load().source == "Debian package"
    assert "data: using Debian package" in caplog.messages
    shutil.rmtree(debian)
    dataset = fashion_mnist.load()
    assert dataset.source == "cache"
    assert_tiny(dataset)
    assert sorted(path.name for path in cache.iterdir()) == sorted(tiny)
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "folder", "missing"])
def test_a_damaged_cache_is_replaced(tiny, tmp_path, cache, caplog, damage):
    put(cache, tiny)
    put(tmp_path / "debian", tiny)
    path = cache / TRAIN_LABELS
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        content = tiny[TRAIN_LABELS]
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"\1")
    assert_tiny(fashion_mnist.load())
    warnings = warnings_of(caplog)
    if damage == "folder":  # a folder is not removed
        assert len(warnings) == 2
        assert "not cached" in warnings[1]
    else:
        assert path.read_bytes() == tiny[TRAIN_LABELS]
        assert len(warnings) == (damage != "missing")  # a missing file is not damage
    assert all(TRAIN_LABELS in warning and "\n" not in warning for warning in warnings)


def test_message_lists_every_source_that_failed(tiny, tmp_path, cache):
    put(tmp_path / "debian", {TRAIN_IMAGES: b"no images"})
    with pytest.raises(fashion_mnist.DataError) as caught:
        fashion_mnist.load()
    assert str(caught.value).split("\n") == [
        "Fashion-MNIST could not be had from any source:",
        f"  cache: {cache} is no folder",
        f"  Debian package: {tmp_path / 'debian' / TRAIN_IMAGES} is truncated: "
        "it should have 31,376 bytes of data",
        "  official mirror through torchvision: not in this test",
        "  Debian archive through apt: not in this test",
        "Put the four IDX files into a folder and name it with --data or FMNIST_DATA.",
    ]


# Verification


def damage_cases():
    zipped = {name: gzip.compress(content) for name, content in TINY.items()}
    images, labels = TINY[TRAIN_IMAGES], TINY[TRAIN_LABELS]
    return {
        "truncated": (TRAIN_IMAGES, images[:-7], "is truncated: it should have 31,376 bytes"),
        "empty": (TEST_LABELS, b"", "is truncated"),
        "too long": (TRAIN_LABELS, labels + b"\0", "is too long: it should have 48 bytes"),
        "flipped": (TRAIN_LABELS, labels[:-1] + b"\0", "is damaged or of another data set: SHA"),
        "splits swapped": (TRAIN_IMAGES, TINY[TEST_IMAGES], f"holds {TEST_IMAGES}: .* swapped"),
        "splits swapped back": (TEST_IMAGES, images, f"holds {TRAIN_IMAGES}: .* swapped"),
        "labels for images": (TRAIN_IMAGES, labels, f"holds {TRAIN_LABELS}: .* swapped"),
        "no gzip": (f"{TRAIN_IMAGES}.gz", images, "is truncated or damaged: Not a gzipped file"),
        "gzip cut": (f"{TRAIN_IMAGES}.gz", zipped[TRAIN_IMAGES][:-9], "is truncated or damaged"),
        "gzip sum": (f"{TEST_LABELS}.gz", zipped[TEST_LABELS][:-8] + bytes(8), "CRC check failed"),
        "gzip swapped": (f"{TEST_LABELS}.gz", zipped[TRAIN_LABELS], f"holds {TRAIN_LABELS}"),
        "missing": (TEST_LABELS, None, f"has neither {TEST_LABELS} nor {TEST_LABELS}.gz"),
        "folder": (TEST_LABELS, Path, f"{TEST_LABELS} is not a regular file"),
        "folder.gz": (f"{TEST_LABELS}.gz", Path, f"{TEST_LABELS}.gz is not a regular file"),
    }


@pytest.mark.parametrize("case", damage_cases())
def test_a_bad_file_gives_one_line(tiny, tmp_path, cache, case):
    name, content, expected = damage_cases()[case]
    folder = put(tmp_path / "named", tiny)
    (folder / name.removesuffix(".gz")).unlink()
    if content is Path:
        (folder / name).mkdir()
    elif content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(fashion_mnist.DataError, match=expected) as caught:
        fashion_mnist.load(folder)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert message.endswith("correct that, or leave out --data and FMNIST_DATA to have it fetched")
    assert not cache.exists()  # a bad folder is not cached


def test_files_without_the_official_checksum_are_refused(tmp_path):
    """Files of the right shape and size with other content are refused."""
    contents = {file.name: bytes(file.size) for file in REAL_FILES[-2:]}
    for file in REAL_FILES[-2:]:
        with pytest.raises(fashion_mnist.DataError, match="is damaged or of another data set"):
            fashion_mnist._read(put(tmp_path / "named", contents), file)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_malformed_file_is_refused_in_one_line(draws):
    """Any damage gives the official content or one line."""
    file = draws.draw(st.sampled_from([TINY_FILES[1], TINY_FILES[2]]))
    packed = draws.draw(st.booleans())
    content = TINY[file.name]
    raw = bytearray(gzip.compress(content, mtime=0) if packed else content)
    if draws.draw(st.booleans()):
        del raw[draws.draw(st.integers(0, len(raw))) :]
    for place in draws.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)) if raw else ():
        raw[place] ^= draws.draw(st.integers(1, 255))
    raw += draws.draw(st.binary(max_size=20))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "_FILES", TINY_FILES)
        path = Path(name, file.name + ".gz" * packed)
        path.write_bytes(raw)
        try:
            read = fashion_mnist._read(Path(name), file)
        except fashion_mnist.DataError as error:
            message = str(error)
        else:
            message = f"{path} is good"
            assert read == content
    assert str(path) in message
    assert "\n" not in message


def test_a_gzip_bomb_is_not_unpacked(tiny, tmp_path):
    folder = put(tmp_path / "named", tiny, packed=True)
    (folder / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(bytes(30_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(fashion_mnist.DataError, match="is too long"):
            fashion_mnist.load(folder)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        (TEST_LABELS, torch.full((20,), 10), "has a label 10; they go from 0 to 9"),
        (TEST_LABELS, torch.zeros(21), r"has the shape \(21,\), not \(20,\)"),
        (TRAIN_IMAGES, torch.zeros(40, 14, 56), r"has the shape \(40, 14, 56\), not"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(monkeypatch, tmp_path, name, array, expected):
    contents = TINY | {name: idx(array)}
    sums = [file.sha256 for file in table(contents)]
    files = [file._replace(sha256=sums[i]) for i, file in enumerate(TINY_FILES)]
    monkeypatch.setattr(fashion_mnist, "_FILES", tuple(files))
    with pytest.raises(fashion_mnist.DataError, match=expected):
        fashion_mnist.load(put(tmp_path / "named", contents))


# The cache


def test_an_interrupted_write_leaves_nothing(tiny, tmp_path, cache, monkeypatch, caplog):
    def interrupted(handle):
        raise KeyboardInterrupt

    def full(handle):
        raise OSError(28, "No space left on device")

    put(tmp_path / "debian", tiny)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fashion_mnist.load()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(os, "fsync", full)
    assert_tiny(fashion_mnist.load())
    assert "data: not cached: [Errno 28] No space left on device" in warnings_of(caplog)
    assert list(cache.iterdir()) == []


def test_remains_of_a_killed_process_are_removed(tiny, tmp_path, cache):
    put(tmp_path / "debian", tiny)
    for name, age in (("old", 7_200), ("new", 60)):
        put(cache / f".new-{name}", {TRAIN_IMAGES: b"half"})
        os.utime(cache / f".new-{name}", (time.time() - age,) * 2)
    fashion_mnist.load()
    assert sorted(path.name for path in cache.iterdir()) == sorted([".new-new", *tiny])


@pytest.mark.parametrize("obstacle", ["home", "home/fmnist"])
def test_data_is_loaded_if_the_cache_cannot_be_written(tiny, tmp_path, caplog, obstacle):
    """A file in place of the folder, as permissions do not stop root."""
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("in the way")
    put(tmp_path / "debian", tiny)
    assert_tiny(fashion_mnist.load())
    assert len(warnings_of(caplog)) == 1
    assert warnings_of(caplog)[0].startswith("data: not cached: ")
    assert (tmp_path / obstacle).read_text() == "in the way"


def test_data_is_loaded_for_a_user_without_a_home(tiny, tmp_path, monkeypatch):
    def homeless(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    put(tmp_path / "debian", tiny)
    assert_tiny(fashion_mnist.load())


RACER = """
import json, logging, os, sys, time
from pathlib import Path
from fmnist.data import fashion_mnist as data, sources
import torchvision.datasets.mnist

def unreachable(scratch):
    raise data.DataError("not in this test")

shared, rounds = Path(sys.argv[1]), int(sys.argv[2])
data._FILES = tuple(data._File(n, tuple(s), h) for n, s, h in json.loads(sys.argv[3]))
sources.DEBIAN_FOLDER = shared / "debian"
sources._from_mirror = sources._from_archive = unreachable
logging.basicConfig(level=logging.WARNING)
for i in range(rounds):
    os.environ["XDG_CACHE_HOME"] = str(shared / f"home{i}")
    (shared / f"child{i}").touch()
    while not (shared / f"parent{i}").exists():
        time.sleep(0.0002)
    dataset = data.load()
    print(int(dataset.train.images.sum()), int(dataset.test.labels.sum()))
"""


def test_two_processes_can_fetch_at_once(tiny, tmp_path, monkeypatch, caplog):
    """A child and this process start each round at the same time with an empty cache."""
    rounds = 20
    put(tmp_path / "debian", tiny, packed=True)
    command = [sys.executable, "-c", RACER, str(tmp_path), str(rounds), json.dumps(TINY_FILES)]
    environ = os.environ | {"PYTHONPATH": str(Path(fashion_mnist.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, **pipes) as child:
        try:
            for i in range(rounds):
                while not (tmp_path / f"child{i}").exists():
                    assert child.poll() is None, child.stderr.read()
                    time.sleep(0.0002)
                monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"home{i}"))
                (tmp_path / f"parent{i}").touch()
                assert_tiny(fashion_mnist.load())
            output = child.communicate(timeout=60)
        finally:
            child.kill()
    images, labels = sum(TINY[TRAIN_IMAGES][16:]), sum(TINY[TEST_LABELS][8:])
    assert output == (f"{images} {labels}\n" * rounds, "")
    assert warnings_of(caplog) == []
    for i in range(rounds):
        found = {path.name: path.read_bytes() for path in (tmp_path / f"home{i}/fmnist").iterdir()}
        assert found == tiny


# The mirror


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tiny, tmp_path, monkeypatch):
    """A local server of the tiny files in place of the official one."""
    from torchvision.datasets import FashionMNIST

    folder = put(tmp_path / "served", tiny, packed=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(sources, "_from_mirror", FROM_MIRROR)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_data_is_fetched_from_the_mirror(mirror, capfd):
    dataset = fashion_mnist.load()
    assert_tiny(dataset)
    assert dataset.source == "official mirror through torchvision"
    assert capfd.readouterr() == ("", "")  # no progress bars
    assert fashion_mnist.load().source == "cache"


def test_mirror_with_a_wrong_file_is_refused(mirror, cache):
    (mirror / f"{TEST_LABELS}.gz").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(fashion_mnist.DataError, match=r"t10k-labels.*gz came with SHA-256"):
        fashion_mnist.load()
    assert not cache.exists()


def test_file_with_a_wrong_checksum_is_not_unpacked(mirror, monkeypatch):
    """The content is right, but the downloaded file has another checksum."""
    path = mirror / f"{TEST_LABELS}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
    monkeypatch.setattr(fashion_mnist.gzip, "open", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(fashion_mnist.DataError, match="came with SHA-256"):
        fashion_mnist.load()


def test_mirror_that_does_not_answer_times_out(tiny, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "_from_mirror", FROM_MIRROR)
    monkeypatch.setattr(sources, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(FashionMNIST, "mirrors", [url])
        start = time.monotonic()
        with pytest.raises(fashion_mnist.DataError, match=f"no answer from {url}"):
            fashion_mnist.load()
        assert time.monotonic() - start < 2
        monkeypatch.setattr(
            sources, "_answers", lambda url: True
        )  # and one that falls silent later
        with pytest.raises(fashion_mnist.DataError, match=r"download failed: .*timed out"):
            fashion_mnist.load()
    assert socket.getdefaulttimeout() is None


# Debian's archive


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")
def test_data_is_fetched_from_the_debian_archive(tmp_path):
    try:
        FROM_ARCHIVE(tmp_path)
    except sources.AbsentError as error:
        pytest.skip(f"apt cannot reach an archive with the package: {error}")
    for file in REAL_FILES:
        assert len(fashion_mnist._read(tmp_path, file)) == file.size


def test_machine_without_apt_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fashion_mnist.DataError, match="this machine has no apt-get"):
        FROM_ARCHIVE(tmp_path)


def test_output_and_warnings_of_a_command_are_separate(tmp_path):
    (tmp_path / "warns").write_text("#!/bin/sh\necho 'W: old' >&2; echo out; exit $1")
    (tmp_path / "warns").chmod(0o755)
    command, out = str(tmp_path / "warns"), tmp_path / "out"
    assert sources._run([command, "0"], tmp_path, out) == (True, "W: old")
    assert out.read_text() == "out\n"
    assert sources._run([command, "3"], tmp_path) == (False, "W: old")


def test_failing_and_hanging_apt_are_reported(tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "apt-get"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    tool.write_text(
        '#!/bin/sh\necho "E: no luck with $(echo $* | sed s/.*=[0-9]*.//)\nmore" >&2; exit 100'
    )
    tool.chmod(0o755)
    with pytest.raises(fashion_mnist.DataError) as caught:
        FROM_ARCHIVE(tmp_path / "first")
    assert (
        str(caught.value)
        == "E: no luck with download dataset-fashion-mnist; E: no luck with update"
    )
    monkeypatch.setattr(sources, "_APT_SECONDS", 0.1)
    tool.write_text("#!/bin/sh\nexec sleep 5")
    with pytest.raises(fashion_mnist.DataError, match=r"apt-get took more than 0.1 s"):
        FROM_ARCHIVE(tmp_path / "second")


# The held-out split


def split_of(labels):
    """A split whose images encode their index."""
    images = torch.zeros(len(labels), 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    return fashion_mnist.Split(images, torch.tensor(labels, dtype=torch.int64))


def indices(split):
    return (split.images[:, 0, 0, 0].long() + 256 * split.images[:, 0, 0, 1].long()).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=300), st.data())
def test_holdout_split_is_stratified_and_complete(labels, draws):
    train = split_of(labels)
    holdout = draws.draw(st.integers(0, len(labels) - 1))
    kept, held = fashion_mnist.holdout_split(train, holdout)
    assert len(held.labels) == len(held.images) == holdout
    for part in (kept, held):
        assert indices(part) == sorted(indices(part))  # the order of the file
        assert torch.equal(part.labels, train.labels[indices(part)])
    assert sorted(indices(kept) + indices(held)) == list(range(len(labels)))
    for label in range(10):
        exact = holdout * labels.count(label) / len(labels)
        assert abs(int((held.labels == label).sum()) - exact) < 1
    again = fashion_mnist.holdout_split(train, holdout)
    assert torch.equal(again[1].images, held.images)


def test_holdout_split_is_always_the_same():
    """The split does not depend on the global random state, the study or the version of torch."""
    train = split_of(list(range(10)) * 10)
    state = torch.get_rng_state()
    _, held = fashion_mnist.holdout_split(train, 10)
    assert indices(held) == [3, 5, 6, 14, 20, 27, 48, 62, 81, 99]
    assert torch.equal(torch.get_rng_state(), state)


def test_holdout_split_of_the_real_data(real):
    kept, held = fashion_mnist.holdout_split(real.train, 5_000)
    assert held.labels.bincount().tolist() == [500] * 10
    assert kept.labels.bincount().tolist() == [5_500] * 10
    assert hashlib.sha256(held.images.numpy()).hexdigest()[:16] == "19b89628a83bfbd6"
    uneven = fashion_mnist.holdout_split(real.train, 5_003)[1].labels.bincount().tolist()
    assert uneven == [501] * 3 + [500] * 7


def test_holdout_of_0_keeps_all_examples():
    train = split_of([3, 1, 2])
    kept, held = fashion_mnist.holdout_split(train, 0)
    assert torch.equal(kept.images, train.images)
    assert torch.equal(kept.labels, train.labels)
    assert held.images.shape == (0, 1, 28, 28)
    assert held.labels.shape == (0,)


@pytest.mark.parametrize("holdout", [-1, 3, 4])
def test_bad_holdout_is_refused(holdout):
    with pytest.raises(ValueError, match=f"holdout must be from 0 to 2, not {holdout}"):
        fashion_mnist.holdout_split(split_of([3, 1, 2]), holdout)
