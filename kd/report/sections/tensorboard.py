"""TensorBoard's event files, of our runs and of any other system, and supplementary notes."""

import base64
import io
from pathlib import Path

import numpy as np

from kd import event_writer, runs, scalars, selection
from kd.errors import UserError
from kd.report import event_files, figures_scalars, notes
from kd.report.blocks import Column, aside, bullets, heading, missing, paragraph, picture, table
from kd.report.sections.overview import responsive_figure
from kd.text import format_count

MAX_PICTURES = 12  # on a page
MAX_MODELS, MAX_FRAMES = 16, 24  # of the curves


def boards(study):
    """Blocks: the scalars of all runs as curves, their last, best and best step, and the last image of each tag."""
    histories, images, blocks = logged(study)
    if not histories:
        return blocks or missing("TensorBoard scalars and images", "There are no event files (tb/ in a run's folder).")
    blocks += [*curves(study, histories), *scalars_table(histories)]
    pictures = [logged_picture(data, caption) for data, caption in list(images.items())[:MAX_PICTURES]]
    if any(pictures):
        blocks += [heading("Images"), *filter(None, pictures)]
    if len(images) > MAX_PICTURES:
        blocks.append(aside(f"{len(images) - MAX_PICTURES} more images are in the event files."))
    return blocks


def logged(study):
    """({run: {tag: (steps, values)}}, {image: its caption}, blocks about what could not be read).

    The scalars of a run that has no event files, or where they cannot be read, are those of its history.csv.
    """
    problems, images, blocks = [], {}, []
    histories = {run.name: history(run) for run in study.runs if run.history}
    try:
        for name, folder in event_folders(study).items():
            of_folder, steps_by_tag = event_files.read(folder, problems)
            if of_folder:
                histories[name] = of_folder
            for tag, steps in steps_by_tag.items():
                step, data = steps[-1]
                # Runs of one study log the same samples: they stand once, at their last place.
                images[data] = images.pop(data, f"{name}: {tag}, step {step}")
    except UserError as error:
        reason = f"{error.message[0].upper()}{error.message[1:]}."
        blocks += missing("TensorBoard's event files", reason, error.hint)
    if problems:
        blocks += [paragraph("Not all of the event files could be read.", "note"), bullets(problems)]
    return histories, images, blocks


def history(run):
    """The scalars of a Run's history.csv, with the tags and steps of its event files."""
    steps = np.array([row["epoch"] for row in run.history])
    columns = [column for column in run.history[0] if column != "epoch"]
    return {event_writer.tag(column): (steps, np.array([row.get(column, np.nan) for row in run.history]))
            for column in columns}


def curves(study, histories):
    """Blocks: a frame for each scalar that has several steps, with a line for each run."""
    runs_of = {run.name: run for run in study.runs}
    models = {}  # name of a model, or of a folder that is no run -> role
    for name in histories:
        run = runs_of.get(name)
        models.setdefault(run.model if run else name, run.kind if run else "student")
    drawn, surplus = list(models.items())[:MAX_MODELS], []
    if len(models) > MAX_MODELS:
        surplus = [aside(f"{format_count(len(models) - MAX_MODELS, 'more model')} not drawn; the table has them.")]
    index, frames = {name: k for k, (name, _) in enumerate(drawn)}, {}
    for name, of_run in histories.items():
        run = runs_of.get(name)
        for tag, (steps, values) in of_run.items():
            model = run.model if run else name
            if len(steps) > 1 and np.isfinite(values).any() and model in index and not is_result(tag):
                frames.setdefault(tag, []).append((index[model], steps, values, kept_step(run, tag)))
    if not frames:
        return []
    ordered = sorted(frames.items(), key=lambda frame: (not frame[0].startswith("val/"), frame[0]))
    if len(ordered) > MAX_FRAMES:
        more = format_count(len(ordered) - MAX_FRAMES, "more scalar")
        surplus.append(aside(f"{more} not drawn; the table has them."))
    ordered = ordered[:MAX_FRAMES]
    alt = (f"{format_count(len(ordered), 'scalar')} over the epochs of {', '.join(name for name, _ in drawn)}: "
           + ", ".join(tag for tag, _ in ordered))
    caption = ("Each scalar over its steps (epochs), a line for each run; all seeds of a model have the same style. "
               "The mark is the epoch whose weights were evaluated. Losses of different objectives have different "
               "scales")
    return [responsive_figure(figures_scalars.scalars, drawn, ordered, alt=alt, caption=caption), *surplus]


