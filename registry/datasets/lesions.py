"""The embedded default data set: synthetic dermoscopy, drawn with NumPy.

It has seven classes with the names, the class frequencies and the images per lesion of HAM10000 (Tschandl et al. 2018,
10.1038/sdata.2018.161). Classes differ in the structures that a dermatoscope shows (Kittler et al. 2016,
10.1016/j.jaad.2015.12.038). No photograph was used, and results on these images say nothing about patients.

Skin is a stack of absorbers (Beer-Lambert): melanin is brown near the surface and blue-grey in the depth, blood is
red, scars and scales reflect white. A lesion consists of maps of these four; a view photographs them. Coordinates are
relative, so that a lesion looks the same at any size: the picture spans [-1, 1] x [-1, 1], and frequencies are in
cycles per unit.
"""

from functools import partial

import numpy as np

from kd.data.dataset import Dataset
from kd.errors import UserError
from registry import register

COUNTS = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
SIZES = (5514, 1423, 490, 34, 5, 4)  # lesions of HAM10000 with 1, 2, ... 6 images
MIN_LESIONS = 8                      # of each class, so that a 70/10/20 split has the class in each part
RARE_SHARE = 0.03                    # rare classes get at least this share of the images, but at most RARE_IMAGES
RARE_IMAGES = 30
MIN_SIDE = 48                        # px: smaller pictures are drawn at this size, then averaged

#                    red   green  blue   optical density of one unit
BROWN = np.float32([0.42, 0.80, 1.02])
BLUE = np.float32([1.00, 0.78, 0.52])
BLOOD = np.float32([0.15, 0.95, 0.58])
INK = np.float32([1.30, 1.10, 0.35])
HAIR = np.float32([1.00, 1.15, 1.25])
WHITE = np.float32([0.93, 0.87, 0.87])
SKINS = np.float32([[0.88, 0.70, 0.67], [0.92, 0.82, 0.79], [0.72, 0.60, 0.68], [0.85, 0.66, 0.55],
                    [0.90, 0.56, 0.56], [0.79, 0.70, 0.60], [0.70, 0.52, 0.42]])


# Labels are few and images many, as in clinics: a quarter of the images is trained on, and distill.py has further ones
# without labels.
@register("dataset", "lesions", defaults={"size": 48, "batch": 16, "hard": "logit_adjusted"},
          teacher={"teacher": "efficientnetlite0", "weights": "imagenet", "epochs": 20},
          student={"epochs": 30, "lr": 3e-3, "unlabelled": ["lesions,images=2000,seed=1"], "unlabelled_ratio": 4.0,
                   "teacher_cache": 4})
def lesions(*, size=48, images=1000, seed=0):
    """Synthetic dermoscopy with the seven classes of HAM10000 (drawn, nothing to download).

    size: the side in pixels, at least 8. images: their number, at least 56. seed, from 0 on: each seed has lesions of
    its own. An image does not depend on the images drawn before it, and shows the same scene at any size. Raises
    UserError for other values.
    """
    min_images = MIN_LESIONS * len(COUNTS)
    if images < min_images or size < 8 or seed < 0:
        raise UserError(f"lesions: cannot draw {images} images of {size} px from seed {seed}",
                        f"Give at least {min_images} images of at least 8 px; seeds start at 0.")
    names = list(COUNTS)
    draws, labels, groups = [], [], []
    for lesion, (class_name, count) in enumerate(_lesions(images, np.random.default_rng([seed]))):
        for _ in range(count):
            draws.append(partial(draw, class_name, seed, lesion, len(draws), size))
            labels.append(names.index(class_name))
            groups.append(f"LES_{seed}_{lesion:05d}")
    return Dataset(
        name="lesions", class_names=names, images=draws,
        ids=[f"IMG_{seed}_{i:05d}" for i in range(len(draws))], labels=labels, groups=groups,
        fractions=(0.25, 0.15, 0.6), version=f"6-{size}px-{images}-seed{seed}", synthetic=True)


