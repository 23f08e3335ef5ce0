"""A study's plan: read, checked, and expanded into the commands that train its networks.

    size: 48                          out here: options of both training scripts
    train_teacher:                    a section is named after a script, and holds its options
      teacher: resnet18
    distill:
      student: [tiny, mobilenetv2]    each student is trained by each method, once a seed
      seeds: [0, 1]
      methods:                        a name, and the options of distill.py that make the method
        alone: {alpha: 1}
        kd: {alpha: 0.5}
    export:                           export, robustness and benchmark are done where they have a section
"""

from dataclasses import dataclass, field
from pathlib import Path

from kd import runs
from kd.errors import UserError, nearest
from kd.files import read_yaml
from kd.train.options import settable, to_arguments

SECTIONS = ("train_teacher", "distill", "evaluate", "export", "robustness", "benchmark", "report")
# Options that the study gives itself, or that would make a script do something else.
OWN = {"train_teacher": ("name", "out", "study", "train_only"), "distill": ("name", "out", "study", "train_only"),
       "evaluate": ("compare", "audit", "data", "root", "groups", "plugin", "val", "out"), "export": ("bundle", "plugin"),
       "robustness": ("out", "plugin"), "benchmark": ("out", "plugin", "probe"), "report": ("out",)}


@dataclass
class Task:
    """A command, the files that it reads, and patterns below the study's folder of those that it writes."""

    name: str
    script: str
    arguments: list
    inputs: list
    outputs: list
    needs: str = None  # the task without which this one cannot be
    run: Path = None   # the folder that it trains into
    log: Path = None   # where its output goes, where not to the screen


@dataclass
class Plan:
    """folder: of the study. training: Tasks, teachers first. words: {section: its options on a command line}.
    notes: files that the report quotes."""

    path: Path
    folder: Path
    training: list = field(default_factory=list)
    words: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def name(run):
    """MODEL/seed_N of a run's folder."""
    return "/".join(run.parts[-2:])


def read_plan(path, parsers):
    """Plan of a YAML file. parsers: {section: the argument parser of its script}.

    Raises UserError, one line that names file and section, for whatever the scripts would not take.
    """
    path = Path(path)
    shared = _options(read_yaml(path), path)
    sections = {key: _options(shared.pop(key), f"{path}: {key}") for key in SECTIONS if key in shared}
    if not sections.keys() & {"train_teacher", "distill"}:
        raise UserError(f"{path} trains nothing", "A plan has a section train_teacher, or distill, or both.")
    _check_shared(path, shared, parsers)
    for key, options in sections.items():
        _check_own(options, f"{path}: {key}", key)
    study = runs.safe(str(shared.get("study") or path.stem))
    plan = Plan(path, Path(shared.get("out") or "runs") / study)
    reader = _Reader(plan, {**shared, "study": study}, parsers)
    if "train_teacher" in sections:
        reader.add_teachers(sections["train_teacher"])
    if "distill" in sections:
        reader.add_students(sections["distill"])
    notes = sections.get("report", {}).get("notes") or []
    plan.notes = [_beside(path, file) for file in (notes if isinstance(notes, list) else [notes])]
    if plan.notes:
        sections["report"]["notes"] = [file.as_posix() for file in plan.notes]
    for key in sections.keys() - {"train_teacher", "distill"}:
        to_arguments(parsers[key], sections[key], f"{path}: {key}", positional=[str(plan.folder)])
        more = {"plugin": shared.get("plugin")} if key in ("export", "robustness", "benchmark") else {}
        plan.words[key] = words(parsers[key], {**sections[key], **more})
    return plan


def _beside(path, file):
    """A file that a plan names: from the working directory, else from where the plan lies."""
    file = Path(str(file))
    return file if file.exists() or not (path.parent / file).exists() else path.parent / file


def words(parser, options):
    """Options on a command line, in the parser's order, so that the order of a plan's lines changes no command."""
    return to_arguments(parser, {key: options[key] for key in settable(parser) if key in options})


def _mapping(held, where):
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise UserError(f"{where} is not a list of `option: value` lines")
    return held


