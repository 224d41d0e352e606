"""Bad input for ``fuzz.py``: valid files of each kind, random damage, and attacks."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from fmnist.config.settings import SETTINGS, TABLES
from fmnist.functional import cnn
from fmnist.functional.types import ModelConfig

Input = tuple[str, bytes]
"""The name of an input, and its bytes."""

TINY = ModelConfig(channels=(3, 4), hidden=(7,))

NUMBERS = [
    b"0", b"-1", b"1", b"-0.0", b"nan", b"-inf", b"1e999", b"1e-999", b"1e308", b"255", b"65536",
    b"2147483648", b"4294967296", b"9223372036854775807", b"18446744073709551616", b"1_000",
    b"9" * 5000, b"0x" + b"f" * 3000, b"0." + b"3" * 4000, b"1" * 400, b"1000000000000",
]  # fmt: skip
WORDS = [
    b"\0", b"\n", b"\r", b"\x1b[2J", b"\x7f", b"\x80", b"\xff\xfe", "\u202e".encode(),
    b"\xed\xb0\x80", b'"', b"'", b"\\", b"=", b",", b".", b"[", b"]", b"{", b"}", b"#", b"/",
    b"../../x", b"none", b"true", b"null", b"[[" * 400,
    b"x" * 3000, b"a." * 300, b'{"a":' * 400, b"\xef\xbb\xbf",
]  # fmt: skip
NAMES = [
    "../../x", "..", ".", "", "/", "x/../../../y", "a/b", "~", "-x", "con\0", "\x1b[31mred", "a\nb",
    "\u202egnp.x", "x" * 64, "x" * 65, "x" * 5000, "..\\..\\x", "%2e%2e%2fx", "$(touch x)", "名",
]  # fmt: skip


def damaged(content: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Return the bytes with random damage: flipped, cut, doubled, spliced or extreme."""
    if chance.random() < 0.03:
        return chance.randbytes(chance.choice([0, 1, 8, 100, 2000]))
    raw = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at = chance.randrange(len(raw) + 1)
        few = at + chance.choice([1, 2, 4, 30])
        match chance.randrange(10):
            case 0 | 1 if at < len(raw):
                raw[at] ^= 1 << chance.randrange(8)
            case 2:
                raw[at:few] = chance.randbytes(few - at)
            case 3:
                del raw[at:few]
            case 4:
                raw[at:at] = raw[at : at + chance.randrange(200)] * chance.choice([1, 1, 3])
            case 5:
                other = chance.choice(others)
                cut = chance.randrange(len(other) + 1)
                raw[at:] = other[cut:]
            case 6 | 7:
                numbers = list(re.finditer(rb"\d[\d.e_-]*", raw))
                if numbers:
                    start, end = chance.choice(numbers).span()
                    raw[start:end] = chance.choice(NUMBERS)
            case 8:
                raw[at:at] = chance.choice(WORDS)
            case _:
                form = chance.choice(["<I", ">I", "<Q", "<H", ">H"])
                most = 256 ** struct.calcsize(form) - 1
                word = struct.pack(form, chance.choice([0, 1, most, most // 2, most // 2 + 1]))
                raw[at : at + len(word)] = word
    if chance.random() < 0.1:
        del raw[chance.randrange(len(raw) + 1) :]
    return bytes(raw)


# Study files and --set

VALUES = [
    *(number.decode() for number in NUMBERS), "true", '"none"', '"12-24"', "[12, 24]", "[]", "[[]]",
    '["none", "8"]', "{}", "{a = 1}", "0.5", "[0.1, 0.01]", "[1, true]", "1979-05-27", "07:32:00",
    '"\\u001b[2J\\n"', '"sgd"', '["adam", "sgd"]', '"float32"', "[5, 3]", "-5", '""', "[0.5, 0.5]",
    "[" * 600, "[" * 50 + "]" * 50, '"validation_loss"', "[100, 1000]", "2", "3",
]  # fmt: skip


def study_files() -> list[bytes]:
    """Return valid study files."""
    full = """
[study]
name = "mine"               # of the folder
epochs = 3
holdout = 500
seed = 7
metric = "validation_loss"
batch_size = 100

[model]
channels = [12, 24]
hidden = "120-60"
kernel_size = 5
dropout = 0.25
precision = "float32"

[optimizer]
beta1 = 0.9
eps = 1e-8

[grid]
algorithm = ["adam", "adamw"]
learning_rate = [0.01, 0.001]
"""
    sgd = '[optimizer]\nalgorithm = "sgd"\nmomentum = 0.9\nnesterov = true\n[grid]\nseed = [0, 1]\n'
    inline = 'study.name = "x"\nmodel = { hidden = [], kernel_size = 3 }\n'
    return [text.encode() for text in (full, sgd, inline, "")]


def study_file(chance: random.Random, names: Sequence[str]) -> bytes:
    """Return tables with the right names and random content."""
    if chance.random() < 0.3:
        return f"[study]\nname = {json.dumps(chance.choice(names))}\n".encode()
    lines = []
    for table in chance.sample(TABLES, chance.randint(1, 3)):
        keys = [k for k, s in SETTINGS.items() if table in ("grid", s.table)]
        lines.append(f"[{table}]")
        for key in chance.sample(keys, min(len(keys), chance.randint(1, 4))):
            value = chance.choice(VALUES)
            lines.append(f"{key} = [{value}]" if table == "grid" else f"{key} = {value}")
    return "\n".join(lines).encode()


def override(chance: random.Random) -> bytes:
    """Return ``--set`` texts, one a line."""
    lines = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        values = [chance.choice(VALUES).strip('"[]') for _ in range(chance.choice([1, 1, 2, 4]))]
        lines.append(f"{chance.choice(list(SETTINGS))}={','.join(values)}")
    return "\n".join(lines).encode()


def study_attacks() -> Iterator[Input]:
    """Return files that are slow, deep or large for a parser."""
    yield "a key of 50,000 parts", b"a." * 50_000 + b"a = 1"
    yield "a key of 50,000 parts in quotes", b"[" + b'"a" . ' * 50_000 + b"a]"
    yield "20,000 keys of many parts", b"".join(b"%x.k.k.k.k.k.k.k=1\n" % i for i in range(20_000))
    yield "quotes without an end", b'a="' + b'\\"' * 400_000
    yield "brackets without an end", b"a=" + b"[" * 100_000
    yield "tables without an end", b"a={" * 100_000
    yield "a digit 900,000 times", b"[study]\nseed = " + b"9" * 900_000
    yield "a hexadecimal of 900,000 digits", b"[study]\nseed = 0x" + b"f" * 900_000
    yield "more than a megabyte", b"#" * 1_000_001
    yield "an axis of 300,000 equal values", b"[grid]\nseed = [" + b"1," * 300_000 + b"]"
    axis = b",".join(b"%d" % i for i in range(100_000))
    yield "an axis of 100,000 values", b"[grid]\nseed = [" + axis + b"]"
    few = axis[:5000].rpartition(b",")[0]
    yield "too many points", b"[grid]\nseed = [" + few + b"]\nbatch_size = [1," + few[2:] + b"]"


def override_attacks() -> Iterator[Input]:
    """Return long and many words."""
    yield "a digit 900,000 times", b"seed=" + b"9" * 900_000
    yield "300,000 values", b"seed=" + b"1," * 300_000
    yield "300,000 widths", b"channels=" + b"1-" * 300_000 + b"1"
    yield "a key of a megabyte", b"k" * 1_000_000 + b"=1"
    yield "100,000 points", b"seed=" + b",".join(b"%d" % i for i in range(100_000))


# Pictures


def pictures() -> list[bytes]:
    """Return small valid pictures of every format, with unusual modes and metadata."""
    values = np.random.default_rng(3).integers(0, 256, (30, 22), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(values)
    clear = grey.convert("RGBA")
    clear.putalpha(grey)
    made = [
        (grey, "PNG", {"exif": exif}), (clear, "PNG", {}),
        (grey.convert("P"), "PNG", {"transparency": 3}),
        (Image.fromarray(values.astype(np.uint16) * 200), "PNG", {"transparency": 400}),
        (grey.convert("1"), "PNG", {}), (grey.convert("RGB"), "PNG", {"transparency": (1, 2, 3)}),
        (grey, "JPEG", {"exif": exif}), (grey.convert("RGB"), "JPEG", {"progressive": True}),
        (grey.convert("CMYK"), "JPEG", {}), (grey.convert("P"), "GIF", {"transparency": 0}),
        (grey.convert("RGB"), "MPO", {"exif": exif}), (grey.convert("RGB"), "BMP", {}),
        (clear, "WEBP", {"lossless": True}), (grey, "WEBP", {}),
    ]  # fmt: skip
    contents = []
    for picture, format_, options in made:
        file = io.BytesIO()
        picture.save(file, format_, **options)
        contents.append(file.getvalue())
    return [*contents, _run_lengths(22, 30, b"\x16\x07\0\0" * 30)]


def mended(content: bytes) -> bytes:
    """Correct the checksums of a PNG, so that the damage is read."""
    signature, rest, chunks = content[:8], content[8:], []
    while len(rest) >= 12:
        size = int.from_bytes(rest[:4], "big")
        chunks.append(_chunk(rest[4:8], rest[8 : 8 + size]) if size < len(rest) else rest)
        rest = rest[12 + size :]
    return b"".join([signature, *chunks])


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _run_lengths(width: int, height: int, runs: bytes) -> bytes:
    """Return a compressed BMP."""
    start = 54 + 1024
    size = (start + len(runs), 0, 0, start)
    about = (40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    head = b"BM" + struct.pack("<IHHI", *size) + struct.pack("<IiiHHIIiiII", *about)
    return head + bytes(range(256)) * 4 + runs


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(1)
    block = bytes(1_000_000)
    return b"".join(packer.compress(block) for _ in range(count // 1_000_000 + 1)) + packer.flush()


def picture_attacks() -> Iterator[Input]:
    """Return pictures with too many pixels or pieces."""
    empty = _chunk(b"IDAT", zlib.compress(bytes(100)))
    for width, height in ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (100_000, 100_000)):
        yield f"a header of {width} x {height}", _png(width, height, empty)
    pixels = _chunk(b"IDAT", _zeros(256_008_000))
    yield "64 million clear pixels in little", _png(8000, 8000, pixels, colour=6)
    yield "a thread of 60 million pixels", _png(1, 60_000_000, _chunk(b"IDAT", _zeros(120_000_000)))
    yield "a row of 60 million pixels", _png(60_000_000, 1, _chunk(b"IDAT", _zeros(60_000_001)))
    yield "more pixels than promised", _png(8, 8, pixels)
    yield "a text that unpacks to much", _png(28, 28, _chunk(b"zTXt", b"a\0\0" + _zeros(10**8)))
    yield "two million pieces", _png(28, 28, _chunk(b"abCd", b"") * 2_000_000)
    yield "two million comments", b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000
    yield "four million runs of one pixel", _run_lengths(8000, 8000, b"\1\0" * 4_000_000)
    yield "a jump over 16 billion pixels", _run_lengths(64_000_000, 1, b"\0\2\0\xff" * 10)
    for format_, name in (("JPEG", "scans"), ("WEBP", "pixels")):
        file = io.BytesIO()
        Image.new("L", (8000, 8000)).save(file, format_, progressive=True, method=0)
        content = file.getvalue()
        if format_ == "JPEG":
            last = content[content.rindex(b"\xff\xda") : -2]
            content = content[:-2] + 300 * last + content[-2:]
        yield f"a {format_} of 64 million {name}", content
        if format_ == "JPEG":
            yield "an MPO of 64 million scans", as_mpo(content)


def as_mpo(content: bytes) -> bytes:
    """Return a JPEG with the index of one further picture, which Pillow calls MPO."""
    file = io.BytesIO()
    frame = Image.new("L", (8, 8))
    frame.save(file, "MPO", save_all=True, append_images=[frame])
    made = file.getvalue()
    start = made.index(b"MPF\0") - 4
    size = 2 + int.from_bytes(made[start + 2 : start + 4], "big")
    return content[:2] + made[start : start + size] + content[2:]


# IDX files


def idx(shape: Sequence[int], content: bytes) -> bytes:
    """Return an IDX file of bytes."""
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content


def idx_files() -> dict[str, bytes]:
    """Return the four files of a small data set."""
    chance = random.Random(0)
    files = {}
    for split, count in (("train", 40), ("t10k", 20)):
        pixels = chance.randbytes(count * 784)
        files[f"{split}-images-idx3-ubyte"] = idx((count, 28, 28), pixels)
        files[f"{split}-labels-idx1-ubyte"] = idx((count,), bytes(i % 10 for i in range(count)))
    return files


def idx_attacks() -> Iterator[Input]:
    """Return files with huge claimed sizes, and files that are huge or slow to unpack."""
    name = b"train-images-idx3-ubyte"
    yield "a claim of terabytes", name + idx((2**32 - 1, 2**32 - 1, 2**32 - 1), bytes(31_360))
    yield "255 dimensions", name + idx((2**32 - 1,) * 255, b"")
    yield "a header alone", name + idx((40, 28, 28), b"")
    yield "half a header", name + b"\0\0\x08\x03\0"
    yield "a packed gigabyte", name + b"".join([gzip.compress(bytes(10**7), 1)] * 100)
    yield "a million empty parts", name + gzip.compress(b"") * 1_000_000


# Trained runs


def parameters() -> bytes:
    """Return a safetensors file of the tiny network."""
    leaves = {
        f"{layer}.{name}": tensor
        for tree in cnn.init(0, TINY)
        for layer, tensors in tree.items()
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(leaves)


def tensors_file(header: object, content: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def relabelled(content: bytes) -> bytes:
    """Correct the length of the header, so that the damage is read."""
    end = content.find(b"}}")
    return struct.pack("<Q", max(0, end + 2 - 8)) + content[8:]


def one_tensor(shape: Sequence[int], kind: str = "F32", end: int = 0) -> dict[str, object]:
    """Return the header of a file of one tensor."""
    return {"conv1.weight": {"dtype": kind, "shape": list(shape), "data_offsets": [0, end]}}


def parameter_attacks() -> Iterator[Input]:
    """Return files with huge claimed sizes, unknown types or too many names."""
    yield "a header of exabytes", struct.pack("<Q", 2**63) + b"{}"
    yield "a header of terabytes", struct.pack("<Q", 2**42) + b"{}"
    yield "a tensor of terabytes", tensors_file(one_tensor([10**12], end=4 * 10**12))
    yield "an empty tensor of exabytes", tensors_file(one_tensor([0, 2**60]))
    yield "a size that overflows", tensors_file(one_tensor([2**62, 4, 4]))
    yield "200 dimensions", tensors_file(one_tensor([0] * 200))
    for kind in ("BOOL", "I8", "U16", "U64", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "C64", "X"):
        yield f"the type {kind}", tensors_file(one_tensor([2], kind, 8), bytes(8))
    yield (
        "a name that moves the cursor",
        tensors_file({"\x1b[2J\n": one_tensor([0])["conv1.weight"]}),
    )
    yield "brackets without an end", tensors_file(b"[" * 100_000)
    names = (b'"a.%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(500_000))
    yield "half a million tensors", tensors_file(b"{" + b",".join(names) + b"}")


def run_files() -> dict[str, bytes]:
    """Return the files other than parameters that ``trained`` reads of a run of two trials."""
    about = {
        "study": "tiny", "number": 1, "point": {"learning_rate": 0.001},
        "model": {"channels": [3, 4], "hidden": [7], "kernel_size": 5, "dropout": 0.0,
                  "precision": "float32"},
        "validation_accuracy": 0.5, "test_accuracy": 0.5, "classes": ["a"],
    }  # fmt: skip
    table = "number,learning_rate,state,test_accuracy\n0,0.01,COMPLETE,0.5\n1,0.001,COMPLETE,0.5\n"
    study = '[study]\nname = "tiny"\n[model]\nchannels = [3, 4]\nhidden = [7]\n'
    return {
        "best/config.json": json.dumps(about).encode(),
        "results.csv": table.encode(),
        "study.toml": f"{study}[grid]\nlearning_rate = [0.01, 0.001]\n".encode(),
    }


def run_attacks() -> Iterator[Input]:
    """Return files with large claims. Name and content begin with the name of the file."""
    for name, content in _run_attacks():
        yield name, name.partition(":")[0].encode() + content


def _run_attacks() -> Iterator[Input]:
    large = {"number": 0, "model": {"channels": [1024], "hidden": [4096] * 8}}
    yield "best/config.json: a network of 3 GB", json.dumps(large).encode()
    yield "best/config.json: brackets without an end", b'{"number": ' + b"[" * 500_000
    yield "best/config.json: empty lists", b"[" + b"[]," * 3_000_000 + b"[]]"
    yield (
        "best/config.json: a number of 4,000 digits",
        b'{"number": 1' + b"0" * 4000 + b', "model":{}}',
    )
    yield (
        "results.csv: 400,000 trials",
        b"number,learning_rate,state\n" + b"0,0.01,COMPLETE\n" * 400_000,
    )
    yield (
        "results.csv: two million others",
        b"number,learning_rate,state\n" + b"0,0.01,FAIL\n" * 2_000_000,
    )
    yield "results.csv: ten million empty lines", b"number\n" + b"\n" * 10_000_000
    yield "results.csv: a cell of 50 MB", b"number,learning_rate,state\n" + b"0" * 50_000_000
    yield "results.csv: more than is read", b"0" * 65_000_000
    yield "study.toml: a key of 50,000 parts", b"a." * 50_000 + b"a = 1"


SNAPSHOT = {"a.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
