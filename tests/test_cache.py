"""Every image is decoded once, and no half, stale or foreign cache is ever trusted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd import image, perceptual_hash
from kd.data import cache
from kd.data.dataset import Dataset
from kd.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def pictures(folder, count=6, name="set"):
    """A dataset of PNG files of one colour each: file i has 10 * i in every pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.new("RGB", (12, 9), (10 * i,) * 3).save(path)
    return Dataset(
        name, ["a", "b"], images=paths, ids=[path.name for path in paths], labels=[i % 2 for i in range(count)]
    )


def values(images):
    images = np.array(images)
    assert images.dtype == np.uint8 and (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by one with every image decoded."""
    counted, read = [], cache._read
    monkeypatch.setattr(cache, "_read", lambda *args: counted.append(1) or read(*args))
    return counted


def test_images_are_decoded_once(tmp_path, decoded):
    data = pictures(tmp_path / "data")
    first, sha256, bad, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert values(first) == [0, 10, 20, 30, 40, 50] and not bad and len(decoded) == 6
    assert sha256.tolist() == [hashlib.sha256(path.read_bytes()).hexdigest().encode() for path in data.images]
    again, same, _, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert len(decoded) == 6 and np.array_equal(same, sha256) and np.array_equal(first, again)
    assert isinstance(again.map, np.memmap) and not again.map.flags.writeable


def test_the_cache_holds_what_evaluation_cuts_out_of_a_file(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    cached, _, _, _ = cache.open_cache(Dataset("d", ["a"], [path], ["a"], [0]), 36, folder=tmp_path)
    assert np.array_equal(cached[0], image.square(path, 36))
    assert np.array_equal(image.centre_crop(cached[:], 32)[0],
                          image.centre_crop(image.square(path, 36)[None], 32)[0])


def test_changed_files_build_a_new_cache_and_leave_the_old(tmp_path, decoded):
    data = pictures(tmp_path / "data")
    old, _, _, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    Image.new("RGB", (12, 9), (99,) * 3).save(data.images[2])
    new, _, _, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert values(new) == [0, 10, 99, 30, 40, 50] and len(decoded) == 12
    assert values(old)[2] == 20  # whoever trains on it goes on
    size = os.stat(data.images[0])
    os.utime(data.images[0], ns=(size.st_atime_ns, size.st_mtime_ns + 1_000_000))
    cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert len(decoded) == 18  # the same bytes at another time: looked at again
    cache.open_cache(data, 9, folder=tmp_path / "cache")
    assert len(decoded) == 24  # another size
    data.images.pop(), data.ids.pop()
    cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert len(decoded) == 29  # other images


def test_arrays_are_told_apart_by_content_or_version(tmp_path, decoded):
    def arrays(value, version=""):
        return Dataset("arrays", ["a"], [np.full((8, 8), value, np.uint8)], ["one"], [0], version=version)

    def opened(data):
        return values(cache.open_cache(data, 8, folder=tmp_path)[0])

    assert opened(arrays(1)) == [1] and opened(arrays(2)) == [2] and opened(arrays(1)) == [1]
    assert opened(arrays(3, "v1")) == [3] and opened(arrays(4, "v2")) == [4]
    assert len(decoded) == 4


def test_arrays_in_any_memory_order_and_functions_that_draw_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    fortran = list(np.asfortranarray(pixels))
    data = Dataset("f", ["a"], fortran + [lambda: fortran[0]], ["x", "y", "z"], [0] * 3)
    images, sha256, _, _ = cache.open_cache(data, 8, folder=tmp_path)
    assert np.array_equal(images, pixels[[0, 1, 0]]) and sha256[0] == sha256[2] != sha256[1]


def test_bad_images_are_listed_and_can_be_skipped(tmp_path):
    data = pictures(tmp_path / "data", 9)
    data.images[1].unlink()
    data.images[2].write_bytes(b"")
    for i in (4, 5, 6, 7):
        data.images[i].write_text("not an image")
    data.images[8] = UserError("there twice: x.png and y.png")
    with pytest.raises(UserError) as caught:
        cache.open_cache(data, 8, folder=tmp_path / "cache")
    message = caught.value.message
    assert message.startswith(
        "7 of 9 images cannot be used: 1.png (no such file), 2.png (it is empty), 4.png ("
    )
    assert message.endswith(" and 2 more") and "6.png (" in message and "7.png" not in message
    assert "--skip-bad" in caught.value.hint and "\n" not in message
    images, sha256, bad, _ = cache.open_cache(data, 8, folder=tmp_path / "cache", skip_bad=True)
    assert [i for i, _ in bad] == [1, 2, 4, 5, 6, 7, 8] and bad[-1][1] == "there twice: x.png and y.png"
    assert values(images) == [0, 0, 0, 30, 0, 0, 0, 0, 0] and [bool(sha) for sha in sha256] == [
        True, False, False, True] + [False] * 5


def test_an_image_that_can_be_read_again_is_no_longer_bad(tmp_path, monkeypatch):
    """A lost connection or a missing right changes neither size nor time of a file."""
    data = pictures(tmp_path / "data")
    open_regular = cache.open_regular

    def refuse(path, limit):
        if path == data.images[3]:
            raise PermissionError(13, "Permission denied")
        return open_regular(path, limit)

    with monkeypatch.context() as broken:
        broken.setattr(cache, "open_regular", refuse)
        with pytest.raises(UserError, match="3.png .Permission denied"):
            cache.open_cache(data, 8, folder=tmp_path / "cache")
    images, _, bad, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    assert not bad and values(images)[3] == 30


@pytest.mark.parametrize(
    "name", ["two words", "a/b\\c", "../up", "bösartig 数据", "n" * 300, "", "con", "*?[x]:<>|\"'"])
def test_any_name_makes_a_safe_file_name(tmp_path, name):
    folder = tmp_path / "cache"
    cache.open_cache(pictures(tmp_path / "data", name=name), 8, folder=folder)
    assert cache.open_cache(pictures(tmp_path / "data", name=name), 8, folder=folder)
    assert all(path.parent == folder and len(path.name) < 120 and path.name.isascii() for path in folder.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_names_that_look_alike_do_not_share_a_cache(tmp_path):
    for k, name in enumerate(["数据", "资料", "x" * 99 + "1", "x" * 99 + "2"]):
        data = Dataset(name, ["a"], [lambda k=k: np.full((8, 8), k, np.uint8)], ["i"], [0], version="1")
        assert values(cache.open_cache(data, 8, folder=tmp_path)[0]) == [k]


def test_it_lies_beside_the_data_or_in_the_users_folder(tmp_path, decoded):
    data = pictures(tmp_path / "data")
    cache.open_cache(data, 8, root=tmp_path / "data")
    assert list((tmp_path / "data" / ".kd_cache").glob("*.npy"))
    cache.open_cache(data, 8, root=data.images[0])  # a file, as MedMNIST's, has its folder
    assert len(decoded) == 6
    cache.open_cache(data, 9)
    assert len(list(cache._places(None)[0].glob("set_9px_*.npy"))) == 1


def test_data_that_cannot_be_written_are_cached_in_the_users_folder(tmp_path, monkeypatch):
    data = pictures(tmp_path / "data", name="readonly")
    (tmp_path / "data" / ".kd_cache").write_text("in the way: no folder of this name can be made")
    images, _, _, _ = cache.open_cache(data, 8, root=tmp_path / "data")
    assert Path(images.filename).parent == cache._places(None)[0]


def test_a_finished_cache_is_used_where_nothing_can_be_written(tmp_path, monkeypatch, decoded):
    data = pictures(tmp_path / "data")
    cache.open_cache(data, 8, root=tmp_path / "data")

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert values(cache.open_cache(data, 8, root=tmp_path / "data")[0])[5] == 50 and len(decoded) == 6
    with pytest.raises(UserError, match="cannot be written to .*read-only") as caught:
        cache.open_cache(data, 9, folder=tmp_path / "cache")
    assert "--cache" in caught.value.hint


def test_a_cache_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="the image cache cannot be written"):
            cache.open_cache(pictures(tmp_path / "data"), 8, folder=place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="rights do not bind this user")
def test_a_folder_without_the_right_to_write_is_passed_over(tmp_path):
    data = pictures(tmp_path / "data", name="norights")
    os.chmod(tmp_path / "data", 0o555)
    images, _, _, _ = cache.open_cache(data, 8, root=tmp_path / "data")
    os.chmod(tmp_path / "data", 0o755)
    assert Path(images.filename).parent == cache._places(None)[0]


def turned(file, position):
    """Turn over a bit of the file, at a position from its start or its end."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def marked(**row):
    """A damage: the index marks the first image so; a file that was exchanged."""
    marks = json.dumps([{"position": 0, "id": "0.png", "error": "", "facts": "", **row}]).encode()
    return lambda npy, npz: np.savez(npz, **{**np.load(npz), "marks": np.frombuffer(marks, np.uint8)})


DAMAGE = {
    "cut": lambda npy, npz: npy.write_bytes(npy.read_bytes()[:-9]),
    "empty": lambda npy, npz: npy.write_bytes(b""),
    "zeros": lambda npy, npz: npy.write_bytes(b"\0" * 999),
    "another type": lambda npy, npz: np.save(npy, np.zeros((6, 8, 8, 3))),
    "fewer images": lambda npy, npz: np.save(npy, np.zeros((5, 8, 8, 3), np.uint8)),
    "an empty index": lambda npy, npz: npz.write_bytes(b""),
    "an index of others": lambda npy, npz: np.savez(npz, **{
        name: np.zeros(5, kind) for name, kind in cache.ARRAYS.items()}),
    "marks of others": marked(id="9.png"),
    "a position from the end": marked(position=-6),
    "an error that is no text": marked(error=3),
    "facts that are no text": marked(facts=None),
    "a fact of another kind": marked(facts="dark:zz"),
    "extremes that are no numbers": marked(facts="deep:x:9:int"),
    "a bit of the index": lambda npy, npz: turned(npz, 100),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_again_and_one_line_says_so(tmp_path, damage, decoded, capsys):
    data = pictures(tmp_path / "data")
    images, sha256, _, _ = cache.open_cache(data, 8, folder=tmp_path)
    assert capsys.readouterr().out.startswith("note: 6 of 6 images are of one colour")
    file = Path(images.filename)
    del images
    damage(file, file.with_suffix(".npz"))
    again, same, bad, _ = cache.open_cache(data, 8, folder=tmp_path)
    assert values(again) == [0, 10, 20, 30, 40, 50] and np.array_equal(same, sha256) and not bad and len(decoded) == 12
    line, of_colours = capsys.readouterr().out.splitlines()
    assert line.startswith(f"note: the image cache {file} is damaged: ") and line.endswith("; it is made again")
    cache.open_cache(data, 8, folder=tmp_path)
    assert len(decoded) == 12 and capsys.readouterr().out.splitlines() == [of_colours]


def test_a_cache_of_an_older_version_is_made_again(tmp_path, decoded):
    data = pictures(tmp_path / "data")
    file = Path(cache.open_cache(data, 8, folder=tmp_path)[0].filename)
    file.with_suffix(".npz").rename(file.with_suffix(".csv"))  # theirs was a table
    assert values(cache.open_cache(data, 8, folder=tmp_path)[0])[5] == 50 and len(decoded) == 12


def test_a_damaged_cache_that_cannot_be_made_again_is_refused(tmp_path, monkeypatch):
    data = pictures(tmp_path / "data")
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    Path(images.filename).write_bytes(b"")

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match="is damaged: .*; a new one cannot be written to .*: read-only"):
        cache.open_cache(data, 8, folder=tmp_path / "cache")


def test_a_damaged_image_is_decoded_again_when_it_is_read_first(tmp_path, decoded, capsys):
    data = pictures(tmp_path / "data")
    file = Path(cache.open_cache(data, 8, folder=tmp_path)[0].filename)
    written = file.read_bytes()
    turned(file, 128), turned(file, -1)
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path)
    capsys.readouterr()
    assert values(images[1:5]) == [10, 20, 30, 40] and len(decoded) == 6 and file.read_bytes() != written
    assert values(images[[5, 1, 0]]) == [50, 10, 0] and len(decoded) == 8
    last, first = capsys.readouterr().out.splitlines()
    assert last == f"note: 5.png is damaged in the image cache {file}; it is decoded again" and "note: 0.png" in first
    assert file.read_bytes() == written
    assert values(cache.open_cache(data, 8, folder=tmp_path)[0]) == [0, 10, 20, 30, 40, 50] and len(decoded) == 8


