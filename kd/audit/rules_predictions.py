"""Rules about predictions: answers that do not follow from the image, and classes in another order."""

import math
import re

import numpy as np

from kd import metrics
from kd.audit import class_order, copies
from kd.audit.rule import rule
from kd.errors import listing


@rule("error", "The network gives the same answer to every image. Its accuracy is the share of that class, and nothing "
      "follows from it.",
      "Look at the training curve; check that the weights were loaded and the pixels normalised as in training.")
def constant_predictions(confusions, class_names, val=None, test=None):
    for split, counts in confusions.items():
        predicted, support, total = counts.sum(0), counts.sum(1), counts.sum()
        predictions = {"val": val, "test": test}[split]
        if total < 20 or (support > 0).sum() < 2:
            continue
        top, share = int(predicted.argmax()), predicted.max() / total
        if predictions is not None and np.ptp(predictions.probabilities, axis=0).max() < 1e-6:
            yield (f"all {total:,} {split} images get the same probabilities, {predictions.probabilities[0].max():.3f} "
                   f"for {class_names[top]}")
        elif share == 1 or share >= 0.99 and support.max() <= 0.97 * total:
            # an honest weak network on few images may do so
            quantity = "all" if share == 1 else f"{share:.1%} of"
            severity = "error" if share == 1 and total >= 1000 else "warning"
            yield severity, f"{quantity} {total:,} {split} images are called {class_names[top]}"


@rule("warning", "A network that has learnt only the most frequent class scores exactly this.",
      "Look at the confusion matrix, at macro-F1 and balanced accuracy, and whether the weights were loaded.")
def accuracy_is_majority_share(figures, majority, confusions=None):
    name, share, counted = majority
    counts = (confusions or {}).get("test")
    if counts is not None and metrics.balanced_accuracy(counts) > 1 / len(counts) + 0.05:
        return  # equal by chance: it knows other classes
    for figure in _test_accuracies(figures):
        if abs(figure.value - share) <= (1e-9 if counted else figure.tolerance + 0.005):
            whole = "" if counted else " of the whole data set"
            yield f"accuracy {figure} is the share of {name}, {share:.4f}{whole} ({figure.source})"


@rule("error", "Guessing would do better. Most weights were not loaded (a load that is not strict does not report "
      "missing keys), the labels are in another order, or the pixels are not those of training.",
      "Load strictly, so that a missing key is an error; check the class list and the preprocessing.")
def far_below_majority(figures, majority, class_names, confusions=None):
    name, share, _ = majority
    guessing, by_chance = 1 / len(class_names), 0
    counts = (confusions or {}).get("test")
    if counts is not None and not counts.sum(1).all():  # an external set without some classes, or with one alone:
        if (counts.sum(1) > 0).sum() < 2:
            return  # that is the recall of this class, which may be anything in another clinic
        by_chance = 3 * math.sqrt(guessing * (1 - guessing) / counts.sum())
    for figure in _test_accuracies(figures):
        if figure.value < min(share / 3, guessing) - by_chance:
            yield (f"accuracy {figure}; calling every image {name} gives {share:.3f}, and guessing among "
                   f"{len(class_names)} classes {guessing:.3f} ({figure.source})")


def _test_accuracies(figures):
    """The Figures of accuracy on test that differ, the most exact of equal ones."""
    distinct = []
    accuracies = [figure for figure in figures if (figure.metric, figure.split) == ("accuracy", "test")]
    for figure in sorted(accuracies, key=lambda figure: figure.tolerance):
        if not any(figure.agrees(other) for other in distinct):
            distinct.append(figure)
    return distinct


@rule("error", "Predictions and labels count the classes in different orders; the figures of each class, and of all "
      "together, are then those of another class.",
      "Take the class list from the checkpoint, and compare it with the one that made the labels.")
def label_order(confusions, class_names):
    for split, counts in confusions.items():
        cycles = class_order.better_order(counts)
        if not cycles:
            continue
        order = {i: j for cycle in cycles for i, j in zip(cycle, [*cycle[1:], cycle[0]])}
        total = counts.sum()
        before = np.trace(counts) / total
        after = before + sum(counts[i, j] - counts[i, i] for i, j in order.items()) / total
        moves = [f"{counts[i, j]} of {counts[i].sum()} {class_names[i]} are called {class_names[j]}"
                 for i, j in order.items()]
        yield (f"on {split} another order of the classes explains the predictions better: {listing(moves, 8)}; "
               f"accuracy {before:.3f} would be {after:.3f}")


CLASS_NUMBER = re.compile(r"class\s*(?:id\s*)?#?(\d{1,4})\s*[(:=]\s*[\"'“‘*]*([A-Za-z][\w-]{0,30})", re.IGNORECASE)


@rule("error", "A figure is attributed to another class than the one it was measured on.",
      "Write class names beside figures, never numbers.")
def class_number(texts, class_names):
    names = [name.lower() for name in class_names]
    for source, text in texts.items():
        mentions = {(int(k), name) for k, name in CLASS_NUMBER.findall(text) if name.lower() in names}
        wrong = [(k, name) for k, name in sorted(mentions) if names.index(name.lower()) != k]
        class_0_occurs = re.search(r"class\s*(?:id\s*)?0\b", text, re.IGNORECASE)
        if wrong and not class_0_occurs and all(names.index(name.lower()) == k - 1 for k, name in mentions):
            continue  # a text that counts from one throughout is right
        for k, name in wrong:
            that_class = f"class {k} is {class_names[k]}" if k < len(class_names) else f"there is no class {k}"
            yield (f"“class {k} ({name})” in {source}; in the order {' '.join(class_names)}, {that_class} and "
                   f"{name} is {names.index(name.lower())}")


