"""A study's plan: read, checked, and expanded into the commands that train its networks.

    size: 48                          outside the sections: options of both training scripts
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
from kd.errors import UserError, ends, expanded, suggestion
from kd.files import read_yaml
from kd.train.options import settable, to_arguments, underscored

SECTIONS = ("train_teacher", "distill", "evaluate", "export", "robustness", "benchmark", "report")
LARGEST = 1000  # networks of a plan; a study of this project has some hundred at most
# Options that a section must not have: the study sets them, or they would make the script do something else.
REFUSED = {
    "train_teacher": ("name", "out", "study", "train_only"), "distill": ("name", "out", "study", "train_only"),
    "evaluate": ("compare", "audit", "data", "root", "groups", "plugin", "val", "out"),
    "export": ("bundle", "plugin"), "robustness": ("out", "plugin"), "benchmark": ("out", "plugin", "probe"),
    "report": ("out",),
}


@dataclass
class Task:
    """A command, the files that it reads, and patterns below the study's folder of those that it writes."""

    name: str
    script: str
    arguments: list
    inputs: list
    outputs: list
    needs: str = None  # name of the task that must have ended well
    run: Path = None   # the folder that it trains into
    log: Path = None   # file for its output; None: the terminal


@dataclass
class Plan:
    """folder: of the study. training: Tasks, teachers first. arguments: {section: its options as command-line
    arguments}. notes: files that the report quotes."""

    path: Path
    folder: Path
    training: list = field(default_factory=list)
    arguments: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def run_name(run):
    """MODEL/seed_N of a run's folder."""
    return "/".join(run.parts[-2:])


def read_plan(path, parsers):
    """Plan of a YAML file. parsers: {section: the argument parser of its script}.

    Raises UserError, one line that names file and section, for everything that a script would refuse.
    """
    path = Path(path)
    shared = _options(read_yaml(path), path)
    sections = {key: _options(shared.pop(key), f"{path}: {key}") for key in SECTIONS if key in shared}
    if not sections.keys() & {"train_teacher", "distill"}:
        raise UserError(f"{path} trains nothing", "A plan has a section train_teacher, or distill, or both.")
    _check_shared(path, shared, parsers)
    for key, options in sections.items():
        _check_allowed(options, f"{path}: {key}", key)
    study = runs.safe(str(shared.get("study") or path.stem))
    plan = Plan(path, Path(str(shared.get("out") or "runs")) / study)
    training = _Training(plan, {**shared, "study": study}, parsers)
    if "train_teacher" in sections:
        training.add_teachers(sections["train_teacher"])
    if "distill" in sections:
        training.add_students(sections["distill"])
    notes = sections.get("report", {}).get("notes") or []
    plan.notes = [_find_file(path, file) for file in (notes if isinstance(notes, list) else [notes])]
    if plan.notes:
        sections["report"]["notes"] = [file.as_posix() for file in plan.notes]
    for key in sections.keys() - {"train_teacher", "distill"}:
        to_arguments(parsers[key], sections[key], f"{path}: {key}", positional=[str(plan.folder)])
        opens_networks = key in ("export", "robustness", "benchmark")
        plugin = {"plugin": shared.get("plugin")} if opens_networks else {}
        plan.arguments[key] = _ordered_arguments(parsers[key], {**sections[key], **plugin})
    return plan


def _find_file(path, file):
    """A file that a plan names: in the working directory, else beside the plan."""
    file = Path(str(file))
    return file if file.exists() or not (path.parent / file).exists() else path.parent / file


def _ordered_arguments(parser, options):
    """Options as arguments in the parser's order, so that the order of a plan's lines changes no command."""
    return to_arguments(parser, {key: options[key] for key in settable(parser) if key in options})


def _mapping(content, where):
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a list of `option: value` lines")
    return content


def _options(content, where):
    """A mapping of options, whose names may be spelled with dashes, and paths with `~`."""
    return {key: expanded(value) for key, value in underscored(_mapping(content, where), where).items()}


def _check_shared(path, shared, parsers):
    """UserError for an option outside the sections that the two training scripts do not both have."""
    both = settable(parsers["train_teacher"]).keys() & settable(parsers["distill"]).keys()
    both -= {"name", "seeds", "train_only"}
    for key in shared.keys() - both:
        owners = [section for section in SECTIONS if key in settable(parsers[section])]
        hint = f"It belongs under {' or '.join(owners)}." if owners else suggestion(key, [*SECTIONS, *both])
        raise UserError(f"{path}: unknown key {key!r} outside the sections",
                        hint or f"Sections are {', '.join(SECTIONS)}; options for all networks: "
                                f"{', '.join(sorted(both))}.")
    to_arguments(parsers["train_teacher"], shared, path)


