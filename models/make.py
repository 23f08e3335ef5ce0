"""Make a folder of this folder from a run whose INT8 file exists: the model, its card, pictures, and a check on them.

    python models/make.py runs/ham10000_128px/folds/efficientnetlite0_kd_fold1of5/seed_0 models/ham10000_lite0

The pictures are drawn by registry/datasets/lesions.py, and the check is on them: no image that the run was trained,
validated or tested on goes into the folder.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import registry  # noqa: E402
from kd import errors, onnx_model  # noqa: E402
from kd.edge import bundle  # noqa: E402
from kd.files import write_npz, write_text  # noqa: E402
from kd.run_folder import Run  # noqa: E402

SIDE = 256  # px of a picture


def main():
    """Write model.int8.onnx, MODEL_CARD.md, picture_0.jpg to picture_7.jpg, check.npz and SHA256SUMS."""
    run, folder = Run(Path(sys.argv[1])), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.int8.onnx"
    model.write_bytes((run.folder / "exports" / model.name).read_bytes())
    exported = onnx_model.Model(model, 1)
    write_text(folder / "MODEL_CARD.md", bundle.card(run, model, exported))
    pictures = [folder / f"picture_{k}.jpg" for k in range(bundle.CHECKED)]
    for path, draw in zip(pictures, drawn()):
        Image.fromarray(draw()).save(path, quality=90)
    pixels = np.stack([exported.pixels(path) for path in pictures])
    write_npz(folder / "check.npz", **onnx_model.expected(exported, pixels))
    listed = [folder / "MODEL_CARD.md", folder / "check.npz", model, *pictures]
    write_text(folder / "SHA256SUMS", "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
                                              for path in listed))


def drawn():
    """Functions that draw a picture each: one of each of the seven classes, then further ones."""
    lesions = registry.create("dataset", "lesions", size=SIDE)
    first = np.unique(lesions.labels, return_index=True)[1]
    others = [k for k in range(len(lesions.images)) if k not in first]
    return [lesions.images[k] for k in [*first, *others][:bundle.CHECKED]]


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
