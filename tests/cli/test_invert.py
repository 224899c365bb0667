"""`diffugen invert`: from photos to a token on the miniature; one clear message for bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from diffugen.cli import invert as cli_invert
from diffugen.cli.invert import read_images
from diffugen.config.sections import InversionSettings
from diffugen.errors import DiffugenError
from tests.support.command_line import run

TOKEN = "<grand-piano>"
FAST = ("--set", "steps=2", "--set", "batch_size=1", "--set", "device=cpu", "--sample", "a {} on a road")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli_invert, "SAMPLE_STEPS", 2)
    monkeypatch.setattr(cli_invert, "SAMPLE_SEEDS", 2)


def picture(path: Path, size_wh: tuple[int, int] = (96, 64)) -> Path:
    """Write a picture whose left half is white."""
    rgb = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    rgb[:, : size_wh[0] // 2] = 255
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def test_main_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        picture(Path("photos") / name)
    (Path("photos") / "notes.txt").write_text("not an image")
    arguments = ("invert", "--token", TOKEN, "--images", "photos", "--init", "piano", "--set", "vectors=3")
    assert run(monkeypatch, *arguments, *FAST) == 0
    shown = capsys.readouterr().out
    out = Path("embeddings/grand-piano.safetensors")
    assert f"learned {TOKEN} from 3 images: {out}" in shown
    assert f"embeddings: [{out}]" in shown
    assert (
        f"The captions said nothing but {TOKEN}" in shown
        and "--template 'a photo of a {} in a room'" in shown
    )
    learned = load_file(out)[TOKEN]
    assert learned.shape == (3, 128)
    with Image.open(out.with_suffix(".png")) as sheet:
        assert sheet.width > sheet.height > 150
    assert run(monkeypatch, *arguments, *FAST, "--set", "steps=3") == 0
    assert not np.array_equal(load_file(out)[TOKEN], learned)


def test_images_are_sorted_and_exif_rotation_is_applied(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    picture(folder / "b.png")
    picture(folder / "A.JPG", (64, 32))
    turned = Image.open(picture(folder / "c.jpg", (96, 64)))
    exif = turned.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    turned.save(folder / "c.jpg", exif=exif)
    images = read_images(folder)
    assert [image.shape for image in images] == [(32, 64, 3), (64, 96, 3), (96, 64, 3)]
    assert images[2][:40].min() > 200 and images[2][-40:].max() < 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--images": "nowhere"}, "no folder nowhere: put 3 to 8 images"),
        ({"--images": "empty"}, "empty holds no images"),
        ({"--images": "broken"}, "cannot read the image broken/a.png"),
        ({"--token": "piano"}, "'piano' is a token of this model already"),
        ({"--token": "<Grand Piano>"}, "one word without spaces"),
        ({"--token": "<Grand-Piano>"}, "ignores case: write '<Grand-Piano>' as '<grand-piano>'"),
        ({"--init": "synthesizer"}, "'synthesizer' is 10 to it"),
        ({"--set": "vectors=0"}, "vectors = 0: expected a number of at least 1"),
        ({"--set": "vectors=90"}, "take fewer vectors"),
        ({"--set": "steps=0"}, "steps = 0: expected a number of at least 1"),
        ({"--set": "batch_size=0"}, "batch_size = 0: expected a number of at least 1"),
        ({"--set": "learning_rate=0"}, "learning_rate = 0: expected a number above 0"),
        ({"--template": "a photo"}, "captions need {}"),
        ({"--sample": "a photo"}, "a sample prompt needs {}"),
        ({"--out": "token.pt"}, "written as .safetensors; got token.pt"),
        ({"--out": "taken.safetensors"}, "taken.safetensors exists already"),
        ({"--out": "photos/a.png/t.safetensors"}, "cannot write photos/a.png/t.safetensors"),
        ({"--model": "nowhere"}, "model 'nowhere' is neither"),
        ({"--set": "dtype=float16"}, "dtype = \"float16\": expected 'float32' or 'bfloat16'"),
        ({"--set": "step=3"}, "step = 3: unknown key, did you mean 'steps'?"),
        ({"--set": "device=warp"}, "device = \"warp\": expected 'auto', 'cpu'"),
    ],
)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    picture(Path("photos/a.png"))
    Path("empty").mkdir()
    picture(Path("broken/a.png")).write_bytes(b"\x89PNG damaged")
    Path("taken.safetensors").write_bytes(b"someone else's")
    given = {"--token": TOKEN, "--images": "photos", "--init": "piano", **changes}
    code = run(monkeypatch, "invert", *FAST, *(text for pair in given.items() for text in pair))
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.startswith("error: ") and shown.count("error") == 1
    assert message in shown and "Traceback" not in shown
    assert Path("taken.safetensors").read_bytes() == b"someone else's"
    assert not Path("embeddings").exists()


def test_a_missing_option_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "invert", "--token", TOKEN) == 2
    assert "--images" in capsys.readouterr().err


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DiffugenError, match="no folder"):
        read_images(picture(tmp_path / "photos" / "a.png"))


def test_help_names_every_training_setting() -> None:
    for name, field in InversionSettings.model_fields.items():
        default = "true" if field.default is True else field.default
        assert f"{name}={default}" in cli_invert.SETTINGS_HELP
