"""The command ``explain``: counterfactuals of the user's model, and the labels that they change."""

import json
import re
import shutil
import warnings
from functools import cache
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from monai_diffae import embed, explain, load_bundle, report, sample_data, trusting
from monai_diffae.apps.synthesis import finder
from monai_diffae.apps.synthesis.shortcuts import DirectTest, pasted, sentences, summarise
from monai_diffae.apps.synthesis.users_model import ModelInterface, ScoredCase, UsersModel, checksum
from monai_diffae.cli import main
from monai_diffae.data.cases import Case
from monai_diffae.errors import ConfigError, UnsafeInputError
from monai_diffae.latents import Direction
from monai_diffae.transforms import NativeSpace

CASES = ["mni-000009", "mni-000002"]  # the first reaches .6


class Users(torch.nn.Module):
    """A model that looks at the mean of the upper half of an image, in several shapes."""

    def __init__(self, kind: str, scale: float = 20.0):
        super().__init__()
        self.kind, self.scale = kind, scale
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("variance", torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.kind == "dropout":
            image = torch.nn.functional.dropout(image, training=True)
        if self.kind == "batch":
            image = torch.nn.functional.batch_norm(image, self.mean, self.variance, training=True)
        value = self.scale * image[:, :1, : image.shape[2] // 2].mean(dim=(1, 2, 3))[:, None] + 6.0
        if self.kind == "stripes":
            return 100 * ((image[:, :, ::2] - image[:, :, 1::2]).abs().mean(dim=(1, 2, 3)) - 0.15)[:, None]
        if self.kind == "constant":
            return torch.zeros_like(value) + 1.5
        if self.kind == "nan":
            return torch.where(value > 0.9, value, value * float("nan"))
        if self.kind == "colour":
            return value + 0 * torch.nn.functional.conv2d(image, torch.ones(1, 3, 1, 1)).mean()
        return value


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")

    @cache
    def save(kind, suffix=".ts"):
        path, example = folder / f"{kind}{suffix}", torch.zeros(1, 3 if kind == "colour" else 1, 16, 16)
        network = Users(kind).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if suffix == ".onnx":
                pytest.importorskip("onnxscript", reason="is in the extra `export`")
                torch.onnx.export(network, (example,), path, dynamo=True, verbose=False)
            elif suffix == ".pt2":
                torch.export.save(torch.export.export(network, (example,)), path)
            else:
                torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)
        return path

    return save


@pytest.fixture(scope="module")
def run(labelled, tmp_path_factory):
    def call(model, **options):
        settings = {"embeddings": labelled.embeddings, "steps": 4, "num_random": 1, "labels": ["head_size"], "to": 0.6}
        settings |= {"cohort": labelled.cohort}
        settings |= {"out": tmp_path_factory.mktemp("explained"), "device": "cpu", "activation": "sigmoid"}
        settings |= {} if "limit" in options else {"cases": CASES}
        with trusting(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return explain(labelled.bundle, model=model, **settings | options)

    return call


@pytest.fixture(scope="module")
def made(run, users):
    return run(users("logit"))


@pytest.fixture(scope="module")
def table(made):
    return pd.read_csv(made.folder / "counterfactuals.csv")


def test_scores_are_those_of_the_written_images(made, table, users, labelled):
    """Native and model grid of this bundle are the same, so the user's own pipeline sees the same images."""
    trained, model = load_bundle(labelled.bundle, "cpu"), torch.jit.load(users("logit"))
    assert table["id"].tolist() == CASES
    for row in table.to_dict("records"):
        scan, image, difference = (
            nib.load(made.folder / name / f"{row['id']}.nii.gz").get_fdata()
            for name in ("scans", "images", "differences")
        )
        np.testing.assert_allclose(image - scan, difference, atol=0.51)  # the file has whole numbers
        for name, column in (("scans", "score"), ("images", "counterfactual")):
            file = str(made.folder / name / f"{row['id']}.nii.gz")
            native = trained.preprocessing({"image": file, "id": "a"})["image"].as_tensor()
            assert torch.sigmoid(model(native[None])).item() == pytest.approx(row[column], abs=1e-4)
        assert row["mse"] == pytest.approx(np.square(difference / (scan.max() - scan.min()) * 2).mean(), rel=0.2)
    assert (made.num_cases, made.num_failed, made.skipped) == (2, 0, False)
    assert table["reached"].tolist() == [True, False]
    assert (table["counterfactual"] >= table["to"]).tolist() == [True, False]
    assert made.num_reached == 1


def test_the_share_of_the_change_in_the_mask_is_that_of_the_written_difference(run, users, labelled, tmp_path):
    cohort = pd.read_csv(labelled.cohort)
    scan = nib.load(cohort.set_index("id")["image"][CASES[0]])
    mask = np.uint8(scan.get_fdata() > 0)
    mask[8:] = 0
    nib.save(nib.Nifti1Image(mask, scan.affine), tmp_path / "mask.nii.gz")
    cohort.assign(mask=np.where(cohort["id"] == CASES[0], "mask.nii.gz", None)).to_csv(tmp_path / "c.csv", index=False)
    made = run(users("logit"), cohort=tmp_path / "c.csv")
    size = np.abs(nib.load(made.folder / "differences" / f"{CASES[0]}.nii.gz").get_fdata())
    assert made.change_in_mask == pytest.approx(size[mask > 0].sum() / size.sum())


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A mask of the upper half, at which the users' model looks."""
    path = tmp_path_factory.mktemp("marker") / "marker.png"
    Image.fromarray(np.repeat(np.uint8([[1], [0]]), 2, axis=1)).save(path)
    return path


def test_the_scan_itself_is_scored_and_a_marker_pasted(run, users, labelled, marked):
    """The scans have 16 x 16 voxels, the model gets 24 x 24: it is given what is in the file."""
    made = run(users("logit"), limit=3, input_size=(24, 24), input_range=(0, 1), paste={"upper": marked})
    cohort, preprocessing = pd.read_csv(labelled.cohort), load_bundle(labelled.bundle, "cpu").preprocessing

    def score(file):
        native = NativeSpace(preprocessing, {"image": str(file), "id": "a"})
        scan = torch.from_numpy(native.to_model_range(native.scan.array))[None].clamp(-1, 1) / 2 + 0.5
        given = torch.nn.functional.interpolate(scan, (24, 24), mode="bilinear", antialias=True)
        return torch.sigmoid(Users("logit")(given)).item()

    scans = dict(zip(cohort["id"], cohort["image"], strict=True))
    for row in pd.read_csv(made.folder / "counterfactuals.csv").to_dict("records"):
        assert score(scans[row["id"]]) == pytest.approx(row["score"], abs=1e-4)
        assert score(made.folder / "images" / f"{row['id']}.nii.gz") == pytest.approx(row["counterfactual"], abs=1e-4)
    rows = pd.read_csv(made.folder / "shortcuts.csv").set_index(["label", "how"])
    assert rows.index.tolist() == [("upper", "paste"), ("head_size", "direction")]
    assert rows["num_cases"].tolist() == [12, 3]  # pasting takes all that are scored
    assert rows["num_changed"].tolist()[0] == sum(score(file) < 0.5 for file in scans.values())


def test_a_control_measures_how_far_an_image_is_on_the_way_to_the_marker(labelled):
    trained, marker = load_bundle(labelled.bundle, "cpu"), np.zeros((1, 4, 4), np.float32)
    marker[:, :2, :2] = 1
    opened = trained.open(pd.read_csv(labelled.cohort)["image"][0])
    model = UsersModel("a", lambda image: image.mean(dim=(1, 2, 3)), ModelInterface("sigmoid"), (-1.0, 1.0))
    direction, scan = Direction.from_json(json.loads(labelled.direction.read_text())), opened.native.scan.array
    target = pasted(scan, marker)
    assert (target[:, :8, :8] == scan.max()).all()
    assert np.array_equal(target[:, 8:], scan[:, 8:])
    test = DirectTest([direction], np.zeros((1, 8)), {"wide": marker})
    (row,) = test.rows(ScoredCase(opened, model), [target, (scan + target) / 2])
    assert row["control"] == pytest.approx([1.0, 0.5], abs=0.05)  # the model's range clips
    assert pasted(target, marker) is None
    with pytest.raises(ConfigError, match="nothing is left of the marker"):
        pasted(scan, np.pad(marker[:, 1:3, 1:3], ((0, 0), (1, 500), (1, 500))))


@pytest.mark.parametrize(("options", "message"), [
    ({"input_std": (0.5, 0)}, "input_std: 0"), ({"input_window": (1, 1), "input_from": "scan"}, "input_window: "),
])  # fmt: skip
def test_inputs_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        ModelInterface("sigmoid", **options)


def test_a_model_that_sees_more_than_the_bundle_is_refused(labelled, users, tmp_path):
    """Half of the scans have stripes of one pixel, of which the bundle, at half the resolution, sees nothing."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for i in range(6):
        array = np.add.outer(np.arange(32), np.arange(32)) + 60 * (np.arange(32)[:, None] % 2) * (i % 2)
        Image.fromarray(array.astype(np.uint8)).save(scans / f"scan{i}.png")
    options = {"model": users("stripes"), "embeddings": labelled.embeddings, "activation": "sigmoid", "device": "cpu"}
    with trusting(), pytest.raises(ConfigError, match="in 3 of 6 scans if it only gets what the bundle sees, 16 x 16"):
        explain(labelled.bundle, scans, tmp_path / "out", input_from="scan", **options)


def test_cases_are_balanced_over_decisions_and_labels():
    decisions, labels = [True] * 8 + [False] * 2, list("aaaaaaabab")
    cases = [Case(str(i), {}, "test", str(i), {"label": label, "age": i}) for i, label in enumerate(labels)]
    rows = finder.balanced_rows(finder.strata(cases, decisions), 4, seed=0)
    assert sorted((decisions[row], labels[row]) for row in rows) == sorted(product([True, False], "ab"))


def test_a_shortcut_is_denied_only_if_a_control_is_found():
    def told(num_flips, control):
        flips = [1.0] * num_flips + [0.0] * (20 - num_flips)
        tests = [[{"label": "marker", "how": "direction", "values": [flip, 0.0], "control": control}] for flip in flips]
        (sentence,) = sentences(summarise(tests, [0.0] * 20, 0.5, [str(i) for i in range(20)], seed=0))
        return sentence

    assert told(18, None).endswith("your model uses it, or what changes with it")
    assert "no shortcut found; a control that looks for it alone changes in 100%" in told(1, [0.9, 0.1])
    assert told(4, [0.9, 0.1]).endswith("too few scans to say more")
    assert told(0, [0.1, 0.1]).endswith("is missed, too: the bundle cannot draw it")
    assert "along marker (0 of 20): this says nothing without a control" in told(0, None)


def test_curves_begin_at_the_scan_and_contain_the_counterfactual(made, table):
    curves = pd.read_csv(made.folder / "curves.csv")
    for row in table.to_dict("records"):
        curve = curves[curves["id"] == row["id"]]
        assert curve["distance"].is_monotonic_increasing
        assert curve["score"].iloc[0] == pytest.approx(row["score"], abs=1e-6)
        assert (
            np.abs(curve[["distance", "score"]] - [row["distance"], row["counterfactual"]]).sum(axis=1) < 1e-9
        ).any()


@pytest.mark.slow
def test_other_formats_and_a_killed_run_give_the_same(run, users, table, tmp_path, monkeypatch):
    assert pd.read_csv(run(users("logit", ".pt2")).folder / "counterfactuals.csv").equals(table)
    find, calls = finder.Finder.find, []

    def killed(self, case):
        calls.append(case.opened.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return find(self, case)

    monkeypatch.setattr(finder.Finder, "find", killed)
    with pytest.raises(KeyboardInterrupt):
        run(users("logit"), out=tmp_path)
    resumed = run(users("logit"), out=tmp_path)
    assert calls == [*table["id"], table["id"][1]]
    assert pd.read_csv(resumed.folder / "counterfactuals.csv").equals(table)
    assert run(users("logit"), out=tmp_path).skipped


@pytest.mark.slow
def test_a_model_without_gradient_is_moved_in_16_components(run, users, table):
    pytest.importorskip("onnxruntime", reason="is in the extra `export`")
    found = pd.read_csv(run(users("logit", ".onnx")).folder / "counterfactuals.csv")
    np.testing.assert_allclose(found["score"], table["score"], atol=1e-5)
    assert ((found["counterfactual"] - found["score"]) * (found["to"] - found["score"]) > 0).all()


def test_what_cannot_be_reached_and_what_is_not_finite_is_named_and_counted(run, users):
    flat = run(users("constant"), to=None)
    rows = pd.read_csv(flat.folder / "counterfactuals.csv")
    assert not rows["reached"].any()
    assert rows["is_flat"].all()
    assert flat.incomplete == "2 of 2 cases did not reach the score: see counterfactuals.csv"
    assert (flat.num_reached, flat.labels, flat.distance) == (0, [], None)
    some = run(users("nan"), limit=12)
    failures = pd.read_csv(some.folder / "failures.csv")
    assert some.num_failed == len(failures) > 0
    assert some.num_cases + some.num_failed == 12
    assert failures["reason"].str.contains("not finite").all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("colour", {}, "fails with an image of 1 x 16 x 16 .*; set input_size, or set input_channels"),
        ("dropout", {}, "model: dropout.ts is in training mode; call eval"),
        ("batch", {}, "model: batch.ts is in training mode"),
        ("logit", {"to": 2.0}, "to: 2.0 is no probability between 0 and 1"),
        ("constant", {"activation": "none"}, "output_range: activation none needs it, e.g. 0,1"),
        ("logit", {"activation": None}, "activation: logit.ts has one output; set activation to sigmoid if"),
        ("logit", {"input_window": [0, 9]}, "input_window: the bundle scales its images itself"),
        ("logit", {"labels": ["patience"]}, "labels: there is no label column 'patience'"),
    ],
)
def test_what_does_not_fit_is_one_line(run, users, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        run(users(kind), **options)


@pytest.mark.parametrize("suffix", [".ts", ".pt2"])
def test_files_that_could_run_code_need_trust(labelled, users, suffix, tmp_path):
    with pytest.raises(UnsafeInputError, match=r"is not trusted to use a (TorchScript|pt2) file; .* Add --trust"):
        explain(
            labelled.bundle, labelled.cohort, tmp_path, model=users("logit", suffix), embeddings=labelled.embeddings
        )


def test_the_users_model_gets_its_size_range_and_channels(users, labelled):
    seen = []

    def look(image):
        seen.append(image)
        return image.mean(dim=(1, 2, 3))

    interface = ModelInterface(
        "sigmoid", input_size=(32, 24), input_mean=(0.5, 0, 0.5), input_std=[2], input_channels=3
    )
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    UsersModel("a", look, interface, (-1.0, 1.0)).values(images)
    assert [tuple(each.shape) for each in seen] == 2 * [(1, 3, 32, 24)]
    assert seen[0][:, 1].mean().item() == pytest.approx((images[0].mean().item() + 1) / 4, abs=0.02)
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])
    torch.testing.assert_close(seen[0][:, 0], seen[0][:, 1] - 0.25)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        ([[0.4, 0.6]], {}, "look like probabilities"),
        ([[3500.0]], {}, "a has one output; set activation to sigmoid if it is a logit, else to none"),
        ([[0.2, 3.0]], {"activation": "sigmoid"}, "output_index: a has 2 outputs; choose one"),
        ([[0.2, 3.0]], {"output_index": 2}, "output_index: a has 2 outputs; choose one"),
        ([[0.2]], {"activation": "softmax"}, "activation: a has one output"),
    ],
)
def test_outputs_of_another_meaning_are_refused(outputs, options, message):
    """One image without a finite output does not hide the others."""
    images, few = torch.rand(2, 1, 4, 4), torch.tensor(outputs)
    model = UsersModel(
        "a", lambda image: few * (1 if image.mean() > -0.9 else torch.nan), ModelInterface(**options), (-1, 1)
    )
    images[1] = -1
    with pytest.raises(ConfigError, match=message):
        model.checked(images.split(1))


def test_the_second_output_of_a_softmax_is_its_logit():
    logits = torch.tensor([[0.3, -1.2, 2.0]])
    model = UsersModel("a", lambda _: logits, ModelInterface(output_index=1), (-1, 1))
    expected = torch.logit(logits.softmax(dim=1)[0, 1])
    assert model.values(torch.zeros(1, 1, 4, 4)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path):
    """Else a classifier that was trained again would get the results of the one before."""
    (tmp_path / "a.onnx").write_text("graph, weights.bin")
    (tmp_path / "weights.bin").write_text("weights")
    before = checksum(tmp_path / "a.onnx")
    (tmp_path / "other.bin").write_text("of another")
    assert checksum(tmp_path / "a.onnx") == before
    (tmp_path / "weights.bin").write_text("others")
    assert checksum(tmp_path / "a.onnx") != before


@pytest.mark.slow
def test_the_page_runs_and_a_report_shows_its_result(labelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "explain.md").read_text(encoding="utf-8")
    plant, train = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    sample_data("virtual", num_patients=30, size=16)
    exec(compile(plant, "plant", "exec"), {})
    shutil.copytree(labelled.bundle, "my_model")
    embed("my_model", "virtual/marked.csv", "embedded", device="cpu")
    exec(compile(train.replace("range(300)", "range(20)"), "train", "exec"), {})
    (line,) = re.findall(r"monai-diffae (--trust explain .*)", page)
    words = line.replace("--limit 20", "--limit 2 --steps 4 --num-random 1 --device cpu").split()
    monkeypatch.setattr("sys.argv", ["monai-diffae", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, 3)
    assert pd.read_csv("explained/counterfactuals.csv")["score"].between(0, 1).all()
    reported = report("my_model", "reported", explained=["explained"], device="cpu")
    assert "What a classifier looks at" in reported.page.read_text()
    with pytest.raises(ConfigError, match="explained: embedded holds no complete result of monai-diffae explain"):
        report("my_model", "again", explained=["embedded"])


@pytest.mark.slow
def test_labels_that_an_encoder_cannot_see_are_named(run, users, monkeypatch):
    monkeypatch.setattr("monai_diffae.apps.session.Session.encoder_sees_decoded_images", False)
    found = run(users("logit"), limit=1)
    assert found.labels == []
    assert found.omitted_labels == {"head_size": "the encoder sees image, which a counterfactual does not change"}


@pytest.mark.slow
def test_the_search_uses_the_fast_decoder_and_the_exact_one_checks(fast_bundle, labelled, run, users, tmp_path):
    embedded = embed(fast_bundle, labelled.cohort, tmp_path / "embedded", device="cpu").path
    with trusting():
        made = explain(
            fast_bundle, labelled.cohort, tmp_path / "out", model=users("logit"), embeddings=embedded, limit=1, steps=4,
            num_random=1, labels=["head_size"], activation="sigmoid", device="cpu",
        )  # fmt: skip
    assert json.loads((made.folder / "record.json").read_text())["made_from"]["searched_with"]
    row = pd.read_csv(made.folder / "counterfactuals.csv").iloc[0]
    assert row["search_score"] != row["exact_score"]
    with trusting(), pytest.raises(ConfigError, match="decoder: the exact decoder checks what is found; omit it"):
        explain(fast_bundle, labelled.cohort, tmp_path, model=users("logit"), embeddings=embedded, decoder="fast")
