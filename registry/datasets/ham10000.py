"""HAM10000 (Tschandl et al. 2018, Scientific Data 5, 180161): dermoscopy, seven classes."""


from kd import image_files
from kd.data import layout, table
from kd.data.dataset import Dataset
from kd.errors import UserError, listing
from kd.files import read_csv
from registry import register

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
METADATA = "HAM10000_metadata"  # .csv on Kaggle, .tab or without suffix from the Dataverse


@register("dataset", "ham10000")
def ham10000(root):
    """HAM10000_metadata and the images in any layout, found by image_id; groups are lesions.

    root: the folder with both, or one above them. Raises UserError if the table or all images are missing, or for an
    unknown diagnosis. A single missing image is reported when it is read.
    """
    if root is None:
        raise UserError("ham10000 needs its folder", f"Give the folder with {METADATA}.csv as --root PATH.")
    root = layout.folder(root)
    image_files.check_folder(root)  # glob() does not say of a folder that it cannot be read
    tables = [path for pattern in (f"{METADATA}*", f"*/{METADATA}*") for path in sorted(root.glob(pattern))
              if path.suffix in ("", ".csv", ".tab", ".tsv", ".txt") and path.is_file()]
    if not tables:
        raise UserError(f"no {METADATA}.csv in {root} or a folder in it",
                        "It comes with the images; --root is the folder with both. ISIC challenges are --data isic.")
    paths, _ = image_files.find(root)  # of another folder it would say what is wrong with its links
    rows = read_csv(tables[0], required=("lesion_id", "image_id", "dx"), separators=",;\t")
    unknown = sorted({row["dx"] for row in rows} - set(CLASSES))
    if unknown:
        raise UserError(f"{tables[0]}: unknown diagnosis {listing(unknown)}", f"Known are {', '.join(CLASSES)}.")
    ids, finder = [row["image_id"] for row in rows], table.Finder(root, paths)
    images = [finder.find(name) for name in ids]
    if not finder.used:
        raise UserError(f"none of the {len(ids)} images of {tables[0].name} is below {root}",
                        "--root is the folder with both.")
    if finder.copies:
        print(f"note: {finder.copies} images are there several times, byte by byte; one file of each is used")
    return Dataset("ham10000", CLASSES, ids=ids, images=images, labels=[CLASSES.index(row["dx"]) for row in rows],
                   groups=[row["lesion_id"] for row in rows])
