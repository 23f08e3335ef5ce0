"""HAM10000 (Tschandl et al. 2018, Scientific Data 5, 180161): dermoscopy, seven classes."""

from pathlib import Path

from kd.dataset import Dataset
from kd.errors import UserError, listing
from kd.image import SUFFIXES
from kd.runs import read_csv
from registry import register

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
METADATA = "HAM10000_metadata.csv"


@register("dataset", "ham10000")
def ham10000(root):
    """HAM10000_metadata.csv and the images in any layout, found by image_id; groups are lesions."""
    if root is None:
        raise UserError("ham10000 needs its folder", f"Give the folder that holds {METADATA} with --root PATH.")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    found = sorted(root.glob(METADATA)) or sorted(root.glob(f"*/{METADATA}"))
    if not found:
        raise UserError(f"no {METADATA} in {root} or a folder in it",
                        "It comes with the images; --root is the folder that holds both.")
    rows = read_csv(found[0], required=("lesion_id", "image_id", "dx"))
    unknown = sorted({row["dx"] for row in rows} - set(CLASSES))
    if unknown:
        raise UserError(f"{found[0]}: unknown diagnosis {listing(unknown)}", f"Known are {', '.join(CLASSES)}.")
    files = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and ".kd_cache" not in path.parts:
            files.setdefault(path.stem, []).append(path)
    ids = [row["image_id"] for row in rows]
    if not any(i in files for i in ids):
        raise UserError(f"none of the {len(ids)} images of {found[0].name} is below {root}")
    twice = [i for i in ids if len(files.get(i, ())) > 1]
    if twice:
        paths = " and ".join(str(path.relative_to(root)) for path in files[twice[0]])
        raise UserError(f"{len(twice)} images are there twice: {listing(twice)} ({paths})",
                        "Keep one copy of each below --root.")
    return Dataset(
        "ham10000", CLASSES, ids=ids,
        images=[files.get(i, [root / f"{i}.jpg"])[0] for i in ids],  # a missing file is reported by the cache
        labels=[CLASSES.index(row["dx"]) for row in rows],
        groups=[row["lesion_id"] for row in rows])
