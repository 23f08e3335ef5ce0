"""Similarity of student and teacher inside: linear CKA for each stage, attention maps and Grad-CAM of test images."""

import numpy as np
import torch
import torch.nn.functional as F

from kd import image
from kd.data import augment, batching
from kd.errors import progress
from kd.files import write_npz
from kd.train import networks
from kd.train.step import memory_format, network_outputs, normalise_for

IMAGES = 256   # of a split at most, evenly spread over it
SHOWN = 4      # test images with maps
BATCH = 32
POSITIONS = 4  # the map of a stage is averaged to at most 4 x 4 before it is compared
LARGEST = 32   # side of the attention maps, at most


def cka(gram_x, gram_y, subsets=None):
    """Debiased linear CKA of two representations X and Y of the same n images: a float, at most 1.

    gram_x, gram_y: their Gram matrices X X' and Y Y', [n, n]. subsets: [R, n] of 0 and 1, to get R values [R], each
    of the images that are 1; otherwise one value, of all images.
    1 means equal up to rotation, shift and scale. NaN for fewer than 4 images, or if a representation is constant.
    Kornblith et al. 2019 (1905.00414), eq. 4, with the unbiased HSIC of Song et al. 2012 (JMLR 13, eq. 5): with more
    features than images the biased CKA is near 1 for any representations; this one is near 0 for unrelated ones, and
    can be slightly negative.
    """
    if subsets is None:
        return float(cka(gram_x, gram_y, np.ones((1, len(gram_x))))[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = (gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y)
        hsic_xy, hsic_xx, hsic_yy = (_hsic(a, b, subsets) for a, b in pairs)
        defined = (np.minimum(hsic_xx, hsic_yy) > 0) & (subsets.sum(1) >= 4)
        return np.where(defined, hsic_xy / np.sqrt(hsic_xx * hsic_yy), np.nan)


def _hsic(a, b, subsets):
    n = subsets.sum(1)
    a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
    rows_a, rows_b, rows_ab = (subsets * (subsets @ matrix) for matrix in (a, b, a * b))  # row sums over each subset
    mean_terms = rows_ab.sum(1) + rows_a.sum(1) * rows_b.sum(1) / ((n - 1) * (n - 2))
    return (mean_terms - 2 * (rows_a * rows_b).sum(1) / (n - 2)) / (n * (n - 3))


def cka_interval(gram_x, gram_y, groups):
    """(cka, lo, hi) with a normal 95% interval by the jackknife over groups of images (Efron & Stein 1981).

    gram_x, gram_y: as for cka(). groups: [n], one name for each image; images of a group are left out together.
    """
    names, index = np.unique(groups, return_inverse=True)
    subsets = (index[None] != np.arange(len(names))[:, None]).astype(float)
    variance = np.var(cka(gram_x, gram_y, subsets))
    half_width = 1.96 * np.sqrt((len(names) - 1) * variance) if len(names) > 1 else np.nan
    value = cka(gram_x, gram_y)
    return value, value - half_width, min(1, value + half_width) if np.isfinite(half_width) else np.nan


def grad_cam(model, stage, images):
    """Grad-CAM of the predicted class: which positions of a stage speak for it. [N, h, w] in [0, 1].

    model: in eval mode. stage: path of a module whose output is [N, C, h, w]. images: [N, 3, H, W], normalised.
    The channels are summed with the mean of d logit / d channel as weight, and what is negative is 0 (Selvaraju et al.
    2017, 10.1109/ICCV.2017.74, eq. 1 and 2). Each map is divided by its maximum; one without positive values is 0.
    """
    kept = []

    def keep(module, inputs, output):
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # a layer that works in place does not change what is kept

    hook = model.get_submodule(stage).register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = model(images)
            gradient, = torch.autograd.grad(logits.max(1).values.sum(), kept[0])
    finally:
        hook.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    maps = F.relu((weights * kept[0].detach()).sum(1))
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


@torch.no_grad()
def write(folder, student, teacher, data, device):
    """Write attention.npz of a run folder, and print the similarities in a line.

    student, teacher: kd.train.networks.Network. Without known stages a line says so and nothing is written.
    The file has the SHOWN test images [K, H, W, 3] uint8, of different groups, on which the two differ most, and their
    ids [K]; difference: [K], the total variation distance of their probabilities, from 0 to 1; student, teacher:
    [K, 4, h, h] float16, the attention of each stage (kd.losses.attention), resized to the side h of the largest stage
    or LARGEST, of length 1; student_cam, teacher_cam: [K, h, h] float16, grad_cam() of the last stage; cka, cka_lo,
    cka_hi: [4], each stage of the student compared with the same stage of the teacher; cka_images: the number of
    validation images that these come from, and candidates: of test images that were compared.
    """
    if not student.stages or len(student.stages) != len(teacher.stages):
        unknown = teacher.arch if not teacher.stages else student.arch
        print(f"{folder}: the stages of {unknown} are not known: no attention maps, and no similarity to the teacher. "
              "They are named with --stages, or where the network is registered (docs/extending.md)")
        return
    pair = {"student": student, "teacher": teacher}
    extractors = {role: networks.FeatureExtractor(network.model, network.stages) for role, network in pair.items()}
    for network in pair.values():
        network.model.to(device, memory_format=memory_format(torch.device(device))).eval()
    rows, features = _rows(data, "val"), {role: [] for role in pair}
    for role, outputs in _outputs(pair, extractors, data, "val", device):
        features[role].append([_pooled(feature).cpu() for feature in outputs[f"{role}_features"]])
    grams = {role: [_gram(torch.cat(stage)) for stage in zip(*batches)] for role, batches in features.items()}
    intervals = np.array([cka_interval(gram_student, gram_teacher, data.groups[rows])
                          for gram_student, gram_teacher in zip(grams["student"], grams["teacher"])])

    candidates, probabilities = _rows(data, "test"), {role: [] for role in pair}
    for role, outputs in _outputs(pair, extractors, data, "test", device):
        probabilities[role].append(outputs[f"{role}_logits"].float().softmax(1).cpu())
    ours, theirs = (torch.cat(probabilities[role]).numpy() for role in pair)
    distances = np.abs(ours - theirs).sum(1) / 2
    order = np.argsort(-distances, kind="stable")
    first = np.sort(np.unique(data.groups[candidates[order]], return_index=True)[1])  # one image a group
    chosen = order[first[:SHOWN]]
    pixels = image.centre_crop(data.pixels(candidates[chosen]), data.size)
    images = augment.to_float(pixels, device)
    attention = {}
    for role, network in pair.items():
        name = f"{role}_attention"
        attention[role] = network_outputs(role, network, extractors[role], images, {name})[name]
    for extractor in extractors.values():
        extractor.close()
    side = min(LARGEST, max(maps.shape[1] for stages in attention.values() for maps in stages))
    maps = {role: F.normalize(_resized(stages, side).flatten(2), dim=2).view(len(chosen), -1, side, side)
            for role, stages in attention.items()}
    for role, network in pair.items():
        cam = grad_cam(network.model, network.stages[-1], normalise_for(images, network))
        maps[f"{role}_cam"] = _resized([cam], side)[:, 0]
    value, lo, hi = intervals.T
    write_npz(folder / "attention.npz", ids=data.ids[candidates[chosen]], images=pixels, difference=distances[chosen],
              candidates=np.array(len(candidates)), cka=value, cka_lo=lo, cka_hi=hi, cka_images=np.array(len(rows)),
              **{name: of_role.cpu().numpy().astype(np.float16) for name, of_role in maps.items()})
    print(f"{folder}: similarity to the teacher by stage (linear CKA, {len(rows)} validation images): "
          + ", ".join(f"{number:.2f}" for number in value))


def _every(data, split):
    """n, where every n-th image of a split is looked at."""
    return -(-len(data.where(split)) // IMAGES)


def _rows(data, split):
    """The positions of at most IMAGES images of a split, evenly spread over it."""
    return data.where(split)[::_every(data, split)]


def _outputs(pair, extractors, data, split, device):
    """Yield (role, network_outputs() of its network) for each batch of the images of _rows().

    pair, extractors: {role: Network}, {role: its FeatureExtractor}.
    """
    batches = batching.evaluation_batches(data, split, batch=BATCH, device=device, share=(0, _every(data, split)))
    for images in progress(batches, "similarity", total=-(-len(_rows(data, split)) // BATCH), unit="batch"):
        for role, network in pair.items():
            yield role, network_outputs(role, network, extractors[role], images, ())


def _pooled(feature):
    """[N, C, H, W] as [N, C h w], with h and w at most POSITIONS."""
    side = [min(POSITIONS, length) for length in feature.shape[2:]]
    return F.adaptive_avg_pool2d(feature.float(), side).flatten(1)


def _gram(features):
    """X X' of centred features [N, D], as float64."""
    features = features - features.mean(0)
    return (features @ features.T).double().numpy()


def _resized(stages, side):
    """Several [K, h, w] as one [K, stages, side, side]."""
    maps = [F.interpolate(stage[:, None], (side, side), mode="bilinear", antialias=True)[:, 0] for stage in stages]
    return torch.stack(maps, dim=1)
