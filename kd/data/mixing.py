"""Mixed views: mixup (Zhang et al. 2018, 1710.09412) and CutMix (Yun et al. 2019, 1905.04899).

The partner of a view, its share and its place follow from (seed, number of the view, image) as all other draws do, not
from the batch: a mixed view is a view, can be drawn again, and a teacher's answer to it can be kept.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from kd.data.augment import to_device, uniform

STREAM = 2 ** 63  # added to the seed, so that these draws are other ones than those of kd.data.augment


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: A of Beta(A, A), from which the share of the partner is drawn; 0 for not at all.

    With both, half of the views are mixed in each way.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self):
        return bool(self.mixup or self.cutmix)

    def draw(self, seed, visits, index):
        """The draws of images [N]: {"partner": numbers in [0, 1), "share": of the partner, "box": ...}.

        seed, visits, index: as for kd.data.augment.draw(). box: [N, 4] of left, top, right, bottom, shares of the side,
        of the rectangle in which CutMix shows the partner; all 0 for mixup.
        """
        partner, way, share, x, y = uniform(seed + STREAM, visits, index, 5).T
        cuts = way < 0.5 if self.mixup and self.cutmix else np.full(len(way), bool(self.cutmix))
        share = np.where(cuts, *(quantile(share, a) if a else 0.0 * share for a in (self.cutmix, self.mixup)))
        half = np.sqrt(share) / 2  # a square of this share, cut off at the edges, has a random centre
        box = np.stack([x - half, y - half, x + half, y + half], 1).clip(0, 1) * cuts[:, None]
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        return {"partner": partner, "share": np.where(cuts, area, share), "box": box}


def mix(views, partners, draws):
    """Views mixed with those of their partners, both float [N, 3, H, W]; changes the first and returns it."""
    height, width = views.shape[2:]
    is_cut = draws["box"].any(1)
    share = to_device(np.where(is_cut, 0, draws["share"]).astype(np.float32), views.device)[:, None, None, None]
    views.lerp_(partners, share)
    edges = np.rint(draws["box"] * [width, height, width, height]).astype(int)
    for n in np.flatnonzero(is_cut):
        left, top, right, bottom = edges[n]
        views[n, :, top:bottom, left:right] = partners[n, :, top:bottom, left:right]
    return views


def mix_labels(labels, partners, share, classes):
    """Shares of the classes [N, C] float32: 1 - share of each label, and share of that of its partner.

    labels, partners: int64 tensors [N]. share: [N] numbers in [0, 1].
    """
    share = torch.from_numpy(share.astype(np.float32))[:, None]
    own, other = (F.one_hot(values, classes) for values in (labels, partners))
    return (1 - share) * own + share * other


def quantile(probability, a):
    """The numbers in [0, 1] below which Beta(a, a) is with these probabilities, an array; exact to about 1e-6.

    NumPy draws from this distribution, but not from one number for each image. The density is integrated over u = x^p
    with p = min(a, 1), in which it is finite at 0, up to x = 1/2; the rest is its mirror.
    """
    u, cumulative = _half_of_beta(a)
    lower = np.minimum(probability, 1 - probability)
    x = np.interp(lower, cumulative, u) ** (1 / min(a, 1))
    return np.where(probability < 0.5, x, 1 - x)


@functools.lru_cache(4)
def _half_of_beta(a, steps=2 ** 14):
    """(u, F(x)) for x from 0 to 1/2."""
    p = min(a, 1)
    u = np.linspace(0, 0.5 ** p, steps + 1)
    middle = (u[1:] + u[:-1]) / 2
    density, at_middle = (values ** (a / p - 1) * (1 - values ** (1 / p)) ** (a - 1) for values in (u, middle))
    areas = (density[1:] + 4 * at_middle + density[:-1]) / 6  # Simpson's rule
    cumulative = np.concatenate([[0], np.cumsum(areas)])
    return u, cumulative / cumulative[-1] / 2
