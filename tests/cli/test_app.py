"""The command line: the main path on the miniature; one clear message and exit code 2 for bad input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from diffugen.dataset.yolo import write_yolo
from diffugen.miniature.measure import WEIGHTS
from diffugen.miniature.scenes import CLASSES as SCENE_CLASSES
from diffugen.miniature.sets import exact_instances, scene_set
from diffugen.run.store import RunStore
from tests.support.command_line import run

FAST = ("--set", "diffusion.num_inference_steps=2", "--set", "prompts.count=3")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def test_main_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "generate", *FAST) == 0
    assert run(monkeypatch, "label", *FAST) == 0
    assert "3 images" in capsys.readouterr().out
    with RunStore.open("runs/miniature", readonly=True) as store:
        ids = list(store.image_ids())
        assert len(ids) == 3
        pixels = {image_id: store.image(image_id) for image_id in ids}
        assert [len(list(store.labels("attention", image_id=image_id))) for image_id in ids] == [1, 1, 1]
    sheet = Path("runs/miniature/contact-sheet.png")
    assert sheet.stat().st_size > 10_000
    assert run(monkeypatch, "generate", *FAST) == 0
    with RunStore.open("runs/miniature", readonly=True) as store:
        assert list(store.image_ids()) == ids
        assert all(np.array_equal(store.image(image_id), pixels[image_id]) for image_id in ids)
    assert run(monkeypatch, "status") == 0
    assert re.search(r"0 +3 .*attention 3", capsys.readouterr().out)


def test_labels_of_different_settings_are_kept_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "generate", *FAST) == 0
    assert run(monkeypatch, "label", *FAST) == 0
    assert run(monkeypatch, "label", *FAST, "--set", "labels.method=paper") == 0
    with RunStore.open("runs/miniature", readonly=True) as store:
        assert len({labels.method for labels in store.labels("attention")}) == 2
        assert len(list(store.labels("attention"))) == 6


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown key": (
        ("generate", "--set", "prompts.cuont=3"),
        r"prompts\.cuont.*prompts\.count|did you mean.*count",
    ),
    "wrong type": (("generate", "--set", "seed=many"), r"seed.*many"),
    "out of range": (("generate", "--set", "labels.threshold=3"), r"labels\.threshold.*3"),
    "two mistakes": (("generate", "--set", "seed=many", "--set", "labels.method=papr"), r"2 mistakes"),
    "no value": (("generate", "--set", "seed"), r"seed"),
    "missing file": (("generate", "nope.yaml"), r"nope\.yaml"),
    "unknown config": (("generate", "miniatur"), r"miniature"),
    "empty prompts": (("generate", "--set", "prompts.templates=[]"), r"prompts\.templates"),
    "unknown field": (("prompts", "--set", "prompts.templates=['a {clour} {piano}']"), r"clour"),
    "no class named": (
        ("prompts", "--set", "prompts.templates=['a road']", "--set", "prompts.attributes={}"),
        r"'a road'.*class",
    ),
    "missing model": (("generate", "--set", "diffusion.model=./no-such-model"), r"no-such-model"),
    "odd size": (("generate", *FAST, "--set", "diffusion.size_wh=[30,30]"), r"30"),
    "unknown scheduler": (("generate", *FAST, "--set", "diffusion.scheduler=DDIMM"), r"DDIMScheduler"),
    "no run": (("status", "runs/nothing"), r"runs/nothing"),
    "label without run": (("label", "--run", "runs/nothing"), r"runs/nothing"),
    "show unknown": (("configs", "show", "minature"), r"miniature"),
    "unknown scenes": (("miniature", "render", "pianos"), r"piano-on-road"),
    "unknown recipe": (("miniature", "train", "--recipe", "tpu"), r"cpu, gpu"),
    "unknown stage": (("miniature", "train", "--stage", "unet"), r"autoencoder"),
    "bootstrap: unknown key": (("bootstrap", "--set", "loop.round=3"), r"loop\.round.*rounds"),
    "bootstrap: thresholds crossed": (
        ("bootstrap", "--set", "disagreement.good_iou=0.05"),
        r"good_iou.*min_iou",
    ),
    "bootstrap: unknown review": (
        ("bootstrap", "--review", "fiftytwo"),
        r"--review: review.mode = .fiftytwo.: expected 'none', 'static', 'serve' or 'fiftyone', "
        r"did you mean 'fiftyone'",
    ),
    "bootstrap: no truth there": (
        ("bootstrap", "--set", "loop.truth=./nothing"),
        r"\./nothing.*piano-on-road",
    ),
    "bootstrap: truth of other classes": (
        (
            "bootstrap",
            "--set",
            "prompts.classes={harp: [piano]}",
            "--set",
            "prompts.templates=['a {harp} on a road']",
            "--set",
            "prompts.attributes={}",
        ),
        r"piano-among.*harp.*traffic cone",
    ),
    "improve: nothing to start from": (
        (
            "improve",
            "--set",
            "prompts.classes={piano: [piano]}",
            "--set",
            "prompts.templates=['a {piano} on a road']",
            "--set",
            "prompts.attributes={}",
            "--set",
            "labels.source=attention",
        ),
        r"knows none of the classes piano.*--known",
    ),
    "improve: no such dataset": (("improve", "--known", "./nothing"), r"\./nothing"),
    "improve: no such checkpoint": (("improve", "--checkpoint", "./best.pt"), r"no checkpoint at best\.pt"),
    "relabel without run": (("relabel", "--run", "runs/nothing"), r"runs/nothing"),
    "compare without run": (("compare", "--run", "runs/nothing"), r"runs/nothing"),
    "review without run": (("review", "--run", "runs/nothing"), r"runs/nothing"),
    "tune without run": (("tune", "--run", "runs/nothing"), r"runs/nothing"),
    "train without run": (("train", "--run", "runs/nothing"), r"runs/nothing"),
    "evaluate without run": (("evaluate", "--run", "runs/nothing"), r"runs/nothing"),
    "report without run": (("report", "--run", "runs/nothing"), r"runs/nothing"),
    "export without run": (("export", "runs/nothing"), r"runs/nothing"),
    "export: unknown format": (("export", "runs/nothing", "--format", "voc"), r"yolo-seg, coco"),
    "unknown loop": (("loops", "run", "bootstrp"), r"bootstrap, improve, review"),
    "copy unknown loop": (("loops", "copy", "bootstrp"), r"bootstrap, improve, review"),
    "no oracle": (("miniature", "measure", "--weights", "."), r"oracle"),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input(
    arguments: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert re.search(expected, errors), errors
    assert "Traceback" not in errors
    assert not list(Path().rglob("*.png")), "the failed command left pictures behind"


def test_phrase_beyond_the_token_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a road " * 45 + "and a {piano}"
    assert (
        run(
            monkeypatch,
            "generate",
            *FAST,
            "--set",
            f"prompts.templates=['{long}']",
            "--set",
            "prompts.classes={piano: [piano]}",
            "--set",
            "prompts.attributes={}",
        )
        == 2
    )
    errors = capsys.readouterr().err
    assert re.search(r"'piano' lies beyond the token limit.*first 76 of its 9\d tokens", errors), errors
    assert "Traceback" not in errors


def test_unreadable_model_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(WEIGHTS / "diffusion", "model")
    weights = next(Path("model/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(monkeypatch, "generate", *FAST, "--set", "diffusion.model=./model") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and "model" in errors and "Traceback" not in errors


def test_corrupt_ledger_is_reported_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/miniature").mkdir(parents=True)
    ledger = Path("runs/miniature/ledger.sqlite")
    ledger.write_bytes(b"this is no database, but somebody's work" * 200)
    before = ledger.read_bytes()
    for command in (("generate", *FAST), ("label",), ("status",)):
        assert run(monkeypatch, *command) == 2
        assert "ledger.sqlite" in capsys.readouterr().err
        assert ledger.read_bytes() == before


def test_run_locked_by_another_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunStore.create_or_open("runs/miniature", config=None):
        assert run(monkeypatch, "generate", *FAST) == 2
        assert "runs/miniature" in capsys.readouterr().err
        assert run(monkeypatch, "status") == 0


def test_a_different_configuration_is_refused_and_its_keys_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "generate", *FAST) == 0
    assert run(monkeypatch, "generate", *FAST, "--set", "seed=5") == 2
    assert "seed" in capsys.readouterr().err
    assert run(monkeypatch, "generate", *FAST, "--set", "diffusion.batch_size=2") == 0


def test_a_run_continues_with_its_own_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "generate", *FAST) == 0
    assert run(monkeypatch, "generate") == 0
    assert "3 images" in capsys.readouterr().out
    assert run(monkeypatch, "bootstrap", "--set", "dataset.val_frac=0.4") == 2
    assert "dataset.val_frac" in capsys.readouterr().err, "prompts would move between training and validation"


def test_an_empty_run_takes_a_corrected_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "generate", *FAST, "--set", "diffusion.scheduler=DDIMM", "--set", "seed=5") == 2
    capsys.readouterr()
    assert run(monkeypatch, "generate", *FAST) == 0, capsys.readouterr().err
    with RunStore.open("runs/miniature", readonly=True) as store:
        assert store.config is not None
        assert (store.config["seed"], store.config["diffusion"]["scheduler"]) == (0, None)
        ids = list(store.image_ids())
    assert run(monkeypatch, "generate", *FAST, "--set", "seed=5") == 2, "it is no longer empty"
    assert run(monkeypatch, "generate") == 0
    with RunStore.open("runs/miniature", readonly=True) as store:
        assert list(store.image_ids()) == ids

    wrong = ("--set", "diffusion.model=./nothing", "--run", "named")
    assert run(monkeypatch, "generate", *FAST, *wrong) == 2
    capsys.readouterr()
    assert run(monkeypatch, "generate", "--run", "named") == 2, "a run that is named keeps its configuration"
    assert "./nothing" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "--run", "named", "--set", "diffusion.model=miniature") == 0
    with RunStore.open("named", readonly=True) as store:
        assert len(list(store.image_ids())) == 3


def test_a_detector_is_measured_without_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classes are the detector's, or those of a named configuration, but never those of another run."""
    items = [
        (f"scene-{number}", drawn.rgb, exact_instances(drawn))
        for number, drawn in enumerate(scene_set("streets", 6, (96, 64), start=500))
    ]
    write_yolo(Path("photos"), {"train": items}, SCENE_CLASSES)
    given = ("--checkpoint", "miniature", "--truth", "photos")
    measured = re.compile(r"^miniature on 6 images of photos/val: mask AP50 1\.000, ", re.M)
    assert run(monkeypatch, "evaluate", *given) == 0
    said = capsys.readouterr().out
    assert measured.search(said) and re.search(
        r"^loop\.truth: photos/val: 6 images; objects: car ", said, re.M
    )
    assert list(Path().iterdir()) == [Path("photos")], "it left a run behind"

    classes = ("prompts.classes={harp: [harp]}", "prompts.templates=['a {harp}']", "prompts.attributes={}")
    harps = [part for one in (*classes, "labels.source=attention") for part in ("--set", one)]
    assert run(monkeypatch, "evaluate", "miniature", *harps, *given) == 2
    assert re.search(r"photos/val labels none of.*'harp'", capsys.readouterr().err)
    RunStore.create_or_open("runs/miniature", config={"prompts": {"classes": {"harp": ["harp"]}}}).close()
    assert run(monkeypatch, "evaluate", *given) == 0
    assert measured.search(capsys.readouterr().out)

    assert run(monkeypatch, "evaluate", "--checkpoint", "yolov8n-seg.yaml", "--truth", "photos") == 2
    assert "architecture without weights" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "--checkpoint", "none.pt", "--truth", "photos") == 2
    assert "no checkpoint at none.pt" in capsys.readouterr().err


