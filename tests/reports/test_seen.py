"""The sheet of ``predict --show``: what the network saw, the frame, names of any kind."""

from __future__ import annotations

import os
import resource
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fmnist.reports import seen
from fmnist.reports.seen import Seen, write_seen
from fmnist.utils.errors import UserError

ACCENT = (0xC8, 0x45, 0x2D)


def one(rng=None, size=(210, 280, 3), **changes):
    rng = rng or np.random.default_rng(0)
    given = {
        "name": "shoe.png",
        "picture": rng.integers(0, 100, size, dtype=np.uint8),
        "box": None,
        "pixels": rng.integers(0, 256, (28, 28), dtype=np.uint8),
        "answer": "Sneaker  98.2%",
        "remark": "",
        "is_doubtful": False,
    }
    return Seen(**given | changes)


def drawn(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def places(sheet, pixels, side):
    """How often the pixels, enlarged without smoothing to this side, are in the sheet."""
    large = pixels.repeat(side // 28, 0).repeat(side // 28, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet.min(axis=2), large.shape)
    near = (windows[:, :, ::60, ::60] == large[::60, ::60]).all((2, 3))
    return sum((windows[y, x] == large).all() for y, x in np.argwhere(near))


@pytest.mark.parametrize(("count", "side"), [(1, 280), (4, 280), (5, 168), (48, 168)])
def test_what_the_network_saw_is_enlarged_without_smoothing(count, side, tmp_path):
    rng = np.random.default_rng(count)
    cells = [one(rng, (30, 40)) for _ in range(count)]
    write_seen(tmp_path / "x.png", "runs/a", cells, count)
    sheet = drawn(tmp_path / "x.png")
    for cell in (cells[0], cells[-1]):
        assert places(sheet, cell.pixels, side) == 1


@pytest.mark.parametrize("size", [(210, 280), (280, 210, 3), (28, 28), (1, 280), (280, 2, 3)])
@settings(deadline=None, max_examples=15)
@given(st.tuples(*[st.floats(0, 0.45)] * 2, *[st.floats(0.55, 1)] * 2))
def test_the_frame_is_around_what_was_cut_out(tmp_path_factory, size, box):
    path = tmp_path_factory.getbasetemp() / "frame.png"
    cell = one(size=size)
    write_seen(path, "", [cell], 1)
    without = drawn(path)
    assert not (without == ACCENT).all(axis=2).any()
    write_seen(path, "", [cell._replace(box=box)], 1)
    rows, columns = np.nonzero((drawn(path) == ACCENT).all(axis=2))
    scale = 280 // max(size[:2]) or 280 / max(size[:2])
    height, width = (round(side * scale) or 1 for side in size[:2])
    assert abs(np.ptp(rows) - (box[3] - box[1]) * height) <= 6
    assert abs(np.ptp(columns) - (box[2] - box[0]) * width) <= 6


def test_the_first_pictures_are_shown_and_the_others_are_counted(tmp_path):
    cells = [one() for _ in range(seen.MOST)]
    write_seen(tmp_path / "all.png", "runs/a", cells, seen.MOST)
    write_seen(tmp_path / "some.png", "runs/a", cells, 10_000)
    whole, some = drawn(tmp_path / "all.png"), drawn(tmp_path / "some.png")
    assert not (whole == ACCENT).all(axis=2).any()
    assert (some == ACCENT).all(axis=2).any()
    assert some.shape[1] == whole.shape[1]
    assert whole.shape[0] < some.shape[0] < 3200


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=400), st.text(max_size=400))
def test_any_text_stays_in_its_line(tmp_path_factory, name, remark):
    """Long lines, letters that reach far up or down, and control characters."""
    path = tmp_path_factory.getbasetemp() / "text.png"
    plain = [one() for _ in range(5)]
    write_seen(path, "", plain, 5)
    before = drawn(path)
    write_seen(path, "", [one(name=name, remark=remark), *plain[1:]], 5)
    after = drawn(path)
    assert after.shape == before.shape
    changed = np.argwhere((before != after).any(axis=2))
    if len(changed):
        cell = 2 * 168 + 10
        assert changed[:, 1].max() < 24 + cell
        assert changed[:, 0].max() < before.shape[0] // 2 + 40


@pytest.mark.parametrize("name", ["x", "x.jpg", "x.png.webp", "", "-"])
def test_only_a_png_is_written(name, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.png"):
        seen.check(tmp_path / name)


def test_a_picture_of_the_user_is_not_replaced(tmp_path):
    path = tmp_path / "x.png"
    seen.check(path)
    Image.new("L", (28, 28)).save(path)
    for content in (path.read_bytes(), b"", b"notes"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="was not made by --show"):
            seen.check(path)
    write_seen(path, "", [one()], 1)
    seen.check(path)


def test_folders_pipes_and_odd_paths_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        with pytest.raises(UserError, match="is a folder or a device"):
            seen.check(tmp_path / name)
    for path in (
        tmp_path / "a\0.png",
        tmp_path / "x" / "y" / "z.png",
        tmp_path / f"{'x' * 300}.png",
    ):
        with pytest.raises(UserError, match="cannot be written"):
            write_seen(path, "", [one()], 1)
    assert stat.S_ISFIFO((tmp_path / "pipe.png").stat().st_mode)


def test_a_failed_write_leaves_the_old_sheet(tmp_path):
    path = tmp_path / "x.png"
    write_seen(path, "", [one()], 1)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write_seen(path, "another", [one()], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