def _check_allowed(options, where, section):
    """UserError for an option that is not for a plan."""
    for key in options:
        if key in REFUSED[section]:
            raise UserError(f"{where}: {key} is not for a plan: the study sets it", "Leave it out.")


@dataclass
class _Training:
    """Adds Tasks of training to a Plan. shared: options of all networks."""

    plan: Plan
    shared: dict
    parsers: dict

    def add_teachers(self, section):
        """Add the Tasks of the section train_teacher."""
        if not section.get("teacher"):
            raise UserError(f"{self.plan.path}: train_teacher names no teacher", "For instance teacher: resnet50")
        self.add("train_teacher", f"{self.plan.path}: train_teacher", f"teacher_{section['teacher']}", section)

    def add_students(self, section):
        """Add the Tasks of the section distill: each student with each method."""
        where = f"{self.plan.path}: distill"
        section, teachers = dict(section), list(self.plan.training)
        methods = _mapping(section.pop("methods", None), f"{where}: methods")
        if not methods:
            raise UserError(f"{where} has no methods",
                            "For instance methods: {kd: {alpha: 0.5}}, a name and options of distill.py")
        for method, content in methods.items():
            where_method = f"{where}: methods: {method}"
            of_method = _options(content, where_method)
            _check_allowed(of_method, where_method, "distill")
            options, needs = {**section, **of_method}, None
            parsed = self.parsed("distill", where_method, options)
            if not parsed["student"]:
                raise UserError(f"{where_method} has no student", "For instance student: [mobilenetv2], under distill")
            if not may_read_teacher(parsed):
                options["teacher"] = None
            elif not parsed["teacher"]:
                if not teachers:
                    raise UserError(f"{where_method} needs a teacher, and the plan has none",
                                    "Add a section train_teacher, or teacher: RUN under distill.")
                needs, options["teacher"] = teachers[0].name, teachers[0].run.as_posix()
            for student in dict.fromkeys(parsed["student"]):
                self.add("distill", where_method, f"{student}_{method}", {**options, "student": student}, needs)

    def parsed(self, script, where, options):
        """All options of a command, as the script will see them."""
        arguments = to_arguments(self.parsers[script], {**self.shared, **options}, where)
        return vars(self.parsers[script].parse_args(arguments))

    def add(self, script, where, model, options, needs=None):
        """Add a Task for each seed of one model."""
        model, seeds = runs.safe(model), dict.fromkeys(self.parsed(script, where, options)["seeds"])
        if any(task.run.parent.name == model for task in self.plan.training):
            raise UserError(f"{self.plan.path}: two networks would be called {model}",
                            "Give one of the methods another name.")
        if len(self.plan.training) + len(seeds) > LARGEST:
            raise UserError(f"{self.plan.path} trains more than {LARGEST} networks", "Divide it into several plans.")
        for seed in seeds:
            run = self.plan.folder / model / f"seed_{seed}"
            of_study = {"seeds": seed, "name": model, "train_only": True}
            arguments = _ordered_arguments(self.parsers[script], {**self.shared, **options, **of_study})
            inputs = teacher_files(options.get("teacher")) if script == "distill" else []
            name = run_name(run)
            outputs = [f"{name}/best.pt", f"{name}/predictions/*.npz"]
            self.plan.training.append(Task(name, script, arguments, inputs, outputs, needs, run))


def may_read_teacher(options):
    """Whether the objective of these options of distill.py may read a teacher."""
    return min(ends(options["alpha"])) < 1 or options["beta"] > 0 or bool(options["term"])


def teacher_files(path):
    """[best.pt] of the path that --teacher names, or of each of several: a run, a model (its first seed) or the file.

    A run that is not trained yet gives the file that it will have; no path gives [].
    """
    if isinstance(path, list):
        return [file for one in path for file in teacher_files(one)]
    path = Path(str(path or ""))
    files = [file for file in (path, path / "best.pt", *sorted(path.glob("seed_*/best.pt"))) if file.is_file()]
    return files[:1] if files or not path.name else [path / "best.pt"]