def _lesions(images, rng):
    """[(class name, number of images)] of all lesions in random order, with `images` images in total."""
    total = sum(COUNTS.values())
    # a small data set has more images of rare classes: three test images would tell nothing
    rare_images = max(MIN_LESIONS, min(RARE_IMAGES, round(RARE_SHARE * images)))
    image_counts = {name: max(rare_images, round(images * n / total)) for name, n in COUNTS.items()}
    image_counts["nv"] += images - sum(image_counts.values())
    probabilities = np.array(SIZES) / sum(SIZES)
    result = []
    for name, remaining in image_counts.items():
        lesions_drawn = 0
        while remaining:
            available = remaining - max(0, MIN_LESIONS - 1 - lesions_drawn)  # one is left for each required lesion
            count = min(1 + rng.choice(len(SIZES), p=probabilities), available)
            result.append((name, int(count)))
            remaining -= count
            lesions_drawn += 1
    return [result[i] for i in rng.permutation(len(result))]


def draw(class_name, seed, lesion, image, size):
    """One image, uint8 [size, size, 3]. lesion, image: their numbers in the data set."""
    tissue_rng = np.random.default_rng([seed, lesion, 0])  # the same for all images of a lesion
    camera_rng = np.random.default_rng([seed, lesion, 1 + image])
    view = View(camera_rng, size)
    tone, freckles, flush = _skin(view, tissue_rng)
    brown, blue, blood, white = CLASSES[class_name](view, tissue_rng)
    return _photograph(view, camera_rng, tone, brown + freckles, blue, blood + flush, white)


class View:
    """The position of the camera: turned, shifted and scaled relative to a lesion centred at (0, 0)."""

    def __init__(self, rng, size):
        self.size, self.side = size, max(size, MIN_SIDE)
        self.axis = ((np.arange(self.side, dtype=np.float32) + 0.5) / self.side) * 2 - 1
        self.scale = np.exp(rng.uniform(-0.25, 0.22))
        self.shift = rng.normal(0, 0.07, 2)
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        self.turn = np.array([[cos, -sin], [sin, cos]]) * [1, rng.choice([-1, 1])]

    def coordinates(self):
        """Lesion coordinates of every pixel: two [side, side]."""
        x, y = (self.axis - np.float32(s) for s in self.shift)
        a = np.float32(self.turn / self.scale)
        return a[0, 0] * x + a[1, 0] * y[:, None], a[0, 1] * x + a[1, 1] * y[:, None]

    def field(self, rng, frequency, spread=0.3, waves=16):
        """A smooth random field [side, side] with mean 0 and variance 1: a sum of plane waves.

        frequency: in cycles per unit; spread: the deviation of its logarithm. A turned plane wave is a plane wave, and
        each is a sum of two products of a row and a column, so that any view of the field is one matrix product.
        """
        angle = (np.arange(waves) + rng.random(waves)) * np.pi / waves
        angular_frequency = 2 * np.pi * frequency * np.exp(rng.normal(0, spread, waves))
        wave = self.turn @ (angular_frequency * [np.cos(angle), np.sin(angle)]) / self.scale
        phase = rng.uniform(0, 2 * np.pi, waves) - self.shift @ wave
        wave, phase = np.float32(wave), np.float32(phase)
        across = wave[0][:, None] * self.axis
        down = self.axis[:, None] * wave[1] + phase  # cos(x + y) = cos x cos y - sin x sin y
        left = np.concatenate([np.cos(down), -np.sin(down)], 1) * np.float32(np.sqrt(2 / waves))
        return _product(left, np.concatenate([np.cos(across), np.sin(across)]))

    def dots(self, xy, sigma, weight=1.0):
        """The sum of round Gaussians at lesion coordinates xy [K, 2]: [side, side]. sigma, weight: numbers or [K]."""
        return self.marks(np.asarray(xy) @ self.turn.T * self.scale + self.shift,
                          np.asarray(sigma) * self.scale, weight)

    def marks(self, xy, sigma, weight=1.0):
        """The same at picture coordinates. A Gaussian is the product of a row and a column."""
        xy, spread = np.float32(xy), np.float32(np.sqrt(2) * sigma)
        across = bell((self.axis - xy[:, :1]) / spread[..., None])
        down = bell((self.axis[:, None] - xy[:, 1]) / spread) * np.float32(weight)
        return _product(down, across)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def bell(x):
    """exp(-x^2), but never so small that it is a denormal number: these make matrix products ten times slower."""
    return np.exp(-np.minimum(x * x, 30))


