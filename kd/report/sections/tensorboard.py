"""What TensorBoard's event files hold, of our runs and of any other system, and what a person noted beside them."""

import base64
import io
from pathlib import Path

from kd.errors import UserError
from kd.report import event_files, notes
from kd.report.blocks import Column, aside, bullets, heading, missing, paragraph, picture, table

PICTURES = 12  # images that a page shows


def boards(study):
    """Sections' blocks: scalars (last, best, best step) and the last image of each tag."""
    folders = event_folders(study)
    if not folders:
        return missing("TensorBoard scalars and images", "There are no event files (tb/ in a run's folder).")
    problems, histories, pictures = [], {}, []
    try:
        for name, folder in folders.items():
            histories[name], images = event_files.read(folder, problems)
            pictures += [(name, tag, *steps[-1]) for tag, steps in images.items()]
    except UserError as error:
        return missing("TensorBoard scalars and images", f"{error.message[0].upper()}{error.message[1:]}.", error.hint)
    blocks = [paragraph("Not all of the event files could be read.", "note"), bullets(problems)] if problems else []
    rows = event_files.table(histories)
    if not rows:
        blocks += missing("TensorBoard scalars", "The event files hold none that can be read.")
    else:
        blocks.append(table("scalars", "Last and best value of each scalar; best is the highest or lowest, as the tag says, at its first step",
                            [Column("Run", "run", kind="text"), Column("Tag", "tag", kind="text"), Column("Last", "last", ".4g"),
                             Column("Best", "best", ".4g"), Column("Best step", "best_step", "d")], rows))
    different = list({held[-1]: held for held in reversed(pictures)}.values())[::-1]  # runs of one study log the same samples
    shown = [item for item in map(logged, different[:PICTURES]) if item]
    if shown:
        blocks += [heading("Images"), *shown]
    if len(different) > PICTURES:
        blocks.append(aside(f"{len(different) - PICTURES} more images are in the event files."))
    return blocks


def event_folders(study):
    """{name: folder or file} of event files: each run's, and others at or below the study's folder."""
    found = {f"{run.model}/{run.seed}": run.folder / "tb" for run in study.runs if any((run.folder / "tb").glob("*tfevents*"))}
    own = {run.folder.resolve() for run in study.runs}
    for file in sorted(study.path.rglob("*tfevents*")):
        if file.is_file() and not own & set(file.resolve().parents):
            found[file.parent.relative_to(study.path).as_posix() if file.parent != study.path else study.name] = file.parent
    return found


def logged(held):
    """The block of (run, tag, step, bytes of a PNG or JPEG); None of what is no image."""
    name, tag, step, data = held
    src, caption = small(data), f"{name}: {tag}, step {step}"
    return picture(src, f"Image logged by {caption}", caption) if src else None


def small(data, most=640):
    """The bytes of an image as a PNG data URI of at most `most` px, or None."""
    from PIL import Image
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            image.thumbnail((most, most))
            file = io.BytesIO()
            image.convert("RGB").save(file, "PNG")
    except Exception:  # bytes of strangers; a decoder raises anything
        return None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ---- notes


def noted(paths):
    """Blocks of notes: each file's name, then what stands in it."""
    if not paths:
        return missing("supplementary notes", "None were given (--notes FILE ...; Markdown, text or Word).")
    blocks = []
    for path in map(Path, paths):
        blocks += [heading(path.name), *map(block_of_note, notes.read(path))]
    return blocks


def block_of_note(block):
    kind = block["kind"]
    if kind == "heading":
        return heading(block["text"], 3)
    if kind == "bullet":
        return bullets([block["text"]])
    if kind == "note":
        return aside(block["text"])
    if kind == "table":
        columns = [Column(str(title), str(k), "", kind="text") for k, title in enumerate(block["columns"])]
        records = [{str(k): str(text) for k, text in enumerate(row)} for row in block["rows"]]
        return {"kind": "table", "name": "", "caption": block.get("caption", ""), "columns": columns, "records": records, "export": []}
    if kind == "figure":
        src, caption = small(block["png"]), block.get("caption", "")
        return picture(src, caption or "A picture of the notes", caption) if src else aside("A picture of the notes cannot be shown.")
    return paragraph(block["text"]) if kind == "paragraph" else block
