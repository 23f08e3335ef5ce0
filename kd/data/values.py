"""What the values of a whole set of images look like: one range for all that are deep, and images unlike the others.

The cache keeps the facts of each image as words: `deep:LOW:HIGH:KIND` (more than 8 bits; its extremes, KIND is int or
float), `frames` (the first of several), `constant` (one colour), `black` (which is black), `dark:VALUE` (its brightest
pixel, if below DARK) and `inverted` (grey, and dark where the others are bright).
"""

import re

import numpy as np

from kd import image
from kd.errors import UserError, listing

BITS = {255: 8, 1023: 10, 4095: 12, 16383: 14, 65535: 16}  # {largest value: bits} of cameras, scanners and detectors
OUTLIERS = 100  # one image in so many may have values beyond the range: burnt-in text, a broken pixel
DARK = 64       # of 255: where no pixel is as bright, the upper two bits are empty
POINTS = 12     # along each side of the thumbnails by which inverted images are found
ENOUGH = 20     # grey images from which on it can be said what most of them look like

# Of BreastMNIST 88% of the images are found when a tenth is inverted, and none is found that is not. HAM10000 made grey
# is not judged, because its images resemble each other too little; otherwise 0.05% of them would be false alarms.
RESEMBLANCE = 0.7  # the least median of the correlations, without their signs, with the pattern that all have in common
OPPOSITE = -0.5    # the largest correlation of an inverted image with that pattern
NEARER = 2         # so many times nearer to the median of the others is its inverse, in square distance


def deep_word(low, high, is_float):
    """The fact of a deep image with these extremes."""
    return f"deep:{low}:{high}:{'float' if is_float else 'int'}"


_FACT = re.compile(r"frames|constant|black|inverted|dark:\d{1,3}|deep:[^:]+:[^:]+:(int|float)")


def check_facts(rows):
    """ValueError unless the rows, of a file that another program may have written, have facts as they are here."""
    for row in rows:
        if type(row["facts"]) is not str or not all(map(_FACT.fullmatch, row["facts"].split())):
            raise ValueError(f"facts {row['facts']!r}")
    deep_extremes(rows)


def deep_extremes(rows):
    """{id: (low, high, is_float)} of the deep images in the marks of a cache."""
    result = {}
    for row in rows:
        if row["facts"].startswith("deep:"):
            _, low, high, kind = row["facts"].split()[0].split(":")
            number = float if kind == "float" else int
            result[row["id"]] = number(low), number(high), kind == "float"
    return result


def choose_range(extremes):
    """The range (low, high) for a set of deep images; None without any. extremes: as deep_extremes() gives them.

    Of integers from 0 on: to the smallest of BITS that holds them. Of floats from 0 on: to 1 or 255 if that holds them.
    Of others, the extremes. One image in OUTLIERS may be beyond. UserError where floats up to 1 and larger integers are
    in one set, because no range suits both.
    """
    if not extremes:
        return None
    beyond = len(extremes) // OUTLIERS
    low = sorted(low for low, _, _ in extremes.values())[beyond]
    high = sorted(high for _, high, _ in extremes.values())[-1 - beyond]
    floats = {name: high for name, (_, high, is_float) in extremes.items() if is_float}
    integers = {name: high for name, (_, high, is_float) in extremes.items() if not is_float}
    if floats and integers and max(floats.values()) <= 1 < max(integers.values()):
        raise UserError(f"{len(floats)} images have values up to {max(floats.values()):g} ({listing(floats, 2)}) and "
                        f"{len(integers)} have values up to {max(integers.values()):,} ({listing(integers, 2)}): no "
                        "one scale suits both", "Save all of them in one kind: as floats from 0 to 1, or as integers.")
    slack = 1e-3 if floats else 0  # resampling goes a little beyond
    for top in ((1, 255) if floats and not integers else BITS):
        if -slack * top <= low and high <= top * (1 + slack):
            return 0, top
    return (low, high) if low < high else (low, low + 1)


