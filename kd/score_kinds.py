"""Scores of a network -> probabilities, whatever they were saved as; what they are is told by looking at them.

    logits                any numbers; softmax gives the probabilities
    log-probabilities     at most 0, and their exponentials sum to 1 in each image
    probabilities         sum to 1 in each image, or to another total that all images share (votes, sums over folds)
    percent               sum to 100
    sigmoid               each from 0 to 1, with any sum

Sigmoids of one-against-rest networks are divided by their sum, as scikit-learn's OneVsRestClassifier does: what each
estimates is the probability of its class, and those of classes that exclude each other sum to 1. A sum over classes is
one number an image, so the order of the classes in each image is kept.
"""

import numpy as np

from kd import metrics

KINDS = ("logits", "log-probabilities", "probabilities", "percent", "sigmoid")
EXACT, NEAR = 1e-6, 1e-3  # how far sums of probabilities may be off: rounding of float32; what is renormalised
LARGE = 20                # a logit above it is e^20 to 1; scores from 0 to 100 beyond it may as well be percents


def of_classes(scores, name, fail, kind=None, ours=False):
    """(logits [n, C] or None, probabilities [n, C], a note on what was taken for what, '' where the name says it).

    scores: [n, C] finite, C >= 2. name: of the array or the columns. fail: called with a message and a hint, raises.
    kind: one of KINDS that the user says these are. ours: written by this project, whose `logits` are logits.
    """
    told = Scores(scores)
    if kind:
        _check(told, name, fail, kind)
        why = "as --scores says"
    else:
        kind, why = _look(told, name, fail, ours)
    note = "" if not why or kind == named(name) else f"{name} are taken for {kind}, {why}"
    if kind == "logits":
        return scores, metrics.softmax(scores), note
    if kind == "log-probabilities":
        return scores, metrics.softmax(scores), note
    totals = told.totals
    if (totals <= 0).any():
        fail(f"{name} of {(totals <= 0).sum()} of {len(scores)} images are all 0", "Each image needs a score above 0.")
    if kind == "sigmoid":
        note += f"; each image's are divided by their sum ({totals.min():.3g} to {totals.max():.3g})"
    if kind == "probabilities" and np.abs(totals - 1).max() <= EXACT:  # dividing would only break ties
        hard = "every one is 0 or 1: answers without a confidence" if set(np.unique(scores)) <= {0, 1} else ""
        return None, told.scores, "; ".join(filter(None, (note, hard)))
    if kind == "probabilities" and np.abs(totals - 1).max() < 0.5:
        renormalised = f"probabilities renormalised (sums off by up to {np.abs(totals - 1).max():.1g})"
        note = f"{note}; {renormalised}" if note else renormalised
    elif kind == "probabilities":
        note = f"{name} sum to {np.median(totals):.6g} in each image and are divided by it"
    return None, told.scores / totals[:, None], note


def of_two_classes(scores, name, fail, kind=None):
    """Like of_classes() for scores [n] of two classes: of the second, or logits of it against the first."""
    low, high = scores.min(), scores.max()
    spread = f"{name} of two classes go from {low:.4g} to {high:.4g}"
    if kind is None:
        if low < 0 < high:
            kind = "logits"
        elif low >= 0 and high <= 1 and named(name) != "logits":
            kind = "probabilities"
        else:
            between = "logits or log-probabilities" if low < 0 else "logits or probabilities" if high <= 1 else \
                "percent or logits"
            fail(f"{spread}: whether they are {between} cannot be told", _ask(between))
    bounds = {"probabilities": (0, 1), "sigmoid": (0, 1), "percent": (0, 100), "log-probabilities": (-np.inf, 0)}
    lowest, highest = bounds.get(kind, (-np.inf, np.inf))
    if low < lowest or high > highest:
        fail(f"{spread}, which are no {kind}", "Leave out --scores to have them looked at.")
    if kind == "logits":
        logits = np.stack([np.zeros(len(scores)), scores], 1)
        return logits, metrics.softmax(logits), f"{name} are taken for logits of class 1 against class 0"
    share = {"percent": scores / 100, "log-probabilities": np.exp(scores)}.get(kind, scores)
    kind = {"percent": "the percent", "log-probabilities": "the log-probability"}.get(kind, "the probability")
    return None, np.stack([1 - share, share], 1), f"{name} are taken for {kind} of class 1"


def no_scores(name):
    """(message, hint) where there are predicted classes and no scores."""
    return (f"{name} are predicted classes, and scores are needed: a number for each class of each image",
            "Save what the network gives before the largest is chosen: probabilities or logits, a column a class.")


def named(name):
    """The kind that a name promises: logits, log-probabilities, percent, probabilities, or '' for any."""
    name = name.lower()
    if "log_p" in name or "logp" in name or "log-p" in name:
        return "log-probabilities"
    if name == "p" or name.startswith(("p ", "pr ")):
        return "probabilities"
    words = {"logit": "logits", "percent": "percent", "sigmoid": "sigmoid", "prob": "probabilities",
             "softmax": "probabilities"}
    return next((kind for word, kind in words.items() if word in name), "")


