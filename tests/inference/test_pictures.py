"""A picture of any size, mode and format becomes an input of the network, or is refused."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from fmnist import load
from fmnist.inference import pictures, thumbnails


@pytest.fixture(scope="module")
def whole():
    return load()


def saved(picture, path, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        path, **options
    )
    return path


def image(whole, number=0):
    """An image of the test set as an array."""
    return whole.test.images[number, 0].numpy()


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16")
TAKES = {
    "PNG": {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"},
    "JPEG": {"L", "RGB", "CMYK"},
    "GIF": {"1", "L", "P", "RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB", "RGBA"},
    "WEBP": {"L", "LA", "P", "RGB", "RGBA"},
}


def in_mode(values, mode):
    """Return a grey picture of these values in a mode, with the same look if the mode allows it."""
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16) * 257)
    grey = Image.fromarray(values)
    return grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)


FAITHFUL = [
    *(("png", mode) for mode in ("L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("bmp", mode) for mode in ("L", "P", "RGB", "RGBA")),
    *(("webp", mode) for mode in ("L", "LA", "P", "RGB", "RGBA")),
    *(("gif", mode) for mode in ("L", "P", "RGB")),
]


@pytest.mark.parametrize(("suffix", "mode"), FAITHFUL)
def test_an_image_of_the_data_set_comes_through_bit_for_bit(suffix, mode, whole, tmp_path):
    for number in range(40):
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        path = saved(in_mode(image(whole, number), mode), tmp_path / f"x.{suffix}", **options)
        found = pictures.read(path)
        assert (found.pixels == image(whole, number)).all()
        assert not found.inverted


def test_images_of_the_data_set_are_not_inverted(whole, tmp_path):
    images = torch.cat([whole.train.images, whole.test.images])[:, 0]
    frame = torch.zeros(28, 28, dtype=torch.bool)
    frame[[0, -1]] = frame[:, [0, -1]] = True
    light = (images[:, frame] > 127).double().mean(dim=1)
    for number in light.argsort(descending=True)[:50].tolist():
        values = images[number].numpy()
        assert pictures.read(saved(values, tmp_path / "x.png")).pixels.tobytes() == values.tobytes()


def test_a_negative_of_an_image_of_the_data_set_is_inverted_back(whole, tmp_path):
    for number in range(100):
        values = image(whole, number)
        path = saved(255 - values, tmp_path / "x.png")
        assert (pictures.read(path).pixels == values).all()
        assert pictures.read(path).inverted
        kept = pictures.read(path, "no")
        assert (kept.pixels == 255 - values).all()
        assert not kept.inverted


@st.composite
def pictures_of_any_kind(draw):
    """The bytes of a random picture of any format, mode and size."""
    format_ = draw(st.sampled_from(sorted(TAKES)))
    mode = draw(st.sampled_from(sorted(TAKES[format_])))
    size = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = sorted(draw(st.tuples(st.integers(0, 255), st.integers(0, 255))))
    values = rng.integers(low, high + 1, size, dtype=np.uint8)
    picture = in_mode(values, mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)))
    options = {}
    if format_ == "PNG" and mode in ("L", "P", "I;16") and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


@settings(deadline=None, max_examples=150)
@given(pictures_of_any_kind())
def test_any_picture_becomes_28x28_and_inverting_twice_gives_it_back(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    kept, inverted, auto = (
        pictures.read(path, how, thumbnail=how == "yes") for how in ("no", "yes", "auto")
    )
    for found in (kept, inverted, auto):
        assert found.pixels.dtype == np.uint8
        assert found.pixels.shape == (28, 28)
    assert (kept.inverted, inverted.inverted) == (False, True)
    assert (inverted.pixels == 255 - kept.pixels).all()
    assert (auto.pixels == (inverted if auto.inverted else kept).pixels).all()
    assert kept.thumbnail is None
    assert inverted.thumbnail.dtype == np.uint8
    with Image.open(path) as picture:
        assert inverted.thumbnail.shape == (*picture.size[::-1], 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (28, 1), (27, 28), (3, 4000)])
def test_extreme_shapes_are_read(size, tmp_path):
    path = saved(Image.new("L", size, 200), tmp_path / "x.png")
    found = pictures.read(path)
    assert found.inverted
    assert (found.pixels == 55).all()


def shoe(light, dark, size=(400, 300), margin=60):
    """Return a grey picture of a light object on a dark background."""
    picture = Image.new("L", size, dark)
    box = (margin, margin, size[0] - margin - 1, size[1] - margin - 1)
    ImageDraw.Draw(picture).ellipse(box, fill=light)
    return picture


def test_the_object_fills_the_longer_edge_and_keeps_its_shape(tmp_path):
    pixels = pictures.read(saved(shoe(255, 0), tmp_path / "x.png")).pixels
    rows, columns = np.nonzero(pixels > 127)
    assert (columns.min(), columns.max()) == (0, 27)
    assert rows.max() - rows.min() + 1 == round(28 * 180 / 280)
    assert abs(rows.min() - (27 - rows.max())) <= 1
    assert pixels[0].max() < 20


def test_the_margin_of_a_photo_does_not_matter(whole, tmp_path):
    differences = []
    for number in range(50):
        large = Image.fromarray(255 - image(whole, number)).resize((280, 280), Image.Resampling.BOX)
        photo = Image.new("L", (900, 600), 255)
        photo.paste(large, (500, 100))
        found = pictures.read(saved(photo.convert("RGB"), tmp_path / "x.jpg", quality=95))
        assert found.inverted
        differences.append(np.abs(found.pixels.astype(int) - image(whole, number)).mean())
    assert np.median(differences) < 5


@pytest.mark.parametrize(("light", "ground"), [(250, "a light object"), (20, "a dark object")])
def test_cut_out_objects_are_light_on_dark(light, ground, tmp_path):
    """A light object gets a black background; a dark one gets a white one and is inverted."""
    cut = shoe(light, 0 if light > 127 else 255).convert("RGBA")
    alpha = shoe(255, 0)
    cut.putalpha(alpha)
    found = pictures.read(saved(cut, tmp_path / "x.png"))
    assert found.inverted == (light < 127)
    assert found.pixels[14, 14] > 200
    assert found.pixels[0, 0] == 0


def test_rounded_corners_get_the_colour_of_the_border(tmp_path):
    photo = shoe(30, 240)
    alpha = Image.new("L", photo.size, 0)
    ImageDraw.Draw(alpha).rounded_rectangle((0, 0, 399, 299), radius=40, fill=255)
    photo.putalpha(alpha)
    found = pictures.read(saved(photo, tmp_path / "x.png"))
    plain = pictures.read(saved(shoe(30, 240), tmp_path / "y.png"))
    assert (found.pixels == plain.pixels).all()
    assert found.inverted


def test_fully_transparent_picture_is_black(tmp_path):
    path = saved(Image.new("RGBA", (50, 50), (9, 200, 7, 0)), tmp_path / "x.png")
    assert (pictures.read(path).pixels == 0).all()


def test_transparent_colour_of_a_palette_is_not_the_background(whole, tmp_path):
    values = np.where(image(whole) > 0, 255 - image(whole) // 4, 0).astype(np.uint8)
    picture = Image.fromarray(values).convert("P")
    path = saved(picture, tmp_path / "x.png", transparency=0)
    assert (pictures.read(path).pixels == values).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_photo_is_turned_upright(orientation, suffix, whole, tmp_path):
    turn = [
        None, None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
    ][orientation]  # fmt: skip
    back = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
            Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}  # fmt: skip
    upright = Image.fromarray(image(whole, 7))
    held = upright if turn is None else upright.transpose(back.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if suffix == "jpg" else {"lossless": True}
    path = saved(held, tmp_path / f"x.{suffix}", exif=exif, **(options if suffix != "png" else {}))
    found = pictures.read(path, thumbnail=True)
    most = 3 if suffix == "jpg" else 0
    assert np.abs(found.pixels.astype(int) - image(whole, 7)).max() <= most
    assert np.abs(found.thumbnail.astype(int) - image(whole, 7)[..., None]).max() <= most


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientation_is_ignored(orientation, whole, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image(whole), tmp_path / "x.png", exif=exif)
    assert (pictures.read(path).pixels == image(whole)).all()


def test_damaged_metadata_is_ignored(whole, tmp_path):
    path = saved(image(whole), tmp_path / "x.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense")
    assert (pictures.read(path).pixels == image(whole)).all()


def refusal(path):
    with pytest.raises(pictures.PictureError) as caught:
        pictures.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_files_that_are_not_pictures_are_refused(whole, tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("This is no picture.")
    assert "PNG, JPEG, GIF, BMP or WEBP" in refusal(tmp_path / "text.png")
    saved(image(whole), tmp_path / "x.tiff")
    assert "is not a picture that can be read" in refusal(tmp_path / "x.tiff")
    assert "No such file" in refusal(tmp_path / "missing.png")
    assert "folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular file" in refusal(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "cannot be read" in refusal(tmp_path / "loop.png")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))


def png_of(width, height):
    """Return a PNG file with this size in its header and without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (chunk, data)
    )


