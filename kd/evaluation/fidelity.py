"""Fidelity: how near a student is to the teacher that it was trained from, on the test images.

    content, estimates = measure(run.teacher_name, run.teachers, test, settings)     metrics.json's "fidelity"

It is known where the teacher's run has predictions/test.npz of the same images, matched by id. A student of lower
fidelity is not a worse student: it may be right where its teacher is wrong.
"""

import hashlib

import numpy as np

from kd import bootstrap, paired
from kd.errors import UserError
from kd.evaluation import protocol
from kd.predictions import difference_between, matching_order


def measure(name, teachers, test, settings):
    """({"teacher", "fingerprint", "test": {NAME: METRIC}}, {NAME: Estimate}), of kd.paired.fidelity().

    name: of the teacher, as Run.teacher_name has it, or None where there is none: (None, {}). teachers: its Runs, None
    where no folder was found; several are one teacher, the mean of their probabilities. test: Predictions of the
    student. fingerprint: of the teacher's predictions. Where the fidelity is not known, ({"teacher", "reason",
    "test": {}}, {}).
    """
    if name is None:
        return None, {}
    reason = next(filter(None, (unknown_because(name, teacher, test) for teacher in teachers)), "")
    if reason:
        return {"teacher": name, "reason": reason, "test": {}}, {}
    of_teacher = np.mean([teacher.test.probabilities[matching_order(test, teacher.test)] for teacher in teachers], 0)
    estimates = paired.fidelity(test.labels, of_teacher, test.probabilities, protocol.resampling(test, settings))
    return {"teacher": name, "fingerprint": "+".join(fingerprint(teacher.test) for teacher in teachers),
            "test": bootstrap.intervals(estimates)}, estimates


def unknown_because(name, teacher, test):
    """Why the fidelity of Predictions `test` is not known, by one of the teachers, a Run or None; '' where it is."""
    if teacher is None:
        return f"no run folder of its teacher {name} was found"
    try:
        of_teacher = teacher.test
    except UserError as error:
        return error.message
    if of_teacher is None:
        return f"its teacher {name} has no predictions/test.npz"
    if test.ids is None or of_teacher.ids is None:
        return f"without ids its images cannot be matched with those of its teacher {name}"
    difference = difference_between(test, of_teacher)
    return f"its teacher {name} was tested on other images ({difference})" if difference else ""


def fingerprint(predictions):
    """Sixteen hex digits that depend on the ids and scores of Predictions, and not on the order of the images."""
    order = np.argsort(predictions.ids)
    scores = predictions.probabilities if predictions.logits is None else predictions.logits
    digest = hashlib.sha256("\n".join(predictions.ids[order].tolist()).encode("utf-8", "surrogatepass"))
    digest.update(np.ascontiguousarray(scores[order], "<f8").tobytes())
    return digest.hexdigest()[:16]