class Scores:
    """What looking at scores [n, C] shows."""

    def __init__(self, scores):
        self.low, self.high = scores.min(), scores.max()
        self.is_signed = self.low < -EXACT
        self.scores = scores if self.is_signed or self.low >= 0 else np.maximum(scores, 0)  # -1e-9 is a rounded 0
        self.totals = self.scores.sum(1)
        # decimals that all have: each may be off by half a unit of the last, and so a sum by so many halves
        decimals = next((d for d in range(4) if np.allclose(scores * 10 ** d, np.round(scores * 10 ** d), 0, 1e-4)), 4)
        self.unit = 10.0 ** -decimals
        self.sums_to_1 = np.abs(self.totals - 1) <= self.slack(1)
        self.sums_to_100 = np.abs(self.totals - 100) <= self.slack(100)
        self.sums_to_255 = (np.abs(self.totals - 255) <= self.slack(255)) & (self.unit == 1)  # 8 bits

    def slack(self, total):
        """How far rounding may move a sum from `total`. Whole numbers are no rounded probabilities."""
        classes = self.scores.shape[1]
        halves = min(classes / 2, 1.5 * classes ** 0.5)  # the second are five standard deviations
        return max(NEAR * total, min(halves * self.unit, 0.15 * total) if self.unit < total else 0)

    @property
    def is_shared(self):
        """Whether all images have one total, other than 0."""
        spread = self.totals.max() - self.totals.min()
        return self.totals.min() > 0 and spread <= NEAR * self.totals.min()

    @property
    def are_logarithms(self):
        off = np.abs(np.exp(np.minimum(self.scores, 1)).sum(1) - 1)
        return self.high <= EXACT and (off <= max(NEAR, self.unit)).all()


def _look(told, name, fail, ours):
    """(kind, why) of Scores; fail() where the numbers leave it open."""
    count, spread = len(told.totals), f"{name} go from {told.low:.4g} to {told.high:.4g}"
    if told.is_signed:
        if told.are_logarithms:
            return "log-probabilities", "since their exponentials sum to 1"
        if told.sums_to_1.all() and count > 1 and not ours:
            fail(f"{spread} and sum to 1 in each image: whether they are logits cannot be told",
                 "If they are, add: --scores logits. Probabilities are not below 0.")
        return "logits", f"since they go from {told.low:.4g} to {told.high:.4g}"
    if told.sums_to_1.all():
        return "probabilities", "since they sum to 1 in each image"
    if told.sums_to_100.all():
        return "percent", "since they sum to 100 in each image"
    if told.sums_to_255.all() and count > 1:
        return "probabilities", "since they sum to 255 in each image"
    if ours:
        return "logits", ""
    for total, fits, kind in ((1, told.sums_to_1, "sigmoid"), (100, told.sums_to_100, "percent")):
        if 2 * fits.sum() >= count:
            worst = np.abs(told.totals - total).argmax()
            fail(f"{name} of {count - fits.sum()} of {count} images do not sum to {total} "
                 f"(image {worst}: {told.totals[worst]:.4g}), as the others do",
                 f"Mend these rows. If each class has a score of its own, whatever the sum, add: --scores {kind}")
    if told.is_shared and count > 2:
        return "probabilities", "since they have one sum in all images"
    is_logits, is_open = named(name) == "logits", count < 3
    if told.high <= 1:
        if is_logits or is_open:
            fail(f"{spread} and do not sum to 1: whether they are logits or sigmoids cannot be told",
                 _ask("logits or sigmoid"))
        return "sigmoid", "since they go from 0 to 1 and do not sum to 1"
    is_whole = told.unit == 1
    if not is_logits and is_whole and 100 < told.high <= 255:
        fail(f"{spread}: whether they are logits or probabilities in 8 bits cannot be told",
             "If they are logits, add: --scores logits. If they go from 0 to 255, save them divided by 255.")
    if not is_logits and (is_open or is_whole or LARGE < told.high <= 100):
        fail(f"{spread} and do not sum to 100: whether they are logits or percent cannot be told",
             _ask("logits or percent" + (" or probabilities" if told.is_shared else "")))
    return "logits", f"since they go up to {told.high:.4g} and sum neither to 1 nor to 100"


def _check(told, name, fail, kind):
    """fail() where Scores cannot be of the kind that the user says."""
    spread, hint = f"{name} go from {told.low:.4g} to {told.high:.4g}", "Leave out --scores to have them looked at."
    if kind == "log-probabilities" and not told.are_logarithms:
        fail(f"--scores {kind}: the exponentials of {name} do not sum to 1 in each image", hint)
    if kind == "logits" and not told.is_signed:
        for total, fits in ((1, told.sums_to_1), (100, told.sums_to_100)):
            if fits.all():
                fail(f"--scores logits: {name} are at least 0 and sum to {total} in each image, as no logits do", hint)
    highest = {"probabilities": np.inf, "sigmoid": 1 + NEAR, "percent": 100 * (1 + NEAR)}.get(kind)
    if highest and (told.is_signed or told.high > highest or kind == "percent" and told.high <= 1):
        fail(f"--scores {kind}: {spread}", hint)
    if kind == "probabilities" and not (told.sums_to_1 | told.sums_to_255).all() and not told.is_shared:
        fail(f"--scores probabilities: {name} do not sum to 1 in each image "
             f"(they sum to {told.totals.min():.4g} to {told.totals.max():.4g})", hint)


def _ask(kinds):
    return "Say it: " + " or ".join(f"--scores {kind}" for kind in kinds.split(" or ")) + "."
