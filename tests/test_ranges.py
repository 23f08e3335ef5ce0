"""Values of more than 8 bits have one scale for the whole set, wherever a file is read; odd images are named."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import registry
import small
from kd import image, onnx_model
from kd.data import cache, loader, unlabelled, values
from kd.data.dataset import Dataset
from kd.edge import convert, torch_model
from kd.errors import UserError
from kd.train import checkpoint, setup

INPUT = {"resize": 36, "size": 32, "interpolation": image.INTERPOLATION, "mean": list(image.MEAN),
         "std": list(image.STD)}


def picture(k, bright=0.8, dark=0.3, side=40):
    """A grey picture in [0, 1]: a dark disk on a bright ground, somewhere near the centre, and noise."""
    rng = np.random.default_rng(k)
    y, x = np.mgrid[:side, :side] - side / 2 - rng.normal(0, 2, (2, 1, 1))
    ground = np.where(x * x + y * y < (8 + k % 5) ** 2, dark, bright)
    return np.clip(ground + rng.normal(0, 0.03, (side, side)), 0, 1)


def dataset(folder, arrays, suffix=".png", name="set", **options):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k}{suffix}" for k in range(len(arrays))]
    for path, array in zip(paths, arrays):
        Image.fromarray(array).save(path, **options)
    return Dataset(name, ["a", "b"], paths, [path.name for path in paths], np.arange(len(paths)) % 2)


def scaled(top, dtype, count=6, **options):
    return [(picture(k, **options) * top).astype(dtype) for k in range(count)]


def opened(data, tmp_path, **options):
    images, *more = cache.open_cache(data, 36, folder=tmp_path / "cache", **options)
    return images[:], *more


def noted(capsys):
    return capsys.readouterr().out.splitlines()


def test_the_images_of_a_larger_teacher_are_described_once(tmp_path, capsys):
    found = dataset(tmp_path / "deep", scaled(4095, np.uint16, count=30))
    data = loader.prepare(found, size=16, cache_folder=tmp_path / "cache")
    assert sum("more than 8 bits" in line for line in noted(capsys)) == 1
    data.add_size(32)
    assert data.larger[32].shape[1] > data.images.shape[1] and not noted(capsys)


# ---- one range for all

@pytest.mark.parametrize("top, dtype, suffix, expected", [
    (255, np.uint16, ".png", (0, 255)), (1020, np.uint16, ".tif", (0, 1023)), (4095, np.uint16, ".png", (0, 4095)),
    (16383, np.uint16, ".tif", (0, 16383)), (65535, np.uint16, ".png", (0, 65535)), (4095, np.int32, ".tif", (0, 4095)),
    (1, np.float32, ".tif", (0, 1)), (255, np.float32, ".tif", (0, 255))])
def test_whatever_its_depth_a_set_looks_as_it_does_in_8_bits(tmp_path, capsys, top, dtype, suffix, expected):
    deep, _, bad, chosen = opened(dataset(tmp_path / "deep", scaled(top, dtype), suffix), tmp_path)
    assert chosen == expected and not bad
    line, = noted(capsys)
    assert line.startswith("note: 6 of 6 images have more than 8 bits, with values from ")
    assert f": 0..{expected[1]}" in line and "scaled to 0..255 for all of them" in line
    plain, _, _, none = opened(dataset(tmp_path / "plain", scaled(255, np.uint8)), tmp_path)
    assert none is None and not noted(capsys)
    tolerance = 2 if expected[1] == 1023 else 1  # 1020 of 1023
    assert np.abs(deep.astype(int) - plain).max() <= tolerance


def test_negative_and_very_large_values_go_from_the_least_to_the_largest(tmp_path):
    for name, arrays in (("hounsfield", [a - 1000 for a in scaled(3000, np.int32)]),
                         ("counts", scaled(10 ** 9, np.int32)), ("map", [a - 0.5 for a in scaled(1, np.float32)])):
        images, _, _, (low, high) = opened(dataset(tmp_path / name, arrays, ".tif", name=name), tmp_path)
        assert low == np.min(arrays) and high == np.max(arrays)
        assert images.max() > 200 and images.min() < 60


def test_the_range_is_that_of_the_set_and_not_of_each_image(tmp_path):
    arrays = [np.full((40, 40), 4000, np.uint16), np.full((40, 40), 2000, np.uint16)]
    images, _, _, chosen = opened(dataset(tmp_path / "d", arrays), tmp_path)
    assert chosen == (0, 4095) and np.unique(images[0]) == 249 and np.unique(images[1]) == 125


def test_few_images_with_larger_values_are_clipped_and_named(tmp_path, capsys):
    arrays = scaled(4095, np.uint16, 100)
    arrays[7][:5, :5] = 65535  # text that was burnt in
    _, _, _, chosen = opened(dataset(tmp_path / "d", arrays), tmp_path)
    assert chosen == (0, 4095) and "; 1 have values beyond, which are clipped: 7.png" in noted(capsys)[0]
    arrays[8][:5, :5] = 65535
    assert opened(dataset(tmp_path / "d", arrays), tmp_path)[3] == (0, 65535)


def test_a_mixed_set_says_both_counts_and_leaves_8_bits_alone(tmp_path, capsys):
    folder = tmp_path / "d"
    deep, plain = scaled(4095, np.uint16, 4), scaled(255, np.uint8, 6)
    images, _, _, chosen = opened(dataset(folder, [*deep, *plain]), tmp_path)
    assert chosen == (0, 4095)
    line, = noted(capsys)
    assert line.startswith("note: 4 of 10 images") and line.endswith("; the other 6 have 8 bits and stay as they are")
    for k in range(4, 10):
        assert np.array_equal(images[k], image.square(folder / f"{k}.png", 36))


def test_values_that_no_scale_suits_are_refused_and_nothing_is_left(tmp_path):
    data = dataset(tmp_path / "d", [*scaled(1, np.float32, 3), *scaled(4095, np.uint16, 3)], ".tif")
    with pytest.raises(UserError, match="3 images have values up to .* no one scale suits both") as caught:
        opened(data, tmp_path)
    assert "as floats from 0 to 1, or as integers" in caught.value.hint
    assert not list((tmp_path / "cache").glob("*.npy"))
    for path in data.images[:3]:  # as the hint says
        Image.fromarray((np.asarray(Image.open(path)) * 4095).astype(np.uint16)).save(path)
    assert opened(data, tmp_path)[3] == (0, 4095)


def test_values_that_are_not_numbers_are_an_error_of_their_file(tmp_path):
    arrays = scaled(1, np.float32)
    arrays[2][0, 0], arrays[4][0, 0] = np.nan, np.inf
    data = dataset(tmp_path / "d", arrays, ".tif")
    with pytest.raises(UserError, match="2 of 6 images cannot be used: 2.tif .it has values that are not numbers"):
        opened(data, tmp_path)
    assert opened(data, tmp_path, skip_bad=True)[3] == (0, 1)


@pytest.mark.parametrize("extremes, expected", [
    ([(0, 0, False)], (0, 255)), ([(0.0, 0.0, True)], (0, 1)), ([(-5, -5, False)], (-5, -4)), ([], None),
    ([(0.0, 1.0004, True), (-0.0002, 0.9, True)], (0, 1)), ([(0.0, 300.0, True)], (0.0, 300.0)),
    ([(0, 70000, False)], (0, 70000)), ([(0.0, 900.0, True), (0, 1000, False)], (0, 1023)),
    ([(0, 1, False), (0.0, 1.0, True)], (0, 255))])
def test_the_choice_of_a_range(extremes, expected):
    assert values.choose_range(dict(enumerate(extremes))) == expected


def test_white_is_zero_is_turned_over_in_every_depth(tmp_path):
    for top, dtype, limits in ((255, np.uint8, None), (4095, np.uint16, (0, 4095)), (1, np.float32, (0, 1))):
        values_ = (picture(0) * top).astype(dtype)
        plain, inverse = io.BytesIO(), io.BytesIO()
        Image.fromarray(values_).save(plain, "TIFF")
        # Pillow turns 8 bits over when it saves, too, and so the values are given as they are to be in the file
        Image.fromarray(values_ if dtype == np.uint8 else top - values_).save(inverse, "TIFF", tiffinfo={262: 0})
        assert Image.open(inverse).tag_v2[262] == 0
        difference = image.square(plain, 36, limits).astype(int) - image.square(inverse, 36, limits)
        assert np.abs(difference).max() <= 1, dtype


def png(pixels):
    """The bytes of a PNG with 16 bits a colour, which Pillow cannot write. pixels: uint16 [H, W, 2, 3 or 4]."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels, order, compressed, turn=1):
    """The same as a TIFF, of a byte order < or >."""
    height, width, channels = pixels.shape
    data = pixels.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compressed else data
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8), (259, 3, 1, 8 if compressed else 1),
            (262, 3, 1, 2), (273, 4, 1, 16), (274, 3, 1, turn), (277, 3, 1, channels), (278, 4, 1, height),
            (279, 4, 1, len(data))] + [(338, 3, 1, 2)] * (channels == 4)
    place = 16 + len(data)
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + (struct.pack(order + "I", place) if tag == 258 else
           struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value))
        for tag, kind, count, value in tags)
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", place + len(bits)) + bytes(8)
    return head + data + bits + directory


