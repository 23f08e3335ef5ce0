"""The two ways to resize: what each gives, that a network keeps the one that it was trained with, and that training and
use give the same pixels."""

import dataclasses
import hashlib
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import distill
import registry
import train_teacher
from kd import image, onnx_model
from kd.data import cache, loader, unlabelled
from kd.data.dataset import Dataset
from kd.edge import convert, torch_model
from kd.errors import UserError
from kd.files import read_json, read_yaml, write_yaml
from kd.robustness import answers
from kd.run_folder import Run
from kd.train import checkpoint, setup

NEW, OLD = "box-bilinear", "bilinear"


def waves(width, height, pixels=None):
    """A colour picture, uint8 [height, width, 3], that differs between all its ends: waves of about 4 final pixels."""
    pixels = pixels or min(width, height) / 4
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    phases = x * 2 * np.pi / pixels, y * 2 * np.pi / pixels, (x + 2 * y) * 2 * np.pi / (3 * pixels)
    return np.stack([127.5 + 100 * np.sin(phase) for phase in phases], -1).astype(np.uint8)


def saved(picture, kind="JPEG", **settings):
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def with_tag(tag):
    exif = Image.Exif()
    exif[274] = tag
    return exif.tobytes()


def kinds():
    """{name: bytes of a file}, one of each format and kind that is decoded on a way of its own; 700 x 461 px."""
    picture = Image.fromarray(waves(700, 461))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    transparent = picture.copy()
    transparent.putalpha(picture.convert("L"))
    return {
        "a.jpg": saved(picture, quality=90), "progressive.jpg": saved(picture, progressive=True, quality=90),
        "fine.jpg": saved(picture, subsampling=0, quality=95), "grey.jpg": saved(picture.convert("L")),
        "cmyk.jpg": saved(picture.convert("CMYK")), "turned.jpg": saved(picture, exif=with_tag(6)),
        "mirrored.jpg": saved(picture, exif=with_tag(2)),
        "two.jpg": saved(picture, "MPO", save_all=True, append_images=[picture]),
        "a.png": saved(picture, "PNG"), "grey.png": saved(picture.convert("L"), "PNG"),
        "palette.png": saved(picture.convert("P"), "PNG"), "transparent.png": saved(transparent, "PNG"),
        "deep.png": saved(deep, "PNG"), "a.tif": saved(picture, "TIFF"), "deep.tif": saved(deep, "TIFF"),
        "a.webp": saved(picture, "WEBP"), "a.bmp": saved(picture, "BMP"), "a.gif": saved(picture, "GIF")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, data in kinds().items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def difference(source, side, range=None):
    """(mean, largest) distance of the pixels of both ways."""
    apart = np.abs(image.square(source, side, range, NEW).astype(int) - image.square(source, side, range, OLD))
    return apart.mean(), apart.max()


# ---- what each way gives

@pytest.mark.parametrize("side", [16, 100])
def test_the_old_way_gives_the_pixels_that_pillow_gives_in_one_step(files, side):
    """Bit for bit what runs and bundles of older versions have; here written once more."""
    for file in files:
        if "deep" in file.name or "transparent" in file.name:  # other tests have their values
            continue
        picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        scale = side / min(picture.size)
        picture = picture.resize([round(length * scale) for length in picture.size], Image.Resampling.BILINEAR)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        expected = np.asarray(picture)[top:top + side, left:left + side]
        assert np.array_equal(image.square(file, side, None, OLD), expected), file.name
    frame = waves(1000, 600)
    expected = np.asarray(Image.fromarray(frame).resize((round(1000 * side / 600), side), Image.Resampling.BILINEAR))
    expected = image.centre_crop(expected[None], side)[0]
    assert np.array_equal(image.square(frame, side, None, OLD), expected)


def test_below_eight_times_the_final_size_both_ways_are_one(files):
    side = 461 // 8 + 1
    for file in files:
        assert difference(file, side, (0, 65535)) == (0, 0), file.name
        assert difference(file, side - 1, (0, 65535))[1] > 0, file.name
    assert difference(waves(9000, 127), 16) == (0, 0)  # whose ends are cut off
    assert difference(waves(9000, 128), 16)[1] > 0


def triangle(pixels, side):
    """Antialiased bilinear interpolation of [N, N] to [side, side], as matrices."""
    length = len(pixels)
    scale = length / side
    places = (np.arange(length) + 0.5 - (np.arange(side)[:, None] + 0.5) * scale) / scale
    weights = np.maximum(0, 1 - np.abs(places))
    weights /= weights.sum(1, keepdims=True)
    return weights @ pixels @ weights.T


def test_the_new_way_takes_means_of_squares_and_then_interpolates():
    pixels = np.random.default_rng(0).integers(0, 256, (16 * 7 * 4, 16 * 7 * 4), dtype=np.uint8)
    means = pixels.reshape(64, 7, 64, 7).mean((1, 3))
    result = image.square(pixels, 16, None, NEW)
    assert (result == result[..., :1]).all()
    assert np.abs(result[..., 0] - triangle(means, 16)).max() < 1.01  # each step rounds
    assert np.abs(image.square(pixels, 16, None, OLD)[..., 0] - triangle(pixels, 16)).max() < 1.01


def test_the_largest_squares_are_neither_darker_nor_brighter():
    for value in (255, 254, 128, 1):
        for side in (1, 2, 3, 8):
            assert (image.square(np.full((2050, 2100), value, np.uint8), side) == value).all()


@pytest.mark.parametrize("width, height", [(640, 480), (641, 487), (499, 1999), (385, 390), (3001, 3000)])
def test_a_jpeg_is_decoded_as_small_as_the_bound_lets_and_never_below(monkeypatch, width, height):
    data, decoded, square = saved(Image.new("RGB", (width, height), (9, 99, 200))), [], image._square

    def watched(picture, side, *rest):
        decoded.append((picture.size, picture.info[image.FRAME]))
        return square(picture, side, *rest)

    monkeypatch.setattr(image, "_square", watched)
    short = min(width, height)
    for side in (1, 8, 16, 17, 20, 21, 40, 64, 79, 80, 81, 500):
        image.square(data, side)
        size, frame = decoded.pop()
        scale = width / frame[2]
        assert scale in (1, 2, 4, 8) and frame == (0, 0, width / scale, height / scale)
        assert size == (-(-width // scale), -(-height // scale))
        assert scale == 1 or short / scale >= image.GAP * side
        assert scale == 8 or short / (2 * scale) < image.GAP * side
        image.square(data, side, None, OLD)
        image.examine(data, side, None, OLD)
        assert [decoded.pop()[0], decoded.pop()[0]] == [(width, height)] * 2
    image.decode(data)
    assert image.decode(data).size == (width, height)


STORED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
          8: lambda a: np.rot90(a, -1)}  # what the tag says was done to the upright picture


@pytest.mark.parametrize("tag", STORED)
@pytest.mark.parametrize("width, height", [(521, 385), (386, 393), (4000, 385)])
def test_a_turned_jpeg_lies_where_it_lay_though_its_last_pixels_are_fractions(tag, width, height):
    """385 px are 48.125 at an eighth, decoded as 49: left out of account, that moves the picture by .3 of 16 px."""
    upright = np.ascontiguousarray(STORED[tag](waves(width, height)))
    data = saved(Image.fromarray(upright), quality=95, subsampling=0, exif=with_tag(tag))
    whole = image.square(waves(width, height), 16, None, OLD).astype(int)
    apart = np.abs(image.square(data, 16) - whole)
    assert apart.max() <= 10 and apart.mean() < 2, (apart.max(), apart.mean())


def test_both_ways_look_alike_for_each_kind_of_file(files):
    for file in files:
        mean, largest = difference(file, 16, (0, 65535))
        assert 0 < mean < 2 and largest <= 10, (file.name, mean, largest)


def test_a_reduced_jpeg_is_refused_for_the_same_faults():
    data = saved(Image.fromarray(waves(900, 700)))
    for fault in (data[:len(data) // 2], data[:300]):
        reasons = []
        for interpolation in (OLD, NEW):
            with pytest.raises(UserError) as caught:
                image.square(fault, 8, None, interpolation)
            reasons.append(re.sub(r"\d+", "N", caught.value.message))
        assert reasons[0] == reasons[1]


# ---- training and use

@pytest.mark.parametrize("interpolation", image.INTERPOLATIONS)
def test_training_and_use_give_the_same_pixels_of_each_kind_of_file(files, interpolation, tmp_path):
    data = Dataset("kinds", ["a"], files, [file.name for file in files], [0] * len(files))
    cached, _, bad, limits = cache.open_cache(data, 18, interpolation=interpolation, folder=tmp_path)
    assert not bad and limits == (0, 65535)
    model = SimpleNamespace(range=list(limits), size=16, metadata={"input": {
        "resize": 18, "size": 16, "interpolation": interpolation, "range": list(limits)}})
    for row, file in zip(image.centre_crop(np.array(cached), 16), files):
        for source in (file, file.read_bytes()):
            assert np.array_equal(onnx_model.Model.pixels(model, source), row), file.name
            assert np.array_equal(onnx_model.Model.examined(model, source)[0], row), file.name


def test_a_cache_is_of_one_way_and_older_ones_are_used_on(files, tmp_path, monkeypatch):
    def opened(interpolation):
        data = Dataset("files", ["a"], files[:3], [file.name for file in files[:3]], [0] * 3)
        return cache.open_cache(data, 16, interpolation=interpolation, folder=tmp_path)[0]

    old, new = opened(OLD), opened(NEW)
    assert old.filename != new.filename and not np.array_equal(old, new)
    monkeypatch.setattr(cache, "_read", None)  # both are found
    assert np.array_equal(opened(OLD), old) and np.array_equal(opened(NEW), new)
    # the name that versions with one way gave
    monkeypatch.undo()
    key = hashlib.sha256(b"2 v 1 8 bilinear\nx").hexdigest()[:12]
    data = Dataset("v", ["a"], [np.zeros((8, 8), np.uint8)], ["x"], [0], version="1")
    assert cache.open_cache(data, 8, interpolation=OLD, folder=tmp_path)[0].filename.name == f"v_8px_{key}.npy"


# ---- what a network records, and older versions

@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """A folder of classes with JPEG files of eight times the cached size and more, which the two ways tell apart."""
    root = tmp_path_factory.mktemp("clinic")
    for k, name in enumerate(("red", "blue")):
        (root / name).mkdir()
        for i in range(14):
            pixels = waves(320, 300, 20 + 3 * i)
            pixels[60:160, 60:160, 2 * k] = 250
            Image.fromarray(pixels).save(root / name / f"{i}.jpg", quality=90)
    return root


def usual(root):
    return ["--data", "folder", "--root", str(root), "--size", "32", "--epochs", "1", "--batch", "8", "--workers", "0",
            "--train-only"]


def trained(root, out, *more):
    run, = train_teacher.main(["--teacher", "tiny", *usual(root), "--out", str(out), *more])
    return run


@pytest.fixture
def older(clinic, tmp_path):
    """A run as older versions left it, which knew one way."""
    run = trained(clinic, tmp_path / "runs", "--interpolation", OLD)
    config = read_yaml(run / "config.yaml")
    assert config.pop("interpolation") == OLD
    write_yaml(run / "config.yaml", config)
    return run


def has_pixels(run, root, interpolation):
    """Whether the images of a run, and those that its checkpoint asks for in use, were resized in this way."""
    data = setup.data_of_run(Run(run), registry)
    recorded = checkpoint.read(run / "best.pt")["input"]
    assert recorded["interpolation"] == data.interpolation == data.input()["interpolation"] == interpolation
    assert read_json(run / "environment.json")["input"]["interpolation"] == interpolation
    other, = set(image.INTERPOLATIONS) - {interpolation}
    for k, name in enumerate(data.ids):
        cached = data.pixels([k])[0]
        assert np.array_equal(cached, image.square(root / name, 36, None, interpolation))
        assert not np.array_equal(cached, image.square(root / name, 36, None, other))
        assert np.array_equal(image.evaluation_pixels(root / name, recorded), cached[2:34, 2:34])
    return True


def test_a_new_run_records_the_new_way_and_an_older_one_keeps_its_own(clinic, older, tmp_path):
    assert has_pixels(older, clinic, OLD)
    new = trained(clinic, tmp_path / "new")
    assert read_yaml(new / "config.yaml")["interpolation"] == NEW and has_pixels(new, clinic, NEW)
    again = train_teacher.main(["--config", str(older / "config.yaml"), "--out", str(tmp_path / "again"),
                                "--train-only"])
    assert has_pixels(again[0], clinic, OLD)  # the options of a run repeat it


@pytest.mark.parametrize("interpolation", image.INTERPOLATIONS)
def test_all_images_of_a_training_and_of_a_network_are_resized_in_one_way(clinic, interpolation, tmp_path):
    """Those of another size for its teacher, those without labels, and an external set."""
    found = registry.create("dataset", "folder", str(clinic))
    data = loader.prepare(found, size=16, interpolation=interpolation, cache_folder=tmp_path / "cache")
    further = unlabelled.prepare(Dataset("more", ["any"], [clinic / "red" / "0.jpg"], ["x"], [0], version="1"),
                                 dataclasses.replace(data, ids=data.ids[:0], rows=data.rows[:0], split=data.split[:0],
                                                     sha256=data.sha256[:0]), cache_folder=tmp_path / "cache")
    recorded = {**data.input(), "mean": list(image.MEAN), "std": list(image.STD)}
    outside = loader.external(found, input=recorded, class_names=found.class_names, root=tmp_path)
    for images, name, side in ((data.images[data.rows[[0]]], data.ids[0], 18), (further.images, "red/0.jpg", 18),
                               (data.open_at(32)[data.rows[[0]]], data.ids[0], 36),
                               (outside.images[outside.rows[[0]]], outside.ids[0], 18)):
        assert np.array_equal(images[0], image.square(clinic / name, side, None, interpolation))


def test_what_is_exported_says_how_its_pixels_are_made(clinic, older):
    for need in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(need)
    model, content = checkpoint.load(older / "best.pt", registry)
    exported = convert.to_onnx(convert.deployed(model, content), 32, convert.describe(model, content))
    (older / "model.onnx").write_bytes(exported.SerializeToString())
    file = clinic / "red" / "0.jpg"
    expected = image.centre_crop(image.square(file, 36, None, OLD)[None], 32)[0]
    eager = torch_model.open_file(older / "best.pt", "eager", registry)
    for reader in (onnx_model.Model(older / "model.onnx"), eager):
        assert np.array_equal(reader.pixels(file), expected)
    assert torch_model.open_file(older / "best.pt", "eager", registry, size=48).input == {
        **content["input"], "size": 48, "resize": 54}


def test_training_goes_on_or_learns_with_the_pixels_of_an_older_run_or_is_refused(clinic, older, tmp_path, capsys):
    with pytest.raises(UserError, match="made with other options: interpolation was bilinear, now box-bilinear") as no:
        trained(clinic, older.parents[2])
    assert no.value.hint.startswith("With --interpolation bilinear it goes on as it began.")
    trained(clinic, older.parents[2], "--interpolation", "bilinear")
    assert "finished already" in capsys.readouterr().out
    for option in ("--init", "--teacher"):
        words = ["--student", "tiny", "--teacher", str(older)] if option == "--teacher" else [
            "--student", "tiny", "--alpha", "1", "--init", str(older / "best.pt")]
        words += [*usual(clinic), "--out", str(tmp_path / option)]
        with pytest.raises(UserError, match="another input: interpolation bilinear, here box-bilinear") as no:
            distill.main(words)
        assert no.value.hint.endswith(" Give --interpolation bilinear.")
        run, = distill.main([*words, "--interpolation", "bilinear"])
        assert has_pixels(run, clinic, OLD)


def test_an_unknown_way_is_one_line(older):
    for wrong in ("lanczos", None, ["bilinear"]):
        with pytest.raises(UserError, match="unknown interpolation"):
            image.square(np.zeros((9, 9), np.uint8), 4, None, wrong)
    content = checkpoint.read(older / "best.pt")
    content["input"]["interpolation"] = "lanczos"
    checkpoint.save_tensors(older / "best.pt", content)
    with pytest.raises(UserError, match="is damaged: input is not"):
        checkpoint.read(older / "best.pt")


def test_robustness_does_not_take_the_images_of_one_way_for_those_of_the_other(clinic, older, tmp_path):
    new = trained(clinic, tmp_path / "new")
    files = answers.find([older, new])
    for file in files:
        if file.path.suffix == ".pt":
            answers.load(file, registry, torch.device("cpu"))
    groups = answers.group(files, registry)
    assert sorted(data.interpolation for data, _ in groups) == [OLD, NEW]
    for data, members in groups:
        assert [member.input["interpolation"] for member in members] == [data.interpolation]
    files[0].input = {**files[0].input, "interpolation": NEW}
    with pytest.raises(UserError, match=r"takes images of 32 px cut from 36 \(box-bilinear\), and the images of its "
                                        r"run are 32 px cut from 36 \(bilinear\)"):
        answers.group(files[:1], registry)
