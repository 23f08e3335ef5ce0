"""A study's plan: read, checked, and expanded into the commands that train its networks.

    size: 48                          outside the sections: options of both training scripts
    folds: 5                          cross-validation: each network is trained on each of five folds
    train_teacher:                    a section is named after a script, and holds its options
      teacher: resnet18
    distill:
      student: [tiny, mobilenetv2]    each student is trained by each method, once a seed
      seeds: [0, 1]
      methods:                        a name, and the options of distill.py that make the method
        alone: {alpha: 1}
        kd: {alpha: 0.5}
        tuned: {temperature: [1, 2, 4]}   a sweep: each is tried, validation chooses (kd/study/sweep.py)
    export:                           export, robustness and benchmark are done where they have a section
"""

from dataclasses import dataclass, field
from pathlib import Path

from kd import runs, sweeps
from kd.errors import UserError, ends, expanded, suggestion
from kd.files import read_yaml
from kd.study import sweep
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
    needs: tuple = ()  # names of the tasks that must have ended well
    run: Path = None   # the folder that it trains into
    of_sweep: str = "" # the model among whose tries this is, or whose choice
    model: str = ""    # the model that it trains
    fold: str = None   # "K/N" of a cross-validation
    gpu: bool = False  # whether it computes on a GPU where there is one


@dataclass
class Plan:
    """folder: of the study. training: Tasks, each after those that it needs. sweeps: {model: Sweep}. arguments:
    {section: its options as command-line arguments}. notes: files that the report quotes."""

    path: Path
    folder: Path
    training: list = field(default_factory=list)
    sweeps: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    @property
    def networks(self):
        """The Tasks that train the networks of the study; the others belong to sweeps."""
        return [task for task in self.training if not task.of_sweep]


def run_name(run):
    """MODEL/seed_N of a run's folder."""
    return "/".join(run.parts[-2:])


def read_plan(path, parsers):
    """Plan of a YAML file. parsers: {section: the argument parser of its script}.

    Raises UserError, one line that names file and section, for everything that a script would refuse.
    """
    path = Path(path)
    shared = _options(read_yaml(path), path)
    folds = _folds(shared.pop("folds", None), path)
    sections = {key: _options(shared.pop(key), f"{path}: {key}") for key in SECTIONS if key in shared}
    if not sections.keys() & {"train_teacher", "distill"}:
        raise UserError(f"{path} trains nothing", "A plan has a section train_teacher, or distill, or both.")
    _check_shared(path, shared, parsers)
    for key, options in sections.items():
        _check_allowed(options, f"{path}: {key}", key)
    study = runs.safe(str(shared.get("study") or path.stem))
    if study in (runs.TRIES, runs.FOLDS):
        raise UserError(f"{path}: a study cannot be called {study}, as a folder in a study is",
                        "Give it another name with `study:`.")
    plan = Plan(path, Path(str(shared.get("out") or "runs")) / study)
    training = _Training(plan, {**shared, "study": study}, parsers, folds)
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


def _folds(count, path):
    """["1/5", "2/5" ...] of `folds: 5`; [None] without it."""
    if count is None:
        return [None]
    if type(count) is not int or not 2 <= count <= 100:
        raise UserError(f"{path}: folds is a whole number from 2 to 100, not {count!r}", "For instance folds: 5")
    return [f"{k}/{count}" for k in range(1, count + 1)]


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
    both -= {"name", "seeds", "train_only", "fold"}
    for key in shared.keys() - both:
        owners = [section for section in SECTIONS if key in settable(parsers[section])]
        hint = f"It belongs under {' or '.join(owners)}." if owners else suggestion(key, [*SECTIONS, *both])
        raise UserError(f"{path}: unknown key {key!r} outside the sections",
                        hint or f"Sections are {', '.join(SECTIONS)}; options for all networks: "
                                f"{', '.join(sorted(both))}.")
    found = sweep.lists(parsers["train_teacher"], shared, path)
    to_arguments(parsers["train_teacher"], {**shared, **{key: values[0] for key, values in found.items()}}, path)