def is_result(tag):
    """Whether a scalar is a result that has a section of its own."""
    return tag.split("/")[0] in scalars.GROUPS


def kept_step(run, tag):
    """The epoch that a Run kept, where `tag` is the metric that chose it, else None."""
    if run is None or not run.history or run.best_epoch is None:
        return None
    column, _ = selection.METRICS[run.select]
    return run.history[run.best_epoch]["epoch"] if tag == event_writer.tag(column) else None


def event_folders(study):
    """{name: folder} of event files: each run's, and others at or below the study's folder."""
    folders = {}
    for run in study.runs:
        if any((run.folder / "tb").glob("*tfevents*")):
            folders[f"{run.model}/{run.seed}"] = run.folder / "tb"
    run_folders = {run.folder.resolve() for run in study.runs}
    for file in sorted(runs.below(study.path, "**/*tfevents*")):
        if file.is_file() and not run_folders & set(file.resolve().parents):
            name = study.name if file.parent == study.path else file.parent.relative_to(study.path).as_posix()
            folders[name] = file.parent
    return folders


def scalars_table(histories):
    """Blocks of {run: its scalars}, as event_files.read() returns them; results are in the CSV alone."""
    rows = event_files.table(histories)
    columns = [
        Column("Run", "run", kind="text"), Column("Tag", "tag", kind="text"), Column("Last", "last", ".4g"),
        Column("Best", "best", ".4g"), Column("Best step", "best_step", "d"),
    ]
    caption = ("Last and best value of each scalar; best is the highest or the lowest, depending on the tag, at its "
               "first step")
    return [table("scalars", caption, columns, [row for row in rows if not is_result(row["tag"])], rows)]


def logged_picture(data, caption):
    """The block of a PNG or JPEG; None where the bytes are no image."""
    source = png_uri(data)
    return picture(source, f"Image logged by {caption}", caption) if source else None


def png_uri(data, limit=640):
    """The bytes of a PNG or JPEG as the data URI of a PNG of at most `limit` px, or None where they are no image."""
    from PIL import Image
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            image.thumbnail((limit, limit))
            file = io.BytesIO()
            image.convert("RGB").save(file, "PNG")
    except Exception:  # a decoder raises anything on bytes from elsewhere
        return None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- notes


def supplementary_notes(paths):
    """Blocks: of each file of notes its name and its content."""
    blocks = []
    for path in map(Path, paths):
        blocks += [heading(path.name), *map(note_block, notes.read(path))]
    return blocks


def note_block(block):
    """A block of the report for one of kd/report/notes.py."""
    kind, caption = block["kind"], block.get("caption", "")
    if kind == "heading":
        return heading(block["text"], 3)
    if kind == "paragraph":
        return paragraph(block["text"])
    if kind == "bullet":
        return bullets([block["text"]])
    if kind == "note":
        return aside(block["text"])
    if kind == "table":
        columns = [Column(str(title), str(k), "", kind="text") for k, title in enumerate(block["columns"])]
        records = [{str(k): str(text) for k, text in enumerate(row)} for row in block["rows"]]
        # Not table(): an empty column stays, and there is no CSV.
        return {"kind": "table", "name": "", "caption": caption, "columns": columns, "records": records, "export": []}
    if kind == "figure":
        source = png_uri(block["png"])
        if not source:
            return aside("A picture of the notes cannot be shown.")
        return picture(source, caption or "A picture of the notes", caption)
    return block