COLOURED = {"PNG": png, **{f"TIFF {order} {compressed}": lambda pixels, o=order, c=compressed: tiff(pixels, o, c)
                           for order in "<>" for compressed in (False, True)}}


@pytest.mark.parametrize("write", COLOURED.values(), ids=COLOURED)
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_a_colour_keep_the_lower_ones(tmp_path, write, channels):
    """Pillow reads the upper 8 alone, of which 12 bits use 4."""
    colours = np.stack([picture(k) for k in range(channels)], -1)
    pixels = (colours * 4095).astype(np.uint16)
    if channels == 4:
        pixels[..., 3] = 65535  # no transparency
    expected = np.round(pixels[..., :3] * (255 / 4095)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(write(pixels))
    data = Dataset("d", ["a"], [tmp_path / "a.png"], ["a.png"], [0])
    images, _, bad, chosen = cache.open_cache(data, 40, folder=tmp_path / "cache")
    assert chosen == (0, 4095) and np.array_equal(images[0], expected)
    assert np.array_equal(image.square(data.images[0], 40, (0, 4095)), expected)
    with pytest.raises(image.OtherDepth, match="a.png has more than 8 bits, with values up to 3"):
        image.square(data.images[0], 40)  # of a network that was trained on images of 8 bits


def test_deep_colours_are_turned_and_large_ones_read_in_strips(monkeypatch):
    pixels = (np.stack([picture(k) for k in range(3)], -1) * 4095).astype(np.uint16)[:, :30]
    whole = np.asarray(image.decode(tiff(pixels, "<", False), (0, 4095)))
    assert np.array_equal(np.asarray(image.decode(tiff(pixels, "<", False, turn=6), (0, 4095))), np.rot90(whole, -1))
    monkeypatch.setattr(image, "STRIP", 100)
    monkeypatch.setattr(image, "LARGE", 100)
    assert np.array_equal(np.asarray(image.decode(tiff(pixels, "<", False), (0, 4095))), whole)


# ---- the network keeps it

def test_a_file_gives_the_same_pixels_in_the_cache_and_in_use(tmp_path):
    """Bit for bit, through the checkpoint and ONNX."""
    data = dataset(tmp_path / "d", scaled(4095, np.uint16, 12))
    prepared = loader.prepare(data, size=32, cache_folder=tmp_path / "cache")
    assert prepared.input() == {key: INPUT[key] for key in ("resize", "size", "interpolation")} | {"range": [0, 4095]}
    model = registry.create("architecture", "tiny", num_classes=2, stem="small", weights=None)
    checkpoint.save(tmp_path / "best.pt", model, arch="tiny", stem="small", class_names=["a", "b"],
                    input={**INPUT, **prepared.input()}, provenance={})
    model, content = checkpoint.load(tmp_path / "best.pt", registry)
    network, metadata = convert.deployed(model, content), convert.describe(model, content)
    readers = [torch_model.open_file(tmp_path / "best.pt", "eager", registry)]
    if all(map(_is_installed, ("onnx", "onnxscript", "onnxruntime"))):
        (tmp_path / "model.onnx").write_bytes(convert.to_onnx(network, 32, metadata).SerializeToString())
        readers.append(onnx_model.Model(tmp_path / "model.onnx"))
    cached = image.centre_crop(prepared.images[:], 32)
    for reader in readers:
        for k, path in enumerate(data.images):
            assert np.array_equal(reader.pixels(path), cached[prepared.rows[k]])
    assert image.evaluation_pixels(data.images[0], {**INPUT, "range": [0, 65535]}).max() < cached[0].min()


def _is_installed(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def test_an_external_set_has_the_range_of_the_network(tmp_path, capsys):
    data = dataset(tmp_path / "d", scaled(1000, np.uint16))
    options = {"class_names": ["a", "b"], "root": tmp_path}
    of_network = loader.external(data, input={**INPUT, "range": [0, 4095]}, **options)
    scale, dark = noted(capsys)
    assert of_network.images[:].max() < 64 and "as for the images that the network was trained on" in scale
    assert dark.endswith("The network was trained on larger values; if these are of another scale, scale them alike.")
    assert np.array_equal(of_network.images[0], image.square(data.images[0], 36, (0, 4095)))


@pytest.mark.parametrize("kind", ["grey", "colour", "float", "mixed"])
def test_a_network_of_8_bits_takes_no_deeper_image_in_evaluation_nor_in_use_and_the_way_out_is_one(
        tmp_path, capsys, kind):
    """A scale of the set's own would be a guess, and one that predict.py cannot make of a single file."""
    arrays = scaled(255, np.uint8, 8)
    for k, top, dtype in [(1, 4095, np.uint16), (5, 1, np.float32)]:
        if kind in ("mixed", "float" if k == 5 else "grey"):
            arrays[k] = (picture(k) * top).astype(dtype)
    data = dataset(tmp_path / "d", arrays, ".tif")
    if kind == "colour":
        data.images[1].write_bytes(tiff((np.stack([picture(1)] * 3, -1) * 4095).astype(np.uint16), "<", False))
    deep = {"mixed": [1, 5], "float": [5]}.get(kind, [1])
    options = {"input": INPUT, "class_names": ["a", "b"], "root": tmp_path}
    network = SimpleNamespace(range=None, size=32, metadata={"input": INPUT}, pixels=None)
    network.pixels = lambda path: onnx_model.Model.pixels(network, path)
    for k, path in enumerate(data.images):
        if k in deep:
            with pytest.raises(image.OtherDepth, match=f"{k}.tif has .*trained on images of 8 bits") as caught:
                onnx_model.Model.examined(network, path)
            assert "in 8 bits" in caught.value.hint
        else:
            assert onnx_model.Model.examined(network, path)[1] is None
    with pytest.raises(UserError, match=f"{len(deep)} of 8 images cannot be used by a network that was trained on "
                                        f"images of 8 bits: {deep[0]}.tif .values up to [0-9,.]+, in more") as caught:
        loader.external(data, **options)
    assert caught.value.hint.startswith("Save them in 8 bits") and "--skip-bad" in caught.value.hint
    left = loader.external(data, **options, skip_bad=True)
    assert left.ids.tolist() == [f"{k}.tif" for k in range(8) if k not in deep]
    assert "0..255 for all" not in capsys.readouterr().out
    for k in deep:
        Image.fromarray((picture(k) * 255).astype(np.uint8)).save(data.images[k])
    whole = loader.external(data, **options)
    assert len(whole.ids) == 8
    for k, path in enumerate(data.images):
        assert np.array_equal(image.centre_crop(whole.images[[k]], 32)[0], onnx_model.Model.pixels(network, path))


@pytest.mark.parametrize("limits, least, largest, expected", [
    ((0, 4095), 0, 65520, "beyond"), ((0, 4095), 0, 4095, ""), ((0, 4095), 0, 4130, ""), ((0, 4095), 0, 4200, "beyond"),
    ((0, 4095), 0.0, 1.0, "narrow"), ((0, 4095), 0, 255, "narrow"), ((0, 65535), 0, 4095, "narrow"),
    ((0, 1), 0, 4095, "beyond"), ((0, 255), 0.0, 1.0, "narrow"), ((0, 255), 0.0, 240.0, ""),
    ((-1000, 3000), -1000, 3000, ""), ((-1000, 3000), 0, 4095, "beyond"), ((-1000, 3000), -2000, 100, "beyond"),
    ((0, 65535), 0, 16383, ""), ((0, 4095), 7, 7, "narrow")])
def test_values_that_do_not_fit_the_range_of_a_network(limits, least, largest, expected):
    assert image.misfit((least, largest, isinstance(largest, float)), limits) == expected


def depths(lines):
    return [line for line in lines if "On one scale the former are dark" in line]


def test_two_depths_in_one_set_are_named_with_their_counts(tmp_path, capsys):
    deep, deeper = scaled(4080, np.uint16, 24), scaled(65520, np.uint16, 8)
    opened(dataset(tmp_path / "d", deep + deeper), tmp_path)
    line, = depths(noted(capsys))
    assert "the values of 24 images go up to 3," in line and "(12 bits): 0.png, 1.png" in line
    assert "those of 8 go up to " in line and "(16 bits): 24.png, 25.png" in line and "15 of 255 at most" in line
    assert line.endswith("save all images with one scale")
    for k in range(24):  # as it says
        Image.fromarray(deep[k] * np.uint16(16)).save(tmp_path / "d" / f"{k}.png")
    opened(dataset(tmp_path / "e", [a * np.uint16(16) for a in deep] + deeper, name="e"), tmp_path)
    assert not depths(noted(capsys))


def test_one_outlier_of_few_images_is_named_and_leaving_it_out_leads_out(tmp_path, capsys):
    arrays = scaled(4095, np.uint16, 32)
    arrays[7][:2, :2] = 65535
    opened(dataset(tmp_path / "d", arrays), tmp_path)
    lines = noted(capsys)
    assert len(lines) == 2 and depths(lines)[0].endswith("a defect, mend or leave out 7.png")
    arrays[7] = arrays[8]
    assert opened(dataset(tmp_path / "e", arrays, name="e"), tmp_path)[3] == (0, 4095) and len(noted(capsys)) == 1
    arrays = scaled(4095, np.uint16, side=200)
    for array in arrays:
        array[90, 90] = 65535  # in all of them: no image to leave out
    opened(dataset(tmp_path / "f", arrays, name="f"), tmp_path)
    lines = noted(capsys)
    assert not depths(lines) and "if those are burnt-in text or defects, remove them" in lines[1]


def test_images_that_are_all_the_same_are_said_to_be(tmp_path, capsys):
    opened(dataset(tmp_path / "d", [np.zeros((40, 40), np.uint8)] * 7), tmp_path)
    assert noted(capsys)[0].startswith("note: all 7 images have the same content")


# ---- kinds of files that Pillow reads in part, or not at all

def test_grey_and_alpha_of_16_bits_keep_the_lower_ones(tmp_path):
    grey, alpha = (np.round(picture(k) * 4095).astype(np.uint16) for k in (0, 1))
    for transparency in (np.full_like(alpha, 65535), alpha * np.uint16(16)):
        (tmp_path / "a.png").write_bytes(png(np.stack([grey, transparency], -1)))
        data = Dataset("d", ["a"], [tmp_path / "a.png"], ["a.png"], [0], version=str(transparency[0]))
        images, _, bad, chosen = cache.open_cache(data, 40, folder=tmp_path / f"cache{transparency[0, 0]}")
        assert chosen == (0, 4095) and not bad
        share = (transparency >> 8)[..., None] / 255
        expected = grey[..., None] * (255 / 4095) * share + 255 * (1 - share)
        assert np.abs(images[0] - expected).max() <= 1


def test_integers_of_32_bits_without_a_sign_do_not_wrap(tmp_path, order="<"):
    values_ = (picture(0) * (2 ** 32 - 1)).astype(np.uint32)
    (tmp_path / "a.tif").write_bytes(tiff_of(values_, order, 1))
    pixels, extremes, *_ = image.examine(tmp_path / "a.tif", 40, (0, 2 ** 32 - 1))
    assert extremes == (values_.min(), values_.max(), False)
    assert np.abs(pixels[..., 0] - values_ * (255 / (2 ** 32 - 1))).max() <= 0.51
    (tmp_path / "b.tif").write_bytes(tiff_of((values_ // 2).astype(np.int32) - 2 ** 30, order, 2))
    assert image.examine(tmp_path / "b.tif", 40)[1][0] < 0


def tiff_of(pixels, order, form):
    """A TIFF of values of any type. form: its sample format, 1 for whole numbers, 2 with a sign, 3 floating point."""
    shape, samples, size = pixels.shape, pixels[0, 0].size, pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    tags = [(256, 4, shape[1]), (257, 4, shape[0]), (258, 3, 8 * size), (259, 3, 1), (262, 3, 1 if samples < 3 else 2),
            (273, 4, 8), (277, 3, samples), (278, 4, shape[0]), (279, 4, len(data)), (339, 3, form)]
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    several = samples > 2
    entries = b"".join(
        struct.pack(order + "HHII", tag, kind, samples, end + 2 * samples * (tag == 339))
        if several and tag in (258, 339) else struct.pack(order + "HHI", tag, kind, 1)
        + (struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value))
        for tag, kind, value in tags)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return (head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)
            + struct.pack(f"{order}{2 * samples}H", *[8 * size] * samples, *[form] * samples))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype, form, samples, words", [
    (np.float16, 3, 1, "floating-point values of 16 bits"), (np.float64, 3, 1, "floating-point values of 64 bits"),
    (np.float32, 3, 3, "3 floating-point values of 32 bits"), (np.uint64, 1, 1, "values of 64 bits")])
def test_a_tiff_that_is_not_read_is_said_to_be_one_and_what_it_says_to_save_is_read(
        tmp_path, order, dtype, form, samples, words):
    values_ = np.stack([picture(0)] * samples, -1) if samples > 1 else picture(0)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_of(values_.astype(dtype), order, form))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(UserError, match=f"a TIFF with {words} a pixel is not read") as caught:
            image.examine(source, 40)
        assert "one floating-point value of 32 bits" in caught.value.message
    path.write_bytes(tiff_of(picture(0).astype(np.float32), order, 3))
    assert image.examine(path, 40, (0, 1))[1][2]


