"""The kinds of input that ``fuzz.py`` tries, and the code that reads each kind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import logging
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import bad_input
import torch
from bad_input import Input, damaged

from fmnist.config import loading
from fmnist.config import study as studies
from fmnist.data import fashion_mnist
from fmnist.inference import pictures, reader, thumbnails, trained
from fmnist.predict import command as predict
from fmnist.rundir import files, lock, models
from fmnist.rundir.snapshots import Generations
from fmnist.utils.errors import UserError


class Place:
    """The current folder, the only one that inputs may write to. The folder around it is watched.

    Args:
        around: the watched folder.

    Attributes:
        before: the content of the watched folder at the beginning.
        resident: the resident memory after freed memory was last returned.
        temporary: the folder for temporary files. None may remain.
    """

    def __init__(self, around: Path) -> None:
        self.around, self.scratch = around, around / "a" / "b"
        self.scratch.mkdir(parents=True)
        self.run = self.scratch / "run"
        self.files = bad_input.run_files()
        self.files["best/params.safetensors"] = bad_input.parameters()
        for number in (0, 1):
            self.files[f"parameters/{number}.safetensors"] = bad_input.parameters()
        for name, content in self.files.items():
            self.write(self.run / name, content)
        self.picture = self.write(self.scratch / "x.png", bad_input.pictures()[0])
        self.temporary = around / "temporary"
        self.temporary.mkdir()
        self.before = self.outside()
        self.resident = 0

    def outside(self) -> set[str]:
        """Return the content of the watched folder, at any depth."""
        found = (path for path in self.around.rglob("*") if self.scratch not in path.parents)
        return {str(path) for path in found}

    @staticmethod
    def write(path: Path, content: bytes) -> Path:
        """Write a file with this content."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


# The readers of the kinds. An input is accepted if its reader does not raise.


def study_file(content: bytes, place: Place, chance: random.Random) -> None:
    """Read a study file and start its run as the command does."""
    begin(loading.load_study(place.write(place.scratch / "study.toml", content)))


def overrides(content: bytes, place: Place, chance: random.Random) -> None:
    """Use each line as a ``--set``."""
    begin(loading.load_study(overrides=content.decode("utf-8", "surrogateescape").split("\n")))


def begin(study: studies.StudyConfig) -> None:
    """Take the folder of a study and read it."""
    out = Path("runs") / study.name
    with lock.holding(out):
        files.write_text(out / "study.toml", study.to_toml())
        assert not loading.differences(loading.load_study(out / "study.toml"), study)
        study.trial(next(study.points()))
    assert out.resolve().parent == Path("runs").resolve(), f"the study is in {out.resolve()}"
    shutil.rmtree("runs")


def idx(content: bytes, place: Place, chance: random.Random) -> None:
    """Load a data set with this content in one file. The content may begin with the file's name.

    In half of the cases the table has its checksum, so that its header is read.
    """
    name = next((n for n in IDX if content.startswith(n.encode())), "")
    content, name = content[len(name) :], name or chance.choice(list(IDX))
    packed = content[:3] == b"\x1f\x8b\x08"
    believed = not packed and chance.random() < 0.5
    known = IDX | {name: content} if believed else IDX
    table = [
        fashion_mnist._File(each, shape_of(whole), hashlib.sha256(known[each]).hexdigest())
        for each, whole in IDX.items()
    ]
    folder = place.scratch / "data"
    for each, whole in IDX.items():
        if each != name:
            place.write(folder / each, whole)
    place.write(folder / (f"{name}.gz" if packed else name), content)
    cache = {"XDG_CACHE_HOME": str(place.scratch / "cache")}
    try:
        with (
            mock.patch.object(fashion_mnist, "_FILES", tuple(table)),
            mock.patch.dict(os.environ, cache),
        ):
            found = fashion_mnist.load(folder)
    finally:
        shutil.rmtree(folder)
    assert (len(found.train.images), len(found.test.labels)) == (40, 20)
    train = IDX["train-images-idx3-ubyte"][16:]
    assert believed or found.train.images.numpy().tobytes() == train


def shape_of(content: bytes) -> tuple[int, ...]:
    """Return the shape in the header of an IDX file."""
    return struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])


