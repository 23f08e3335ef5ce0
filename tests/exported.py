"""A small run on image files of many kinds, made once for all tests of export and prediction."""

from unittest import mock

import numpy as np
from PIL import Image

KINDS = ("rotated.jpg", "grey.png", "palette.png", "rgba.png", "cmyk.jpg", "sixteen.png", "plain.jpg", "plain.bmp")


def draw(kind, colour, rng):
    """A Pillow image of 44 x 36 px with a square of a colour, in the mode of `kind`, one of KINDS."""
    pixels = rng.integers(60, 200, (36, 44, 3)).astype(np.uint8)
    top, left = rng.integers(4, 18, 2)
    pixels[top:top + 14, left:left + 14] = colour
    picture = Image.fromarray(pixels)
    if kind.startswith("sixteen"):
        return Image.fromarray((np.asarray(picture.convert("L")).astype(np.uint16) * 257 + 3))
    modes = {"grey": "L", "palette": "P", "rgba": "RGBA", "cmyk": "CMYK"}
    picture = picture.convert(modes.get(kind.split(".")[0], "RGB"))
    if picture.mode == "RGBA":
        picture.putalpha(Image.fromarray(rng.integers(0, 256, (36, 44)).astype(np.uint8)))
    return picture


def images(folder, count=30):
    """Write three class folders of `count` images each into `folder`, and return it."""
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (20, 20, 250)), ("green", (20, 250, 20)), ("red", (250, 20, 20))):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            kind = KINDS[k % len(KINDS)]
            options = {}
            if kind.startswith("rotated"):
                exif = Image.Exif()
                exif[0x0112] = 6  # the rotation tag: by 90 degrees
                options = {"exif": exif}
            draw(kind, colour, rng).save(folder / name / f"{k:02}_{kind}", **options)
    return folder


def train(folder):
    """(run, root) of a tiny network trained on images()."""
    import distill
    import report
    root = images(folder / "images")
    with mock.patch.object(report, "main", lambda argv: None):  # a report takes time and is not needed
        run, = distill.main(["--data", "folder", "--root", str(root), "--size", "32", "--epochs", "3", "--batch", "16",
                             "--workers", "0", "--alpha", "1", "--student", "tiny", "--stem", "small", "--lr", "0.01",
                             "--cache", str(folder / "cache"), "--out", str(folder / "runs")])
    return run, root