def test_what_begins_like_an_image_is_said_to_be_damaged(tmp_path):
    for start in (b"\x89PNG\r\n\x1a\n" + bytes(50), tiff_of(picture(0).astype(np.uint16), "<", 1)[:40]):
        with pytest.raises(UserError) as caught:
            image.square(start, 8)
        assert "not a JPEG" not in caught.value.message


def test_a_set_of_8_bits_has_no_range_and_old_checkpoints_stay_valid(tmp_path):
    prepared = loader.prepare(dataset(tmp_path / "d", scaled(255, np.uint8, 12)), size=32, cache_folder=tmp_path)
    assert prepared.range is None and "range" not in prepared.input()
    assert checkpoint._is_valid_input(INPUT)


@pytest.mark.parametrize("wrong", [[0], [0, 1, 2], [1, 1], [2, 1], [0, float("nan")], [0, float("inf")], "01", None,
                                   [0, "1"], [False, True], {"low": 0}, (0, 1), [0, 10 ** 400]])
def test_a_range_that_is_none_is_refused(wrong):
    assert checkpoint._is_valid_input({**INPUT, "range": [0, 1]})
    assert not checkpoint._is_valid_input({**INPUT, "range": wrong})


def test_a_teacher_of_another_range_is_refused_and_a_missing_one_means_8_bits(tmp_path):
    for name, top, dtype in (("deep", 4095, np.uint16), ("plain", 255, np.uint8)):
        data = loader.prepare(dataset(tmp_path / name, scaled(top, dtype, 12), name=name), size=32,
                              cache_folder=tmp_path / "cache")
        for limits, accepted in (([0, 4095], name == "deep"), ([0, 65535], False), (None, name == "plain")):
            content = {"input": {**INPUT, **({"range": limits} if limits else {})}}
            if accepted:
                setup.check_input(content, data.input(), "best.pt", "")
                continue
            with pytest.raises(UserError, match="best.pt was trained on another input: values of ") as caught:
                setup.check_input(content, data.input(), "best.pt", "")
            assert caught.value.hint.startswith("Train it on these images")


