"""The objective: a weighted sum of losses, each given what its parameter names ask for.

    loss = alpha * hard + (1 - alpha) * soft + beta * attention + sum(weight_i * term_i)
"""

import contextlib
import functools
import inspect
import re
import sys
from dataclasses import dataclass

import torch
import yaml
from torch import nn

from kd.errors import UserError, nearest

NEEDS = ("student_logits", "teacher_logits", "labels", "student_features", "teacher_features", "student_attention",
         "teacher_attention", "student_pooled", "teacher_pooled", "class_counts", "index", "epoch")


@dataclass
class Term:
    """One loss of the sum: its registered name, its weight, the function or class, its hyperparameters."""

    name: str
    weight: float
    loss: object
    hyperparameters: dict

    @property
    def needs(self):
        """Those of NEEDS that the loss has as parameters; an error where it has others."""
        call = self.loss.forward if inspect.isclass(self.loss) else self.loss
        names = [key for key, parameter in inspect.signature(call).parameters.items()
                 if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and key != "self"]
        unknown = [name for name in names if name not in NEEDS]
        if unknown:
            raise UserError(f"the loss {self.name} asks for {unknown[0]!r}, which nothing gives",
                            (nearest(unknown[0], NEEDS) or f"There are: {', '.join(NEEDS)}.")
                            + " Hyperparameters stand after a *.")
        return names

    def __str__(self):
        inside = ", ".join(f"{key}={value}" for key, value in self.hyperparameters.items())
        return f"{self.weight:g} * {self.name}" + (f"({inside})" if inside else "")


class _Loader(yaml.SafeLoader):
    """YAML that takes 1e-3 for the number it is (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                              list("-+0123456789"))


def parse_spec(spec):
    """`focal,gamma=1.5` -> ("focal", {"gamma": 1.5}). A list of values stands in brackets."""
    name, *pairs = re.split(r",(?![^\[]*\])", spec)
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        try:
            value = yaml.load(text, _Loader)
        except (yaml.YAMLError, ValueError):
            equals = ""
        if not equals or not key:
            raise UserError(f"cannot read {pair!r} in {spec!r}", "Write NAME,key=value,key=value.")
        if key in options:
            raise UserError(f"{key} is given twice in {spec!r}")
        options[key] = value
    return name.strip(), options


def check_options(function, options, name):
    """The keyword-only parameters of `function` with their defaults, overridden by `options`.

    A value has the type of the default that it replaces, and numbers are finite.
    """
    known = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY}
    result = dict(known)
    for key, value in options.items():
        if key not in known:
            raise UserError(f"{name} has no option {key!r}", nearest(key, known)
                            or f"It has: {', '.join(known) or 'none'}.")
        try:
            result[key] = _like(known[key], value)
        except ValueError as error:
            raise UserError(f"{name}: {key} is {error}, not {value!r}") from None
    return result


def _like(default, value):
    """`value` in the type of `default`; ValueError says what it should be."""
    kind = type(default)
    number = (isinstance(value, (int, float)) and not isinstance(value, bool)
              and abs(value) <= sys.float_info.max)  # False for NaN and infinity
    if kind is float:
        fits, words = number, "a number"
    elif kind is int:
        fits, words = number and value == int(value), "a whole number"
    elif kind in (bool, str):
        fits, words = isinstance(value, kind), {bool: "true or false", str: "text"}[kind]
    elif kind in (list, tuple):
        fits, words = isinstance(value, (list, tuple)), "a list like [1, 2]"
        if fits and default:
            value = [_like(default[0], item) for item in value]
    else:  # no default, or None: the loss knows what it takes
        return value
    if not fits:
        raise ValueError(words)
    return kind(value)


@contextlib.contextmanager
def _named(term):
    """What fails inside a loss keeps its traceback, and ends with the loss's name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the loss {term.name}: {error.message}", error.hint) from None
    except Exception as error:
        raise RuntimeError(f"the loss {term.name} failed: {type(error).__name__}: {error}") from error


