"""Tables of other systems: the audit names the faults of the reference study; tables may have any form."""

import csv
import io
import re

import numpy as np
import pytest

import honest
from kd.audit import examine, other_tables
from kd.errors import UserError

# Figures of a published report (HAM10000, ResNet-50 teacher, three students), as its tables have them.
STUDENTS = EFFICIENTNET, MOBILENET, RESNET = [f"distilled_{name}_ham10000"
                                              for name in ("efficientnetb0", "mobilenetv2", "resnet18")]
CALIBRATION = f"""model,seed,accuracy,nll,brier,ece_uniform,ece_adaptive
{EFFICIENTNET},seed_0,0.810379241516966,381.732,0.379,0.1894070034969352,0.189
{MOBILENET},seed_0,0.7839321357285429,484.922,0.432,0.2160592079162597,0.216
{RESNET},seed_0,0.8517964071856288,312.122,0.296,0.1481770277023315,0.148
"""
OPERATING_POINTS = f"""model,seed,tau,macro_f1_opt
{EFFICIENTNET},seed_0,0.0,0.656
{MOBILENET},seed_0,0.0,0.541
{RESNET},seed_0,0.0,0.755
"""
ROBUSTNESS = f"""acc,macro_f1,tag,model,seed
0.810379241516966,0.656,gaussian_0.1,{EFFICIENTNET},seed_0
0.810379241516966,0.656,gaussian_0.2,{EFFICIENTNET},seed_0
0.811377245508982,0.658,gaussian_0.3,{EFFICIENTNET},seed_0
0.8158682634730539,0.663,jpeg_90,{EFFICIENTNET},seed_0
0.8133732534930139,0.654,jpeg_70,{EFFICIENTNET},seed_0
0.8158682634730539,0.659,jpeg_50,{EFFICIENTNET},seed_0
0.779441117764471,0.584,contrast_0.8,{EFFICIENTNET},seed_0
0.659181636726547,0.345,contrast_0.6,{EFFICIENTNET},seed_0
0.7839321357285429,0.541,gaussian_0.1,{MOBILENET},seed_0
0.7829341317365269,0.54,gaussian_0.2,{MOBILENET},seed_0
0.7819361277445109,0.536,gaussian_0.3,{MOBILENET},seed_0
0.7869261477045908,0.545,jpeg_90,{MOBILENET},seed_0
0.7824351297405019,0.536,jpeg_70,{MOBILENET},seed_0
0.7849301397205589,0.543,jpeg_50,{MOBILENET},seed_0
0.7604790419161677,0.483,contrast_0.8,{MOBILENET},seed_0
0.6402195608782435,0.27,contrast_0.6,{MOBILENET},seed_0
0.8517964071856288,0.755,gaussian_0.1,{RESNET},seed_0
0.8517964071856288,0.755,gaussian_0.2,{RESNET},seed_0
0.8512974051896207,0.754,gaussian_0.3,{RESNET},seed_0
0.8552894211576846,0.758,jpeg_90,{RESNET},seed_0
0.8527944111776448,0.747,jpeg_70,{RESNET},seed_0
0.8507984031936128,0.746,jpeg_50,{RESNET},seed_0
0.81187624750499,0.663,contrast_0.8,{RESNET},seed_0
0.719560878243513,0.451,contrast_0.6,{RESNET},seed_0
"""
SCALARS = r"""run,tag,last,best,best_step
student\\seed_0,calibration\\accuracy,0.8104,0.8104,0
student\\seed_0,calibration\\accuracy,0.7839,0.7839,0
student\\seed_0,calibration\\accuracy,0.8518,0.8518,0
student\\seed_0,calibration\\ece_adaptive,0.1894,0.1894,0
student\\seed_0,calibration\\ece_adaptive,0.2161,0.2161,0
student\\seed_0,calibration\\ece_adaptive,0.1482,0.1482,0
student\\seed_0,core\\macro_f1_mean,0.6558,0.6558,0
student\\seed_0,core\\macro_f1_mean,0.5411,0.5411,0
student\\seed_0,core\\macro_f1_mean,0.7545,0.7545,0
student\\seed_0,train\\loss,0.0902,0.0158,48
student\\seed_0,train\\loss,0.0761,0.0105,48
student\\seed_0,train\\loss,0.0852,0.0195,48
student\\seed_0,val\\loss,0.171,0.1048,45
student\\seed_0,val\\loss,0.1674,0.0972,45
student\\seed_0,val\\loss,0.1553,0.0964,45
student\\seed_0,val\\macro_f1,0.8945,0.8959,44
student\\seed_0,val\\macro_f1,0.8945,0.8959,44
student\\seed_0,val\\macro_f1,0.8945,0.8959,44
teacher\\runs_ham10000_resnet50,teacher\\accuracy_hi,0.9071,0.9071,0
teacher\\runs_ham10000_resnet50,teacher\\accuracy_lo,0.8797,0.8797,0
teacher\\runs_ham10000_resnet50,teacher\\accuracy_mean,0.8932,0.8932,0
teacher\\runs_ham10000_resnet50,teacher\\macro_f1_mean,0.8341,0.8341,0
teacher\\runs_ham10000_resnet50,train\\loss,0.0757,0.01,48
teacher\\runs_ham10000_resnet50,val\\loss,0.1528,0.0939,45
teacher\\runs_ham10000_resnet50,val\\macro_f1,0.9016,0.9046,43
"""
PERFORMANCE = f"""model,accuracy_mean,accuracy_lo,accuracy_hi,macro_f1_mean,macro_f1_lo,macro_f1_hi
runs_ham10000_resnet50,0.893,0.8796804792810784,0.9071392910634049,0.834,0.8041329541329876,0.8605454187329692
{EFFICIENTNET},0.81,0.7929016966067864,0.8273453093812375,0.656,0.6143198532359181,0.6924848902971202
{MOBILENET},0.784,0.7659680638722555,0.8023952095808383,0.541,0.5098655666558318,0.5691133356818394
{RESNET},0.852,0.8363273453093812,0.8672779441117764,0.755,0.7153264067221303,0.786634769600519
"""
COMPARED = "Model,Accuracy,Macro-F1\nResNet50,0.893,0.834\nResNet18,0.823,0.697\n"  # on another page of it
TABLES = {"calibration.csv": CALIBRATION, "operating_points.csv": OPERATING_POINTS, "robustness.csv": ROBUSTNESS,
          "scalars.csv": SCALARS}
