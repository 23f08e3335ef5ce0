"""Images and folders that are made to harm: each is one line, in little time and memory, and none vanishes."""

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
import registry
from kd import image, image_files
from kd.data import cache
from kd.data.dataset import Dataset
from kd.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"),  # pytest undoes kd.image's own filter
              pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")]
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")


def refused(source):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        image.square(source, 8)
    assert "\n" not in caught.value.message and time.monotonic() - start < 5
    return caught.value.message


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# ---- files of each format whose decoder would need hours or gigabytes

def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks, side=64, depth=8, colour=2, late=b""):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(1)
    row = bytes(1 + side * channels * depth // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
            + b"".join(chunks) + chunk(b"IDAT", pixels) + late + chunk(b"IEND"))


def tiff(tags, big=False):
    """A TIFF by hand, with a directory of {tag: (type, count, value, or the bytes of the values)}."""
    entry, start = ("<HHQQ", 16 + 8 + 20 * len(tags) + 8) if big else ("<HHII", 8 + 2 + 12 * len(tags) + 4)
    values, entries = b"", b""
    for tag, (kind, count, value) in sorted(tags.items()):
        if isinstance(value, bytes):
            value, values = start + len(values), values + value
        entries += struct.pack(entry, tag, kind, count, value)
    head = b"II+\0" + struct.pack("<HHQ", 8, 0, 16) if big else b"II*\0" + struct.pack("<I", 8)
    return head + struct.pack("<Q" if big else "<H", len(tags)) + entries + bytes(8 if big else 4) + values


def strips(count):
    return {256: (4, 1, 1), 257: (4, 1, count), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1),
            273: (4, count, bytes(4 * count)), 278: (4, 1, 1), 279: (4, count, bytes(4 * count))}


def bmp(width, height, compression, bits, data):
    palette = bytes(4 << bits)
    start = 54 + len(palette)
    return (b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 1 << bits, 0)
            + palette + data)


def jpeg_of_scans(count, side):
    whole = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xc4", 0, whole.rfind(b"\xff\xda")):-2]
    return whole[:-2] + last * count + whole[-2:]


def jpeg_with(part):
    whole = saved(Image.new("L", (8, 8)), "JPEG")
    return whole[:2] + part + whole[2:]


def gif_with(part):
    whole = saved(Image.new("L", (8, 8)), "GIF")
    start = 13 + (3 * (2 << (whole[10] & 7)) if whole[10] & 128 else 0)
    return whole[:start] + part + whole[start:]


def webp_of_canvas(side):
    header = b"VP8X" + struct.pack("<IB3x", 10, 16) + 2 * (side - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(header) + 4) + b"WEBP" + header


MANY = 170_000
BOMBS = {
    "PNG: metadata": (lambda: png(chunk(b"abCd", bytes(70_000_000))), "more than 64 MB"),
    "PNG: text": (lambda: png(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 ** 20)))] * 99), "MAX_TEXT_MEMORY"),
    "PNG: colour profile": (lambda: png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(99_000_000), 1))), "too large"),
    "PNG: parts": (lambda: png(chunk(b"abCd") * MANY), "more than 300,000 parts"),
    "PNG: parts at the end": (lambda: png(late=chunk(b"abCd") * MANY), "more than 300,000 parts"),
    "PNG: parts of pixels": (lambda: png(chunk(b"IDAT") * MANY), "more than 300,000 parts"),
    "PNG: EXIF": (lambda: png(chunk(b"eXIf", b"II*\0" + struct.pack("<IHHHII", 8, 1, 274, 3, 10 ** 6, 26)
                                    + bytes(2_000_004))), "EXIF"),
    "PNG: pixels": (lambda: png(side=8400, colour=0),
                    "8400 x 8400 pixels are too many, of PNG up to 65 megapixels are read: make it smaller"),
    "JPEG: scans": (lambda: jpeg_of_scans(400, 3000), "scans"),
    "JPEG: segments": (lambda: jpeg_with(b"\xff\xe5\0\x02" * MANY), "parts"),
    "JPEG: filling": (lambda: jpeg_with(b"\xff" * 3 * MANY), "parts"),
    "JPEG: comments": (lambda: jpeg_with((b"\xff\xfe\xff\xff" + bytes(65533)) * 1100), "more than 64 MB"),
    "TIFF: strips": (lambda: tiff(strips(60_000)), "its tag 273 has 60,000 values"),
    "TIFF: strips of the large kind": (lambda: tiff(strips(60_000), big=True), "its tag 273 has 60,000 values"),
    "TIFF: tile": (lambda: tiff({256: (4, 1, 64), 257: (4, 1, 64), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1),
                                 277: (3, 1, 1), 322: (4, 1, 20_000), 323: (4, 1, 20_000), 324: (4, 1, 8),
                                 325: (4, 1, 8)}), "tiles of 400,000,000 pixels"),
    "BMP: rows": (lambda: bmp(60_000_000, 1, 1, 8, b"\1\0\0\0" * 4),
                  "too many for a BMP of this kind, of BMP up to 10 megapixels are read"),
    "BMP: runs": (lambda: bmp(9, 9, 1, 8, b"\1\0" * MANY), "parts"),
    "GIF: comments": (lambda: gif_with(b"\x21\xfe\1a\0" * MANY), "parts"),
    "GIF: parts of a comment": (lambda: gif_with(b"\x21\xfe" + b"\1a" * MANY + b"\0"), "parts"),
    "WebP: pixels": (lambda: saved(Image.new("L", (16_000, 3200)), "WEBP", lossless=True, quality=0, method=0),
                     "16000 x 3200 pixels are too many, of WEBP up to 32.5 megapixels"),
    "WebP: canvas": (lambda: webp_of_canvas(2 ** 24), ""),
}