@pytest.mark.parametrize("recorded, used", [
    ({"range": [0, 1023]}, (0, 1023)), ({"range": [0, 4095]}, (0, 4095)), ({}, (0, 65535)), (None, (0, 65535)),
    ({"range": ["a"]}, (0, 65535))])
def test_the_images_of_a_run_are_read_as_it_was_trained(tmp_path, monkeypatch, recorded, used):
    """Older versions recorded no range, and read all as 16 bits."""
    data = dataset(tmp_path / "d", scaled(4095, np.uint16, 12))
    monkeypatch.setattr(setup, "load_data", lambda options, _: loader.prepare(
        data, size=32, cache_folder=tmp_path / "cache", range=options.get("range")))
    run = SimpleNamespace(require=lambda *_: None, options={}, folder=tmp_path, environment={"input": recorded})
    found = setup.data_of_run(run, None)
    assert tuple(found.range) == used
    assert np.array_equal(found.pixels([0])[0], image.square(data.images[found.rows[0]], 36, used))


def test_an_exported_file_whose_range_is_none_is_damaged(tmp_path):
    inputs = [SimpleNamespace(name="image", type="tensor(uint8)", shape=["N", 32, 32, 3])]
    outputs = [SimpleNamespace(name="logits", type="tensor(float)", shape=["N", 2])]
    session = SimpleNamespace(get_inputs=lambda: inputs, get_outputs=lambda: outputs)
    content = {"class_names": ["a", "b"], "temperature": None, "operating_points": [], "provenance": {}}
    for limits, wrong in (([0, 4095], []), ([4095, 0], ["input"]), ("all", ["input"])):
        assert onnx_model._wrong({**content, "input": {**INPUT, "range": limits}}, session) == wrong
    assert not onnx_model._wrong({**content, "input": INPUT}, session)