def _product(a, b):
    """a @ b in blocks of rows so small that BLAS starts no threads, which only cost time here."""
    step = max(16, 2 ** 18 // max(1, b.shape[-2] * b.shape[-1]))
    blocks = [a[..., i:i + step, :] @ b for i in range(0, a.shape[-2], step)]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, -2)


def _scatter(rng, count, radius):
    """`count` points, uniformly distributed over a disc: [count, 2]."""
    angle, r = rng.uniform(0, 2 * np.pi, count), radius * np.sqrt(rng.random(count))
    return np.stack([r * np.cos(angle), r * np.sin(angle)], 1)


def _shape(view, rng, radius, asymmetry, notches, edge, longest=1.5):
    """(depth inside the lesion, 0 at the border and 1 at the centre; mask from 0 to 1): two [side, side].

    asymmetry, notches: the amplitudes of slow and fast waves of the border, in radii. edge: its width in radii.
    """
    u, v = view.coordinates()
    stretch = np.float32(np.sqrt(rng.uniform(1, longest)))
    inside = 1 - np.sqrt((u * stretch) ** 2 + (v / stretch) ** 2) / np.float32(radius)
    inside += np.float32(asymmetry) * view.field(rng, 0.55 / radius, waves=10)
    inside += np.float32(notches) * view.field(rng, 2.2 / radius, 0.4)
    return inside, sigmoid(inside / np.float32(edge))


def _network(view, rng, frequency, spread, width=0.45):
    """A net of lines, from 0 to 1, between cells of width 1 / frequency."""
    return bell(view.field(rng, frequency, spread) / width)


def _vessels(rng, radius, branches, step=0.014):
    """Points along a tree of curved branches: [K, 2]."""
    tree = []
    for _ in range(branches):
        if tree and rng.random() < 0.7:
            path = tree[rng.integers(len(tree))]
            start = path[rng.integers(len(path) // 3, len(path))]
        else:
            start = _scatter(rng, 1, radius)[0]
        n = int(rng.uniform(0.5, 1.1) * radius / step)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.22, n))
        tree.append(start + step * np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0))
    return np.concatenate(tree)


# Each class is a function that returns the maps (brown, blue, blood, white), [side, side]: three optical densities, and
# for white the coverage.


def _nv(view, rng):
    """Naevus: round or oval, uniformly brown, with a regular network and a smooth border."""
    radius = rng.uniform(0.25, 0.65)
    inside, mask = _shape(view, rng, radius, rng.gamma(2, 0.03), rng.gamma(2, 0.012),
                          rng.uniform(0.05, 0.14))
    depth = rng.gamma(5, 0.2)
    centre = rng.normal(0.15, 0.3)
    tone = 1 + centre * (inside - 0.4) + rng.uniform(0.05, 0.22) * view.field(rng, 2.5)
    net = rng.uniform(0, 0.6) * (_network(view, rng, rng.uniform(5.5, 8.5), 0.15, 0.7) - 0.6)
    pink = rng.gamma(1.5, 0.07)
    blue = rng.uniform(0.5, 1.2) if rng.random() < 0.02 else rng.gamma(1, 0.03)
    return (mask * depth * np.maximum(tone + net, 0.1), mask * blue, mask * pink, 0 * mask)


def _mel(view, rng):
    """Melanoma: asymmetric, notched, in many colours, with a broken network and streaks."""
    radius = rng.uniform(0.45, 0.85)
    _, mask = _shape(view, rng, radius, rng.uniform(0.15, 0.36), rng.uniform(0.03, 0.12),
                     rng.uniform(0.05, 0.16), 1.8)
    depth = rng.gamma(12, 0.13)
    slow = view.field(rng, 0.9 / radius, waves=10)
    patch = sigmoid(4 * (slow - rng.uniform(-0.6, 0.8)))
    tone = 0.55 + rng.uniform(0.3, 1.2) * patch + rng.uniform(0.1, 0.3) * view.field(rng, 2.5)
    net = rng.uniform(0.2, 0.9) * (_network(view, rng, rng.uniform(3.5, 6.5), 0.4, 0.6) - 0.5)
    brown = mask * depth * np.maximum(tone + net * sigmoid(3 * view.field(rng, 1.2)), 0.1)
    angle = rng.normal(rng.uniform(0, 6.3), rng.uniform(0.3, 1), rng.integers(4, 16))
    reach = radius * np.linspace(0.8, rng.uniform(1.0, 1.25), 7)
    rays = np.stack([np.outer(np.cos(angle), reach).ravel(), np.outer(np.sin(angle), reach).ravel()], 1)
    brown += depth * rng.uniform(0, 0.45) * np.minimum(view.dots(rays, 0.02), 1)
    spots = _scatter(rng, rng.integers(3, 18), radius)
    brown += mask * rng.uniform(0, 1) * view.dots(spots, rng.uniform(0.02, 0.045, len(spots)))
    veil = (0.4 + rng.gamma(1.5, 0.4)) * sigmoid(4 * (view.field(rng, 0.8 / radius, waves=10) - 0.4))
    scar = rng.uniform(0, 0.6) * sigmoid(5 * (view.field(rng, 0.9 / radius, waves=10) - 0.9))
    return brown, mask * veil, mask * rng.gamma(1.5, 0.25) * sigmoid(2 * slow), mask * scar


