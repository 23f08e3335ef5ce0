"""The image cache: every image is decoded once, into a uint8 memory map that all later runs share.

Each image has a checksum, which is compared when it is read first: a cache of a million images is opened in seconds,
and no damaged image trains.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import numpy as np

from kd import image, machine, perceptual_hash
from kd.data import values
from kd.errors import UserError, listing, progress
from kd.files import atomic, lock, open_regular, read_npz, write_csv

FORMAT = 2  # to be raised when the same file would give other pixels
CHUNK = 256         # images decoded at a time, and
CHUNK_BYTES = 2 ** 26  # the bytes of their pixels at most; both limit the memory of a build
HEX = np.dtype("S64")  # 32 bytes in hex digits
# Of the index, [N] each: contents, looks and checksums; and `marks`, JSON of [{"position", "id", "error", "facts"}] of
# the images that have one of the latter two (facts: see kd.data.values).
ARRAYS = {"sha256": HEX, "perceptual_hash": HEX, "crc32": np.dtype("<u4"), "marks": np.dtype(np.uint8)}


class Images:
    """The pixels of a cache, uint8 [N, R, R, 3], in a memory map; read by position, slice or array of positions.

    An image is compared with its checksum when it is read first. One that is damaged is decoded from its source again,
    into the cache where that can be written, and a line says so. UserError where its source gives other pixels now.
    perceptual_hashes: [N] of kd.perceptual_hash, in ASCII.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, pixels, index, ids, decode):
        self.map, self.checksums, self.ids, self.decode = pixels, index["crc32"], ids, decode
        self.perceptual_hashes = index["perceptual_hash"]
        self.shape, self.filename = pixels.shape, pixels.filename
        self.is_sound = np.zeros(len(pixels), bool)

    def __len__(self):
        return len(self.map)

    def __getitem__(self, index):
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        flat = rows.reshape(-1)
        pixels = np.asarray(self.map[flat])
        for k in np.flatnonzero(~self.is_sound[flat]):
            if zlib.crc32(pixels[k]) == self.checksums[flat[k]]:
                self.is_sound[flat[k]] = True
            else:
                pixels[k] = self._decoded_again(flat[k])
        return pixels.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)

    def _decoded_again(self, row):
        pixels = np.empty(self.shape[1:], np.uint8)
        pixels[:] = self.decode(row)
        if zlib.crc32(pixels) != self.checksums[row]:
            raise UserError(f"the image cache {self.filename} is damaged: {self.ids[row]} is not what was written, and "
                            "decoded again it has other pixels",
                            f"Delete {self.filename}, and the same command makes it again.")
        print(f"note: {self.ids[row]} is damaged in the image cache {self.filename}; it is decoded again")
        with contextlib.suppress(OSError):  # where nothing can be written it is decoded whenever it is read
            np.lib.format.open_memmap(self.filename, mode="r+")[row] = pixels
        return pixels


