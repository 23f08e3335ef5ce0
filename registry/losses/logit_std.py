"""KD or DKD of standardised logits: --soft logit_std or --soft logit_std,of=dkd"""

import registry
from kd.errors import UserError
from kd.losses import check_above_0, check_from_0, check_three_classes, full
from registry import register


@register("loss", "logit_std")
def logit_std(student_logits, teacher_logits, labels=None, epoch=None, epochs=None, *, of="kd", temperature=2.0,
              beta=2.0):
    """kd or dkd after each image's logits are shifted to mean 0 and scaled to deviation 1. Sun et al. 2024, 2403.01427.

    z -> (z - mean) / (1e-7 + std) over the classes, std with C - 1, of student and teacher (the paper's algorithm 1):
    the student need not reach the size of the teacher's logits, only their relations.

    student_logits, teacher_logits: [N, C] with C above 2; UserError for two classes, where z is +-.71 whatever the
    logits. labels, epoch, epochs: read by dkd alone. of: "kd" or "dkd". temperature: T, above 0; 2 in the paper's code.
    beta: of dkd's second part, from 0; 2 there. That code has the weight 9 beside cross-entropy of .1 on CIFAR-100, a
    ratio that --alpha 0.011 gives; the best differs from pair to pair. Exact with kept targets up to their rounding.
    Each image by itself: a small batch or several processes change nothing. 0 for logits that differ by a shift and a
    positive factor; equal logits of an image become 0.
    """
    check_above_0(temperature=temperature)
    check_from_0(beta=beta)
    check_three_classes(student_logits)
    standardised = [_standardised(full(logits)) for logits in (student_logits, teacher_logits)]
    if of == "kd":
        return registry.get("loss", "kd").make(*standardised, temperature=temperature)
    return registry.get("loss", "dkd").make(*standardised, labels, epoch, epochs, beta=beta, temperature=temperature)


def _needs(of, **_):
    if of not in ("kd", "dkd"):
        raise UserError(f"logit_std: of is kd or dkd, not {of!r}")
    return ["student_logits", "teacher_logits"] + ["labels", "epoch", "epochs"] * (of == "dkd")


logit_std.needs = _needs  # a loss without `labels` gets all images of a batch


def _standardised(logits):
    """Logits [N, C] of mean 0 and deviation 1 in each row; 0, with a finite gradient, where they are equal."""
    variance = logits.var(1, keepdim=True).clamp(min=1e-14)
    return (logits - logits.mean(1, keepdim=True)) / (1e-7 + variance.sqrt())