def _bkl(view, rng):
    """Benign keratosis: a waxy tan plaque with a sharp border, white cysts and dark plugs."""
    radius = rng.uniform(0.3, 0.75)
    _, mask = _shape(view, rng, radius, rng.uniform(0.05, 0.3), rng.uniform(0.02, 0.13),
                     rng.uniform(0.02, 0.06), 1.7)
    depth = rng.gamma(10, 0.055)
    wax = view.field(rng, rng.uniform(2.5, 4.5), 0.4)
    furrows = rng.uniform(0, 0.7) * _network(view, rng, rng.uniform(2, 4), 0.3, 0.3)
    brown = mask * depth * np.maximum(0.9 + rng.uniform(0.08, 0.3) * wax + furrows, 0.1)
    plugs = _scatter(rng, rng.integers(2, 16), radius * 0.85)
    brown += mask * rng.uniform(0.4, 1.5) * view.dots(plugs, rng.uniform(0.02, 0.04, len(plugs)))
    cysts = _scatter(rng, rng.integers(6, 26), radius * 0.9)
    milia = view.dots(cysts, rng.uniform(0.022, 0.042, len(cysts)), rng.uniform(0.5, 1, len(cysts)))
    white = rng.uniform(0.5, 0.95) * np.minimum(milia, 1) + rng.uniform(0, 0.15)
    return brown, mask * rng.gamma(1.5, 0.15), mask * rng.gamma(1.5, 0.15), mask * white


def _bcc(view, rng):
    """Basal cell carcinoma: pearly pink, with branching vessels, blue-grey nests and a small ulcer."""
    radius = rng.uniform(0.3, 0.7)
    _, mask = _shape(view, rng, radius, rng.uniform(0.1, 0.35), rng.uniform(0.02, 0.1),
                     rng.uniform(0.12, 0.3), 1.7)
    tree = _vessels(rng, radius, rng.integers(4, 11))
    vessels = np.minimum(view.dots(tree, rng.uniform(0.01, 0.017)), 1.2)
    blood = mask * (rng.uniform(0.1, 0.35) + 0.1 * view.field(rng, 2)) + rng.uniform(0.5, 1.0) * vessels
    nests = _scatter(rng, rng.integers(3, 10), radius * 0.8)
    ovoid = sigmoid(7 * (view.dots(nests, rng.uniform(0.05, 0.1, len(nests))) - 0.5)) - sigmoid(-3.5)
    blue = rng.uniform(0.6, 1.2) * ovoid + mask * rng.gamma(1, 0.08)
    wound = view.dots(_scatter(rng, 2, radius * 0.6), rng.uniform(0.03, 0.1, 2))
    wound = rng.binomial(1, 0.5) * sigmoid(9 * (wound - 0.6))
    brown = mask * rng.gamma(1.5, 0.14) * (1 + 0.3 * view.field(rng, 3)) + wound * rng.uniform(0.4, 1.2)
    pearl = rng.uniform(0.15, 0.5) * sigmoid(3 * view.field(rng, 1.4))
    return brown, blue, blood + 0.8 * wound, mask * pearl * (1 - wound)


