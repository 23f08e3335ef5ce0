"""How alike student and teacher are inside: linear CKA by stage, and where each of them looks."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from kd.data import augment, loader
from kd.files import read_npz, write_npz
from kd.train import networks
from kd.train.step import memory_format, network_outputs

IMAGES = 256  # validation images at most, evenly spread over the split
POSITIONS = 4  # a stage's map is averaged to at most 4 x 4 before it is compared
LARGEST = 32  # side of the attention maps, at most


def cka(k, l, keep=None):
    """Debiased linear CKA of two representations of the same n images, from their Gram matrices X X' [n, n].

    Kornblith et al. 2019 (1905.00414), eq. 4, with the unbiased HSIC of Song et al. 2012 (JMLR 13, eq. 5): with more features
    than images the plain one is near 1 whatever they are; this one is near 0 for unrelated ones, and can be a little
    below. 1 is the same up to rotation, shift and scale. NaN for fewer than 4 images, or where one does not vary.
    keep: [R, n] of 0 and 1, for R values, each of some of the images.
    """
    if keep is None:
        return float(cka(k, l, np.ones((1, len(k))))[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        between, *own = (_hsic(a, b, keep) for a, b in ((k, l), (k, k), (l, l)))
        defined = (np.minimum(*own) > 0) & (keep.sum(1) >= 4)
        return np.where(defined, between / np.sqrt(own[0] * own[1]), np.nan)


def _hsic(k, l, keep):
    n = keep.sum(1)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    of_k, of_l, both = (keep * (keep @ matrix) for matrix in (k, l, k * l))  # row sums over what is kept
    return (both.sum(1) + of_k.sum(1) * of_l.sum(1) / ((n - 1) * (n - 2)) - 2 * (of_k * of_l).sum(1) / (n - 2)) / (n * (n - 3))


def cka_interval(k, l, groups):
    """(cka, lo, hi): a normal 95% interval by the jackknife, each group of images left out in turn (Efron & Stein 1981)."""
    names, group = np.unique(groups, return_inverse=True)
    left_out = cka(k, l, (group[None] != np.arange(len(names))[:, None]).astype(float))
    spread = 1.96 * np.sqrt((len(names) - 1) * np.var(left_out)) if len(names) > 1 else np.nan
    value = cka(k, l)
    return value, value - spread, min(1, value + spread) if np.isfinite(spread) else np.nan


@torch.no_grad()
def write(folder, student, teacher, data, device):
    """attention.npz of a run folder, beside its samples.npz; prints a line.

    ids [K]; student, teacher: [K, 4, h, h] float16, the attention of each stage on each sample (kd.losses.attention), resized to
    the side h of the largest stage or LARGEST, of length 1; cka, cka_lo, cka_hi: [4], each stage of the student beside the same
    stage of the teacher; cka_images: how many validation images these rest on. student, teacher: kd.train.networks.Network.
    """
    if not student.stages or len(student.stages) != len(teacher.stages):
        unknown = teacher.arch if not teacher.stages else student.arch
        print(f"{folder}: the stages of {unknown} are not known: no attention maps, and no similarity to the teacher")
        return
    pair = {"student": student, "teacher": teacher}
    readers = {who: networks.FeatureExtractor(network.model, network.stages) for who, network in pair.items()}
    for network in pair.values():
        network.model.to(device, memory_format=memory_format(torch.device(device))).eval()
    every = -(-len(data.where("val")) // IMAGES)
    rows = data.where("val")[::every]
    features = {who: [] for who in pair}
    batches = loader.evaluation_batches(data, "val", batch=32, device=device, share=(0, every))
    for images in tqdm(batches, total=-(-len(rows) // 32), desc="similarity", unit="batch", delay=2, disable=None):
        for who, network in pair.items():
            given = network_outputs(who, network, readers[who], images, ())
            features[who].append([_pooled(feature).cpu() for feature in given[f"{who}_features"]])
    grams = {who: [_gram(torch.cat(stage)) for stage in zip(*held)] for who, held in features.items()}
    found = np.array([cka_interval(k, l, data.groups[rows]) for k, l in zip(grams["student"], grams["teacher"])])

    samples = read_npz(folder / "samples.npz", ("images", "ids"))
    images = augment.to_float(samples["images"], device)
    looks = {who: network_outputs(who, network, readers[who], images, {f"{who}_attention"})[f"{who}_attention"]
             for who, network in pair.items()}
    side = min(LARGEST, max(maps.shape[1] for stages in looks.values() for maps in stages))
    for reader in readers.values():
        reader.close()
    write_npz(folder / "attention.npz", ids=samples["ids"], cka=found[:, 0], cka_lo=found[:, 1], cka_hi=found[:, 2],
                   cka_images=np.array(len(rows)), **{who: _resized(stages, side) for who, stages in looks.items()})
    print(f"{folder}: similarity to the teacher by stage (linear CKA, {len(rows)} validation images): "
          + ", ".join(f"{value:.2f}" for value in found[:, 0]))


def _pooled(feature):
    """[N, C, H, W] as [N, C h w], with h and w at most POSITIONS."""
    side = [min(POSITIONS, length) for length in feature.shape[2:]]
    return F.adaptive_avg_pool2d(feature.float(), side).flatten(1)


def _gram(features):
    """X X' of centred features [N, D], as float64."""
    features = features - features.mean(0)
    return (features @ features.T).double().numpy()


def _resized(stages, side):
    """Four [K, h, w] as one float16 array [K, 4, side, side], each map of length 1."""
    maps = [F.interpolate(stage[:, None], (side, side), mode="bilinear", antialias=True)[:, 0] for stage in stages]
    maps = torch.stack(maps, dim=1)
    return F.normalize(maps.flatten(2), dim=2).view_as(maps).cpu().numpy().astype(np.float16)
