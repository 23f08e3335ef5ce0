"""The time of an answer, from the file or the camera's frame to the label, with each way to resize an image.

    python benchmarks/pixels.py --root data/ham10000
    python benchmarks/pixels.py --model runs/STUDY/MODEL/seed_0/exports/model.int8.onnx

`bilinear` is how networks of older versions resize, in one step; `box-bilinear` is how new ones do (kd/image.py). Files
are images of 600 x 450 px, and the same enlarged to 24 megapixels: as JPEG of quality 90, also progressive and with the
noise of a camera (standard deviation 4, which makes its files several times as large), as PNG and as TIFF. `frame` is
an array of 1920 x 1080 px; `copied` is how older versions read it, with one copy more, for which a program that reads
frames alone gets new memory from the system each time. Each way is a process of its own for each kind, with one thread
and, as predict.py, without torch; they take turns, and processor time is measured. Images are HAM10000 with --root,
else synthetic ones. It takes five minutes and 0.4 GB in the folder for temporary files. The last line is one JSON
object: of each kind, how many times faster `box-bilinear` is than the first line of its table.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pictures  # noqa: E402
import predict  # noqa: E402
import registry  # noqa: E402
import turns  # noqa: E402
from kd import errors, image, machine, onnx_model  # noqa: E402

WIDTH, HEIGHT = 5656, 4242  # 24 megapixels, as HAM10000 is 4 : 3
FRAME = 1920, 1080
NOISE = 4                   # grey levels
FRAMES = 8                  # answers to frames in a turn, as one takes a few milliseconds


def main(argv=None):
    """Measure, and print the tables and the JSON object."""
    parser = errors.Parser(prog="pixels.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=ROOT / "models" / "ham10000_lite0" / "model.int8.onnx", metavar="MODEL.onnx",
                        help="an exported model; default: that of models/, 128 px")
    parser.add_argument("--root", metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--images", type=errors.positive, default=3, help="of each kind")
    parser.add_argument("--rounds", type=errors.positive, default=7, help="turns of each side that count")
    args = parser.parse_args(argv)
    pixels = onnx_model.Model(args.model, 1).metadata["input"]
    print(f"{machine.line(machine.describe())}, Pillow {PIL.__version__}; {pixels['size']} px of {pixels['resize']}")
    result = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for kind in write(args.root, args.images, Path(folder)):
            names = ["copied"] * (kind == "frame") + list(image.INTERPOLATIONS)
            with contextlib.ExitStack() as stack:
                sides = {f"{kind}, {name}": stack.enter_context(turns.Side(make, name, args.model, Path(folder, kind)))
                         for name in names}
                seconds = turns.measure(sides, args.rounds, ["answer"])
                rows = {side: seconds[side, "answer"][:, 1] for side in sides}
                count = FRAMES if kind == "frame" else args.images
                result[kind] = turns.print_table(rows, count, "ms an image")[f"{kind}, box-bilinear"]
                turns.print_peaks(sides)
    print(json.dumps(result))


def write(root, count, folder):
    """Write the images, a folder of each kind, and return the kinds. root: of HAM10000, or None."""
    rng = np.random.default_rng(0)
    source = pictures.dataset(root, 10 * count, folder)
    kinds = {"small": {"format": "JPEG", "quality": 90}, "jpeg": {"format": "JPEG", "quality": 90},
             "noisy": {"format": "JPEG", "quality": 90},
             "progressive": {"format": "JPEG", "quality": 90, "progressive": True},
             "png": {"format": "PNG", "compress_level": 1}, "tiff": {"format": "TIFF"}}
    for kind in (*kinds, "frame"):
        (folder / kind).mkdir()
    for k, path in enumerate(source.images[::len(source.images) // count][:count]):
        with Image.open(path) as file:
            small = file.convert("RGB").resize((pictures.WIDTH, pictures.HEIGHT), Image.Resampling.BICUBIC)
        large = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noise = rng.normal(0, NOISE, (HEIGHT, WIDTH, 1)).astype(np.float32)
        noisy = Image.fromarray(np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8))
        for kind, options in kinds.items():
            picture = {"small": small, "noisy": noisy}.get(kind, large)
            picture.save(folder / kind / f"{k}.{options['format'].lower()}", **options)
        np.save(folder / "frame" / f"{k}.npy", np.asarray(small.resize(FRAME)))
    return [*kinds, "frame"]


def make(side, model, folder):
    """{"answer": a function that answers all images in a folder}. side: "copied", or one of kd.image.INTERPOLATIONS."""
    model, files = onnx_model.Model(model, 1), sorted(folder.iterdir())
    recorded = model.metadata["input"]
    recorded["interpolation"] = "bilinear" if side == "copied" else side
    if folder.name != "frame":
        return {"answer": lambda: list(predict.answers(model, files, 1))}
    frames = [np.load(path) for path in files]

    def copied(frame):
        """The pixels of a frame by way of one copy more."""
        size = round(frame.shape[1] * recorded["resize"] / frame.shape[0]), recorded["resize"]
        pixels = Image.fromarray(frame).convert("RGB").resize(size, Image.Resampling.BILINEAR)
        return image.centre_crop(np.asarray(pixels)[None], model.size)[0]

    pixels = copied if side == "copied" else model.pixels

    def answer_frames():
        for k in range(FRAMES):
            model.decisions(model.logits(pixels(frames[k % len(frames)])[None]))

    return {"answer": answer_frames}


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
