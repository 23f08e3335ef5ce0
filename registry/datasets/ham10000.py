"""HAM10000 (Tschandl et al. 2018, Scientific Data 5, 180161): dermoscopy, seven classes."""

from pathlib import Path

from kd.data.dataset import Dataset
from kd.errors import UserError, listing
from kd.files import read_csv
from kd.image import find
from registry import register

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
METADATA = "HAM10000_metadata.csv"


@register("dataset", "ham10000")
def ham10000(root):
    """HAM10000_metadata.csv and the images in any layout, found by image_id; groups are lesions.

    root: the folder with both, or one above them. Raises UserError if the table or all images are missing, or for an
    unknown diagnosis. A single missing image is reported when it is read.
    """
    if root is None:
        raise UserError("ham10000 needs its folder", f"Give the folder with {METADATA} as --root PATH.")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"no such folder: {root}")
    files = {}
    for path in find(root):  # first, since it says of a folder that cannot be read, and glob() does not
        files.setdefault(path.stem, []).append(path)
    tables = sorted(root.glob(METADATA)) or sorted(root.glob(f"*/{METADATA}"))
    if not tables:
        raise UserError(f"no {METADATA} in {root} or a folder in it",
                        "It comes with the images; --root is the folder with both.")
    rows = read_csv(tables[0], required=("lesion_id", "image_id", "dx"))
    unknown = sorted({row["dx"] for row in rows} - set(CLASSES))
    if unknown:
        raise UserError(f"{tables[0]}: unknown diagnosis {listing(unknown)}", f"Known are {', '.join(CLASSES)}.")
    ids = [row["image_id"] for row in rows]
    if not any(name in files for name in ids):
        raise UserError(f"none of the {len(ids)} images of {tables[0].name} is below {root}",
                        "--root is the folder with both.")

    def image(name):
        paths = files.get(name, [root / f"{name}.jpg"])  # the cache reports a missing file
        if len(paths) > 1:
            places = [path.relative_to(root).as_posix() for path in paths]
            return UserError(f"there twice: {' and '.join(places)}")
        return paths[0]

    return Dataset(
        "ham10000", CLASSES, ids=ids, images=[image(name) for name in ids],
        labels=[CLASSES.index(row["dx"]) for row in rows],
        groups=[row["lesion_id"] for row in rows])