class Objective(nn.Module):
    """The weighted sum of terms. A loss that is an nn.Module trains along with the student.

    shapes: the shapes of what NEEDS names, a dict, for losses that are classes: each is
    built as Loss(shapes, **hyperparameters).
    """

    def __init__(self, terms, shapes=None):
        super().__init__()
        self.terms = terms
        self.losses = []
        for term in terms:
            with _named(term):
                self.losses.append(term.loss(shapes, **term.hyperparameters) if inspect.isclass(term.loss)
                                   else functools.partial(term.loss, **term.hyperparameters))
        self.needs = [term.needs for term in terms]
        self.learnable = nn.ModuleList(loss for loss in self.losses if isinstance(loss, nn.Module))

    @property
    def formula(self):
        return "loss = " + " + ".join(str(term) for term in self.terms)

    def forward(self, given):
        """given: what NEEDS names. Returns the loss and {term name: unweighted value}, detached."""
        total, values = 0.0, {}
        for term, loss, needs in zip(self.terms, self.losses, self.needs):
            with _named(term):
                value = loss(**{need: given[need] for need in needs})
            if not isinstance(value, torch.Tensor) or value.ndim:
                shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise UserError(f"the loss {term.name} gave {shape}, not a scalar tensor", "A loss is a mean over the batch.")
            total = total + term.weight * value
            values[term.name] = value.detach()
        return total, values


def plan(options, find):
    """The terms that the command line asks for.

    options: hard, and for a student alpha, temperature, beta, soft, term (a list) and
    stage_weights. find(name) gives a registered loss.
    """
    own_flags = {"kd": {"temperature": "--temperature"}, "at": {"weights": "--stage-weights"}}
    terms = []

    def add(spec, weight, flag):
        name, given = parse_spec(spec)
        for key, own in own_flags.get(name, {}).items():
            value = options.get(own[2:].replace("-", "_"))
            if key in given:
                raise UserError(f"{key} of {name} has an option of its own", f"Give {own}.")
            if value is not None:
                given[key] = value
        loss = find(name)
        hyperparameters = check_options(loss, given, name)
        lacking = [key for key, value in hyperparameters.items() if value is inspect.Parameter.empty]
        if lacking:
            raise UserError(f"{name} needs {', '.join(lacking)}", f"Write {name},{lacking[0]}=value.")
        term = Term(name, weight, loss, hyperparameters)
        taught = any(need.startswith("teacher_") for need in term.needs)
        if flag == "--hard" and taught:
            raise UserError(f"--hard {name} reads a teacher", f"--hard is a loss on labels; give --soft {name}.")
        if flag == "--soft" and not taught:
            raise UserError(f"--soft {name} reads no teacher", f"--soft is a loss on its logits; give --hard {name}.")
        if name in [other.name for other in terms]:
            raise UserError(f"the loss {name} is named twice, now with {flag}")
        terms.append(term)

    alpha = options.get("alpha", 1.0)
    if alpha:
        add(options["hard"], alpha, "--hard")
    if alpha < 1:
        add(options["soft"], 1 - alpha, "--soft")
    if options.get("beta"):
        add("at", options["beta"], "--beta")
    for spec in options.get("term") or ():
        head, comma, rest = spec.partition(",")
        name, _, text = head.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not 0 < weight <= sys.float_info.max:
            raise UserError(f"cannot read a weight above 0 in --term {spec}", "Write NAME=WEIGHT,key=value.")
        add(name + comma + rest, weight, "--term")
    return terms


def needed(terms):
    """The set of NEEDS of all terms."""
    return {need for term in terms for need in term.needs}


def method(options):
    """`alone`, or the names of the losses beside the hard one, as in kd_at, and another augmentation than the heavy one;
    fit for a folder's name."""
    parts = [parse_spec(options["soft"])[0]] if options["alpha"] < 1 else []
    parts += ["at"] if options["beta"] else []
    parts += [spec.split("=")[0].strip() for spec in options["term"] or ()]
    name = "_".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts) or "alone"
    return name + variant(options)


def variant(options):
    """What a folder's name says of another augmentation than the usual one."""
    kind = options.get("augment", "heavy")
    return "" if kind == "heavy" else f"_{kind}"