@pytest.mark.parametrize("size", [(8001, 8001), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it decoded"))
    (tmp_path / "x.png").write_bytes(png_of(*size))
    assert "at most 64,000,000 pixels" in refusal(tmp_path / "x.png")


def test_too_many_bytes_are_refused_before_they_are_decoded(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)  # sparse: it needs no disk
    assert "at most 100,000,000 bytes" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("format_", sorted(TAKES))
def test_a_picture_cut_short_is_refused(format_, whole, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, format_)
    path = tmp_path / "x"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])
        refusal(path)


def damaged(content, rng):
    """The bytes of a file with random damage."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        at = rng.randrange(len(content))
        match rng.randrange(5):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.randrange(256)
            case 2:
                content[at : at + rng.randrange(64)] = rng.randbytes(rng.randrange(64))
            case 3:
                content[at:at] = content[at : at + rng.randrange(200)]
            case _:
                content[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff"])
        if not content:
            break
    if rng.random() < 0.2:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def test_damaged_files_are_read_or_refused(tmp_path, capfd):
    rng = random.Random(28)
    values = np.random.default_rng(3).integers(0, 256, (40, 30), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    whole = []
    for format_, modes in TAKES.items():
        for mode in sorted(modes):
            file = io.BytesIO()
            options = {"exif": exif} if format_ in ("PNG", "JPEG", "WEBP") else {}
            in_mode(values, mode).save(file, format_, **options)
            whole.append(file.getvalue())
    read, refused = 0, []
    path = tmp_path / "x"
    for i in range(800):
        path.write_bytes(damaged(whole[i % len(whole)], rng))
        try:
            found = pictures.read(path)
        except pictures.PictureError as error:
            refused.append(str(error))
        else:
            assert (found.pixels.shape, found.pixels.dtype) == ((28, 28), np.uint8)
            read += 1
    assert min(read, len(refused)) > 100
    assert all(len(text.splitlines()) == 1 for text in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(5000, 3000), (3, 4000), (4000, 1), (281, 280)])
def test_a_thumbnail_is_bounded(size, tmp_path):
    path = saved(Image.new("RGB", size, (200, 30, 60)), tmp_path / "x.png")
    small = pictures.read(path, thumbnail=True).thumbnail
    assert max(small.shape) == thumbnails.SIDE
    assert small.shape[0] == max(1, round(thumbnails.SIDE * size[1] / max(size)))
    assert (small == (200, 30, 60)).all()


def test_a_thumbnail_is_white_where_the_picture_is_transparent(tmp_path):
    picture = Image.new("RGBA", (800, 400), (9, 200, 7, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 400, 400))
    small = pictures.read(saved(picture, tmp_path / "x.png"), thumbnail=True).thumbnail
    assert (small[:, :130] == (0, 0, 255)).all()
    assert (small[:, 150:] == 255).all()


def test_the_thumbnail_of_a_picture_of_16_bits(tmp_path):
    deep = np.repeat(np.linspace(0, 65535, 1500).astype(np.uint16)[:, None], 900, 1)
    small = pictures.read(saved(deep, tmp_path / "x.png"), thumbnail=True).thumbnail
    assert max(small.shape) == thumbnails.SIDE
    assert np.abs(small[:, 0, 0] - np.linspace(0, 255, len(small))).max() < 3