def test_the_cache_keeps_the_range_without_reading_the_images_again(tmp_path, capsys, monkeypatch):
    data = dataset(tmp_path / "d", scaled(4095, np.uint16))
    first = opened(data, tmp_path)
    lines = noted(capsys)
    monkeypatch.setattr(image, "_decoded", None)
    again = opened(data, tmp_path)
    assert again[3] == first[3] == (0, 4095) and np.array_equal(again[0], first[0]) and noted(capsys) == lines


# ---- images unlike the others

def test_several_frames_are_counted_and_the_first_is_used(tmp_path, capsys):
    first, second = (Image.fromarray((picture(k) * 255).astype(np.uint8)) for k in (0, 1))
    for suffix, several in ((".tif", True), (".gif", True), (".webp", True), (".png", True), (".jpg", False)):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        first.save(folder / f"one{suffix}")
        first.save(folder / f"two{suffix}", **({"save_all": True, "append_images": [second]} if several else {}))
        paths = sorted(folder.iterdir())
        images, *_ = opened(Dataset("d" + suffix, ["a"], paths, [path.name for path in paths], [0, 0]), tmp_path)
        expected = [f"note: 1 of 2 images has several frames or pages, of which the first is used: two{suffix}"]
        assert noted(capsys) == expected * several
        assert np.abs(images[0].astype(int) - images[1]).mean() < 5  # the second is as far as 8 from the first


