"""How often 95% intervals contain the true value, in a simulation where it is known.

Lesions are drawn with HAM10000's class shares, as many as its test split has, each with as many images
as those of HAM10000. A model gives similar answers for the images of a lesion: with probability .7 an image
gets the answer of the lesion, otherwise a new one, both from the confusion matrix of a plausible classifier. The
second model copies the first with probability .6 and is better otherwise. Nothing here is tuned.

Coverage that was measured, resampling lesions and resampling images: accuracy .947 and .896, difference of accuracy
.958 and .920, macro-F1 .941 and .899, difference of macro-F1 .946 and .911. Takes four minutes of processor time.
"""

import numpy as np
import pytest

from kd import bootstrap, metrics, paired

SHARES = np.array([327, 514, 1099, 115, 1113, 6705, 142]) / 10015  # akiec bcc bkl df mel nv vasc
IMAGES_A_LESION = np.array([5514, 1423, 490, 34, 5, 4]) / 7470  # 1 to 6
LESIONS, TRIALS, REPLICATES = 1494, 1000, 1000
ALIKE, SHARED = .7, .6


def answers(recall):
    """[7, 7] chances of each answer: right with the class's recall, else any other class by its share."""
    wrong = np.tile(SHARES, (7, 1)) * (1 - np.eye(7))
    return np.diag(recall) + wrong / wrong.sum(1, keepdims=True) * (1 - np.array(recall))[:, None]


FIRST = answers([.55, .65, .60, .40, .50, .90, .70])
BETTER = answers([.60, .70, .65, .50, .60, .92, .75])
SECOND = SHARED * FIRST + (1 - SHARED) * BETTER


def draw(rng):
    """Labels, lesions and both models' predictions, [n] each."""
    def answer(rows):
        return (rows.cumsum(1) < rng.random((len(rows), 1))).sum(1).clip(max=6)

    labels = rng.choice(7, LESIONS, p=SHARES)
    lesion = np.repeat(np.arange(LESIONS), rng.choice(6, LESIONS, p=IMAGES_A_LESION) + 1)
    image_labels = labels[lesion]

    def model(chances):
        return np.where(rng.random(len(lesion)) < ALIKE, answer(chances[labels])[lesion], answer(chances[image_labels]))

    first = model(FIRST)
    copied = (rng.random(LESIONS) < SHARED)[lesion]
    return image_labels, lesion, first, np.where(copied, first, model(BETTER))


def truth(chances):
    counts = SHARES[:, None] * chances
    return {"accuracy": metrics.accuracy(counts), "macro_f1": metrics.macro_f1(counts)}


@pytest.mark.slow
def test_intervals_contain_the_true_value_as_often_as_they_say(capsys):
    rng = np.random.default_rng(2024)
    true = {**truth(FIRST), "difference": truth(SECOND)["accuracy"] - truth(FIRST)["accuracy"],
            "macro_f1 difference": truth(SECOND)["macro_f1"] - truth(FIRST)["macro_f1"]}
    misses = {(name, by): [] for name in true for by in ("lesion", "image")}
    for trial in range(TRIALS):
        labels, lesion, first, second = draw(rng)
        for by, groups in (("lesion", lesion), ("image", np.arange(len(labels)))):
            index, count = bootstrap.clusters(groups)
            weights = bootstrap.resample(count, REPLICATES, seed=trial)
            counts = [bootstrap.confusions(labels, predicted, 7, index, weights) for predicted in (first, second)]
            accuracy, macro_f1 = ([metric(c) for c in counts] for metric in (metrics.accuracy, metrics.macro_f1))
            intervals = {"accuracy": bootstrap.interval(accuracy[0]), "macro_f1": bootstrap.interval(macro_f1[0]),
                         "difference": paired.paired(*accuracy), "macro_f1 difference": paired.paired(*macro_f1)}
            for name, metric in intervals.items():
                misses[name, by].append((metric["hi"] < true[name], metric["lo"] > true[name]))
    coverage = {}
    with capsys.disabled():
        print(f"\n{TRIALS:,} trials of {LESIONS:,} lesions, {REPLICATES:,} replicates: "
              "share of 95% intervals that contain the true value")
        for (name, by), missed in misses.items():
            below, above = np.mean(missed, 0)
            coverage[name, by] = 1 - below - above
            print(f"{name:20} by {by:7} {coverage[name, by]:.3f}, all below it {below:.3f}, all above it {above:.3f}")
    for name in ("accuracy", "difference"):
        assert .93 <= coverage[name, "lesion"] <= .97, name
        assert coverage[name, "image"] < coverage[name, "lesion"] - .015, name  # too narrow, because it ignores lesions
    # Macro-F1 is a mean of ratios, two of them over a score or two of images: a percentile interval
    # covers somewhat less than 95%; this is reported, not corrected.
    assert .88 <= coverage["macro_f1", "lesion"] <= .97