def open_cache(dataset, resize, *, interpolation=image.INTERPOLATION, folder=None, root=None, skip_bad=False,
               range=None, eight_bits=False, again=False):
    """The images of a Dataset from its cache, which is built if there is none.

    resize: side of the images in px. interpolation: one of kd.image.INTERPOLATIONS. folder: where the cache is; None
    for beside the data in `root`, or in the user's cache folder if that place cannot be written. The file name contains
    a key of the interpolation, how far its first step goes, and every image's name, size and time of change, so that
    changed data get a new cache. Old ones are not deleted, because another program may be reading them.
    range: (low, high) of the network that the images are for, to which deep values are scaled; None to choose one that
    suits all images of the set. eight_bits: the network was trained on images of 8 bits alone, and deep ones, whose
    scale it does not have, cannot be used. again: the same images were opened at another size before.

    Returns (images, sha256, bad, range): images are Images [N, resize, resize, 3]; sha256 is an array [N] of hex digits
    in ASCII, of the bytes of each file, or of the pixels if an image is no file; bad is a list of (position, reason)
    for images that cannot be read, whose pixels are 0; range is None if no image is deep. Lines say what values the
    images have where these are not the usual ones, unless `again`. Without `skip_bad` bad images are a UserError. A
    cache whose index is damaged or missing, as in older versions, is built again; a UserError where nothing can be
    written.
    """
    scale = "" if range is None else f" {range[0]}..{range[1]}"
    way = image.way_of(interpolation)
    key = hashlib.sha256(f"{FORMAT} {dataset.name} {dataset.version} {resize} {way}{scale}".encode())
    stamps = map(_stamp, dataset.images, dataset.ids, repeat(dataset.version))
    while block := list(islice(stamps, 4096)):  # one update for each of a million takes longer
        key.update("\n".join(["", *block]).encode())
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", dataset.name)[:40]  # names that become equal here differ in the key
    stem = f"{name}_{resize}px_{key.hexdigest()[:12]}"
    places = [Path(folder)] if folder is not None else _places(root)
    found, damage = _find(dataset, resize, places, stem)
    if found is None:
        place = _writable(places, damage)
        if damage:
            print(f"note: {damage}; it is made again")
        found = _built(dataset, resize, interpolation, place, stem, range, eight_bits)
    pixels, index, rows = found
    deep = values.deep_extremes(rows) if eight_bits else {}
    rows = [{**row, "facts": "", "error": f"values up to {deep[row['id']][1]:,.6g}, in more than 8 bits"}
            if row["id"] in deep else row for row in rows]
    bad = [(row["position"], row["error"]) for row in rows if row["error"]]
    if bad and not skip_bad:
        names = listing([f"{dataset.ids[i]} ({reason})" for i, reason in bad])
        used = np.delete(dataset.labels, [i for i, _ in bad])
        lost = [name for k, name in enumerate(dataset.class_names) if k in dataset.labels and k not in used]
        hint = ", or leave them out with --skip-bad" if not lost else f"; without them {listing(lost)} has no image"
        in_8_bits = "ave them in 8 bits, with the scale of the images that the network was trained on"
        mend = f"S{in_8_bits}" if len(deep) == len(bad) else "Repair them" + (
            f" (those of more than 8 bits: s{in_8_bits})" if deep else "")
        of_8_bits = " by a network that was trained on images of 8 bits" if len(deep) == len(bad) else ""
        raise UserError(f"{len(bad)} of {len(pixels)} images cannot be used{of_8_bits}: {names}", f"{mend}{hint}.")
    extremes = values.deep_extremes(rows)
    used = (range or values.choose_range(extremes)) if extremes else None
    if not again:
        contents = np.delete(index["sha256"], [i for i, _ in bad])
        table = Path(pixels.filename).with_suffix(".csv")
        for line in values.notes(rows, contents, used, range is not None or eight_bits, table):
            print(f"note: {line}")

    def decode(position):
        return _read(dataset.images[position], resize, interpolation, used)[0]

    return Images(pixels, index, dataset.ids, decode), index["sha256"], bad, used


def _find(dataset, resize, places, stem):
    """(_load() of the first whole cache in `places` or None, what is wrong with the one before)."""
    damage = ""
    for place in places:
        if _is_complete(place, stem):
            try:
                found = _load(dataset, resize, place, stem)
            except UserError as error:
                damage = damage or error.message
                continue
            if not _bad_became_readable(dataset, found[2]):
                return found, damage
    return None, damage


def _built(dataset, resize, interpolation, place, stem, limits, eight_bits):
    """_load() of a cache that is built here, unless another process builds it at this moment."""
    pixels = place / f"{stem}.npy"
    with lock(place / f"{stem}.lock", wait=True, what=f"the image cache {pixels}"):
        found, _ = _find(dataset, resize, [place], stem)
        if found is None:
            _build(dataset, resize, interpolation, pixels, limits, eight_bits)
    return found or _load(dataset, resize, place, stem)