def test_images_of_one_colour_are_named(tmp_path, capsys):
    arrays = scaled(255, np.uint8, 8)
    arrays[1][:], arrays[2][:], arrays[3][:] = 0, 0, 77
    arrays[4][:] = 0
    arrays[4][20, 20] = 200  # one pixel is enough not to be
    opened(dataset(tmp_path / "d", arrays), tmp_path)
    assert noted(capsys) == ["note: 3 of 8 images are of one colour, 2 of them black: 1.png, 2.png, 3.png"]
    opened(dataset(tmp_path / "black", [np.zeros((40, 40), np.uint8)] * 7, name="black"), tmp_path)
    assert noted(capsys)[1].startswith("note: 7 of 7 images are of one colour, which is black: ")


def test_a_set_that_was_cut_to_its_upper_bits_is_named(tmp_path, capsys):
    """12 bits in 16, saved as the upper 8."""
    opened(dataset(tmp_path / "d", scaled(15, np.uint8, bright=0.9)), tmp_path)
    assert noted(capsys)[0].startswith("note: the brightest pixel of all images is 14 of 255.")
    opened(dataset(tmp_path / "e", [*scaled(15, np.uint8), *scaled(255, np.uint8, 1)], name="e"), tmp_path)
    assert not noted(capsys)