def test_a_damaged_image_is_right_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    data = pictures(tmp_path / "data")
    turned(Path(cache.open_cache(data, 8, folder=tmp_path)[0].filename), -1)
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    assert values(images)[5] == 50 and values(images)[5] == 50


def test_a_damaged_image_whose_file_has_changed_is_refused_with_a_way_out(tmp_path):
    data = pictures(tmp_path / "data")
    file = Path(cache.open_cache(data, 8, folder=tmp_path)[0].filename)
    turned(file, -1)
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path)
    stamp = os.stat(data.images[5])
    Image.new("RGB", (12, 9), (99,) * 3).save(data.images[5])
    with open(data.images[5], "ab") as padding:
        padding.write(b" " * (stamp.st_size - os.path.getsize(data.images[5])))
    os.utime(data.images[5], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(UserError, match="is damaged: 5.png is not what was written, and decoded again") as caught:
        images[[5]]
    assert caught.value.hint == f"Delete {file}, and the same command makes it again."
    del images
    file.unlink()
    assert values(cache.open_cache(data, 8, folder=tmp_path)[0])[5] == 99


def test_perceptual_hashes_are_those_of_the_cached_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    data = Dataset("noise", ["a"], [np.kron(image, np.ones((8, 8, 1), np.uint8)) for image in noise], "xyz", [0] * 3)
    for _ in range(2):  # built, and found
        images, _, _, _ = cache.open_cache(data, 64, folder=tmp_path)
        assert [looks.decode() for looks in images.perceptual_hashes] == perceptual_hash.hashes(images[:])
    assert all(images.perceptual_hashes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_the_place_of_pixels_or_images_is_not_waited_for(tmp_path):
    data = pictures(tmp_path / "data")
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path / "cache")
    file = Path(images.filename)
    file.unlink()
    os.mkfifo(file)
    assert values(cache.open_cache(data, 8, folder=tmp_path / "cache")[0])[5] == 50
    data.images[1].unlink()
    os.mkfifo(data.images[1])
    with pytest.raises(UserError, match="1 of 6 images cannot be used: 1.png .it is a pipe, not a file."):
        cache.open_cache(data, 8, folder=tmp_path / "cache")


SCRIPT = textwrap.dedent("""
    import os, sys, time
    import numpy as np
    from kd.data import cache
    from kd.data.dataset import Dataset
    folder, endless = sys.argv[1], int(sys.argv[2])

    def drawn(value):
        time.sleep(600 if value == endless else 0.03)
        with open(f"{folder}/drawn", "a") as file:
            file.write(f"{value}\\n")
        return np.full((8, 8), value, np.uint8)

    cache.CHUNK = 4
    data = Dataset("slow", ["a"], [lambda i=i: drawn(i) for i in range(40)], range(40), [0] * 40, version="1")
    images, _, _, _ = cache.open_cache(data, 8, folder=f"{folder}/cache")
    assert np.array(images)[:, 0, 0, 0].tolist() == list(range(40))
    print("good")
""")


def start(folder, endless=-1):
    """A process that draws 40 images into a cache, and never gets past number `endless`."""
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(endless)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def drawn(folder):
    path = folder / "drawn"
    return path.read_text().split() if path.exists() else []


def test_of_two_processes_one_decodes_and_both_read(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert all("good" in out for out, _ in outputs), outputs
    assert sorted(drawn(tmp_path), key=int) == [str(i) for i in range(40)]


def test_a_killed_build_is_not_trusted_and_leaves_nothing_behind(tmp_path):
    process = start(tmp_path, endless=13)
    wait_for(lambda: len(drawn(tmp_path)) >= 12)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate(timeout=60)
    folder = tmp_path / "cache"
    assert list(folder.glob(".*.tmp")) and not list(folder.glob("*.npz"))
    (tmp_path / "drawn").unlink()
    out, err = start(tmp_path).communicate(timeout=60)
    assert "good" in out, err
    assert len(drawn(tmp_path)) == 40 and not list(folder.glob(".*.tmp"))


def test_a_kill_between_map_and_list_is_no_cache(tmp_path, monkeypatch, decoded):
    """The list is written last; a map without it is built again, and so is a list without its map."""
    data = pictures(tmp_path / "data")

    def killed(*args, **arrays):
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(cache.np, "savez", killed)
        cache.open_cache(data, 8, folder=tmp_path)
    assert list(tmp_path.glob("*.npy")) and not list(tmp_path.glob("*.npz"))
    images, _, _, _ = cache.open_cache(data, 8, folder=tmp_path)
    assert values(images) == [0, 10, 20, 30, 40, 50] and len(decoded) == 12


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.open_cache(pictures(tmp_path / "data"), 8, folder=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".lock", ".owner")]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """A build holds a few chunks, not the set."""
    import tracemalloc

    data = Dataset(
        "many", ["a"], [lambda: np.zeros((64, 64, 3), np.uint8)] * 1000, range(1000), [0] * 1000, version="1"
    )
    tracemalloc.start()
    images, _, _, _ = cache.open_cache(data, 64, folder=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.map.nbytes > 12e6 and peak < 8e6
