"""TensorBoard's event files, of our runs and of any other system, and supplementary notes."""

import base64
import io
from pathlib import Path

from kd import runs
from kd.errors import UserError
from kd.report import event_files, notes
from kd.report.blocks import Column, aside, bullets, heading, missing, paragraph, picture, table

MAX_PICTURES = 12  # on a page


def boards(study):
    """Blocks: last, best and best step of each scalar, and the last image of each tag."""
    folders = event_folders(study)
    if not folders:
        return missing("TensorBoard scalars and images", "There are no event files (tb/ in a run's folder).")
    problems, histories, images = [], {}, {}
    try:
        for name, folder in folders.items():
            histories[name], steps_by_tag = event_files.read(folder, problems)
            for tag, steps in steps_by_tag.items():
                step, data = steps[-1]
                # Runs of one study log the same samples: they stand once, at their last place.
                images[data] = images.pop(data, f"{name}: {tag}, step {step}")
    except UserError as error:
        reason = f"{error.message[0].upper()}{error.message[1:]}."
        return missing("TensorBoard scalars and images", reason, error.hint)
    blocks = []
    if problems:
        blocks += [paragraph("Not all of the event files could be read.", "note"), bullets(problems)]
    blocks += scalars(histories)
    pictures = [logged_picture(data, caption) for data, caption in list(images.items())[:MAX_PICTURES]]
    if any(pictures):
        blocks += [heading("Images"), *filter(None, pictures)]
    if len(images) > MAX_PICTURES:
        blocks.append(aside(f"{len(images) - MAX_PICTURES} more images are in the event files."))
    return blocks


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


def scalars(histories):
    """Blocks of {run: its scalars}, as event_files.read() returns them."""
    rows = event_files.table(histories)
    if not rows:
        return missing("TensorBoard scalars", "The event files hold none that can be read.")
    columns = [
        Column("Run", "run", kind="text"), Column("Tag", "tag", kind="text"), Column("Last", "last", ".4g"),
        Column("Best", "best", ".4g"), Column("Best step", "best_step", "d"),
    ]
    caption = ("Last and best value of each scalar; best is the highest or the lowest, depending on the tag, at its "
               "first step")
    return [table("scalars", caption, columns, rows)]


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