def inverted(lines):
    return [line for line in lines if "inverted" in line]


@pytest.mark.parametrize("top, dtype", [(255, np.uint8), (4095, np.uint16)])
def test_inverted_greys_are_found_and_no_command_writes_over_them(tmp_path, capsys, top, dtype):
    """Of alpha, 16 bits a colour, pages and JPEG only the program that made a file can invert it without loss."""
    arrays = scaled(top, dtype, 40)
    for k in (3, 8, 21, 33):
        arrays[k] = top - arrays[k]
    data = dataset(tmp_path / "d", arrays)
    opened(data, tmp_path)
    line, = inverted(noted(capsys))
    assert line.startswith("note: 4 of 40 images look inverted, dark where most others are bright: "
                           "3.png, 8.png, 21.png, 33.png. ")
    assert "python" not in line and "export them again" in line and "MONOCHROME2" in line
    for k in (3, 8, 21, 33):
        Image.fromarray(top - arrays[k]).save(data.images[k])
    opened(data, tmp_path)
    assert not inverted(noted(capsys))


def test_a_set_that_is_inverted_as_a_whole_needs_no_word(tmp_path, capsys):
    opened(dataset(tmp_path / "d", [255 - a for a in scaled(255, np.uint8, 40)]), tmp_path)
    assert not noted(capsys)


