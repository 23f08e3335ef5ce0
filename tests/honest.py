"""Honest runs for tests of the audit: classifiers of known skill on clustered images, and their run folders."""

import numpy as np

from kd import metrics
from kd.evaluation import protocol
from kd.files import write_csv, write_json, write_npz, write_yaml
from kd.predictions import Predictions
from kd.run_folder import fingerprint

HAM = {"akiec": .033, "bcc": .051, "bkl": .110, "df": .011, "mel": .111, "nv": .669, "vasc": .015}


def predictions(rng, n, shares=HAM, skill=2.0, scale=1.0, collapse=0.0, part="test", images=None):
    """Predictions of n images of lesions, about 1.3 images each.

    logits: the log of the shares, plus `skill` for the true class, plus noise that images of a lesion
    share in part, all times `scale` (1 is about calibrated, more is overconfident); with `collapse`, the
    rarest classes are hardly ever the answer, as in networks that were trained for a short time.
    images: Predictions of another network, whose images, labels and lesions these are.
    """
    share = np.array(list(shares.values())) / sum(shares.values())
    if images is None:
        lesions = np.sort(rng.integers(0, max(2, int(n / 1.3)), n))
        of_lesion = rng.choice(len(share), lesions.max() + 1, p=share)
        of_lesion[:len(share)] = np.arange(len(share))  # every class occurs, as in the project's splits
        lesions[:len(share)] = np.arange(len(share))
        labels, ids = of_lesion[lesions], np.array([f"{part}_{i}" for i in range(n)])
        groups = np.array([f"{part}_g{i}" for i in lesions])
    else:
        labels, ids, groups = images.labels, images.ids, images.groups
        lesions = np.unique(groups, return_inverse=True)[1]
    noise = .8 * rng.normal(size=(lesions.max() + 1, len(share)))[lesions]
    noise += .6 * rng.normal(size=(len(labels), len(share)))
    logits = np.log(share) + skill * np.eye(len(share))[labels] + noise * np.sqrt(skill)
    logits = (scale * (logits - collapse * (share < .06))).astype(np.float32).astype(np.float64)  # as a file has them
    return Predictions(labels, logits, metrics.softmax(logits), ids, groups, list(shares))


def pair(rng, n=2000, images=(None, None), **options):
    """(val, test) of one network. images: (val, test) of another one on the same images."""
    sizes = {"val": max(60, n // 2), "test": n}
    return tuple(predictions(rng, size, part=part, images=those, **options)
                 for (part, size), those in zip(sizes.items(), images))


def result(val, test, replicates=40):
    """What evaluation would write to metrics.json, with few replicates."""
    return protocol.evaluate(val, test, protocol.Settings(replicates=replicates)).result


def write(folder, val, test, role="student", history=True, evaluated=None, seed=0, robustness=False, options=None,
          **environment):
    """Write a run folder of these predictions; its curve ends at the scores of val.npz. Returns the folder.

    options: further ones in config.yaml.
    """
    rng = np.random.default_rng([seed, *map(ord, folder.parent.name)])
    for split, part in (("val", val), ("test", test)):
        write_npz(folder / "predictions" / f"{split}.npz", ids=part.ids, labels=part.labels, groups=part.groups,
                  logits=part.logits.astype(np.float32), class_names=np.array(part.class_names))
    counts = metrics.confusion(val.labels, val.logits.astype(np.float32).argmax(1), len(val.class_names))
    best = float(metrics.accuracy(counts)), float(metrics.macro_f1(counts))
    if history:
        write_csv(folder / "history.csv", [
            {"epoch": e, "lr": .001, "loss": 2 / e + rng.uniform(0, .1), "val_loss": 1.5 / e + rng.uniform(0, .1),
             "val_accuracy": best[0] - (5 - e) * rng.uniform(.01, .02),
             "val_macro_f1": best[1] - (5 - e) * rng.uniform(.01, .02), "seconds": 20.} for e in range(1, 6)])
    write_yaml(folder / "config.yaml", {"data": "toy", "size": 64, "seeds": [seed], **(options or {})})
    rows = [{"id": i, "group": g, "label": part.class_names[y], "split": split, "sha256": f"{split}{i}"}
            for split, part in (("val", val), ("test", test)) for i, g, y in zip(part.ids, part.groups, part.labels)]
    rows += [{"id": f"train_{k}", "group": f"train_{k}", "label": name, "split": "train", "sha256": f"t{k}"}
             for k, name in enumerate(test.class_names)]
    write_csv(folder / "split.csv", rows)
    ids, groups, splits, sha256 = ([row[key] for row in rows] for key in ("id", "group", "split", "sha256"))
    numbers = [test.class_names.index(row["label"]) for row in rows]
    write_json(folder / "environment.json", {
        "role": role, "arch": "tiny", "data": {
            "name": "toy", "images": len(rows), "classes": test.class_names,
            "fingerprint": fingerprint(ids, numbers, sha256), "split": fingerprint(ids, groups, splits),
        }, **environment})
    if robustness:
        noise = rng.normal(size=test.logits.shape)
        sizes = {"clean": 0, "jpeg_90": .02, "jpeg_50": .2, "contrast_0.6": 2}
        write_csv(folder / "robustness.csv", [scores(tag, test, test.logits + size * noise)
                                              for tag, size in sizes.items()])
    if evaluated is not None:
        write_json(folder / "metrics.json", evaluated)
    return folder


def scores(tag, test, logits):
    counts = metrics.confusion(test.labels, logits.argmax(1), len(test.class_names))
    return {"tag": tag, "accuracy": metrics.accuracy(counts), "macro_f1": metrics.macro_f1(counts)}
