"""Perceptual hashes: images that look alike have similar ones, though their files differ in every byte.

A picture that was saved again as JPEG, scaled, mirrored or turned is another file with another SHA-256; a network that
was trained on the one recognises the other. The hash has the signs of the 256 lowest frequencies of the cosine
transform (pHash, Zauner 2010), so that it hardly depends on compression and not on the size. It is a coarse outline of
the picture, from which no detail can be drawn.
"""

import functools

import numpy as np

SIDE = 16        # frequencies in each direction
BITS = SIDE ** 2
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # which JPEG changes less than colour
# Of the bits, where two pictures are taken for one. HAM10000 at 200 x 150, scaled to 72 px: copies saved with JPEG
# quality 75 differ in 12 bits at most, of quality 50 or half the size in 18 in 95 of 100 cases; of 50 million pairs of
# different lesions one differs in fewer than 32, and that is one picture under two names.
NEAR = 24
FLATTEST = 2.0   # grey levels: the standard deviation, of these frequencies, below which signs are only noise
BLOCK = 2048     # hashes that are compared with all others at a time


@functools.lru_cache(maxsize=4)
def _cosines(length):
    """[SIDE, length] float32: the lowest frequencies of the cosine transform."""
    positions = (2 * np.arange(length) + 1) / (2 * length)
    return np.cos(np.pi * np.arange(SIDE)[:, None] * positions).astype(np.float32)


def hashes(images):
    """A hash of each image: a list of N strings of 64 hex digits, '' for an image without contrast.

    images: uint8 [N, H, W, 3], such as the memory map of the cache; the images are read one at a time.
    """
    result = []
    for pixels in images:
        height, width, _ = pixels.shape
        rows = _cosines(height) @ pixels.reshape(height, -1).astype(np.float32)
        transform = (rows.reshape(SIDE, width, 3) @ LUMINANCE) @ _cosines(width).T
        # by Parseval about the variance of the grey levels that these frequencies make
        variance = 4 * (np.square(transform).sum() - transform[0, 0] ** 2) / (height * width) ** 2
        result.append(np.packbits(transform > 0).tobytes().hex() if variance >= FLATTEST ** 2 else "")
    return result


def _signs(texts):
    """[n, SIDE, SIDE] float32 of 1 and -1, and the positions [n] in `texts`, of those that are hashes."""
    bits, places = [], []
    for place, text in enumerate(texts):
        try:
            data = bytes.fromhex(text.decode() if isinstance(text, bytes) else text)
        except (TypeError, ValueError):  # these may come from a file
            continue
        if len(data) == BITS // 8:
            bits.append(data)
            places.append(place)
    bits = np.unpackbits(np.frombuffer(b"".join(bits), np.uint8)).reshape(-1, SIDE, SIDE)
    return 2 * bits.astype(np.float32) - 1, np.array(places, int)


def _turned(signs):
    """Yield `signs` [n, SIDE, SIDE] of the pictures as they are, mirrored, and turned by quarters: eight arrays."""
    odd = (-1.0) ** np.arange(SIDE, dtype=np.float32)  # mirroring turns the sign of each odd frequency
    for upright in (signs, signs.transpose(0, 2, 1)):
        for rows, columns in ((1, 1), (1, odd), (odd[:, None], 1), (odd[:, None], odd)):
            yield upright * rows * columns


def near(first, second, bits=NEAR):
    """Positions in `first` of the hashes that are within `bits` bits of one in `second`, and of which one: two arrays.

    first, second: sequences of strings of hashes(), or of their bytes; what is no hash is like no other.
    Mirrored and turned copies count.
    """
    (a, a_places), (b, b_places) = _signs(first), _signs(second)
    closest = np.full(len(a), -np.inf, np.float32)
    partner = np.zeros(len(a), int)
    if len(b):
        b = np.ascontiguousarray(b.reshape(len(b), BITS).T)
        for turned in _turned(a):
            for start in range(0, len(a), BLOCK):
                rows = slice(start, start + BLOCK)
                products = turned[rows].reshape(-1, BITS) @ b  # BITS - 2 * distance
                best = products.argmax(1)
                value = products[np.arange(len(best)), best]
                closer = value > closest[rows]
                partner[rows][closer], closest[rows][closer] = best[closer], value[closer]
    alike = closest >= BITS - 2 * bits
    return a_places[alike], b_places[partner[alike]] if len(b) else np.zeros(0, int)
