"""A table with classes and a folder of images: columns are found or asked for, and nothing is lost without a word."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

import registry
from kd import image_files
from kd.data import cache, loader, table
from kd.errors import UserError


def pictures(root, names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (9, 12, 3)).astype(np.uint8)).save(root / name, "PNG")
    return root


def write(path, rows, separator=",", encoding="utf-8"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader(), writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def make(path, plugin="csv", **options):
    return registry.create("dataset", plugin, path, **options)


def refused(path, plugin="csv", **options):
    with pytest.raises(UserError) as caught:
        make(path, plugin, **options)
    assert "\n" not in caught.value.message
    return f"{caught.value.message} | {caught.value.hint}"


NAMES = [f"i{k}" for k in range(6)]
ROWS = [{"image_id": name, "dx": "nv" if k % 2 else "mel", "lesion_id": f"L{k // 2}"} for k, name in enumerate(NAMES)]


@pytest.mark.parametrize("separator, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16"), ("|", "utf-8")])
@pytest.mark.parametrize("cell", ["{}", "{}.png", "{}.jpg", "images/{}.png", ".\\images\\{}.png",
                                  "/home/x/images/{}.png", "C:\\data\\images\\{}.png", "{}.PNG"])
def test_ids_paths_and_names_find_their_images(tmp_path, separator, encoding, cell, capsys):
    pictures(tmp_path, [f"images/{name}.png" for name in NAMES])
    rows = [{**row, "image_id": cell.format(row["image_id"])} for row in ROWS]
    path = write(tmp_path / "t.csv", rows, separator, encoding)
    data = make(path)
    assert [source.stem for source in data.images] == NAMES and data.class_names == ["mel", "nv"]
    assert data.labels.tolist() == [0, 1] * 3 and data.split is None
    assert data.groups == ["L0", "L0", "L1", "L1", "L2", "L2"]
    assert "columns of t.csv: images image_id, label dx, group lesion_id" in capsys.readouterr().out


def test_named_columns_a_folder_elsewhere_and_splits(tmp_path, capsys):
    pictures(tmp_path / "pictures", [f"{name}.png" for name in NAMES])
    rows = [{"nr": row["image_id"], "what": row["dx"], "who": row["lesion_id"], "use": use}
            for row, use in zip(ROWS, ["Training", "train", "dev", "valid", "TEST", "testing"])]
    path = write(tmp_path / "tables" / "t.tsv", rows, "\t")
    named = dict(images="nr", label="what", group="who", split="use", folder=str(tmp_path / "pictures"))
    data = make(path, **named)
    assert data.split == ["train", "train", "val", "val", "test", "test"] and data.groups[0] == "L0"
    assert capsys.readouterr().out == ""
    assert "has no column whom for the groups | did you mean who?" in refused(path, **{**named, "group": "whom"})
    assert "which column has the classes? | Say it with label=COLUMN" in refused(
        path, images="nr", folder=named["folder"])
    assert "use has 'x', and a split is train, val or test" in refused(
        write(path, [{**row, "use": "x"} for row in rows], "\t"), **named)


def test_a_column_a_class(tmp_path, capsys):
    pictures(tmp_path, [f"{name}.png" for name in NAMES])
    rows = [{"image": row["image_id"], "MEL": float(row["dx"] == "mel"), "NV": float(row["dx"] == "nv"), "UNK": "0.0"}
            for row in ROWS]
    data = make(write(tmp_path / "t.csv", rows))
    assert data.class_names == ["MEL", "NV"] and data.labels.tolist() == [0, 1] * 3
    assert "no row is of the class UNK, which is left out" in capsys.readouterr().out
    assert make(tmp_path / "t.csv", label="MEL+NV").labels.tolist() == [0, 1] * 3
    rows[0].update(MEL=0)
    assert len(make(write(tmp_path / "t.csv", rows)).ids) == 5
    assert "1 rows have no class in MEL+NV+UNK and are left out (row 2)" in capsys.readouterr().out
    rows[0].update(MEL=1, NV=1)
    assert "1 of 6 rows have several classes at once (multi-label)" in refused(
        write(tmp_path / "t.csv", rows), label="MEL+NV")
    rows[0].update(MEL=0.3, NV=0.7)
    assert "hold other things than 0 and 1" in refused(write(tmp_path / "t.csv", rows), label="MEL+NV")


def test_what_matches_no_image_and_what_no_row_names_is_counted_and_named(tmp_path, capsys):
    pictures(tmp_path, [f"{name}.png" for name in (*NAMES[1:], "more", "another")])
    (tmp_path / "scan.dcm").write_bytes(b"")
    rows = [*ROWS, {"image_id": "", "dx": "nv", "lesion_id": "L9"}, {"image_id": "i1", "dx": "nv", "lesion_id": "L0"}]
    data = make(write(tmp_path / "t.csv", rows))
    out = capsys.readouterr().out
    assert "1 rows have no image in image_id and are left out (row 8)" in out
    assert "2 images below" in out and "in no row and are left out: another.png, more.png" in out
    assert "1 rows name an image again and say the same" in out
    with pytest.raises(UserError, match=r"1 of 6 images cannot be used: i0 \(no such file\)"):
        cache.open_cache(data, 8, folder=tmp_path / "cache")
    data.groups = None
    splits = write(tmp_path / "s.csv", [{"id": name, "split": split} for name, split in zip(
        NAMES, ["train", "train", "train", "val", "test", "test"])])
    ready = loader.prepare(data, size=8, split_file=splits, cache_folder=tmp_path / "cache", skip_bad=True)
    assert ready.ids.tolist() == NAMES[1:] and ready.skipped == ["i0"]
    rows[-1]["dx"] = "mel"
    assert "i1 is there twice with other classes: nv and mel (rows 3 and 9)" in refused(write(tmp_path / "t.csv", rows))
    assert "none of the 1 images of u.csv is below" in refused(write(tmp_path / "u.csv", [
        {"image_id": "x", "dx": "a", "lesion_id": "L"}]), label="dx")


def test_one_image_in_two_places_is_one_if_the_bytes_are(tmp_path, capsys):
    pictures(tmp_path, [f"a/{name}.png" for name in NAMES])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "i0.PNG").write_bytes((tmp_path / "a" / "i0.png").read_bytes())
    (tmp_path / "b" / "i1.png").write_bytes((tmp_path / "a" / "i2.png").read_bytes())
    data = make(write(tmp_path / "t.csv", ROWS))
    assert data.images[0].is_file() and "1 images are there several times, byte by byte" in capsys.readouterr().out
    assert data.images[1].message == "there twice: a/i1.png and b/i1.png"
    data = make(write(tmp_path / "t.csv", [{**row, "image_id": f"b/{row['image_id']}"} for row in ROWS]))
    assert data.images[1] == tmp_path / "b" / "i1.png"  # a folder in the cell decides


def test_groups_of_patients_and_lesions_are_joined(tmp_path):
    pictures(tmp_path, [f"{name}.png" for name in NAMES])
    groups = [("p1", "a"), ("", "a"), ("p1", "b"), ("p2", "c"), ("", ""), ("p3", "")]
    rows = [{**row, "patient_id": p, "lesion_id": lesion} for row, (p, lesion) in zip(ROWS, groups)]
    a, b, c, d, e, f = make(write(tmp_path / "t.csv", rows)).groups
    assert a == b == c and len({a, d, e, f}) == 4


def test_a_column_of_few_values_is_not_taken_for_patients(tmp_path, capsys):
    names = [f"n{k}" for k in range(24)]
    pictures(tmp_path, [f"{name}.png" for name in names])
    path = write(tmp_path / "t.csv", [{"id": name, "label": "ab"[k % 2], "group": "xy"[k // 12]}
                                      for k, name in enumerate(names)])
    assert make(path).groups is None
    assert "group has 2 values only and is not used as groups" in capsys.readouterr().out
    assert set(make(path, group="group").groups) == {"x", "y"}


def test_columns_in_doubt_are_asked_for_and_the_answer_is_taken(tmp_path):
    pictures(tmp_path, [f"{name}.png" for name in NAMES])
    rows = [{"isic_id": name, "diagnosis_1": "Benign" if k % 2 else "Malignant", "diagnosis_3": f"d{k % 3}"}
            for k, name in enumerate(NAMES)]
    path = write(tmp_path / "metadata.csv", rows)
    error = refused(path)
    assert "several columns of classes: diagnosis_1 (2 classes), diagnosis_3 (3 classes)" in error
    assert error.endswith("as in --data csv,label=diagnosis_1") and make(path, label="diagnosis_1").class_names == [
        "Benign", "Malignant"]
    same = [{**row, "target": int(row["diagnosis_1"] == "Benign")} for row in rows]  # two names of one thing: no doubt
    assert len(make(write(path, [{key: row[key] for key in ("isic_id", "target", "diagnosis_1")} for row in same])
                    ).class_names) == 2
    assert "too many for classes" in refused(write(path, [{"id": f"i{k}", "y": k / 7, "age": k} for k in range(60)]),
                                             label="y", folder=str(tmp_path))


def test_class_numbers_are_in_order_and_names_that_differ_in_case_are_refused(tmp_path):
    names = [f"n{k}" for k in range(12)]
    pictures(tmp_path, [f"{name}.png" for name in names])
    path = write(tmp_path / "t.csv", [{"id": name, "label": f"{k % 12}.0"} for k, name in enumerate(names)])
    assert make(path).class_names == [str(k) for k in range(12)]
    write(path, [{"id": name, "label": "Nevus" if k % 2 else "nevus"} for k, name in enumerate(names)])
    assert "the classes Nevus and nevus differ only in capitals" in refused(path)
    write(path, [{"id": name, "label": "nevus"} for name in names])
    assert "all rows have the class nevus" in refused(path) and make(path, testing=True).class_names == ["nevus"]


def test_tables_that_are_none(tmp_path):
    (tmp_path / "t.csv").write_text("image,dx\n")
    assert "has no rows" in refused(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").write_bytes(b"PK\3\4")
    assert "is a workbook of a spreadsheet program" in refused(tmp_path / "t.xlsx")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t.csv").write_bytes(b"PK\3\4")
    assert "is a workbook of a spreadsheet program under another name" in refused(tmp_path / "x" / "t.csv")
    assert "csv needs the table" in refused(None) and "no such file" in refused(tmp_path / "absent.csv")
    (tmp_path / "u.csv").write_text("")
    assert "has 2 tables: t.csv, u.csv" in refused(tmp_path)


def test_several_classes_in_a_cell_are_named_as_such_and_commas_in_a_name_are_none(tmp_path):
    pictures(tmp_path, [f"{name}.png" for name in NAMES])
    for cells, several in ((["Mass|Nodule", "Effusion"], "Mass|Nodule"), (["a;b", "a", "b"], "a;b"),
                           (["['nv', 'mel']", "['nv']"], "['nv', 'mel']"), (["normal, benign", "malignant"], "")):
        rows = [{"image": name, "label": cells[k % len(cells)]} for k, name in enumerate(NAMES)]
        write(tmp_path / "t.csv", rows)
        if several:
            assert f"label has several classes at once (a multi-label set): {several}" in refused(tmp_path / "t.csv")
        else:
            assert make(tmp_path / "t.csv").class_names == ["malignant", "normal, benign"]


def test_ids_with_dots_are_ids_of_their_own_and_lists_of_one_name_are_names(tmp_path):
    pictures(tmp_path, ["p0.png", "1.2.3.png"])
    rows = [{"image": name, "label": f"['{label}']"} for name, label in (("p0.1", "a"), ("p0.2", "b"), ("1.2.3", "a"))]
    data = make(write(tmp_path / "t.csv", rows))
    assert data.class_names == ["a", "b"] and [isinstance(image, UserError) for image in data.images] == [
        True, True, False]


def test_what_spreadsheet_programs_do_to_ids_and_letters(tmp_path, capsys):
    pictures(tmp_path / "pictures", [f"{k:04d}.png" for k in range(6)])
    rows = [{"Nr": k, "Befund": "N\u00e4vus" if k % 2 else "Melanom"} for k in range(6)]
    path = write(tmp_path / "t.csv", rows, ";", "cp1252")
    data = make(path, images="Nr", label="Befund")
    assert data.class_names == ["Melanom", "N\u00e4vus"]
    assert [image.stem for image in data.images][:2] == ["0000", "0001"]
    out = capsys.readouterr().out
    assert "its text is not UTF-8 and is read as Windows-1252" in out
    assert "6 ids are found as numbers, such as 0 as pictures/0000.png" in out
    path.write_bytes(b"sep=;\n" + path.read_bytes().replace(b"1;", b"1.0;"))
    assert [image.stem for image in make(path, images="Nr", label="Befund").images][:2] == ["0000", "0001"]
    pictures(tmp_path / "pictures", ["00001.png"])  # now 1 could be two files
    assert make(path, images="Nr", label="Befund").images[1].message.startswith("there twice: ")


# ISIC


CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def challenge(root, split="Training", first=0, more=()):
    names = [f"ISIC_{first + k:07d}" for k in range(14)]
    pictures(root, [f"ISIC2018_Task3_{split}_Input/{name}.jpg" for name in names])
    folder = root / f"ISIC2018_Task3_{split}_GroundTruth"
    write(folder / f"{folder.name}.csv", [{"image": name, **{c: float(c == CLASSES[k % 7]) for c in (*CLASSES, *more)}}
                                          for k, name in enumerate(names)])
    (root / f"ISIC2018_Task3_{split}_Input" / "LICENSE.txt").write_text("")
    return names


def test_the_challenge_of_2018_with_its_lesions_and_its_splits(tmp_path, capsys):
    names = challenge(tmp_path)
    data = make(tmp_path, "isic")
    assert data.ids == names and data.class_names == sorted(CLASSES) and data.groups is None and data.split is None
    write(tmp_path / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_LesionGroupings.csv",
          [{"image": name, "lesion_id": f"HAM_{k // 2}", "diagnosis_confirm_type": "histopathology"}
           for k, name in enumerate(names)])
    assert make(tmp_path, "isic").groups[:3] == ["HAM_0", "HAM_0", "HAM_1"]
    for k, split in enumerate(("Validation", "Test")):
        challenge(tmp_path, split, 100 * (k + 1))
    data = make(tmp_path, "isic")
    assert [data.split.count(split) for split in ("train", "val", "test")] == [14, 14, 14]
    assert {(image.parent.name.split("_")[2], split) for image, split in zip(data.images, data.split)} == {
        ("Training", "train"), ("Validation", "val"), ("Test", "test")}


def test_the_challenges_of_2019_and_2020(tmp_path):
    names = [f"ISIC_{k:07d}" + "_downsampled" * (k % 2) for k in range(16)]
    pictures(tmp_path / "2019", [f"ISIC_2019_Training_Input/{name}.jpg" for name in names])
    write(tmp_path / "2019" / "ISIC_2019_Training_GroundTruth.csv", [
        {"image": name, **{c: float(k % 8 == j) for j, c in enumerate("MEL NV BCC AK BKL DF VASC SCC".split())},
         "UNK": 0.0} for k, name in enumerate(names)])
    write(tmp_path / "2019" / "ISIC_2019_Training_Metadata.csv", [
        {"image": name, "age_approx": 40, "sex": "male", "lesion_id": f"BCN_{k // 4}"} for k, name in enumerate(names)])
    data = make(tmp_path / "2019", "isic")
    assert len(data.class_names) == 8 and len(set(data.groups)) == 4

    pictures(tmp_path / "2020", [f"train/{name}.jpg" for name in names])
    rows = [{"image_name": name, "patient_id": f"IP_{k // 3}", "diagnosis": "melanoma" if k % 4 == 0 else f"x{k % 3}",
             "benign_malignant": "malignant" if k % 4 == 0 else "benign", "target": int(k % 4 == 0)}
            for k, name in enumerate(names)]
    write(tmp_path / "2020" / "ISIC_2020_Training_GroundTruth.csv", rows)
    write(tmp_path / "2020" / "ISIC_2020_Training_GroundTruth_v2.csv", [{**row, "lesion_id": "x"} for row in rows])
    data = make(tmp_path / "2020", "isic")
    assert data.class_names == ["benign", "malignant"] and data.labels.sum() == 4 and len(set(data.groups)) == 1


def test_isic_says_what_it_misses(tmp_path):
    assert "no table of ISIC below" in refused(tmp_path, "isic")
    challenge(tmp_path / "a")
    write(tmp_path / "a" / "mine.csv", [{"image": "ISIC_0000000", "diagnosis": "x"}, {"image": "b", "diagnosis": "y"}])
    error = refused(tmp_path / "a", "isic")
    assert "has several tables with classes" in error and "Read one of them: --data csv,folder=" in error


@pytest.mark.parametrize("place", [".", "x/..", "../here", "./"])
def test_a_table_in_the_working_folder(tmp_path, monkeypatch, place):
    pictures(tmp_path / "here", [f"{name}.png" for name in NAMES])
    (tmp_path / "here" / "x").mkdir()
    write(tmp_path / "here" / "t.csv", [{**row, "image_id": f"./{row['image_id']}.png"} for row in ROWS])
    monkeypatch.chdir(tmp_path / "here")
    assert all(path.is_file() for path in make(f"{place}/t.csv").images)


def test_the_finder_prefers_the_exact_name(tmp_path):
    pictures(tmp_path, ["a/1.png", "b/1.jpg", "b/1.png"])
    finder = table.Finder(tmp_path, image_files.find(tmp_path)[0])
    assert finder.find("b/1.jpg") == tmp_path / "b" / "1.jpg" and finder.find("1.jpg") == tmp_path / "b" / "1.jpg"
    assert finder.find("x/b/1.png") == tmp_path / "b" / "1.png" and isinstance(finder.find("1"), UserError)
    assert finder.find("").message == "no such file"


def test_a_folder_is_found_from_the_working_directory_and_from_the_table(tmp_path, monkeypatch):
    for place in ("flat", "tables"):
        (tmp_path / place).mkdir()
    for k in range(6):
        Image.new("RGB", (9, 9), (40 * k, 0, 0)).save(tmp_path / "flat" / f"{k}.png")
    path = tmp_path / "tables" / "x.csv"
    path.write_text("image,label\n" + "".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(6)), encoding="utf-8")
    for here, folder in ((tmp_path, "flat"), (tmp_path / "flat", "../flat"), ("/", "../flat"),
                         ("/", tmp_path / "flat")):
        monkeypatch.chdir(here)
        found = registry.create("dataset", "csv", path, folder=str(folder))
        assert len(found.images) == 6
    with pytest.raises(UserError, match="no such folder: nowhere, neither in .* nor in the table's, .*tables"):
        registry.create("dataset", "csv", path, folder="nowhere")