def _akiec(view, rng):
    """Actinic keratosis and Bowen's disease: scaly and red, with pale follicles in a red net and no clear border."""
    radius = rng.uniform(0.45, 0.95)
    _, mask = _shape(view, rng, radius, rng.uniform(0.1, 0.35), rng.uniform(0.05, 0.15),
                     rng.uniform(0.15, 0.4), 1.6)
    cells = sigmoid(3 * (np.abs(view.field(rng, rng.uniform(3.5, 5.5), 0.3)) - 0.9))
    net = rng.uniform(0.1, 0.6) * (1 - 2 * cells)
    blood = mask * rng.uniform(0.5, 1.0) * np.maximum(0.8 + net + 0.2 * view.field(rng, 2), 0)
    scale = sigmoid(5 * (view.field(rng, 3.5, 0.5) - rng.uniform(0.5, 1.3)))
    white = mask * (rng.uniform(0, 0.7) * scale + rng.uniform(0.05, 0.35) * cells)
    rim = sigmoid(4 * (view.field(rng, 1.5) - rng.uniform(0.2, 1.2)))
    brown = mask * rng.gamma(2, 0.15) * rim * (1 + 0.4 * view.field(rng, 4))
    return np.maximum(brown, 0), 0 * mask, blood, white


def _df(view, rng):
    """Dermatofibroma: a white scar in the middle of a ring of fine brown network."""
    radius = rng.uniform(0.35, 0.7)
    inside, mask = _shape(view, rng, radius, rng.uniform(0.05, 0.25), rng.uniform(0.02, 0.08),
                          rng.uniform(0.12, 0.28))
    core = sigmoid((inside - rng.uniform(0.3, 0.5) + 0.1 * view.field(rng, 3)) * 9)
    net = _network(view, rng, rng.uniform(6, 9), 0.15, 0.6)
    brown = mask * (1 - 0.85 * core) * rng.gamma(8, 0.11) * (0.6 + rng.uniform(0.2, 0.6) * net)
    blood = mask * rng.gamma(2, 0.11) * (1 + 0.2 * view.field(rng, 2))
    return brown, mask * rng.gamma(1, 0.08), np.maximum(blood, 0), core * rng.uniform(0.5, 0.9)


def _vasc(view, rng):
    """Vascular lesions, such as angiomas: separate round lagoons, red, purple or blue."""
    radius = rng.uniform(0.32, 0.65)
    count = 1 if rng.random() < 0.4 else rng.integers(5, 16)
    place = _scatter(rng, count, 1.1 * radius if count > 1 else 0.02)
    width = radius * rng.uniform(0.5, 0.8, 1) if count == 1 else rng.uniform(0.07, 0.15, count)
    pool = sigmoid(rng.uniform(5, 14) * (view.dots(place, width) + 0.04 * view.field(rng, 3) - 0.55))
    tint = 0.5 * rng.uniform(0, 1) ** 2
    depth = rng.gamma(12, 0.15) * (1 + 0.15 * view.field(rng, 2.5))
    halo = rng.uniform(0.1, 0.5) * view.dots([[0, 0]], 0.8 * radius)
    veil = rng.uniform(0, 0.3) * pool * sigmoid(2 * view.field(rng, 1.8))
    return (pool * rng.gamma(1.5, 0.07), pool * depth * tint,
            pool * depth * (1.5 - 0.8 * tint) + halo, veil)


CLASSES = {"akiec": _akiec, "bcc": _bcc, "bkl": _bkl, "df": _df, "mel": _mel, "nv": _nv, "vasc": _vasc}


def _skin(view, rng):
    """The skin around and under the lesion: (tone [3] from 0 to 1, map of brown, map of blood)."""
    tone = rng.dirichlet(np.full(len(SKINS), 0.35)) @ SKINS
    spots = _scatter(rng, rng.poisson(1.5), 1.4)
    brown = rng.uniform(0.1, 0.5) * view.dots(spots, rng.uniform(0.03, 0.12, len(spots)))
    brown += rng.uniform(0, 0.04) * view.field(rng, 7, 0.7)
    return tone, brown, rng.beta(1.2, 4) * 0.16 * view.field(rng, 1.5, 0.5)