def _load(dataset, resize, place, stem):
    """(memory map, arrays of the index, its marks) of a cache. UserError unless their form is that of the images."""
    file, shape = place / f"{stem}.npy", (len(dataset.ids), resize, resize, 3)
    try:
        index = read_npz(place / f"{stem}.npz", required=ARRAYS)  # zip archives have checksums
        marks = json.loads(index["marks"].tobytes())
        if any(index[name].dtype != kind or name != "marks" and index[name].shape != shape[:1]
               for name, kind in ARRAYS.items()):
            raise ValueError(f"{stem}.npz lists other images")
        for row in marks:
            position = row["position"]
            if type(position) is not int or position < 0 or dataset.ids[position] != row["id"] \
                    or type(row["error"]) is not str:
                raise ValueError(f"{stem}.npz marks other images")
        values.check_facts(marks)
        open_regular(file, math.prod(shape) + 4096).close()  # a pipe would be waited for
        pixels = np.lib.format.open_memmap(file, mode="r")
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError(f"it contains {pixels.dtype} {list(pixels.shape)}")
    except Exception as error:  # of a damaged header NumPy raises what the parser of Python raises
        reason = " ".join(getattr(error, "message", str(error)).split())
        raise UserError(f"the image cache {file} is damaged: {reason}") from error
    return pixels, index, marks


def _stamp(source, name, version):
    """A line of text that changes when the pixels of an image may have changed; version: of its Dataset."""
    if isinstance(source, (str, Path)):
        try:
            status = os.stat(source)
            return f"{name} {status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):  # the latter for a name that no file can have
            return f"{name} missing"
    if isinstance(source, UserError):
        return f"{name} {source.message}"
    if isinstance(source, np.ndarray) and not version:
        return f"{name} {source.shape} {_sha256(source)}"
    return name


def _sha256(data):
    return hashlib.sha256(np.ascontiguousarray(data) if isinstance(data, np.ndarray) else data).hexdigest()


def _places(root):
    """The folders for a cache, in order of preference: beside the data in `root`, then the user's cache folder."""
    places = [machine.cache_folder()]
    if root is not None:
        root = Path(root)
        places.insert(0, (root if root.is_dir() else root.parent) / ".kd_cache")
    return places


def _is_complete(place, stem):
    """Whether both files of a cache are there: the pixels, and the index, which is written last."""
    return all(os.path.exists(place / f"{stem}{suffix}") for suffix in (".npy", ".npz"))


def _writable(places, damage=""):
    """The first of the places in which a file can be written. UserError if there is none.

    damage: why the cache that is there cannot be used, for the error.
    """
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError as error:
            reason = error.strerror
    cannot = f"cannot be written to {place}: {reason.lower()}"
    raise UserError(f"{damage}; a new one {cannot}" if damage else f"the image cache {cannot}",
                    "Make that place writable, or choose another with --cache, which the training scripts, export.py, "
                    "evaluate.py and robustness.py have.")


def _bad_became_readable(dataset, marks):
    """Whether an image that could not be read now can be, though its size and time are unchanged.

    This happens when a permission is given or a drive is connected again.
    """
    return any(row["error"] and not _read(dataset.images[row["position"]], 8, image.INTERPOLATION, (0, 1))[3]
               for row in marks)