PAGES = {**TABLES, "performance.csv": PERFORMANCE, "compared.csv": COMPARED,
         "notes.txt": "Class 3 (\"VASC\" in HAM10000 taxonomy) is underrepresented"}


def write(folder, tables, form=str):
    folder.mkdir(exist_ok=True)
    for name, text in tables.items():
        text = form(text)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return folder


def texts_by_rule(folder, severity=None):
    """{rule: the texts of its findings, on one line}."""
    texts = {}
    for finding in examine.audit_tables(folder):
        if severity in (None, finding["severity"]):
            texts[finding["rule"]] = f"{texts.get(finding['rule'], '')} {finding['saw']}"
    return texts


def test_the_faults_of_the_reference_report_are_named(tmp_path):
    folder = write(tmp_path / "report", PAGES)
    errors, warnings, notes = (texts_by_rule(folder, severity) for severity in examine.SEVERITIES)
    for model, wrong in zip(STUDENTS, ("0.18962", "0.21607", "0.14820")):
        assert re.search(rf"{model}/seed_0: on test 1 - accuracy is {wrong}, and ece is", errors["ece-is-error-rate"])
        assert f"{model}/seed_0: tau is 0" in errors["idle-threshold"]
    assert "nll on test is 484.9" in errors["nll-beyond-reason"]
    assert "macro-F1 with it is 0.755, without it 0.755" in errors["idle-threshold"]
    assert "gaussian_0.1 scores as the clean images to all digits in 3 of 3 models" in errors["idle-corruption"]
    assert "0.8103792415" in errors["idle-corruption"]
    assert not {"jpeg", "gaussian_0.2"} & set(re.findall(r"jpeg|gaussian_0\.2", errors["idle-corruption"]))
    assert ", ".join(f"student/seed_0 ({k} of 3)" for k in (1, 2, 3)) in errors["same-curve"]
    assert "the curve of val/macro_f1 (last 0.8945, best 0.8959 at epoch 44)" in errors["same-curve"]
    assert "loss" not in errors["same-curve"]
    assert "“class 3 (VASC)” in notes.txt" in errors["class-number"]
    assert "class 3 is df and VASC is 6" in errors["class-number"]
    assert set(errors) == {"ece-is-error-rate", "nll-beyond-reason", "idle-threshold", "idle-corruption", "same-curve",
                           "class-number"}
    assert f"{RESNET}/seed_0 has accuracy 0.823 (compared.csv) and 0.852 (performance.csv)" in warnings["two-figures"]
    assert "3 runs under the one name student/seed_0 (scalars.csv)" in warnings["run-not-found"]
    assert "nll, brier, ece, ece_equal_mass" in warnings["no-interval"]
    assert "performance.csv" not in warnings["no-interval"]
    assert "jpeg" not in warnings["idle-corruption"] and "gaussian_0.3" not in warnings["idle-corruption"]
    assert "neither blur nor noise" in notes["unclear-corruption"] and "lesions" in notes["split-not-seen"]
    assert set(warnings) == {"two-figures", "run-not-found", "no-interval", "idle-corruption"}