class Looks:
    """What is seen of N images, a chunk at a time, and then of all of them together."""

    def __init__(self, count):
        self.grey = np.zeros(count, bool)  # whether an image is grey and not constant; the others have no
        self.thumbnails = np.zeros((count, POINTS * POINTS), np.uint8)

    def words(self, positions, pixels):
        """The facts, a list of words each, of the images at `positions` from their pixels, uint8 [n, R, R, 3]."""
        count, side = len(pixels), pixels.shape[1]
        few, many = (np.linspace(0, side - 1, points).astype(int) for points in (5, 2 * POINTS))
        sample = pixels[:, few[:, None], few].reshape(count, -1, 3)  # to look at all pixels of all would take longer
        constant, grey = (sample == sample[:, :1]).all((1, 2)), (sample[..., 0] == sample[..., 1]).all(1)
        constant[constant] = [(pixels[k] == pixels[k, 0, 0]).all() for k in np.flatnonzero(constant)]
        brightest = pixels.reshape(count, -1).max(1)
        rows = np.flatnonzero(grey & ~constant)
        red, green, blue = np.moveaxis(pixels[rows[:, None, None], many[:, None], many], -1, 0).astype(np.uint16)
        is_grey = ((red == green) & (green == blue)).all((1, 2))
        means = (green[:, ::2, ::2] + green[:, 1::2, ::2] + green[:, ::2, 1::2] + green[:, 1::2, 1::2]) // 4
        places = np.asarray(positions)
        self.grey[places] = False
        self.grey[places[rows[is_grey]]] = True
        self.thumbnails[places[rows]] = means.reshape(len(rows), POINTS * POINTS)
        return [["constant"] * bool(is_constant) + ["black"] * bool(is_constant and not top)
                + [f"dark:{top}"] * bool(top < DARK) for is_constant, top in zip(constant, brightest)]

    def inverted(self):
        """Positions of the images that look inverted, an array.

        The pattern that grey images have in common is their first principal axis, which is the same however many of
        them are inverted; its sign is that of the majority.
        """
        rows = np.flatnonzero(self.grey)
        if len(rows) < ENOUGH:
            return rows[:0]
        parts = np.array_split(rows, len(rows) // 4096 + 1)
        scatter = sum(part.T @ part for part in map(self._standard, parts))
        axis = np.linalg.eigh(scatter)[1][:, -1]
        correlation = np.concatenate([part @ axis for part in map(self._standard, parts)])
        if np.median(np.abs(correlation)) < RESEMBLANCE:
            return rows[:0]
        if (correlation > 0).mean() < 0.5:
            correlation = -correlation
        median = np.median(self.thumbnails[rows[correlation > 0]][:10000], 0)
        suspects = rows[correlation < OPPOSITE]
        thumbnails = self.thumbnails[suspects].astype(float)
        distance, of_inverse = (((values - median) ** 2).mean(1) for values in (thumbnails, 255 - thumbnails))
        return suspects[NEARER * of_inverse < distance]

    def _standard(self, rows):
        """Thumbnails with a mean of 0 and a norm of 1, float [n, POINTS²]."""
        values = self.thumbnails[rows].astype(np.float64)
        values -= values.mean(1, keepdims=True)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def notes(rows, sha256, range, given, table):
    """The lines to print on a set. rows: dicts of the marked images, which are in a file at the path `table`.

    sha256: [readable images] of their contents. range: of its deep images, or None. given: whether that is the range of
    a network, and not one chosen for this set.
    """
    facts = {row["id"]: set(row["facts"].split()) for row in rows if row["facts"]}
    readable = len(sha256)

    def having(word):
        return [name for name, words in facts.items() if word in words]

    def several(names, one, more):
        return f"{len(names)} of {readable} images {one if len(names) == 1 else more}"

    lines = []
    extremes = deep_extremes(rows)
    if extremes:
        lines.append(_range_note(extremes, range, given, readable))
    depths = "" if given or not extremes else _depths_note(extremes, range)
    if depths:
        lines.append(depths)
    if readable > 2 and (sha256 == sha256[0]).all():
        lines.append(f"all {readable} images have the same content, so that there is nothing to split or to learn")
    if names := having("frames"):
        lines.append(f"{several(names, 'has', 'have')} several frames or pages, of which the first is used: "
                     f"{listing(names)}")
    if names := having("constant"):
        black = len(having("black"))
        of_them = f", {black} of them black" if black < len(names) else ", which is black"
        lines.append(f"{several(names, 'is', 'are')} of one colour{of_them if black else ''}: {listing(names)}")
    dark = [int(word[5:]) for words in facts.values() for word in words if word.startswith("dark:")]
    if readable and len(dark) == readable and len(having("constant")) < readable and not depths:
        lines.append(f"the brightest pixel of all images is {max(dark)} of 255. {_advice(extremes, given)}")
    if names := having("inverted"):
        all_names = f" (all are marked in {table})" if len(names) > 5 else ""
        lines.append(f"{several(names, 'looks', 'look')} inverted, dark where most others are bright: "
                     f"{listing(names)}{all_names}. If so, export them again from the program that made them, with "
                     "white as the largest value (in DICOM: photometric interpretation MONOCHROME2), or leave them out")
    return lines


def _advice(extremes, given):
    """What to do about a set of dark images."""
    if given and extremes:
        return "The network was trained on larger values; if these are of another scale, scale them alike."
    if extremes:
        return ("The scale goes up to the largest value that some pixels of most images have: if those are burnt-in "
                "text or defects, remove them, or save the images in 8 bits, scaled without them.")
    if given:
        return ("If their files were made from deeper values, export these again in 8 bits, with the scale of the "
                "images that the network was trained on.")
    return "If their files were made from deeper values, export these again, scaled to 8 bits or in 16 bits."


def _range_note(extremes, range, given, readable):
    low, high = range
    slack = 1e-3 * (high - low) if any(is_float for *_, is_float in extremes.values()) else 0
    clipped = [name for name, (least, largest, _) in extremes.items() if least < low - slack or largest > high + slack]
    narrow = [name for name, values in extremes.items() if given and image.misfit(values, range) == "narrow"]
    least, largest = min(e[0] for e in extremes.values()), max(e[1] for e in extremes.values())
    bits = f" ({BITS[high]} bits)" if low == 0 and high in BITS and isinstance(least, int) else ""
    others = readable - len(extremes)
    return (f"{len(extremes)} of {readable} images have more than 8 bits, with values from {least:,.6g} to "
            f"{largest:,.6g}: {low:.6g}..{high:.6g}{bits} is scaled to 0..255 for all of them"
            + (", as for the images that the network was trained on" if given else "")
            + (f"; {len(clipped)} have values beyond, which are clipped: {listing(clipped)}" if clipped else "")
            + (f"; {len(narrow)} have values in a 16th of that alone: {listing(narrow)}" if narrow else "")
            + (f"; the other {others} have 8 bits and stay as they are" if others else ""))


def _depths_note(extremes, range):
    """A sentence where some images are nearly black in the range that the others need; "" otherwise.

    Of two depths in one set, or for a defect in few images, there is no scale that suits all.
    """
    low, high = range
    dark = {name: largest for name, (least, largest, _) in extremes.items()
            if least < largest < low + image.NARROW * (high - low)}
    bright = {name: largest for name, (_, largest, _) in extremes.items()
              if largest >= low + image.NARROW * (high - low)}
    if not dark or not bright:
        return ""

    def up_to(images):
        top = max(images.values())
        bits = min((value for value in BITS if value >= top), default=None)
        is_whole = low == 0 and isinstance(top, int) and bits
        return f"up to {top:,.6g}" + (f" ({BITS[bits]} bits)" if is_whole else "") + f": {listing(images)}"

    brightest = (max(dark.values()) - low) * 255 / (high - low)
    few = len(bright) <= max(1, len(extremes) // 20)
    return (f"the values of {len(dark)} images go {up_to(dark)}; those of {len(bright)} go {up_to(bright)}. On one "
            f"scale the former are dark, {brightest:.0f} of 255 at most. If these are two depths, save all images with "
            "one scale"
            + (f"; if the large values are burnt-in text or a defect, mend or leave out {listing(bright)}" * few))