def _check_allowed(options, where, section):
    """UserError for an option that is not for a plan."""
    for key in options:
        if key in REFUSED[section]:
            raise UserError(f"{where}: {key} is not for a plan: the study sets it", "Leave it out.")


@dataclass
class _Training:
    """Adds Tasks of training to a Plan. shared: options of all networks. folds: those that each is trained on."""

    plan: Plan
    shared: dict
    parsers: dict
    folds: list

    def add_teachers(self, section):
        """Add the Tasks of the section train_teacher."""
        where = f"{self.plan.path}: train_teacher"
        if not section.get("teacher"):
            raise UserError(f"{where} names no teacher", "For instance teacher: resnet50")
        tries, options = self.divided("train_teacher", where, section)
        self.add("train_teacher", where, f"teacher_{section['teacher']}", options, tries)

    def add_students(self, section):
        """Add the Tasks of the section distill: each student with each method."""
        where = f"{self.plan.path}: distill"
        section, teachers = dict(section), self.plan.networks
        methods = _mapping(section.pop("methods", None), f"{where}: methods")
        if not methods:
            raise UserError(f"{where} has no methods",
                            "For instance methods: {kd: {alpha: 0.5}}, a name and options of distill.py")
        for method, content in methods.items():
            where_method = f"{where}: methods: {method}"
            of_method = _options(content, where_method)
            _check_allowed(of_method, where_method, "distill")
            tries, options = self.divided("distill", where_method, {**section, **of_method})
            parsed = self.parsed("distill", where_method, {**options, **tries[0]})
            if not parsed["student"]:
                raise UserError(f"{where_method} has no student", "For instance student: [mobilenetv2], under distill")
            for student in dict.fromkeys(parsed["student"]):
                self.add("distill", where_method, f"{student}_{method}", {**options, "student": student}, tries,
                         teachers)

    def divided(self, script, where, options):
        """(tries, options): the combinations of the options to which lists are given, [{}] without any; the others."""
        options = {**self.shared, **options}
        found = sweep.lists(self.parsers[script], options, where)
        return sweep.combinations(found, options, LARGEST, where)

    def parsed(self, script, where, options):
        """All options of a command, as the script will see them."""
        return vars(self.parsers[script].parse_args(to_arguments(self.parsers[script], options, where)))

    def add(self, script, where, model, options, tries, teachers=()):
        """Add the Tasks of one model: one for each seed; before them, those of its tries and of their choice."""
        model = runs.safe(model)
        if any(task.model == model for task in self.plan.networks):
            raise UserError(f"{self.plan.path}: two networks would be called {model}",
                            "Give one of the methods another name.")
        seeds = list(dict.fromkeys(self.parsed(script, where, {**options, **tries[0]})["seeds"]))
        for fold in self.folds:
            complete = [self.complete(script, where, {**options, **one}, teachers, fold) for one in tries]
            if len(self.plan.training) + len(seeds) + (len(tries) if len(tries) > 1 else 0) > LARGEST:
                raise UserError(f"{self.plan.path} trains more than {LARGEST} networks",
                                "Divide it into several plans.")
            if len(tries) == 1:
                (chosen, needs), = complete
            else:
                chosen, needs = self.chosen(script, model, options, seeds[0], tries, complete, fold)
            for seed in seeds:
                task = self.train(script, chosen, model, seed, needs, fold=fold)
                if len(tries) > 1:
                    file = self.plan.sweeps[model].chosen_file
                    task.arguments.insert(0, "=".join(["--config", file.as_posix()]))
                    task.inputs.insert(0, file)

    def complete(self, script, where, options, teachers, fold):
        """(options with those of the teacher, names of Tasks that these need) of one network on a fold."""
        parsed = self.parsed(script, where, options)
        return self.with_teacher(where, options, parsed, teachers, fold) if script == "distill" else (options, ())

    def chosen(self, script, model, options, seed, tries, complete, fold):
        """The same of the network whose options the choice among `tries` gives; on the first fold, adds their Tasks.

        complete: what complete() gives for each try.
        """
        if model not in self.plan.sweeps:
            self.add_tries(script, model, seed, tries, complete, fold)
        # The chosen options may need no teacher; one that is not needed is not read.
        needs = dict.fromkeys(name for _, names in complete for name in names)
        teacher = next(filter(None, (of_try.get("teacher") for of_try, _ in complete)), None)
        with_teacher = options if script == "train_teacher" else {**options, "teacher": teacher}
        return with_teacher, (f"{model}/choice", *needs)

    def with_teacher(self, where, options, parsed, teachers, fold):
        """(options with the teacher to learn from, if one is, names of Tasks that this needs).

        parsed: of options. fold: of the student, and so of its teacher, or None.
        """
        if not may_read_teacher(parsed):
            return {**options, "teacher": None}, ()
        if parsed["teacher"] or parsed["teacher_predictions"]:
            planned = {path: self.planned(path, fold) for path in parsed["teacher"] or ()}
            named = [task.run.as_posix() if task else path for path, task in planned.items()]
            needs = tuple(task.name for task in planned.values() if task)
            return {**options, "teacher": named or None}, needs
        if not teachers:
            raise UserError(f"{where} needs a teacher, and the plan has none",
                            "Add a section train_teacher, or teacher: RUN under distill.")
        teacher = next(task for task in teachers if task.fold == fold)
        return {**options, "teacher": teacher.run.as_posix()}, (teacher.name,)

    def planned(self, path, fold):
        """The Task that trains the network at the path that --teacher names, a run or a model; None for another one.

        A network of this plan may be the teacher of a later one: an assistant between teacher and student.
        """
        model, seed = Path(path).parent, Path(path).name
        if not seed.startswith("seed_"):
            model, seed = Path(path), ""
        return next((task for task in self.plan.networks if self.plan.folder / task.model == model
                     and task.fold == fold and task.run.name.startswith(seed)), None)

    def add_tries(self, script, model, seed, tries, complete, fold):
        """Add the Tasks of a model's tries, and that of the choice among them."""
        of_model = self.plan.sweeps[model] = sweep.Sweep(model, self.plan.folder, seed)
        for one, (options, needs) in zip(tries, complete):
            name = sweep.name(model, one)
            task = self.train(script, options, name, seed, needs, of_sweep=model, fold=fold)
            of_model.tries.append((one, task))
        tasks = [task for _, task in of_model.tries]
        inputs = [task.run / file for task in tasks for file in ("config.yaml", "history.csv", runs.TEST)]
        self.plan.training.append(Task(
            f"{model}/choice", "study", [self.plan.path.as_posix(), f"--choose={model}"], inputs,
            [f"{model}/{file}" for file in (sweeps.FILE, of_model.chosen_file.name)],
            tuple(task.name for task in tasks), of_sweep=model))

    def train(self, script, options, model, seed, needs, of_sweep="", fold=None):
        """Add the Task that trains one model with one seed. Returns it."""
        place = {"seeds": seed, "name": model, "train_only": True}
        folder = self.plan.folder
        if of_sweep:
            place |= {"out": folder.as_posix(), "study": runs.TRIES}
            folder = folder / runs.TRIES
        run = folder / model / f"seed_{seed}"
        if fold:
            place |= {"fold": fold}
            run = folder / runs.FOLDS / runs.of_fold(model, fold) / run.name
        arguments = _ordered_arguments(self.parsers[script], {**options, **place})
        inputs = teacher_files(options.get("teacher")) if script == "distill" else []
        name = run.relative_to(self.plan.folder).as_posix()
        outputs = [f"{name}/best.pt", f"{name}/predictions/*.npz"]
        self.plan.training.append(Task(name, script, arguments, inputs, outputs, needs, run, of_sweep, model=model,
                                       fold=fold))
        return self.plan.training[-1]


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