@pytest.mark.parametrize("name, rule", [
    ("calibration.csv", "ece-is-error-rate"), ("operating_points.csv", "idle-threshold"),
    ("robustness.csv", "unclear-corruption"), ("scalars.csv", "same-curve")])
def test_each_table_is_read_alone(tmp_path, name, rule):
    assert rule in texts_by_rule(write(tmp_path, {name: TABLES[name]}))


def rewritten(text, separator, order=1):
    rows = [row[::order] for row in csv.reader(io.StringIO(text))]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    "form",
    [
        lambda text: rewritten(text, "\t"), lambda text: rewritten(text, ";", -1),
        lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace(",", ";").replace(".", ","),
        lambda text: text.replace("\\\\", "\\"), lambda text: text.replace("\\\\", "/"),
        lambda text: text.replace("_0.1", "_.1").replace("model,", "Model ,").replace("seed_0", "0"),
    ],
    ids=["tabs", "semicolons, columns reversed", "byte order mark", "decimal commas", "backslashes", "slashes",
         "headers"],
)
def test_the_form_of_a_table_changes_nothing(tmp_path, form):
    plain = texts_by_rule(write(tmp_path / "plain", TABLES))
    other = texts_by_rule(write(tmp_path / "other", TABLES, form))
    assert plain.keys() == other.keys()


def test_a_table_in_which_nothing_is_wrong(tmp_path):
    write(tmp_path, {
        "calibration.csv": "model,seed,accuracy,nll,brier,ece_uniform,ece_adaptive,temperature\n"
                           "a,0,.8104,.6,.29,.041,.043,1.4\nb,0,.7839,.7,.33,.052,.049,1.6\n",
        "operating_points.csv": "model,seed,tau,macro_f1_opt\na,0,.31,.667\nb,0,.28,.549\n",
        "robustness.csv": "model,seed,tag,acc,macro_f1\na,0,gaussian_blur_1,.80,.64\na,0,gaussian_blur_2,.78,.62\n",
        "scalars.csv": "run,tag,last,best,best_step\n"
                       "student/a/seed_0,val/macro_f1,.65,.67,40\nstudent/b/seed_0,val/macro_f1,.53,.56,31\n"})
    assert set(texts_by_rule(tmp_path, "error")) == set()
    # warnings and notes remain: no table has intervals, a split or predictions
    assert set(texts_by_rule(tmp_path)) == {"run-not-found", "no-interval", "split-not-seen"}