def _read(source, resize, interpolation, limits):
    """(pixels, sha256, facts, "") of an image, or (0, "", [], the reason why it cannot be read).

    pixels is 0, too, for a deep image without `limits`, its range. facts: the words of kd.data.values on the file.
    """
    try:
        if isinstance(source, UserError):
            raise source
        if callable(source):
            source = source()
        if isinstance(source, np.ndarray):
            return image.square(source, resize, None, interpolation), _sha256(source), [], ""
        with open_regular(source, image.MAX_BYTES) as file:
            digest = hashlib.sha256()
            while block := file.read(2 ** 20):
                digest.update(block)
            pixels, extremes, has_several_frames, _ = image.examine(file, resize, limits, interpolation)
        facts = ([values.deep_word(*extremes)] if extremes else []) + ["frames"] * has_several_frames
        return 0 if pixels is None else pixels, digest.hexdigest(), facts, ""
    except UserError as error:
        reason = error.message.removeprefix("cannot read the image: ")
        return 0, "", [], reason.replace(f": {source}", "").replace(str(source), "it")
    except OSError as error:
        return 0, "", [], error.strerror or str(error) or "unreadable"


def _build(dataset, resize, interpolation, pixels, limits, eight_bits):
    """Decode all images, in threads, and write the files of the cache: `pixels`, its index, and a table of the marks.

    limits: the range of deep images; without one they are decoded twice, since it is known when all have been read.
    eight_bits: as for open_cache(). Deep images that have no common range are then left black, as nobody uses them.
    """
    for remnant in pixels.parent.glob(f".{pixels.stem}.*.tmp"):  # of a build that was killed
        with contextlib.suppress(OSError):
            remnant.unlink()
    index, table = pixels.with_suffix(".npz"), pixels.with_suffix(".csv")
    for file in (index, table):
        file.unlink(missing_ok=True)
    count, size = len(dataset.ids), resize * resize * 3
    arrays = {name: np.zeros(count, kind) for name, kind in ARRAYS.items() if name != "marks"}
    marks, looks = {}, values.Looks(count)  # marks: {position: row}

    def mark(position, error, facts):
        marks[position] = {"position": position, "id": dataset.ids[position], "error": error, "facts": facts}

    with atomic(pixels) as file, ThreadPoolExecutor() as pool, \
            progress(description="decoding images once", total=count, unit="image") as bar:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, resize, resize, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        begin, step = file.tell(), max(1, min(CHUNK, CHUNK_BYTES // size))

        def decode(part, limits):
            """Decode and write the images at the positions `part`."""
            chunk = np.zeros((len(part), resize, resize, 3), np.uint8)
            sources = [dataset.images[i] for i in part]
            results = pool.map(_read, sources, repeat(resize), repeat(interpolation), repeat(limits))
            found = []
            for k, (square, sha256, facts, error) in enumerate(results):
                chunk[k] = square
                arrays["sha256"][part[k]], arrays["crc32"][part[k]] = sha256, zlib.crc32(chunk[k])
                found.append((facts, error))
            arrays["perceptual_hash"][list(part)] = perceptual_hash.hashes(chunk)
            for i, (facts, error), words in zip(part, found, looks.words(part, chunk)):
                if error or facts or words:
                    mark(i, error, "" if error else " ".join(facts + words))
            for first, squares in [(part[0], chunk)] if isinstance(part, range) else zip(part, chunk):
                file.seek(begin + first * size)
                file.write(squares)
            bar.update(len(part))

        def in_parts(positions):
            return (positions[start:start + step] for start in range(0, len(positions), step))

        for part in in_parts(range(count)):
            decode(part, limits)
        extremes = values.deep_extremes(marks.values())
        if extremes and limits is None:
            deep = [i for i, name in enumerate(dataset.ids) if name in extremes]
            try:
                limits = values.choose_range(extremes)
            except UserError:
                if not eight_bits:
                    raise
                deep = []
            bar.total += len(deep)
            for part in in_parts(deep):
                decode(part, limits)
    for i in looks.inverted().tolist():
        mark(i, "", f"{marks[i]['facts']} inverted" if i in marks else "inverted")
    rows = [marks[i] for i in sorted(marks)]
    if rows:
        write_csv(table, [{key: row[key] for key in ("id", "error", "facts")} for row in rows])
    arrays["marks"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    with atomic(index) as file:  # last, because its presence says that the cache is complete
        np.savez(file, **arrays)  # compressed, hex digits would take half the room and twice the time to read
