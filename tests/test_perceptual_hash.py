"""Copies of a picture are found whatever was done to the file; pictures of other lesions are not taken for copies."""

import io

import numpy as np
import pytest
from PIL import Image

import registry
from kd import image, perceptual_hash
from kd.files import read_csv


def hashes(files, side=72):
    return perceptual_hash.hashes(np.stack([image.square(file, side) for file in files]))


def saved(picture, **options):
    file = io.BytesIO()
    picture.save(file, **{"format": "JPEG", "quality": 75, **options})
    return file.getvalue()


def lesions(count):
    """Embedded data: (pictures, groups)."""
    data = registry.get("dataset", "lesions").make(images=count)
    return [Image.fromarray(draw() if callable(draw) else draw) for draw in data.images], np.array(data.groups)


CHANGES = {
    "jpeg": saved,
    "another format": lambda p: saved(p, format="PNG"),
    "smaller": lambda p: saved(p.resize((2 * p.width // 3, 2 * p.height // 3))),
    "larger": lambda p: saved(p.resize((2 * p.width, 2 * p.height))),
    "brighter": lambda p: saved(p.point(lambda level: min(255, level + 8))),
    "mirrored": lambda p: saved(p.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned": lambda p: saved(p.transpose(Image.Transpose.ROTATE_270)),
}


def check_copies(originals, pictures, share):
    """At least this share of the copies is found, and each as a copy of its original."""
    for name, change in CHANGES.items():
        found, partners = perceptual_hash.near(hashes(map(change, pictures), 63), originals)
        assert len(found) >= share * len(pictures) and (found == partners).mean() > .95, name


def test_copies_of_the_embedded_data_are_found_and_other_lesions_are_not_copies():
    pictures, groups = lesions(200)
    originals = hashes([saved(picture, format="PNG") for picture in pictures])
    check_copies(originals[:50], pictures[:50], .7)  # of 48 px, which JPEG does much to
    first = groups < np.sort(groups)[100]
    found, _ = perceptual_hash.near(*([h for h, part in zip(originals, first) if part is side] for side in (
        np.True_, np.False_)))
    assert len(found) == 0


@pytest.mark.slow
def test_copies_of_real_images_are_found_and_other_lesions_are_not_copies(real_data):
    rows = read_csv(real_data / "ham10000" / "HAM10000_metadata.csv")
    files = {row["image_id"]: real_data / "ham10000" / "images" / f"{row['image_id']}.jpg" for row in rows}
    originals = dict(zip(files, hashes([file.read_bytes() for file in files.values()])))
    some = list(files)[::100]
    check_copies([originals[name] for name in some], [Image.open(files[name]).convert("RGB") for name in some], .95)
    halves = [[originals[row["image_id"]] for row in rows if hash_of(row["lesion_id"]) % 2 == side] for side in (0, 1)]
    assert len(perceptual_hash.near(*halves)[0]) <= 1  # HAM_0000140 and HAM_0004919 are one picture


def hash_of(text):
    return sum(map(ord, text))


def test_what_is_no_hash_is_like_no_other():
    flat = perceptual_hash.hashes(np.full((2, 32, 32, 3), 90, np.uint8))
    assert flat == ["", ""]
    for odd in ([*flat, "zz", None, 3, "00"], []):
        assert [len(part) for part in perceptual_hash.near(odd, odd)] == [0, 0]
    assert perceptual_hash.near(["x", "0f" * 32], ["0f" * 32])[0].tolist() == [1]