def test_pictures_that_have_nothing_in_common_and_coloured_ones_are_not_judged(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:40, :40] - 19.5) / 20
    patterns = np.stack([x, y, 2 * x * y, x * x - y * y])  # some are the opposite of others, and none is the usual one
    mixed = [np.tensordot(weights / np.linalg.norm(weights), patterns, 1) for weights in rng.normal(size=(60, 4))]
    opened(dataset(tmp_path / "d", [(127 + 60 * pattern).astype(np.uint8) for pattern in mixed]), tmp_path)
    greys = scaled(255, np.uint8, 40)
    greys[3] = 255 - greys[3]
    coloured = [np.stack([grey, grey, grey // 2], -1) for grey in greys]
    opened(dataset(tmp_path / "e", coloured, name="e"), tmp_path)
    opened(dataset(tmp_path / "f", greys[:10], name="f"), tmp_path)  # too few to say
    assert not noted(capsys)


def test_images_without_labels_are_of_the_depth_of_the_labelled_ones(tmp_path):
    data = small.data(24, folder=tmp_path / "cache")
    more = dataset(tmp_path / "more", [*scaled(255, np.uint8, 3), *scaled(4095, np.uint16, 2)])
    with pytest.raises(UserError, match="2 of 5 images cannot be used by a network that was trained on images of 8"):
        unlabelled.prepare(more, data, cache_folder=tmp_path / "cache")
    assert len(unlabelled.prepare(more, data, cache_folder=tmp_path / "cache", skip_bad=True).rows) == 3