def test_older_and_incomplete_ledgers_are_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffugen.run import schema

    with monkeypatch.context() as older:
        older.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        RunStore.create_or_open("runs/old", config=None).close()
    Path("runs/cut").mkdir()
    Path("runs/cut/ledger.sqlite").touch()
    for name in ("old", "cut"):
        assert run(monkeypatch, "generate", *FAST, "--run", f"runs/{name}") == 0
        with RunStore.open(f"runs/{name}", readonly=True) as store:
            assert len(list(store.image_ids())) == 3


def test_configs_copy_never_overwrites(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "configs", "copy", "miniature", "mine.yaml") == 0
    Path("mine.yaml").write_text("edited")
    assert run(monkeypatch, "configs", "copy", "miniature", "mine.yaml") == 2
    assert "mine.yaml" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "edited"


def test_render_doctor_and_lists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            monkeypatch,
            "miniature",
            "render",
            "piano-on-road",
            "--count",
            "2",
            "--size",
            "48",
            "--width",
            "80",
        )
        == 0
    )
    assert Path("runs/scenes.png").stat().st_size > 5000
    assert run(monkeypatch, "doctor") == 0
    assert run(monkeypatch, "configs", "list") == 0
    shown = capsys.readouterr().out
    assert "weights: diffusion" in shown and "ultralytics" in shown and "piano-on-road" in shown