def _photograph(view, rng, tone, brown, blue, blood, white):
    """The photograph uint8 [size, size, 3] of the maps, with hairs, ruler, ink, gel, light, blur and noise."""
    picture = _through((brown, BROWN), (blue, BLUE), (blood, BLOOD))
    picture *= _planes(tone)
    white = np.clip(white, 0, 1)
    picture *= 1 - white
    picture += white * _planes(WHITE * tone.mean() * 1.25)

    if rng.random() < 0.35:
        picture *= _through((rng.uniform(0.5, 1.6) * _hairs(view, rng), HAIR))
    if rng.random() < 0.06:
        picture *= _through((_ruler(view, rng), HAIR))
    if rng.random() < 0.05:
        stroke = rng.uniform(-1, 1, 2) + np.linspace(0, 1, 20)[:, None] * rng.normal(0, 0.7, 2)
        picture *= _through((rng.uniform(0.3, 0.8) * np.minimum(view.marks(stroke, 0.05), 1), INK))
    if rng.random() < 0.12:
        spot, width = rng.uniform(-1, 1, (rng.integers(1, 6), 2)), rng.uniform(0.04, 0.15)
        ring = view.marks(spot, width) - view.marks(spot, 0.8 * width)
        picture += 0.6 * (ring + view.marks(spot + 0.3 * width, 0.2 * width))

    x, y = view.axis, view.axis[:, None]
    light = rng.uniform(0.85, 1.12) + rng.normal(0, 0.05) * x + rng.normal(0, 0.05) * y
    if rng.random() < 0.12:
        r = np.hypot(x - rng.normal(0, 0.06), y - rng.normal(0, 0.06))
        light *= sigmoid((rng.uniform(1.05, 1.35) - r) / rng.uniform(0.015, 0.08))
    picture *= light
    picture = _resample(view, picture, rng.gamma(2, 0.006)) * _planes(rng.normal(1, 0.03, 3))
    grain = rng.standard_normal((3, 64, 64), dtype=np.float32) * rng.uniform(0.005, 0.02)
    picture += _enlarge(grain, view.size)
    return np.uint8(np.clip(picture, 0, 1) * 255 + 0.5).transpose(1, 2, 0).copy()


def _planes(colour):
    return np.float32(colour)[:, None, None]


def _through(*layers):
    """The transmitted light [3, side, side] of layers, each (density [side, side], colour [3])."""
    depth = np.stack([density for density, _ in layers])
    colour = np.stack([colour for _, colour in layers], 1)
    return np.exp(-np.tensordot(colour, depth, 1))


def _hairs(view, rng):
    """Curved hairs across the picture as rows of dots: [side, side], from 0 to 1, higher where hairs cross."""
    t = np.linspace(0, 1, 90)[:, None]
    hairs = 0
    for _ in range(rng.integers(1, 12)):
        start, heading = rng.uniform(-1.1, 1.1, 2), rng.uniform(0, 2 * np.pi)
        along = rng.uniform(0.4, 1.6) * np.array([np.cos(heading), np.sin(heading)])
        bow = rng.normal(0, 0.2) * np.array([-along[1], along[0]])
        path = start + t * along + 4 * t * (1 - t) * bow
        hairs = hairs + np.minimum(view.marks(path, rng.uniform(0.005, 0.01)), 1)
    return hairs


def _ruler(view, rng):
    """The tick marks of a ruler along one side: [side, side], from 0 to 1."""
    tick = np.arange(-1, 1, rng.uniform(0.1, 0.2))
    depth = np.linspace(0.8, 0.92, 8) + rng.uniform(-0.1, 0.06)
    xy = np.stack(np.broadcast_arrays(tick[:, None], depth), -1).reshape(-1, 2)
    xy = xy[:, ::rng.choice([-1, 1])] * rng.choice([-1, 1])
    return np.minimum(view.marks(xy, 0.012), 1)


def _resample(view, picture, blur):
    """The picture under a Gaussian of sigma `blur`, in picture units, at its final size: [3, size, size]."""
    target = (np.arange(view.size, dtype=np.float32) + 0.5) / view.size * 2 - 1
    sigma = np.hypot(blur, 0.8 / view.size)  # 0.4 px: about the blur of averaging over a pixel
    weight = bell((target[:, None] - view.axis) / np.float32(np.sqrt(2) * sigma))
    weight /= weight.sum(1, keepdims=True)
    return _product(_product(weight, picture), weight.T)


def _enlarge(grid, size):
    """Square planes [C, n, n] at another size by linear interpolation: [C, size, size]."""
    at = np.clip((np.arange(size) + 0.5) / size * grid.shape[1] - 0.5, 0, grid.shape[1] - 1)
    weight = np.float32(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid.shape[1]))))
    return _product(_product(weight, grid), weight.T)
