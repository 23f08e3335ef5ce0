"""Honest runs for tests of the audit: classifiers of known skill on clustered images, and their run folders."""

import numpy as np

from kd import metrics
from kd.evaluation import protocol
from kd.files import write_csv, write_json, write_npz, write_yaml
from kd.predictions import Predictions

HAM = {"akiec": .033, "bcc": .051, "bkl": .110, "df": .011, "mel": .111, "nv": .669, "vasc": .015}


def predictions(rng, n, shares=HAM, skill=2.0, scale=1.0, collapse=0.0, part="test"):
    """Predictions of n images of lesions, about 1.3 images each.

    logits: the log of the shares, plus `skill` for the true class, plus noise that images of a lesion
    share in part, all times `scale` (1 is about calibrated, more is overconfident); with `collapse`, the
    rarest classes are hardly ever the answer, as in networks that were trained for a short time.
    """
    share = np.array(list(shares.values())) / sum(shares.values())
    lesions = np.sort(rng.integers(0, max(2, int(n / 1.3)), n))
    of_lesion = rng.choice(len(share), lesions.max() + 1, p=share)
    of_lesion[:len(share)] = np.arange(len(share))  # every class occurs, as in the project's splits
    lesions[:len(share)] = np.arange(len(share))
    labels = of_lesion[lesions]
    noise = .8 * rng.normal(size=(lesions.max() + 1, len(share)))[lesions] + .6 * rng.normal(size=(n, len(share)))
    logits = np.log(share) + skill * np.eye(len(share))[labels] + noise * np.sqrt(skill)
    logits = scale * (logits - collapse * (share < .06))
    return Predictions(labels, logits, metrics.softmax(logits), np.array([f"{part}_{i}" for i in range(n)]),
                       np.array([f"{part}_g{i}" for i in lesions]), list(shares))


def pair(rng, n=2000, **options):
    """(val, test) of one network."""
    return predictions(rng, max(60, n // 2), part="val", **options), predictions(rng, n, part="test", **options)


def result(val, test, replicates=40):
    """What evaluation would write to metrics.json, with few replicates."""
    return protocol.evaluate(val, test, protocol.Settings(replicates=replicates)).result


def write(folder, val, test, role="student", history=True, evaluated=None, seed=0, robustness=False, **environment):
    """Write a run folder of these predictions; its curve ends at the scores of val.npz. Returns the folder."""
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
    write_yaml(folder / "config.yaml", {"data": "toy", "size": 64, "seeds": [seed]})
    write_json(folder / "environment.json", {"role": role, "arch": "tiny", **environment})
    rows = [{"id": i, "group": g, "label": part.class_names[y], "split": split, "sha256": f"{split}{i}"}
            for split, part in (("val", val), ("test", test)) for i, g, y in zip(part.ids, part.groups, part.labels)]
    rows += [{"id": f"train_{k}", "group": f"train_{k}", "label": name, "split": "train", "sha256": f"t{k}"}
             for k, name in enumerate(test.class_names)]
    write_csv(folder / "split.csv", rows)
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