@pytest.mark.parametrize("make, words", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_one_line(make, words, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(make())
    assert words in refused(path) and str(path) in refused(path)


def test_scans_are_counted_where_the_file_is_read_in_parts():
    data = bytearray(2 ** 20)
    for place in (0, 2 ** 18 - 1, 2 ** 19 - 2, 2 ** 19, 2 ** 20 - 2):
        data[place:place + 2] = b"\xff\xda"
    data[-1:] = b"\xda\xff"  # half of one
    assert image._scans(io.BytesIO(bytes(data))) == 5


def test_what_only_looks_like_a_bomb_is_read():
    """Films, long metadata, many scans of a small image: only their first picture is decoded."""
    frames = [Image.new("L", (40, 40), k) for k in range(100)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        assert image.square(saved(frames[0], kind, save_all=True, append_images=frames[1:]), 8).max() == 0
    for data in (jpeg_of_scans(1000, 16), png(chunk(b"abCd", bytes(9_000_000))), png(chunk(b"abCd") * 9000),
                 bmp(2, 1, 1, 8, b"\2\0\0\1"), gif_with(b"\x21\xfe\1a\0" * 9000), tiff(strips(9000))[:-1]):
        assert image.square(data, 8).shape == (8, 8, 3)


MEMORY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from kd import image
with ThreadPoolExecutor(16) as pool:
    list(pool.map(lambda path: image.square(path, 64, (0, 65535)), sys.argv[1:] * 10))
status = open("/proc/self/status").read()  # getrusage() counts the process that started this one, too
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells the peak memory in a file")
def test_memory_does_not_grow_with_the_number_of_cores(tmp_path):
    """Sixteen threads and images of 25 megapixels in 16 bits, of which a few are in memory at a time."""
    path = tmp_path / "image.png"
    path.write_bytes(png(side=5000, depth=16, colour=0))
    done = subprocess.run([sys.executable, "-c", MEMORY, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 600  # MiB; 1,700 without a limit


def test_threads_share_an_amount_and_one_that_needs_more_takes_all():
    share, using, most = image._Share(10), [], []

    def use(amount):
        with share.take(amount):
            using.append(min(amount, 10))
            most.append(sum(using))
            time.sleep(0.001)
            using.remove(min(amount, 10))

    threads = [threading.Thread(target=use, args=[amount]) for amount in (3, 4, 99, 5, 10, 1) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 30 and max(most) <= 10 and share.free == 10


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("shape", [(7, 500), (500, 7), (60, 60)])
def test_strips_of_a_large_image_are_those_of_the_whole(mode, shape, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (*shape, 4), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(values[..., 0].astype(np.uint16) * 251)
    else:
        picture = Image.fromarray(values).convert(mode) if mode != "CMYK" else Image.fromarray(values, "CMYK")
    whole = np.asarray(image.to_rgb(picture, (0, 65535)))
    monkeypatch.setattr(image, "STRIP", 100)
    assert np.array_equal(np.asarray(image.to_rgb(picture, (0, 65535))), whole)


# ---- things that are not files

def test_an_image_of_any_size_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(10 ** 12)
    assert "is too large" in refused(path)
    for device in ("/dev/zero", "/dev/tty0"):
        if os.path.exists(device):
            assert "is a device, not a file" in refused(device)


@needs_pipes
def test_pipes_sockets_and_links_in_a_circle_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("circle.png", tmp_path / "circle.png")
    os.symlink("gone.png", tmp_path / "gone_link.png")
    words = {"pipe.png": "is a pipe", "circle.png": "leads back to itself", "gone_link.png": "no such file"}
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(os.path.relpath(tmp_path / "socket.png"))  # a whole path may be too long for a socket
        words["socket.png"] = "is a socket"
    except OSError:
        pass
    for name, part in words.items():
        assert part in refused(tmp_path / name)
    assert sorted(path.name for path in image_files.find(tmp_path)[0]) == sorted(words)  # none vanishes
    server.close()
    paths = [tmp_path / name for name in words]
    with pytest.raises(UserError) as caught:
        cache.open_cache(Dataset("d", ["a"], paths, list(words), [0] * len(paths)), 8, folder=tmp_path / "cache")
    assert f"{len(paths)} images cannot be used: pipe.png (it is a pipe, not a file)" in caught.value.message


# ---- folders of which images would vanish

def class_folders(root):
    for name in ("a", "b"):
        (root / name / "deep").mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (9, 9)).save(root / name / ("deep" if k % 2 else "") / f"{k}.png")
    return root


def ham10000(root):
    class_folders(root)
    (root / "HAM10000_metadata.csv").write_text("lesion_id,image_id,dx\nl,0,nv\n")
    return root


@pytest.fixture
def unlistable(monkeypatch):
    """A function that makes a folder one that cannot be listed, whoever runs the tests."""
    refused_folders = set()

    def refusing(function):
        def call(path="."):
            if os.fspath(path) in refused_folders:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path)
        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    return lambda path: refused_folders.add(os.fspath(path))


FINDERS = (image_files.find, lambda root: predict.find([root]), lambda root: registry.create("dataset", "folder", root))


@pytest.mark.parametrize("place", ["", "a", "a/deep"])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, unlistable, place):
    root = class_folders(tmp_path / "set")
    unlistable(root / place if place else root)
    for find in FINDERS:
        with pytest.raises(UserError, match="cannot list the folder .*: permission denied"):
            find(root)


def test_a_folder_of_ham10000_that_cannot_be_listed_is_named(tmp_path, unlistable):
    root = ham10000(tmp_path / "set")
    registry.create("dataset", "ham10000", root)
    for folder in (root / "b", root):
        unlistable(folder)
        with pytest.raises(UserError, match=f"cannot list the folder .*{folder.name}: permission denied"):
            registry.create("dataset", "ham10000", root)


def test_of_a_folder_without_the_table_of_ham10000_this_is_said_before_its_links_are_judged(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no HAM10000_metadata.csv in"):
        registry.create("dataset", "ham10000", tmp_path)
    ham10000(tmp_path)
    with pytest.raises(UserError, match="the link .*link leads nowhere"):
        registry.create("dataset", "ham10000", tmp_path)


@needs_pipes
@pytest.mark.parametrize("place", ["c", "a/c"])
@pytest.mark.parametrize("target, words", [("nowhere", "no such file"), ("c", "too many levels")])
def test_a_link_to_no_folder_is_named(tmp_path, place, target, words):
    root = class_folders(tmp_path / "set")
    os.symlink(target, root / place)
    for find in FINDERS:
        with pytest.raises(UserError, match=f"the link .*c leads nowhere: {words}"):
            find(root)


def test_images_beside_the_class_folders_are_named(tmp_path, capsys):
    root = class_folders(tmp_path / "set")
    Image.new("RGB", (9, 9)).save(root / "stray.png")
    assert len(registry.create("dataset", "folder", root).ids) == 8
    assert "note: 1 images are in no class folder and are left out: " in capsys.readouterr().out