def picture(content: bytes, place: Place, chance: random.Random) -> None:
    """Read a picture."""
    path = place.write(place.scratch / "picture", content)
    found = pictures.read(path, chance.choice(["yes", "no", "auto"]), thumbnail=True)
    assert found.pixels.shape == (28, 28)
    assert found.thumbnail is not None
    assert max(found.thumbnail.shape) <= thumbnails.SIDE


def parameters(content: bytes, place: Place, chance: random.Random) -> None:
    """Predict with these parameters."""
    with replaced(place, "best/params.safetensors", content):
        best = trained.best_model(place.run)
        models.load_model(best.path, best.model)
        command(["--run", str(place.run), str(place.picture)])


def run(content: bytes, place: Place, chance: random.Random) -> None:
    """Predict with this content in another file of a run. It may begin with the file's name."""
    names = list(bad_input.run_files())
    name = next((n for n in names if content.startswith(n.encode())), "")
    content = content[len(name) :]
    with replaced(place, name or chance.choice(names), content):
        trained.best_model(place.run)
        command(["--run", str(place.run), str(place.picture), "--ensemble"])


def path(content: bytes, place: Place, chance: random.Random) -> None:
    """Use this as the name of files and folders."""
    name = content.decode("utf-8", "surrogateescape")
    folder = Path(name)
    readers: list[Callable[[], object]] = [
        lambda: loading.load_study(name),
        lambda: pictures.read(folder),
        lambda: trained.best_model(folder),
        lambda: trained.complete_models(folder),
        lambda: models.load_model(folder),
        lambda: fashion_mnist.load(folder),
        lambda: command(["--run", str(place.run), f"./{name}" if name.startswith("-") else name]),
    ]
    chance.choice(readers)()


def generation(content: bytes, place: Place, chance: random.Random) -> None:
    """Damage a file or two of two snapshots. An undamaged snapshot must be found."""
    folder = place.scratch / "generations"
    hit = chance.sample(range(4), chance.choice([1, 1, 2, 3]))
    for i, (name, whole) in enumerate(SNAPSHOTS.items()):
        own = content if i == hit[0] else damaged(whole, [content], chance)
        place.write(folder / name, own if i in hit else whole)
    if chance.random() < 0.3:
        place.write(folder / chance.choice(STRAYS), content)
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("fmnist.rundir.snapshots")
    logger.addHandler(handler)
    try:
        found = Generations(folder).load()
    finally:
        logger.removeHandler(handler)
        shutil.rmtree(folder)
    assert all(line.isprintable() for line in said.getvalue().removesuffix("\n").split("\n"))
    about = {i: {"epoch": i} for i in (0, 1)}
    if found is None:
        assert {0, 1} & set(hit), "the older one is whole"
        raise UserError("there is none")
    assert found.about in about.values(), "what was found was never kept"
    if found.about == about[0]:
        assert {2, 3} & set(hit), "the newer one is whole"
    assert sorted(found.tensors) == sorted(bad_input.SNAPSHOT)
    for key, tensor in bad_input.SNAPSHOT.items():
        assert torch.equal(found.tensors[key], tensor)


def forged(content: bytes, place: Place, chance: random.Random) -> None:
    """Read a snapshot of any content with right checksums. It is used or refused."""
    folder = place.scratch / "generations"
    half = chance.random() < 0.5
    about = {"about": content.decode("latin-1"), "sha256": hashlib.sha256(content).hexdigest()}
    check = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    place.write(folder / "00000000.safetensors", content)
    text = json.dumps(about | {"check": check}).encode() if half else content
    place.write(folder / "00000000.json", text)
    try:
        if Generations(folder).load() is None:
            raise UserError("there is none")
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def replaced(place: Place, name: str, content: bytes) -> Iterator[None]:
    """Run again with another file in place of one."""
    place.write(place.run / name, content)
    try:
        yield
    finally:
        place.write(place.run / name, place.files[name])


class InProcess(contextlib.AbstractContextManager["InProcess"]):
    """Reads pictures in this process, where time and memory are measured."""

    read = staticmethod(pictures.read)

    def __exit__(self, *_: object) -> None:
        pass


def command(argv: list[str]) -> None:
    """Run ``fmnist.predict``. Each error is one line."""
    out, err = io.StringIO(), io.StringIO()
    here = mock.patch.object(reader, "Reader", InProcess)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), here:
        status = predict.main(argv)
    for text in (out.getvalue(), err.getvalue()):
        assert all(line.isprintable() for line in text.removesuffix("\n").split("\n")), text[:300]
    assert (status, bool(err.getvalue())) in ((0, False), (2, True))
    if status:
        raise UserError(err.getvalue().removesuffix("\n"))