# ---- validation and test


@rule("warning", "Validation and test are drawn alike, and a network that is selected on validation should do a little "
      "worse on test. Test images were in training, the selection used test, or wrong images were left out.",
      "Check the split for shared lesions and images, and the test images against the split.")
def test_above_val(val, test):
    for name, on_val, on_test, error in _of_both(val, test):
        if on_test - on_val > 3.5 * error:
            yield _apart(name, on_val, on_test, error)
            return


@rule("error", "A network that is selected on validation does a little worse on test, and not this much. The rows of "
      "predictions and labels do not belong together, or the two splits are not drawn alike.",
      "Match predictions and labels by the ids of the images.")
def test_far_below_val(val, test):
    for name, on_val, on_test, error in _of_both(val, test):
        # a standard error of validation, more or less, is the profit of selecting the best of many epochs on it
        if name == "accuracy" and on_val - on_test > 5 * error:
            yield _apart(name, on_val, on_test, error)
            return
    if _are_alike(val, test):
        (on_val, val_error), (on_test, test_error) = map(_kappa, (val, test))
        error = math.hypot(val_error, test_error)
        if on_val > 5 * val_error and on_test < 3 * test_error and on_val - on_test > 3.3 * error:
            yield _apart("Cohen's kappa", on_val, on_test, error) + "; on test the answers know nothing of the labels"


def _kappa(part):
    """(Cohen's kappa of answers and labels, its standard error as if the images of a lesion were one)."""
    counts = metrics.confusion(part.labels, part.probabilities.argmax(1), len(part.class_names))
    shares = counts / counts.sum()
    by_chance = float(shares.sum(0) @ shares.sum(1))
    if by_chance > 0.999:
        return 0.0, math.inf
    right = float(np.trace(shares))
    error = math.sqrt(_variance(right, len(np.unique(part.clusters))))
    return (right - by_chance) / (1 - by_chance), error / (1 - by_chance)


def _of_both(val, test):
    """Yield (metric, value on validation, value on test, standard error of the difference) for two metrics."""
    if len(val.class_names) != len(test.class_names):
        return
    parts = [_recalls(part) for part in (val, test)]
    lesions = [len(np.unique(part.clusters)) for part in (val, test)]
    if min(lesions) >= 20 and _are_alike(val, test):
        correct = [(part.probabilities.argmax(1) == part.labels).mean() for part in (val, test)]
        yield "accuracy", *correct, math.sqrt(sum(_variance(*pair) for pair in zip(correct, lesions)))
    classes = [k for k in range(len(val.class_names)) if min(part[1][k] for part in parts) >= 5]
    if len(classes) >= 2:
        balanced = [part[0][classes].mean() for part in parts]
        variances = [_variance(rate[k], count[k]) for rate, count in parts for k in classes]
        name = "balanced accuracy" + ("" if len(classes) == len(val.class_names) else
                                      f" of the {len(classes)} classes with 5 lesions in both")
        yield name, *balanced, math.sqrt(sum(variances)) / len(classes)


def _are_alike(val, test):
    """Whether test can be drawn as validation was: it has the classes of 95% of the images there."""
    if len(val.class_names) != len(test.class_names):
        return False
    return np.isin(val.labels, test.labels).mean() >= 0.95 and len(np.unique(test.labels)) > 1


def _recalls(part):
    """(recall, number of lesions), each [C]."""
    counts = metrics.confusion(part.labels, part.probabilities.argmax(1), len(part.class_names))
    lesions = [len(np.unique(part.clusters[part.labels == k])) for k in range(len(part.class_names))]
    return np.diag(counts) / np.maximum(counts.sum(1), 1), np.array(lesions)


def _variance(rate, lesions):
    """Variance of a rate as if the images of a lesion were one; never 0, which few images cannot show."""
    rate = (rate * lesions + 1) / (lesions + 2)
    return rate * (1 - rate) / lesions


def _apart(name, on_val, on_test, error):
    return (f"{name} is {on_test:.3f} on test and {on_val:.3f} on validation, {abs(on_test - on_val) / error:.1f} "
            "standard errors apart")


@rule("error", "Validation has the predictions of test images: what was selected on it was selected on test.",
      "Split again, so that no image is in two splits, and train again.")
def val_is_test(val, test):
    first, second = copies.points(val), copies.points(test)
    if first is not None and second is not None and first.shape[1] == second.shape[1]:
        # of predictions as they are, since the two sets have other means than a set and its copy
        share = copies.twins(val.scores - val.scores.mean(1, keepdims=True),
                             test.scores - test.scores.mean(1, keepdims=True))
        if share > copies.SHARE_FOUND:
            yield f"{share:.0%} of the validation images have the scores of a test image, under whatever id"


@rule("warning", "An image that stands in the test set several times counts several times, and its copies are right "
      "or wrong together.", "Leave one row an image.")
def image_counted_twice(val=None, test=None):
    for split, part in (("val", val), ("test", test)):
        if part is None or len(np.unique(part.scores)) < len(part.labels):
            continue  # scores that were rounded, or hardly differ, are equal by chance
        _, first, times = np.unique(part.scores, axis=0, return_index=True, return_counts=True)
        twice = int((times - 1).sum())
        if twice > 0.01 * len(part.labels):
            yield f"{twice:,} of {len(part.labels):,} {split} images have exactly the scores of another one"
