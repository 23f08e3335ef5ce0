"""A network at another hospital: settings fitted on one part of labelled cases from there, tested on the other.

    cases = Cases.read(RUN/predictions/NAME.npz)       what evaluate.py --data writes
    after = recalibrate(val, cases, settings)          its result is the content of RUN/recalibrated/NAME.json
    record = recalibration.read(Run(RUN), NAME)        that file, read (kd/recalibration.py)
    evaluated = evaluate(record, cases, settings)      the same settings on further cases

The settings are offsets of the logits (how much more or less frequent a class is than the network takes it to be), the
temperature, and the operating points. Whole patients are in one part. A hash of the patient decides which, and does not
look at labels: of parts with equal shares of each class, one would show every frequency that was fitted on the other to
be right.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kd import (
    bootstrap,
    calibration,
    metrics,
    operating_points,
    paired,
    perceptual_hash,
    predictions,
    recalibration,
)
from kd.errors import UserError, listing
from kd.evaluation import protocol
from kd.files import read_npz
from kd.text import format_count

KEYS = ("images", "groups", "pictures")
COMPARED = ("accuracy", "macro_f1", "balanced_accuracy", "nll", "brier", "aurc", "rms_ce_debiased", "ece")


# ---- cases and their parts


@dataclass
class Cases:
    """The answers of a network to n images of a site, and the keys by which these are known again.

    keys: {"images", "groups", "pictures": [n] str}: of contents, of patients or lesions ('' where none are known), and
    perceptual hashes. weights: fingerprint of the network.
    """

    name: str
    predictions: predictions.Predictions
    keys: dict
    weights: str

    @classmethod
    def read(cls, path):
        """Those in a file that evaluate.py --data writes."""
        arrays = read_npz(path, ("weights", *(f"key_{what}" for what in KEYS)))
        keys = {what: predictions.strings(arrays[f"key_{what}"]) for what in KEYS}
        return cls(Path(path).stem, predictions.read(path), keys, str(arrays["weights"]))

    def __len__(self):
        return len(self.predictions.labels)

    @property
    def unit(self):
        """What is independent, in words."""
        return "image" if self.predictions.groups is None else "patient or lesion"

    def take(self, rows):
        """Those of a mask [n]."""
        return replace(self, predictions=self.predictions.take(rows),
                       keys={what: part[rows] for what, part in self.keys.items()})

    def listed(self):
        """{"images", "groups", "pictures": sorted keys}, as a record has them."""
        return {what: sorted(set(part.tolist()) - {""}) for what, part in self.keys.items()}

    def known(self, keys):
        """[n] bool: whether an image, its patient, or a picture that looks like it, is among keys of listed()."""
        known = np.isin(self.keys["images"], keys["images"]) | np.isin(self.keys["groups"], keys["groups"])
        known[perceptual_hash.near(self.keys["pictures"], keys["pictures"])[0]] = True
        return known

    def positives(self, name):
        """The number of independent images of a class."""
        names, labels = self.predictions.class_names, self.predictions.labels
        return len(np.unique(self.predictions.clusters[labels == names.index(name)]))


def divide(cases):
    """(part to fit on, part to test on) of Cases.

    Each patient, or each image where none are known, is in the first with a probability of one half, and stays there
    when further patients come. Images that look like one of the first part are in neither.
    """
    units = np.where(cases.keys["groups"] == "", cases.keys["images"], cases.keys["groups"])
    fit = np.array([hashlib.sha256(f"recalibration {unit}".encode()).digest()[0] < 128 for unit in units], bool)
    first = cases.take(fit)
    return first, cases.take(~cases.known(first.listed()))


def targets(fit, settings):
    """(names of the classes that get a threshold, {name: positives of those that do not}) of the Cases to fit on.

    A class needs as many independent positives as it takes to promise the sensitivity with the assurance. UserError
    where no class has them, or where one of settings.targets has not.
    """
    least = operating_points.least_positives(settings.sensitivity, settings.assurance)
    if math.isinf(least):
        raise UserError("no number of cases can promise a sensitivity of 1", "Ask for less: --sensitivity 0.95.")
    names = protocol.check_targets(fit.predictions.class_names, settings.targets) or fit.predictions.class_names
    positives = {name: fit.positives(name) for name in names}
    enough = [name for name in names if positives[name] >= least]
    lacking = {name: count for name, count in positives.items() if count < least}
    if enough and (not lacking or not settings.targets):
        return enough, lacking
    most, of_most = max((count, name) for name, count in lacking.items())
    possible = math.floor(1000 * (1 - settings.assurance) ** (1 / most)) / 1000 if most else 0
    counts = listing([f"{count} of {name}" for name, count in lacking.items()], 8)
    raise UserError(
        f"too few positives in the part of {fit.name} to fit on: {counts} ({fit.unit}); to promise a sensitivity of "
        f"{settings.sensitivity:g} with an assurance of {settings.assurance:g} takes {least}",
        f"Give a set with about {2 * least}, since half of them are for the test"
        + (f"; the {most} of {of_most} can promise --sensitivity {possible:g}" if possible >= 0.5 else "")
        + ("; or leave out --target: classes with too few get no threshold." if enough else "."))


# ---- fitted on the one part, tested on the other


def recalibrate(val, cases, settings):
    """protocol.Evaluated of the part of Cases to test on, with settings that are fitted on the other.

    val: Predictions of the run's validation split, by which the run's own settings are chosen. The result has, under
    "recalibration", the offsets, the keys of the images that they were fitted on, the figures of the run's own settings
    on the same test images, and paired differences. UserError where there is too little to fit or to test on.
    """
    fit, rest = divide(cases)
    names = cases.predictions.class_names
    present = np.unique(fit.predictions.labels)
    if len(present) == 1:
        raise UserError(f"every image of the part of {cases.name} to fit on is of {names[present[0]]}",
                        "How frequent classes are, and how confident answers may be, is learned from images of several "
                        "classes. Give all cases of a time, not those of one class.")
    enough, lacking = targets(fit, settings)
    units = len(np.unique(rest.predictions.clusters))
    if units < bootstrap.FEWEST:
        raise UserError(f"too few cases of {cases.name} are left to test on: {format_count(units, 'group')}",
                        "Give more cases. Half of the patients are for the test, without images that look like one of "
                        "the others.")
    chosen = replace(settings, targets=enough)
    offsets, ridge, choices = fitted(fit.predictions, chosen)
    if not choices.temperature.ok:
        raise UserError(f"no temperature can be fitted on {cases.name}: {choices.temperature.reason}",
                        "Give more cases, among them some that the network gets wrong, and see that its classes mean "
                        "the same there.")
    own = protocol.evaluate(val, rest.predictions, chosen)
    after = protocol.evaluate(None, rest.predictions.shifted(offsets), chosen, choices)
    after.result["split"] = {recalibration.FIT: fit.predictions.size(), **after.result["split"]}
    temperature = own.result["calibration"]["temperature"]
    answered = metrics.softmax(fit.predictions.scores / (temperature or 1)).mean(0)
    shares = np.bincount(fit.predictions.labels, minlength=len(names)) / len(fit)
    after.result["recalibration"] = {
        "format": recalibration.FORMAT, "site": cases.name, "weights": cases.weights, "unit": cases.unit,
        "offsets": offsets.tolist(), "ridge": ridge,
        "shares": {name: {"site": site, "answered": answer} for name, site, answer in zip(names, shares, answered)},
        "least_positives": operating_points.least_positives(settings.sensitivity, settings.assurance),
        "without_threshold": lacking, "in_neither": len(cases) - len(fit) - len(rest),
        "own": {"temperature": temperature, "test": own.result["test"],
                "operating_points": own.result["operating_points"]},
        "differences": differences(own, after, protocol.resampling(rest.predictions, chosen)),
        "fitted_on": fit.listed()}
    return after


def fitted(part, settings):
    """(offsets [C], ridge as calibration.fit_offsets() gives it, protocol.Choices) of the Predictions to fit on."""
    offsets, ridge = calibration.fit_offsets(part.scores, part.labels, part.clusters)
    return offsets, ridge, protocol.choose(part.shifted(offsets), settings, recalibration.FIT)


def differences(own, after, draws):
    """Rows of paired.compare() of two protocol.Evaluated on the same images: the run's own settings, and new ones.

    Of probabilities those after the temperature are compared. Further metrics are sensitivity/CLASS, specificity/CLASS,
    coverage and risk, of the operating points that both have.
    """
    sides = []
    for evaluated in (own, after):
        values = {name: evaluated.values.get(f"{name}_calibrated", evaluated.values[name]) for name in COMPARED}
        for point in evaluated.result["operating_points"]:
            threshold, test = point["threshold"], evaluated.test
            if point["kind"] == "sensitivity" and not np.isnan(threshold):
                k = test.class_names.index(point["class"])
                masks = operating_points.masks(test.labels == k, test.probabilities[:, k] >= threshold)
                values.update(draws.rates({f"{rate}/{point['class']}": masks[rate]
                                           for rate in ("sensitivity", "specificity")}))
            elif point["kind"] == "abstention":
                values.update(draws.rates(operating_points.selective_masks(*protocol.certainty(test), threshold)))
        sides.append(values)
    return paired.compare(*sides)


# ---- settings that were fitted before


def evaluate(record, cases, settings):
    """protocol.Evaluated of Cases with the settings in a record, without what these were fitted on.

    UserError where they are of another network, or less than two images are left.
    """
    fitted, site = record["recalibration"], record["recalibration"]["site"]
    if fitted["weights"] != cases.weights:
        raise UserError(f"the settings for {site} were fitted to other weights than those of best.pt",
                        "Fit them to these: evaluate.py RUN --data NAME --recalibrate")
    known = cases.known(fitted["fitted_on"])
    if len(cases) - known.sum() < 2:
        raise UserError(f"nothing of {cases.name} is left to test on: the settings for {site} were fitted on "
                        f"{format_count(int(known.sum()), 'image')} of it, or on others of the same patients",
                        "Give further cases.")
    notes = [f"the settings are those of {recalibration.FOLDER}/{site}.json"]
    if known.any():
        notes.append(f"{known.sum()} of {len(cases)} images are left out, since these were fitted on them, or on "
                     "others of the same patients")
    rest = cases.predictions.take(~known).shifted(np.array(fitted["offsets"]))
    rest.note = "; ".join(filter(None, (rest.note, *notes)))
    return protocol.evaluate(None, rest, settings, choices_of(record))


def choices_of(record):
    """protocol.Choices of a record."""
    fit = record["calibration"]
    temperature = calibration.Temperature(fit["temperature"], *fit["bounds"], fit["nll_val_before"],
                                          fit["nll_val_after"], True, "")
    points = [{key: value for key, value in point.items() if key not in ("test", "shortfall")}
              for point in record["operating_points"]]
    for point in points:
        if point["threshold"] is None:  # as JSON has it: no confidence reaches it
            point["threshold"] = math.inf
    majority = record["class_names"].index(record["conventions"]["majority_class"])
    return protocol.Choices(temperature, points, majority)
