"""Pictures are read in another process: the same pixels, and limits of time and memory."""

from __future__ import annotations

import io
import os
import re
import signal
import struct

import numpy as np
import pytest
from bad_input import as_mpo
from bad_input import pictures as valid_pictures
from PIL import Image

from fmnist.inference import pictures, thumbnails
from fmnist.inference.reader import Reader


@pytest.fixture(scope="module")
def reader():
    with Reader() as reader:
        yield reader


@pytest.mark.parametrize("number", range(len(valid_pictures())))
def test_the_pixels_are_those_that_this_process_reads(number, reader, tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff b\n.png")
    path.write_bytes(valid_pictures()[number])
    for invert in ("yes", "no", "auto"):
        found, expected = (of.read(path, invert, thumbnail=True) for of in (reader, pictures))
        assert found.pixels.dtype == np.uint8
        assert (found.pixels == expected.pixels).all()
        assert (found.thumbnail == expected.thumbnail).all()
        assert found[1:4] == expected[1:4]


def test_an_object_is_where_this_process_finds_it(reader, tmp_path):
    shot = Image.new("RGB", (700, 500), (250, 240, 230))
    shot.paste((90, 20, 30), (100, 200, 400, 400))
    shot.save(tmp_path / "x.png")
    found, expected = (of.read(tmp_path / "x.png", thumbnail=True) for of in (reader, pictures))
    assert found[1:4] == expected[1:4]
    assert found.box == pytest.approx((1 / 7, 2 / 5, 4 / 7, 4 / 5), abs=0.01)
    assert (found.thumbnail == expected.thumbnail).all()
    assert reader.read(tmp_path / "x.png").thumbnail is None


def test_what_cannot_be_read_has_the_same_line(reader, tmp_path):
    (tmp_path / "text\x1b.png").write_text("This is no picture.")
    for path in (tmp_path / "text\x1b.png", tmp_path / "missing", tmp_path / "\0"):
        with pytest.raises(pictures.PictureError) as expected:
            pictures.read(path)
        with pytest.raises(pictures.PictureError) as found:
            reader.read(path)
        assert str(found.value) == str(expected.value)


LIMITS = [
    ({"seconds": 0.05}, "takes more than 0.05 s"),
    ({"memory": 115_000_000}, "too much memory"),  # of which 100 are for the file
]


@pytest.mark.parametrize(("limit", "said"), LIMITS, ids=["time", "memory"])
def test_a_picture_beyond_a_limit_is_refused_and_the_next_one_is_read(limit, said, tmp_path):
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    Image.new("L", (28, 28), 7).save(tmp_path / "small.png")
    with Reader(**limit) as reader:
        for _ in range(2):
            with pytest.raises(pictures.PictureError, match=said):
                reader.read(tmp_path / "large.png")
            assert (reader.read(tmp_path / "small.png").pixels == 7).all()


def monster(tags):
    """EXIF of 65,535 entries with these tags, each of which claims 20 MB."""
    entries = [struct.pack(">HHII", tag, 1, 2 * 10**7, 8) for tag in tags]
    return (
        b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(tags)) + b"".join(entries) + bytes(2 * 10**7)
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("tags", [[1] * 65_535, range(65_535)], ids=["one tag", "many tags"])
def test_monstrous_metadata_end_in_time(form, tags, tmp_path):
    """They are ignored, or the picture is refused; the limit of time is lowered here."""
    file = io.BytesIO()
    picture, exif = Image.new("RGB", (50, 50), "white"), monster(tags)
    if form == "JPEG":
        picture.save(file, form)
        parts = [b"Exif\0\0" + exif[i : i + 60_000] for i in range(6, len(exif), 60_000)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts]
        content = file.getvalue()[:2] + b"".join(segments) + file.getvalue()[2:]
    else:
        picture.save(file, form, exif=exif)
        content = file.getvalue()
    (tmp_path / "x").write_bytes(content)
    with Reader(seconds=1) as reader:
        try:
            assert reader.read(tmp_path / "x").pixels.max() == 0
        except pictures.PictureError as error:
            assert re.search("too much memory|takes more than 1 s", str(error))  # noqa: PT017


def test_a_decoder_that_crashes_is_one_line(tmp_path):
    Image.new("L", (28, 28), 7).save(tmp_path / "x.png")
    with Reader() as reader:
        os.kill(reader._process.pid, signal.SIGSTOP)
        os.kill(reader._process.pid, signal.SIGSEGV)
        os.kill(reader._process.pid, signal.SIGCONT)
        with pytest.raises(pictures.PictureError, match=r"x\.png: .*signal 11"):
            reader.read(tmp_path / "x.png")
        assert (reader.read(tmp_path / "x.png").pixels == 7).all()


@pytest.mark.parametrize("form", ["JPEG", "progressive", "MPO"])
@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)], ids=["108 MP", "200 MP"])
def test_photographs_of_a_telephone_are_read(size, form, reader, tmp_path, monkeypatch):
    """In at most a gigabyte: the process has no more. The left half is light."""
    photo = Image.new("RGB", size, (20, 20, 20))
    photo.paste((220, 220, 220), (0, 0, size[0] // 2, size[1]))
    photo.save(tmp_path / "x.jpg", progressive=form == "progressive")
    if form == "MPO":
        (tmp_path / "x.jpg").write_bytes(as_mpo((tmp_path / "x.jpg").read_bytes()))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with Image.open(tmp_path / "x.jpg") as picture:
            assert picture.format == "MPO"
    found = reader.read(tmp_path / "x.jpg", "no", thumbnail=True)
    for pixels, middle in ((found.pixels, 14), (found.thumbnail[..., 0], thumbnails.SIDE // 2)):
        assert pixels[14, : middle - 1].min() > 200
        assert pixels[14, middle + 1 :].max() < 40


def test_too_large_a_photograph_is_refused(reader, tmp_path):
    Image.new("L", (65_000, 4_000)).save(tmp_path / "x.jpg")
    with pytest.raises(pictures.PictureError, match="at most 256,000,000 pixels"):
        reader.read(tmp_path / "x.jpg")
