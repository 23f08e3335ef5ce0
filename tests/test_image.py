"""A file gives the right pixels, or one line that says why it cannot."""

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kd import files, image, image_files
from kd.errors import UserError

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"),  # pytest undoes kd.image's own filter
              pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]
rng = np.random.default_rng(0)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def refused(source):
    with pytest.raises(UserError) as caught:
        image.square(source, 8)
    assert "\n" not in caught.value.message and " at 0x" not in caught.value.message
    return caught.value.message


def png(width, height, depth, colour, rows):
    """A PNG written by hand: the claimed size may differ from what the rows hold."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# What the tag says was done to the upright picture; applied to it, it gives what the file stores.
STORED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
          8: lambda a: np.rot90(a, -1)}


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_rotation_tag_is_undone(tag, kind):
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20, 0] = upright[:12, 20:, 1] = upright[12:, :20, 2] = 255  # red, green, blue, black
    exif = Image.Exif()
    exif[274] = tag
    data = saved(Image.fromarray(np.ascontiguousarray(STORED[tag](upright))), kind, exif=exif.tobytes(),
                 **({"quality": 98} if kind in ("JPEG", "WEBP") else {}))
    seen = np.asarray(image.decode(data))
    assert seen.shape == upright.shape
    for y, x in ((6, 10), (6, 30), (18, 10), (18, 30)):
        assert np.abs(seen[y, x].astype(int) - upright[y, x]).max() < 40


def test_each_kind_of_pixel_becomes_rgb():
    grey = Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8))
    assert np.array_equal(image.decode(saved(grey)), np.repeat(np.asarray(grey)[..., None], 3, 2))
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert np.asarray(image.decode(saved(bits))).tolist() == [[[0] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert np.asarray(image.decode(saved(palette))).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert np.asarray(image.decode(saved(palette, transparency=1))).tolist() == [[[10, 20, 30], [255] * 3]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    red = np.asarray(image.decode(saved(cmyk, "JPEG", quality=100)))
    assert red[..., 0].min() > 245 and red[..., 1:].max() < 10


def test_transparency_is_laid_on_white():
    layers = Image.fromarray(np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8))
    assert np.asarray(image.decode(saved(layers))).tolist() == [[[255, 0, 0], [255] * 3, [204] * 3]]
    grey = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8))
    assert np.asarray(image.decode(saved(grey))).tolist() == [[[9] * 3, [255] * 3]]


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], ">u2")
    expected = np.round(values[0] / 257).astype(int).tolist()  # [0, 0, 1, 1, 128, 255]
    for data in (png(6, 1, 16, 0, [values.tobytes()]), saved(Image.fromarray(values.astype("<u2")), "TIFF")):
        assert np.asarray(image.decode(data, (0, 65535)))[0, :, 0].tolist() == expected
        assert "more than 8 bits, with values up to 65,535, and the network was trained on" in refused(data)
    wide = Image.fromarray(np.array([[0, 70000]], np.int32))
    assert "values up to 70,000" in refused(saved(wide, "TIFF"))
    assert "floating-point values up to 0.5" in refused(saved(Image.fromarray(np.float32([[0.5]])), "TIFF"))


@pytest.mark.parametrize("width, height", [(1, 1), (1, 50), (50, 1), (7, 3), (33, 64), (4000, 3), (3, 4000), (9, 9)])
@pytest.mark.parametrize("side", [1, 9, 32])
def test_odd_sizes_give_a_square(width, height, side):
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = image.square(saved(Image.fromarray(pixels)), side)
    assert result.shape == (side, side, 3) and result.dtype == np.uint8
    if side == width == height:
        assert np.array_equal(result, pixels)
    if min(width, height) == 1 and side == 1:  # nothing to scale: the pixel in the middle
        assert np.array_equal(result[0, 0], pixels[(height - 1) // 2, (width - 1) // 2])


def test_a_strip_is_not_scaled_up_to_gigabytes(monkeypatch):
    resize = Image.Image.resize

    def watched(self, size, *rest):
        assert size[0] * size[1] <= 64 * 64 * 16
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", watched)
    strip = np.zeros((1, 20001), np.uint8)
    strip[0, 9999:10002] = 100
    assert (image.square(strip, 64) == 100).all()  # the pixel in the middle
    assert (image.square(strip.T, 64) == 100).all()


def test_the_short_side_is_resized_and_the_centre_cut():
    columns = np.zeros((20, 60, 3), np.uint8)
    columns[:, :20, 0] = columns[:, 20:40, 1] = columns[:, 40:, 2] = 200
    for source in (columns, saved(Image.fromarray(columns))):
        centre = image.square(source, 10)[:, 1:-1]
        assert (centre == (0, 200, 0)).all()
    assert (image.square(columns.transpose(1, 0, 2), 10)[1:-1] == (0, 200, 0)).all()


def test_shrinking_averages_over_what_it_drops():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    shrunk = image.square(checks.astype(np.uint8), 8)
    assert np.abs(shrunk.astype(int) - 127.5).max() < 3  # one pixel in eight would be 0 or 255


def test_a_file_and_its_array_give_the_same_pixels(tmp_path):
    pixels = rng.integers(0, 256, (45, 60, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    for source in (path, str(path), path.read_bytes(), pixels[:, ::-1][:, ::-1]):
        assert np.array_equal(image.square(source, 32), image.square(pixels, 32))
    assert np.array_equal(image.square(pixels[..., 0], 32), image.square(np.repeat(pixels[..., :1], 3, 2), 32))


def test_the_centre_crop_is_central():
    batch = np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    assert np.array_equal(image.centre_crop(batch, 4), batch[:, 1:5, 1:5])
    assert image.centre_crop(batch, 6) is not None and image.centre_crop(batch, 3).shape == (2, 3, 3, 3)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8),
                                   np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_other_arrays_are_refused(array):
    assert "uint8 [H, W]" in refused(array)


def test_broken_files_are_refused_in_one_line(tmp_path):
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = saved(picture, "JPEG")
    for name, data, words in (
        ("cut.jpg", whole[: len(whole) // 2], "truncated"), ("cut.png", saved(picture)[:200], "trunc"),
        ("empty.jpg", b"", "empty"), ("text.jpg", b"no picture at all", "not a JPEG"), ("start.jpg", whole[:20], ""),
        ("eps.jpg", saved(picture, "EPS"), "not a JPEG"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        message = refused(path)
        assert str(path) in message and words in message
        assert refused(data) == message.replace(str(path), "the image")
    (tmp_path / "folder.jpg").mkdir()
    assert "folder.jpg" in refused(tmp_path / "folder.jpg")
    assert refused(tmp_path / "absent.jpg") == f"no such file: {tmp_path / 'absent.jpg'}"


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert "20000 x 5001 pixels are too many" in refused(png(20000, 5001, 8, 2, []))
    assert "cannot read" in refused(png(60000, 60000, 8, 2, []))


def test_no_damage_gets_past_the_error():
    """Whatever a bit flip or a cut does to a file: pixels or one line, never another exception."""
    picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274], exif[270] = 6, "words"
    dice = random.Random(0)
    read = 0
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"):
        whole = saved(picture, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif.tobytes()}))
        for _ in range(50):
            data = bytearray(whole)
            for _ in range(dice.randint(1, 4)):
                data[min(len(data) - 1, int(dice.expovariate(0.02)))] = dice.randrange(256)
            data = bytes(data[:dice.choice([len(data), len(data), dice.randrange(len(data))])])
            try:
                assert image.square(data, 8).shape == (8, 8, 3)
                read += 1
            except UserError as error:
                assert "\n" not in error.message
    assert 30 < read < 270  # both happened


def test_find_follows_links_and_skips_hidden_names(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / ".hidden").mkdir()
    for name in (
        "data/b.JPG", "data/deep/a.Png", "elsewhere/c.tiff", "data/._b.jpg", "data/.hidden/d.jpg", "data/notes.txt",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "data" / "folder.png").mkdir()
    expected = ["b.JPG", "deep/a.Png"]
    try:
        os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked", target_is_directory=True)
        os.symlink(tmp_path / "data", tmp_path / "data" / "loop", target_is_directory=True)
        expected.append("linked/c.tiff")
    except OSError:  # Windows without the right to make links
        pass
    paths, others = image_files.find(tmp_path / "data")
    assert [path.relative_to(tmp_path / "data").as_posix() for path in paths] == expected
    assert {path.name: what for path, what in others.items()} == {"notes.txt": ".txt", "d.jpg": "in .hidden"}


def test_an_image_is_found_under_any_name_and_what_is_none_is_counted_by_kind(tmp_path):
    picture = Image.new("RGB", (6, 5), (9, 8, 7))
    for name, form in (("a.jfif", "JPEG"), ("b.gif", "GIF"), ("c.jpg_", "JPEG"), ("d", "PNG"), ("e.dat", "TIFF"),
                       ("f.x", "BMP"), ("g.x", "WEBP"), ("h.pgm", "PPM"), ("i.x", "PPM"), ("j.x", "JPEG2000"),
                       ("k.tga", "TGA"), ("l.PCX", "PCX"), ("m.x", "SGI")):
        picture.save(tmp_path / name, form)
    for name, data in (("n.dcm", bytes(128) + b"DICM"), ("o.HEIC", b"\0\0\0\x18ftypheic"), ("p.txt", b"P1 came late"),
                       ("q", b"%PDF-1.4"), ("r", b""), ("s.db", b"II"), ("._a.jpg", b"\0\5\x16\7"), (".b.png", b"")):
        (tmp_path / name).write_bytes(data)
    picture.save(tmp_path / "t.NEF", "TIFF")  # a camera's file begins as a TIFF, and Pillow would read its preview
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.jpg").write_bytes(b"")
    paths, others = image_files.find(tmp_path)
    assert "".join(path.name[0] for path in paths) == "abcdefghijklm"
    for path in paths:  # as the cache reads it: only by its name a TGA is known
        with files.open_regular(path, 2 ** 20) as file:
            assert image.square(file, 4).shape == (4, 4, 3)
    assert all(image.decode(path).size == (6, 5) for path in paths)
    assert {path.name: what for path, what in others.items()} == {
        "n.dcm": ".dcm", "o.HEIC": ".heic", "p.txt": ".txt", "q": "PDF", "r": "without suffix", "s.db": ".db",
        "t.NEF": ".nef", ".b.png": "hidden", "._a.jpg": "in __MACOSX"}
    assert image_files.left_out(others).startswith("9 files are not read as images and are left out: 1 ")
