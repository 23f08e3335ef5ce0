"""Which files in a folder are images: by their suffix or their first bytes. What is left out is counted by kind, and
of what cannot be read the header is looked at."""

import os
import re
import struct
import sys
from collections import Counter
from pathlib import Path

from kd.errors import UserError
from kd.files import open_regular

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
            ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".pcx", ".sgi", ".tga"}
# The first bytes of files, as regular expressions. What is no image for us, though it may hold pictures, has a name.
SIGNATURES = {"image": rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|(II|MM)(\*\0|\0\*|\+\0|\0\+)|"
                       rb"RIFF.{4}WEBP|P[1-6]\s+[#\d]|\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51|"
                       rb".{4}ftypavi[fs]|\x01\xda[\0\1][\1\2]",
              "DICOM": rb".{128}DICM", "HEIC": rb".{4}ftyp(hei|hev|mif|msf)", "PDF": rb"%PDF-", "zip": rb"PK\x03\x04",
              "NIfTI": rb".{344}(n\+1|ni1)\0", "HTML": rb"\s*<(?i:!doctype html|html)"}
TAG_VALUES = 50_000  # of a TIFF tag, such as the places of its strips: each becomes an object
# These begin as TIFF does, but Pillow finds a preview in them and not the picture.
CAMERAS = {".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".pef", ".srw", ".3fr", ".erf", ".kdc", ".dcr", ".iiq",
           ".mef", ".svs", ".ndpi", ".scn"}


def find(folder):
    """The image files in and below `folder`: (sorted paths, other files as {path: what it is}). Links are followed.

    An image is what has a usual suffix, or the content of an image under any other name. Hidden files and folders, and
    the __MACOSX of archives, are left out; images in them are among the other files. UserError where a folder cannot be
    listed, and for a link that leads nowhere: images below it would be missing.
    """
    def cannot_list(error):
        raise unlisted(error.filename, error)

    images, others, visited = [], {}, set()
    for top, folders, names in os.walk(folder, followlinks=True, onerror=cannot_list):
        target = os.path.realpath(top)
        if target in visited:  # a link to a folder above would lead round for ever
            folders.clear()
            continue
        visited.add(target)
        inside = Path(top).relative_to(folder).parts
        hidden = next((name for name in inside if is_hidden(name)), "")
        for name in names:
            path, suffix = Path(top, name), os.path.splitext(name)[1].lower()
            if hidden or is_hidden(name):
                if suffix in SUFFIXES and (hidden == "__MACOSX" or not name.startswith("._")):  # these are no images
                    others[path] = f"in {hidden}" if hidden else "hidden"
            elif is_image(path):
                images.append(path)
            else:
                check_link(path)
                others[path] = other(path)
    return sorted(images), others


def is_image(path):
    """Whether a file has the usual suffix of an image, or its content."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix in SUFFIXES or suffix not in CAMERAS and content(path) == "image"


def other(path):
    """What a file that is no image is, for left_out(): its suffix, else what its content is."""
    return os.path.splitext(path)[1].lower() or content(path) or "without suffix"


def is_hidden(name):
    """Whether a file or folder is not meant to be seen. name: its last part."""
    return name.startswith(".") or name == "__MACOSX"


def content(path):
    """What a file is by its first bytes: a key of SIGNATURES, or "" if it is none of them or cannot be read."""
    try:
        with open_regular(path, sys.maxsize) as file:
            return kind(file.read(352))
    except (UserError, OSError):
        return ""


def kind(start):
    """What begins with these 352 bytes: a key of SIGNATURES, or ""."""
    return next((name for name, pattern in SIGNATURES.items() if re.match(pattern, start, re.DOTALL)), "")


def tiff_tags(file):
    """{tag: (kind, number of values, the bytes of these or of their place)} of a TIFF's first directory, else {}.

    ValueError where a tag has more values than Pillow can make objects of in time.
    """
    file.seek(0)
    start = file.read(16)
    if start[:2] not in (b"II", b"MM"):
        return {}
    order, big = "<" if start[:2] == b"II" else ">", 43 in start[2:4]
    entry = order + ("HHQ8s" if big else "HHI4s")
    file.seek(struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)[0])
    count, = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    data = file.read(min(count, 65535) * struct.calcsize(entry))
    data = data[:len(data) // struct.calcsize(entry) * struct.calcsize(entry)]
    result = {}
    for tag, kind, values, place in struct.iter_unpack(entry, data):
        if kind not in (1, 2, 7) and values > TAG_VALUES:  # bytes and text stay as they are
            raise ValueError(f"its tag {tag} has {values:,} values")
        result[tag] = kind, values, place
    return result


def unread(file, tags):
    """Why Pillow finds no image in an open file, for an error. tags: of tiff_tags()."""
    file.seek(0)
    start = file.read(352)
    found = kind(start)
    if found not in ("", "image"):
        return f"it is {found}, which is not read"
    if not tags:
        return "it is damaged" if found else "it is not a JPEG, PNG, TIFF or other image"
    order = "<" if start[:1] == b"I" else ">"

    def number(tag, default):
        """The first value of a tag of 16-bit values, which lie elsewhere if there are many."""
        _, count, data = tags.get(tag, (3, 0, b""))
        if 2 * count > len(data):
            file.seek(struct.unpack(order + ("Q" if len(data) == 8 else "I"), data)[0])
            data = file.read(2)
        return struct.unpack_from(order + "H", data)[0] if count else default

    bits, samples, form = number(258, 1), number(277, 1), number(339, 1)
    if form == 1 and samples != 2 and bits <= 16:
        return "it is damaged, or a TIFF of a rare kind"
    sort = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}.get(form, "")
    several = f"{samples} " if samples > 1 else ""
    return (f"a TIFF with {several}{sort}values of {bits} bits a pixel is not read; save it with whole numbers of 8 or "
            "16 bits, or with one floating-point value of 32 bits a pixel")


def left_out(others):
    """A sentence on the other files that find() found: how many of each kind are left out; "" for none."""
    if not others:
        return ""
    kinds = Counter(others.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1])[:8])
    more = f" and {len(kinds) - 8} further kinds" if len(kinds) > 8 else ""
    return f"{len(others)} files are not read as images and are left out: {counts}{more}"


def unlisted(folder, error):
    """The UserError for a folder that cannot be listed. error: the OSError."""
    return UserError(f"cannot list the folder {folder}: {(error.strerror or str(error)).lower()}",
                     "Its images would be missing. Make it readable, or move it elsewhere.")


def check_folder(folder):
    """UserError if a folder cannot be listed."""
    try:
        os.listdir(folder)
    except OSError as error:
        raise unlisted(folder, error) from error


def check_link(path):
    """UserError if `path` is a link that leads nowhere, round in a circle, or where nothing can be read."""
    if path.is_symlink():
        try:
            path.stat()
        except OSError as error:
            raise UserError(f"the link {path} leads nowhere: {(error.strerror or str(error)).lower()}",
                            "If it was to be a folder, its images would be missing. Mend it or delete it.") from None