# The kinds: attacks and generators of random input


def snapshots() -> dict[str, bytes]:
    """Return the four files of two snapshots."""
    with tempfile.TemporaryDirectory() as name:
        kept = Generations(Path(name))
        for epoch in (0, 1):
            kept.save(bad_input.SNAPSHOT, {"epoch": epoch})
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


STRAYS = [
    "00000002.json",
    "x.json",
    "٣.json",
    "²x.json",
    f"{'9' * 200}.json",
    ".00000001.json.part",
]
"""Names of files beside the snapshots that are not snapshots."""
IDX = bad_input.idx_files()
SNAPSHOTS = snapshots()
PARAMETERS = bad_input.parameters()


def names(place: Place) -> list[str]:
    """Names that lead to other folders."""
    return [
        *bad_input.NAMES,
        str(place.around / "absolute"),
        "../" * 9 + str(place.around)[1:] + "/x",
    ]


class Kind(NamedTuple):
    """The function that reads an input, valid inputs, attacks, and a generator of random ones."""

    test: Callable[[bytes, Place, random.Random], None]
    valid: list[bytes]
    attacks: Callable[[], Iterator[Input]]
    make: Callable[[list[bytes], random.Random], bytes]


def kinds(place: Place) -> dict[str, Kind]:
    """Return all kinds of input, by name."""

    def damage(make: Callable[[bytes, random.Random], bytes] | None = None) -> Callable:
        def made(valid: list[bytes], chance: random.Random) -> bytes:
            content = damaged(chance.choice(valid), valid, chance)
            return make(content, chance) if make else content

        return made

    def some(make: Callable[[random.Random], bytes]) -> Callable:
        def made(valid: list[bytes], chance: random.Random) -> bytes:
            content = make(chance) if chance.random() < 0.5 else chance.choice(valid)
            return content if chance.random() < 0.4 else damaged(content, valid, chance)

        return made

    def mend(content: bytes, chance: random.Random) -> bytes:
        is_png = content[:4] == b"\x89PNG" and chance.random() < 0.7
        return bad_input.mended(content) if is_png else content

    def relabel(content: bytes, chance: random.Random) -> bytes:
        return bad_input.relabelled(content) if chance.random() < 0.5 else content

    def nothing() -> Iterator[Input]:
        return iter(())

    def small() -> Iterator[Input]:
        # Half a million tensors with a right checksum are not damage.
        return (attack for attack in bad_input.parameter_attacks() if len(attack[1]) < 10**6)

    b = bad_input
    words = [name.encode("utf-8", "surrogateescape") for name in names(place)]
    words += [
        b"run",
        b"x.png",
        b"/dev/zero",
        b"/dev/null",
        b"run/best/params.safetensors",
        b"/proc",
    ]
    files = [name.encode() + content for name, content in b.run_files().items()]
    idx_files = [name.encode() + content for name, content in IDX.items()]
    idx_files += [name.encode() + gzip.compress(content, mtime=0) for name, content in IDX.items()]
    whole = [*SNAPSHOTS.values(), PARAMETERS]
    studies = some(lambda chance: b.study_file(chance, names(place)))
    sets = [
        b"seed=0,1",
        b"channels=12-24,6",
        b"epochs=3\nhidden=none",
        b"algorithm=sgd\nmomentum=.9",
    ]
    return {
        "study": Kind(study_file, b.study_files(), b.study_attacks, studies),
        "--set": Kind(overrides, sets, b.override_attacks, some(b.override)),
        "IDX": Kind(idx, idx_files, b.idx_attacks, damage()),
        "picture": Kind(picture, b.pictures(), b.picture_attacks, damage(mend)),
        "parameters": Kind(parameters, [PARAMETERS], b.parameter_attacks, damage(relabel)),
        "run": Kind(run, files, b.run_attacks, damage()),
        "path": Kind(path, words, nothing, some(lambda chance: chance.choice(words))),
        "generation": Kind(generation, list(SNAPSHOTS.values()), b.parameter_attacks, damage()),
        "forged": Kind(forged, whole, small, damage(relabel)),
    }