def test_commands_on_a_run_without_labels_name_the_command_that_makes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunStore.create_or_open("runs/miniature", config=None).close()
    for command in (("compare",), ("tune",), ("train",), ("export", "runs/miniature", "--out", "out")):
        assert run(monkeypatch, *command) == 2, command
        errors = capsys.readouterr().err
        assert "diffugen label" in errors and "Traceback" not in errors, errors
    assert not Path("out").exists()
    Path("best.pt").write_bytes(b"no checkpoint")
    assert run(monkeypatch, "relabel", "--checkpoint", "best.pt") == 2
    assert "best.pt" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "--truth", "nothing") == 2
    assert "no truth 'nothing'" in capsys.readouterr().err
    Path("bad.json").write_text("{")
    for decisions in ("bad.json", "missing.json"):
        assert run(monkeypatch, "review", "--decisions", decisions) == 2
        assert decisions in capsys.readouterr().err


def test_a_loop_without_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "loops", "list") == 0
    assert "bootstrap" in capsys.readouterr().out
    assert run(monkeypatch, "loops", "copy", "bootstrap", "mine.py") == 0
    assert run(monkeypatch, "loops", "copy", "bootstrap", "mine.py") == 2
    for text, expected in (
        ("x = 1", "no function main"),
        ("import nowhere", "nowhere"),
        ("def main(:", "mine.py"),
    ):
        Path("mine.py").write_text(text)
        assert run(monkeypatch, "loops", "run", "mine.py") == 2
        assert expected in capsys.readouterr().err


@pytest.mark.parametrize("group", [(), ("loops",), ("configs",), ("miniature",)])
def test_the_list_of_commands_cuts_no_sentence(
    group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, *group, "--help") == 0
    listed = capsys.readouterr().out.split("Commands:")[1]
    assert len(listed.splitlines()) > 3
    assert "..." not in listed


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "label",
        "prompts",
        "status",
        "bootstrap",
        "improve",
        "relabel",
        "compare",
        "review",
        "tune",
        "train",
        "evaluate",
        "report",
        "export",
    ],
)
def test_help_has_examples(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "--help") == 0
    assert "diffugen " + command in capsys.readouterr().out
