"""The objective: a weighted sum of losses. The parameter names of a loss say which tensors it needs.

    loss = alpha * hard + (1 - alpha) * soft + beta * attention + sum(weight_i * term_i)

A loss with the parameter `labels` gets the labelled images of a batch, every other loss all of them. Each is a mean
over the images that it gets, so that the share of images without labels does not change its weight.
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

from kd.errors import UserError, ends, nearest
from kd.yaml_loader import Loader

NEEDS = ("student_logits", "teacher_logits", "labels", "student_features", "teacher_features", "student_attention",
         "teacher_attention", "student_pooled", "teacher_pooled", "class_counts", "index", "epoch", "epochs",
         "student_tau", "teacher_tau")
OF_IMAGES = ("student_logits", "teacher_logits", "student_features", "teacher_features", "student_attention",
             "teacher_attention", "student_pooled", "teacher_pooled", "index")  # one value for each image of the batch


@dataclass(frozen=True)
class Ramp:
    """A number that changes linearly from `first` in the first epoch to `last` in the last one."""

    first: float
    last: float

    def at(self, epoch, epochs):
        """Its value in an epoch, from 1 to `epochs`."""
        return self.first + (self.last - self.first) * (epoch - 1) / max(1, epochs - 1)

    def __format__(self, spec):
        return f"({self.first:g}:{self.last:g})"

    def __str__(self):
        return format(self)


def ramp(value):
    """The number of an option that kd.errors.ramp() read, or its Ramp."""
    first, last = ends(value)
    return first if first == last else Ramp(first, last)


@dataclass
class Term:
    """One loss of the sum: its registered name, its weight, its function or class, its hyperparameters.

    The weight may be a Ramp, and so may a hyperparameter.
    """

    name: str
    weight: float | Ramp
    loss: object
    hyperparameters: dict

    @property
    def needs(self):
        """The parameters of the loss before its `*`, a list of names from NEEDS. UserError if it has others.

        A loss whose hyperparameters decide what it reads has an attribute `needs`, a function of them to that list.
        """
        call = self.loss.forward if inspect.isclass(self.loss) else self.loss
        names = [key for key, parameter in inspect.signature(call).parameters.items()
                 if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and key != "self"]
        if hasattr(self.loss, "needs"):
            names = self.loss.needs(**self.hyperparameters)
        unknown = [name for name in names if name not in NEEDS]
        if unknown:
            suggestion = nearest(unknown[0], NEEDS) or f"There are: {', '.join(NEEDS)}."
            raise UserError(f"the loss {self.name} asks for {unknown[0]!r}, which nothing gives",
                            f"{suggestion} Hyperparameters stand after a *.")
        return names

    def __str__(self):
        settings = ", ".join(f"{key}={value}" for key, value in self.hyperparameters.items())
        return f"{self.weight:g} * {self.name}" + (f"({settings})" if settings else "")


class _Loader(Loader):
    """YAML in which 1e-3 is a number (YAML 1.1 knows only 1.0e-3)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                              list("-+0123456789"))


def parse_spec(spec):
    """`focal,gamma=1.5` -> ("focal", {"gamma": 1.5}). A value may be a list in brackets. UserError if unreadable."""
    name, *pairs = re.split(r",(?![^\[]*\])", spec)  # at each comma that is not inside brackets
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        try:
            value = yaml.load(text, _Loader)
        except Exception:  # PyYAML raises anything: KeyError of `!!bool x`, AttributeError of `!!timestamp x`
            equals = ""
        if not equals or not key:
            raise UserError(f"cannot read {pair!r} in {spec!r}", "Write NAME,key=value,key=value.")
        if key in options:
            raise UserError(f"{key} is given twice in {spec!r}")
        options[key] = value
    return name.strip(), options


def check_options(function, options, name):
    """The keyword-only parameters of `function` as {name: value}: its defaults, replaced by those in `options`.

    A value is converted to the type of its default. UserError, which calls the function `name`, for an unknown
    option, a value of another type, NaN and infinity.
    """
    known = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()
             if parameter.kind is parameter.KEYWORD_ONLY}
    result = dict(known)
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, known) or f"It has: {', '.join(known) or 'none'}."
            raise UserError(f"{name} has no option {key!r}", hint)
        try:
            result[key] = _convert(value, known[key])
        except ValueError as error:
            raise UserError(f"{name}: {key} is {error}, not {value!r}") from None
    return result