def _options(held, where):
    """A mapping of options, whose names may be spelled with dashes."""
    return {str(key).replace("-", "_"): value for key, value in _mapping(held, where).items()}


def _check_shared(path, shared, parsers):
    """What stands outside the sections is known to both training scripts."""
    both = settable(parsers["train_teacher"]).keys() & settable(parsers["distill"]).keys()
    both -= {"name", "seeds", "train_only"}
    for key in shared.keys() - both:
        owners = [section for section in SECTIONS if key in settable(parsers[section])]
        raise UserError(f"{path}: unknown key {key!r} outside the sections",
                        f"It belongs under {' or '.join(owners)}." if owners else nearest(key, [*SECTIONS, *both])
                        or f"Sections are {', '.join(SECTIONS)}; options for all networks: {', '.join(sorted(both))}.")
    to_arguments(parsers["train_teacher"], shared, path)


def _check_own(options, where, section):
    for key in options:
        if key in OWN[section]:
            raise UserError(f"{where}: {key} is not for a plan: the study sees to it", "Leave it out.")


@dataclass
class _Reader:
    """Adds training to a Plan. shared: options of all networks."""

    plan: Plan
    shared: dict
    parsers: dict

    def add_teachers(self, section):
        if not section.get("teacher"):
            raise UserError(f"{self.plan.path}: train_teacher names no teacher", "For instance teacher: resnet50")
        self.add("train_teacher", f"{self.plan.path}: train_teacher", f"teacher_{section['teacher']}", section)

    def add_students(self, section):
        where = f"{self.plan.path}: distill"
        section, teachers = dict(section), list(self.plan.training)
        methods = _mapping(section.pop("methods", None), f"{where}: methods")
        if not methods:
            raise UserError(f"{where} has no methods",
                            "For instance methods: {kd: {alpha: 0.5}}, a name and options of distill.py")
        for method, own in methods.items():
            place = f"{where}: methods: {method}"
            own = _options(own, place)
            _check_own(own, place, "distill")
            options, needs = {**section, **own}, None
            parsed = self.parsed("distill", place, options)
            if not parsed["student"]:
                raise UserError(f"{place} has no student", "For instance student: [mobilenetv2], under distill")
            if not taught(parsed):
                options["teacher"] = None
            elif not parsed["teacher"]:
                if not teachers:
                    raise UserError(f"{place} needs a teacher, and the plan has none",
                                    "Add a section train_teacher, or teacher: RUN under distill.")
                needs, options["teacher"] = teachers[0].name, teachers[0].run.as_posix()
            for student in dict.fromkeys(parsed["student"]):
                self.add("distill", place, f"{student}_{method}", {**options, "student": student}, needs)

    def parsed(self, script, where, options):
        """All options of a command, as the script will see them."""
        given = to_arguments(self.parsers[script], {**self.shared, **options}, where)
        return vars(self.parsers[script].parse_args(given))

    def add(self, script, where, model, options, needs=None):
        """A Task for each seed of one model."""
        model, seeds = runs.safe(model), self.parsed(script, where, options)["seeds"]
        for seed in dict.fromkeys(seeds):
            run = self.plan.folder / model / f"seed_{seed}"
            if any(task.run == run for task in self.plan.training):
                raise UserError(f"{self.plan.path}: two networks would be called {model}",
                                "Give one of the methods another name.")
            own = {"seeds": seed, "name": model, "train_only": True}
            command = words(self.parsers[script], {**self.shared, **options, **own})
            inputs = teacher_files(options.get("teacher")) if script == "distill" else []
            outputs = [f"{name(run)}/best.pt", f"{name(run)}/predictions/*.npz"]
            self.plan.training.append(Task(name(run), script, command, inputs, outputs, needs, run))


def taught(options):
    """Whether the objective of these options of distill.py may read a teacher."""
    return options["alpha"] < 1 or options["beta"] > 0 or bool(options["term"])


def teacher_files(place):
    """[best.pt] of the place that --teacher names: a run, a model (its first seed) or the file itself."""
    place = Path(str(place or ""))
    found = [file for file in (place, place / "best.pt", *sorted(place.glob("seed_*/best.pt"))) if file.is_file()]
    return found[:1] if found or not place.name else [place / "best.pt"]