def test_a_released_model_that_did_not_load_its_weights(tmp_path):
    def texts(student, teacher):
        table = f"model,accuracy\nstudent_ham10000,{student}\nteacher_ham10000,{teacher}\n"
        return texts_by_rule(write(tmp_path, {"performance.csv": table}))

    faulty = texts(student="0.055", teacher="0.67")
    assert "accuracy 0.055" in faulty["far-below-majority"] and "nv gives 0.669" in faulty["far-below-majority"]
    assert "teacher_ham10000" not in faulty["far-below-majority"]
    assert "teacher_ham10000: accuracy 0.67 is the share of nv" in faulty["accuracy-is-majority-share"]
    near_miss = texts(student="0.35", teacher="0.69")
    assert not {"far-below-majority", "accuracy-is-majority-share"} & set(near_miss)


def test_a_temperature_at_the_bound_of_a_search_is_found_without_its_bounds(tmp_path):
    texts = texts_by_rule(write(tmp_path, {"calibration.csv": "model,temperature\na,0.001\n"}))
    assert "0.001" in texts["temperature-at-bound"]
    texts = texts_by_rule(write(tmp_path, {"calibration.csv": "model,temperature,nll\na,0.6,.5\n"}))
    assert "temperature-at-bound" not in texts


def test_names_that_are_alike_are_taken_for_one_model_only_where_that_is_safe(tmp_path):
    def rules(folder, **tables):
        calibration = {"calibration.csv": "model,accuracy\ndistilled_resnet18,.85\n"}
        others = {f"{name}.csv": f"model,accuracy\n{rows}\n" for name, rows in tables.items()}
        return texts_by_rule(write(tmp_path / folder, {**calibration, **others}))

    assert "two-figures" in rules("alike", b="ResNet-18,.82")
    assert "two-figures" not in rules("in one table", b="resnet18,.82\ndistilled_resnet18,.85")
    assert "two-figures" not in rules("too short", b="net,.82")
    assert "two-figures" not in rules("of two models", b="resnet18,.82", c="resnet18_kd,.84")


GARBAGE = [b"", b"\n", b"\x00\xff\xfe", "ä;ö".encode("utf-16"), b"model\n", b"model,seed\na\n",
           b"model,seed,acc\na,b,c,d,e\n",
           b"x,y\n1,2\n", b'model,"acc\n', b"model,acc,tag\na,nan,b\na,inf,c\na,1e999,d\n", b"model,tau\na,x\n",
           b"run,tag,last,best,best_step\n,,,,\nr,t,x,y,z\n\\,\\,1,2,3\n", b"model,acc,tag\n<b>{x}%s,.5,<script>\n",
           b"model,model,acc\na,b,.5\n", b"class_id,class_name,model\n99999999999,vasc,\n"]


@pytest.mark.parametrize("name", [*other_tables.TABLES, "other.csv", "notes.md"])
def test_no_damaged_table_is_a_traceback_and_the_others_are_read(tmp_path, name):
    for garbage in GARBAGE:
        write(tmp_path, {"calibration.csv": CALIBRATION, name: garbage})
        findings = examine.audit_tables(tmp_path)
        assert all("\n" not in text for finding in findings for text in finding.values())
        if name != "calibration.csv":
            assert "ece-is-error-rate" in {finding["rule"] for finding in findings}


def test_a_table_that_lacks_its_columns_is_named(tmp_path):
    tables = {"calibration.csv": "modell,accuracy\na,.5\n", "scalars.csv": "run,tag,last\na,b,1\n"}
    texts = texts_by_rule(write(tmp_path, tables))
    assert "calibration.csv has no column model" in texts["damaged-file"]
    assert "scalars.csv has no column best, best_step" in texts["damaged-file"]


def test_a_folder_of_tables_among_runs_is_found(tmp_path):
    honest.write(tmp_path / "toy/a_kd/seed_0", *honest.pair(np.random.default_rng(0), 60), robustness=True)
    write(tmp_path / "theirs", TABLES)
    rules = {f["rule"] for f in examine.audit_paths([tmp_path])}
    assert "ece-is-error-rate" in rules and other_tables.has_tables(tmp_path / "theirs")
    assert not other_tables.has_tables(tmp_path / "toy/a_kd/seed_0")
    with pytest.raises(UserError, match="no tables in"):
        examine.audit_tables(tmp_path / "toy")
