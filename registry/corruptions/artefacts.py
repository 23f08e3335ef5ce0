"""Drawn artefacts on the skin or on the glass: hair, ruler, bubbles, ink, characters.

Each is drawn on a canvas of CANVAS px and averaged down, so that an image of any size shows the same drawing. A higher
severity has the drawing of the lower one and more. On a grey image the drawing is grey.
"""

import math
import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kd.corruptions import each, is_grey
from registry import register

CANVAS = 896           # px: the side of the canvas
PX = CANVAS / 224      # px of the canvas in a pixel of a 224 px image
MAX_LETTERS = 100      # of a word
INK = (74, 48, 140)    # RGB: gentian violet, the colour of a surgical marker


def layer():
    """(empty canvas of opacities, Pillow's ImageDraw on it)."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    return canvas, ImageDraw.Draw(canvas)


def opacity(canvas, image):
    """The opacities of a canvas at the size of an image: float32 [H, W, 1] from 0 to 1."""
    return np.asarray(canvas.resize(image.shape[1::-1], Image.Resampling.BOX), np.float32)[..., None] / 255


def tone(colour, image):
    """A colour, or its grey level if the image is grey: float32 [3]."""
    colour = np.array(colour, np.float32)
    return np.full(3, colour @ (.299, .587, .114), np.float32) if is_grey(image) else colour


def cover(image, canvas, colour):
    """The image [H, W, 3] under a layer of one colour with the opacities of a canvas."""
    return np.rint(image + opacity(canvas, image) * (tone(colour, image) - image))


def curve(start, bend, end):
    """17 points (x, y) along the quadratic Bezier curve with these control points."""
    t = np.linspace(0, 1, 17)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t ** 2 * end
    return [tuple(point) for point in points.tolist()]


@register("corruption", "hair", family="artefacts", ranges={"count": (0, 500)},
          severities=[{"count": count} for count in (4, 8, 15, 25, 40)])
def hair(images, *, rngs, count):
    """`count` dark, curved hairs, roughly in one direction."""
    def draw(image, rng):
        canvas, pen = layer()
        colour = np.array([45, 30, 22]) * rng.uniform(.2, 1.3)
        lie = rng.uniform(0, math.pi)
        for x, y, turn, length, bend, width, dark in rng.random((count, 7)):
            middle = np.array([x, y]) * CANVAS
            turn = lie + (turn - .5) * 1.4
            along = np.array([math.cos(turn), math.sin(turn)]) * CANVAS * (.15 + .35 * length)
            across = along[::-1] * (1, -1) * (bend - .5) * 1.2
            pen.line(curve(middle - along, middle + across, middle + along), round(255 * (.7 + .3 * dark)),
                     round(PX * (.6 + 1.1 * width)))
        return cover(image, canvas, colour)
    return each(draw, images, rngs)


@register("corruption", "ruler", family="artefacts", ranges={"spacing": (2, 100)},
          severities=[{"spacing": spacing} for spacing in (6., 9., 13., 18., 24.)])
def ruler(images, *, rngs, spacing):
    """A ruler along one side with a mark every `spacing` px of a 224 px image; each fifth and tenth mark is longer."""
    def draw(image, rng):
        canvas, pen = layer()
        side, begin = rng.integers(4), rng.integers(10)
        unit = PX * spacing
        for k in range(int(CANVAS / unit)):
            at, mark = (k + .5) * unit, (begin + k) % 10
            length = unit * (2.4 if mark == 0 else 1.7 if mark == 5 else 1)
            pen.rectangle((at - unit * .07, 0, at + unit * .07, .03 * CANVAS + length), 235)
        return cover(image, canvas.rotate(90 * int(side)), (15, 15, 20))
    return each(draw, images, rngs)


@register("corruption", "bubbles", family="artefacts", ranges={"count": (0, 500)},
          severities=[{"count": count} for count in (4, 8, 14, 22, 32)])
def bubbles(images, *, rngs, count):
    """`count` air bubbles of 3 to 15 px (of 224) in the immersion fluid: bright, with a dark rim and a reflection."""

    def draw(image, rng):
        (light, shine), (dark, shade) = layer(), layer()
        for x, y, size in rng.random((count, 3)) * (CANVAS, CANVAS, 1):
            r = PX * (3 + 12 * size ** 2)
            shade.ellipse((x - r, y - r, x + r, y + r), outline=150, width=round(.8 * PX))
            r -= .8 * PX
            shine.ellipse((x - r, y - r, x + r, y + r), fill=55, outline=150, width=max(1, round(.25 * r)))
            shine.ellipse((x - .6 * r, y - .6 * r, x - .2 * r, y - .2 * r), fill=240)
        return cover(cover(image, dark, (40, 30, 30)), light, (255, 255, 255))
    return each(draw, images, rngs)


@register("corruption", "ink", family="artefacts", ranges={"strokes": (0, 100)},
          severities=[{"strokes": strokes} for strokes in (1, 2, 3, 5, 8)])
def ink(images, *, rngs, strokes):
    """`strokes` strokes of a violet skin marker around the centre."""
    def draw(image, rng):
        canvas, pen = layer()
        for turn, radius, length, bend, width, dark in rng.random((strokes, 6)):
            turn *= 2 * math.pi
            middle = CANVAS / 2 + CANVAS * (.28 + .2 * radius) * np.array([math.cos(turn), math.sin(turn)])
            along = CANVAS * (.08 + .14 * length) * np.array([-math.sin(turn), math.cos(turn)])
            out = CANVAS * .12 * (bend - .3) * np.array([math.cos(turn), math.sin(turn)])
            points, wide = curve(middle - along - out, middle + out, middle + along - out), PX * (3 + 5 * width)
            fill = round(255 * (.6 + .35 * dark))
            pen.line(points, fill, round(wide), joint="curve")
            for x, y in (points[0], points[-1]):
                pen.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill)
        absorbed = 1 - tone(INK, image) / 255
        return np.rint(image * (1 - opacity(canvas, image) * absorbed))  # ink absorbs light; the skin stays visible
    return each(draw, images, rngs)


@register("corruption", "characters", family="artefacts",
          ranges={"words": (1, 100), "letters": (3, MAX_LETTERS), "scale": (.05, 5)},
          severities=[{"words": words, "letters": letters, "scale": scale} for words, letters, scale
                      in ((1, 6, .14), (2, 7, .15), (3, 8, .16), (4, 9, .17), (6, 10, .18))])
def characters(images, *, rngs, words, letters, scale):
    """1 to `words` words of 3 to `letters` letters in any colour, `scale` times 26 px (of 224) high.

    Severities: those of MedMNIST-C for DermaMNIST. The font is Pillow's; in MedMNIST-C it is OpenCV's.
    """
    font = ImageFont.load_default(26 * scale * PX)

    def write(image, rng):
        result, share = image, rng.random()
        for x, y, length, red, green, blue, *draws in rng.random((1 + int(share * words), 6 + MAX_LETTERS)):
            canvas, pen = layer()
            letter_draws = draws[:3 + int(length * (letters - 2))]
            word = "".join(string.ascii_lowercase[int(26 * draw)] for draw in letter_draws)
            pen.text((x * .7 * CANVAS, y * .95 * CANVAS), word, 255, font, stroke_width=1)
            result = cover(result, canvas, (255 * red, 255 * green, 255 * blue))
        return result
    return each(write, images, rngs)
