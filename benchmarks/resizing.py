"""What the two ways to resize an image change in a network's answers: labels, macro-F1 and pixels.

    python benchmarks/resizing.py --root data/ham10000 --images 700
    python benchmarks/resizing.py --root data/ham10000 --images 200 --noise 4

Test images of HAM10000, drawn at random, are enlarged to 24 megapixels and made JPEG files of quality 90, one after
another and in memory. `jpeg`: `box-bilinear` of the file, which is decoded at a fraction of its size; `pixels`: of the
decoded pixels, as with PNG and TIFF. Both are compared with `bilinear` in the answers of exported models of one input
size, which were trained with either; the interval of the difference of macro-F1 is paired, over lesions. It takes a
second and a half an image. The last line is one JSON object: of each model and kind the share of equal labels, and the
difference of macro-F1 with its bounds.
"""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import registry  # noqa: E402
from kd import errors, image, onnx_model, prediction_files, predictions  # noqa: E402
from kd.edge import parity  # noqa: E402

WIDTH, HEIGHT = 5656, 4242  # 24 megapixels, as HAM10000 is 4 : 3


def main(argv=None):
    """Measure, and print the table and the JSON object."""
    parser = errors.Parser(prog="resizing.py", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, metavar="PATH", help="folder of HAM10000")
    parser.add_argument("--model", nargs="+", default=[ROOT / "models" / "ham10000_lite0" / "model.int8.onnx"],
                        metavar="MODEL.onnx", help="exported models of one input size; default: that of models/")
    parser.add_argument("--predictions", metavar="FILE", help="predictions/test.npz of a run of these models, which "
                        "has their test images; default: that of the model of models/",
                        default=ROOT / "docs" / "results" / "ham10000_128px" / "folds"
                        / "efficientnetlite0_kd_fold1of5" / "seed_0" / "predictions" / "test.npz")
    parser.add_argument("--images", type=errors.positive, default=700, help="test images")
    parser.add_argument("--noise", type=errors.not_negative, default=0.0, help="standard deviation of the noise that "
                        "is added before a file is made, in grey levels")
    args = parser.parse_args(argv)
    models = [onnx_model.Model(path) for path in args.model]
    pixels = models[0].metadata["input"]
    test = predictions.read(args.predictions)
    rows = np.sort(np.random.default_rng(0).permutation(len(test.labels))[:args.images])
    dataset = registry.create("dataset", "ham10000", root=args.root)
    places = prediction_files.positions(test.ids[rows], dataset.ids)
    squares, sizes = {"bilinear": [], "jpeg": [], "pixels": []}, []
    for k in errors.progress(places, "enlarging"):
        file = enlarged(dataset.images[k], args.noise)
        decoded = np.asarray(image.decode(file))
        squares["bilinear"].append(image.square(decoded, pixels["resize"], None, "bilinear"))
        squares["jpeg"].append(image.square(file, pixels["resize"], None, "box-bilinear"))
        squares["pixels"].append(image.square(decoded, pixels["resize"], None, "box-bilinear"))
        sizes.append(len(file))
    squares = {kind: image.centre_crop(np.stack(images), pixels["size"]) for kind, images in squares.items()}
    print(f"{len(rows)} test images, files of {np.mean(sizes) / 1e6:.2f} MB, noise {args.noise:g}; {pixels['size']} px")
    for kind in ("jpeg", "pixels"):
        apart = np.abs(squares[kind].astype(int) - squares["bilinear"])
        print(f"{kind}: {apart.mean():.2f} grey levels apart from bilinear, at most {apart.max()}")
    part = SimpleNamespace(labels=test.labels[rows], clusters=test.clusters[rows], class_names=test.class_names)
    result = {}
    for path, model in zip(args.model, models):
        before = model.logits(squares["bilinear"])
        for kind in ("jpeg", "pixels"):
            after = parity.compare(part, before, model.logits(squares[kind]))
            difference = {key: round(after["macro_f1"]["difference"][key], 4) for key in ("value", "lo", "hi")}
            result[f"{path} {kind}"] = {"equal": 1 - after["flips"], **difference}
            print(f"{path}, {kind}: {1 - after['flips']:.2%} of the labels equal, macro-F1 "
                  f"{after['macro_f1']['reference']:.4f} and {after['macro_f1']['model']:.4f}, difference "
                  f"{difference['value']:+.4f} [{difference['lo']:+.4f}, {difference['hi']:+.4f}]")
    print(json.dumps(result, default=str))


def enlarged(path, noise):
    """The bytes of a JPEG file of 24 megapixels. noise: its standard deviation, in grey levels."""
    with Image.open(path) as file:
        large = file.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    if noise:
        added = np.random.default_rng(0).normal(0, noise, (HEIGHT, WIDTH, 1)).astype(np.float32)
        large = Image.fromarray(np.clip(np.asarray(large) + added, 0, 255).astype(np.uint8))
    result = io.BytesIO()
    large.save(result, "JPEG", quality=90)
    return result.getvalue()


if __name__ == "__main__":
    errors.run(main, registry.RegistryError)
