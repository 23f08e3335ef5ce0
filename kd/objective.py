"""The objective: a weighted sum of losses, each given what its parameter names ask for.

    loss = alpha * hard + (1 - alpha) * soft + beta * attention + sum(weight_i * term_i)
"""

import inspect
from dataclasses import dataclass

import yaml
from torch import nn

from kd.errors import UserError, nearest

NEEDS = ("student_logits", "teacher_logits", "labels", "student_features", "teacher_features",
         "student_pooled", "teacher_pooled", "class_counts", "index", "epoch")


@dataclass
class Term:
    """One loss of the sum: its registered name, its weight, the function or class, its hyperparameters."""

    name: str
    weight: float
    loss: object
    hyperparameters: dict

    @property
    def needs(self):
        call = self.loss.forward if inspect.isclass(self.loss) else self.loss
        return [name for name in inspect.signature(call).parameters if name in NEEDS]

    def __str__(self):
        inside = ", ".join(f"{key}={value}" for key, value in self.hyperparameters.items())
        return f"{self.weight:g} * {self.name}" + (f"({inside})" if inside else "")


def parse_spec(spec):
    """`focal,gamma=1.5` -> ("focal", {"gamma": 1.5})."""
    name, *pairs = spec.split(",")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read {pair!r} in {spec!r}", "Write NAME,key=value,key=value.")
        options[key.strip()] = yaml.safe_load(value)
    return name.strip(), options


def check_options(function, options, name):
    """The keyword-only parameters of `function` with their defaults, overridden by `options`."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()
                if parameter.kind is parameter.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            raise UserError(f"{name} has no option {key!r}", nearest(key, defaults)
                            or f"It has: {', '.join(defaults) or 'none'}.")
        if isinstance(defaults[key], (int, float)) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{name}: {key} is a number, not {value!r}")
    return {**defaults, **options}


class Objective(nn.Module):
    """The weighted sum of terms. A loss that is an nn.Module trains along with the student.

    shapes: the shapes of what NEEDS names, a dict, for losses that are classes: each is
    built as Loss(shapes, **hyperparameters).
    """

    def __init__(self, terms, shapes=None):
        super().__init__()
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise UserError(f"a loss is named twice: {', '.join(names)}")
        self.terms = terms
        self.learnable = nn.ModuleDict({term.name: term.loss(shapes, **term.hyperparameters)
                                        for term in terms if inspect.isclass(term.loss)})

    @property
    def formula(self):
        return "loss = " + " + ".join(str(term) for term in self.terms)

    def forward(self, given):
        """given: what NEEDS names. Returns the loss and {term name: unweighted value}, detached."""
        total, values = 0.0, {}
        for term in self.terms:
            arguments = {need: given[need] for need in term.needs}
            if term.name in self.learnable:
                value = self.learnable[term.name](**arguments)
            else:
                value = term.loss(**arguments, **term.hyperparameters)
            total = total + term.weight * value
            values[term.name] = value.detach()
        return total, values


def plan(options, find):
    """The terms that the command line asks for.

    options: hard, and for a student alpha, temperature, beta, soft, term (a list) and
    stage_weights. find(name) gives a registered loss.
    """
    terms = []

    def add(spec, weight, **fixed):
        name, given = parse_spec(spec)
        clash = sorted(set(given) & set(fixed))
        if clash:
            raise UserError(f"{clash[0]} of {name} has an option of its own",
                            f"Give --{'stage-weights' if clash[0] == 'weights' else clash[0]}.")
        loss = find(name)
        terms.append(Term(name, weight, loss, check_options(loss, {**given, **fixed}, name)))

    alpha = options.get("alpha", 1.0)
    if alpha:
        add(options["hard"], alpha)
    if alpha < 1:
        soft = options["soft"]
        add(soft, 1 - alpha, **({"temperature": options["temperature"]} if soft.split(",")[0] == "kd" else {}))
    if options.get("beta"):
        add("at", options["beta"], weights=tuple(options["stage_weights"]))
    for spec in options.get("term") or ():
        head, comma, rest = spec.partition(",")
        name, _, weight = head.partition("=")
        try:
            weight = float(weight)
        except ValueError:
            raise UserError(f"cannot read the weight in --term {spec}", "Write NAME=WEIGHT,key=value.") from None
        add(name + comma + rest, weight)
    return terms


def needed(terms):
    """The set of NEEDS of all terms."""
    return {need for term in terms for need in term.needs}


def method(options):
    """`alone`, or the names of what the teacher gives, as in kd_at."""
    parts = [options["soft"].split(",")[0]] if options["alpha"] < 1 else []
    parts += ["at"] if options["beta"] else []
    parts += [spec.split("=")[0] for spec in options["term"] or ()]
    return "_".join(parts) or "alone"