def _convert(value, default):
    """`value` in the type of `default`. ValueError, whose text is what the value should be, if it does not fit."""
    if isinstance(value, Ramp) and type(default) is float:
        return value
    kind = type(default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max  # False for NaN, too
    if kind is float:
        fits, expected = is_finite, "a number"
    elif kind is int:
        fits, expected = is_finite and value == int(value), "a whole number"
    elif kind in (bool, str):
        fits, expected = isinstance(value, kind), {bool: "true or false", str: "text"}[kind]
    elif kind in (list, tuple):
        fits, expected = isinstance(value, (list, tuple)), "a list like [1, 2]"
        if fits and default:
            value = [_convert(item, default[0]) for item in value]
    else:  # no default, or None: the loss itself checks the value
        return value
    if not fits:
        raise ValueError(expected)
    return kind(value)


@contextlib.contextmanager
def _errors_named(term):
    """Add the name of the loss to whatever it raises; the traceback stays."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the loss {term.name}: {error.message}", error.hint) from None
    except Exception as error:
        raise RuntimeError(f"the loss {term.name} failed: {type(error).__name__}: {error}") from error


class Objective(nn.Module):
    """The weighted sum of terms. The parameters of a loss that is an nn.Module are trained with the student.

    terms: a list of Term. shapes: {need: shape of the tensor, or list of shapes for the stages} for losses that are
    classes; each is built as Loss(shapes, **hyperparameters). `shapes` has the number of training images, too, under
    "index": (number,).
    """

    def __init__(self, terms, shapes=None):
        super().__init__()
        self.terms = terms
        self.losses = []
        for term in terms:
            with _errors_named(term):
                if inspect.isclass(term.loss):
                    self.losses.append(term.loss(shapes, **term.hyperparameters))
                else:
                    self.losses.append(functools.partial(term.loss, **term.hyperparameters))
        self.needs = [term.needs for term in terms]
        self.learnable = nn.ModuleList(loss for loss in self.losses if isinstance(loss, nn.Module))

    @property
    def formula(self):
        """The sum with its weights and hyperparameters, as a line of text."""
        return "loss = " + " + ".join(str(term) for term in self.terms)

    def forward(self, inputs, batch=None):
        """The loss, a scalar tensor, and {name of the term: its value without the weight, detached}.

        inputs: a dict with at least those of NEEDS that the terms need, and epoch and epochs. The labelled images come
        first: those beyond the length of `labels` have no label. batch: (labelled, all) images of the batch in all
        processes, of which this one has a share; the losses of all processes add up to that of the whole batch.
        UserError if a loss gives no scalar tensor.
        """
        total, values = 0.0, {}
        for term, loss, needs in zip(self.terms, self.losses, self.needs):
            given = {need: inputs[need] for need in needs}
            if "labels" in needs:
                given = {need: _first(len(inputs["labels"]), value) if need in OF_IMAGES else value
                         for need, value in given.items()}
            ramps = {key: value for key, value in term.hyperparameters.items() if isinstance(value, Ramp)}
            with _errors_named(term):
                value = loss(**given, **{key: _at(value, inputs) for key, value in ramps.items()})
            if not isinstance(value, torch.Tensor) or value.ndim:
                shape = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                raise UserError(f"the loss {term.name} gave {shape}, not a scalar tensor",
                                "A loss is a mean over the batch.")
            share = 1
            if batch:  # of several processes: the images that this one gives to the mean of all
                share = _images(needs, inputs) / batch["labels" not in needs]
            total = total + share * _at(term.weight, inputs) * value
            values[term.name] = value.detach()
        return total, values

    def counts(self, inputs, batch):
        """{name: (weight, images)} for the means of an epoch of the loss and of each term.

        The value of a step counts with `weight`, and the sum is divided by that of `images`, both over all processes.
        inputs, batch: as for forward().
        """
        of_terms = {term.name: _images(needs, inputs) for term, needs in zip(self.terms, self.needs)}
        return {"loss": (batch[0], len(inputs["labels"])),
                **{name: (images, images) for name, images in of_terms.items()}}


def _images(needs, inputs):
    """The number of images that a loss with these needs gets: the labelled ones, or all."""
    return len(inputs["labels" if "labels" in needs else "student_logits"])


def _first(count, value):
    """The first so many images of a tensor [N, ...], or of each tensor of a list; None stays None."""
    if isinstance(value, (list, tuple)):
        return [part[:count] for part in value]
    return value if value is None else value[:count]


def _at(value, inputs):
    """A number, or a Ramp at the epoch of `inputs`, as a number."""
    return value.at(inputs["epoch"], inputs["epochs"]) if isinstance(value, Ramp) else value


def plan(options, find):
    """The terms that the options of the command line describe, a list of Term.

    options: a dict with hard, and for a student alpha, temperature, beta, soft, term (a list) and stage_weights.
    find: a function that returns the registered loss of a name. UserError for whatever does not fit together.
    """
    dedicated_flags = {"kd": {"temperature": "--temperature"}, "at": {"weights": "--stage-weights"}}
    terms = []

    def add(spec, weight, flag):
        name, settings = parse_spec(spec)
        for key, dedicated_flag in dedicated_flags.get(name, {}).items():
            option = dedicated_flag[2:].replace("-", "_")
            value = options.get(option)
            if key in settings and option in options:  # a teacher's training has no such option
                raise UserError(f"{key} of {name} has an option of its own", f"Give {dedicated_flag}.")
            if value is not None:
                settings[key] = ramp(value) if key == "temperature" else value
        loss = find(name)
        hyperparameters = check_options(loss, settings, name)
        missing = [key for key, value in hyperparameters.items() if value is inspect.Parameter.empty]
        if missing:
            raise UserError(f"{name} needs {', '.join(missing)}", f"Write {name},{missing[0]}=value.")
        term = Term(name, weight, loss, hyperparameters)
        needs_teacher = reads_teacher([term])
        if flag == "--hard" and needs_teacher:
            raise UserError(f"--hard {name} reads a teacher", f"--hard is a loss on labels; give --soft {name}."
                            if "soft" in options else "A teacher learns from labels alone: distill.py has such losses.")
        if flag == "--soft" and not needs_teacher:
            raise UserError(f"--soft {name} reads no teacher", f"--soft is a loss on its logits; give --hard {name}.")
        if name in [other.name for other in terms]:
            raise UserError(f"the loss {name} is named twice, now with {flag}")
        terms.append(term)

    first, last = ends(options.get("alpha", 1.0))
    if first or last:
        add(options["hard"], first if first == last else Ramp(first, last), "--hard")
    if first < 1 or last < 1:
        add(options["soft"], 1 - first if first == last else Ramp(1 - first, 1 - last), "--soft")
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


def tau(terms):
    """The tau of the logit adjustment among the losses on labels; 0.0 where none has such a hyperparameter."""
    return next((term.hyperparameters["tau"] for term in terms
                 if "tau" in term.hyperparameters and not reads_teacher([term])), 0.0)


def reads_teacher(terms):
    """Whether any of the terms needs something of a teacher."""
    return any(need.startswith("teacher_") for need in needed(terms))


def needed(terms):
    """The set of those of NEEDS that any of the terms needs."""
    return {need for term in terms for need in term.needs}


def method(options):
    """The part of a run's folder name that says how it was trained: `kd_at` for example, or `alone`.

    It has the names of the losses beside the hard one, and what variant() adds.
    """
    parts = [parse_spec(options["soft"])[0]] if min(ends(options["alpha"])) < 1 else []
    parts += ["at"] if options["beta"] else []
    parts += [spec.split("=")[0].strip() for spec in options["term"] or ()]
    name = "_".join(re.sub(r"[^\w.+-]+", "_", part) for part in parts) or "alone"
    return name + variant(options)


def variant(options):
    """The suffix of a run's folder name for what it shows and averages: `_light_mixup` for example, '' for defaults."""
    usual = {"augment": "heavy", "sampling": "natural"}
    parts = [options[key] for key, value in usual.items() if options.get(key, value) != value]
    parts += [key for key in ("mixup", "cutmix", "ema") if options.get(key)]
    parts += [f"labelled_{options['labelled'].partition(',')[0]}"] if options.get("labelled") else []
    parts += ["unlabelled"] if options.get("unlabelled") else []
    return "".join(f"_{part}" for part in parts)
