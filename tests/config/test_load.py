"""Configuration files: the shipped ones are valid, and all mistakes of a file are reported at once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from diffugen.config.files import Option, config_path, list_configs
from diffugen.config.labelling import HEAT_TERMS, TERMS, Labelling, LabelSettings, ScoreWeights, by_detector
from diffugen.config.load import kept_config, load_config
from diffugen.config.sections import DetectorSettings, resumable_keys
from diffugen.config.training import TrainingArguments
from diffugen.config.values import Section
from diffugen.detectors.yolo_checkpoint import import_ultralytics
from diffugen.errors import ConfigError
from diffugen.prompts.tasks import plan_tasks, task_prompts
from diffugen.records import Instances
from diffugen.run.results import TunedSide, from_text
from diffugen.tune.evidence import Evidence
from diffugen.tune.study import _identity

ROOT = Path(__file__).parents[2]
NEEDS_TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")

GOOD = """# line 1
name: test
prompts:
  attributes:
    colour: [red, blue]
  classes:
    car: [car]
  templates: ["a {colour} car", "a {car}"]
diffusion:
  size_wh: [96, 64]
"""


def write(folder: Path, text: str, name: str = "test.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(source: Any, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return caught.value.mistakes


def test_the_papers_score_can_be_named(tmp_path: Path) -> None:
    paper = ScoreWeights(**{**dict.fromkeys(TERMS, 0.0), "box_size": 1.0, "heat_intensity": 1.0})
    assert load_config(write(tmp_path, GOOD + "score: paper\n")).score == paper
    assert load_config("miniature", ["score=paper"]).score == paper
    [mistake] = mistakes("miniature", "score=papr")
    assert "score" in mistake and "papr" in mistake


def test_a_run_of_an_earlier_version_keeps_its_score() -> None:
    """What it keeps lacks the terms that came later; a new configuration has their defaults."""
    kept = load_config("miniature").dump()
    kept["score"] = {
        "box_size": 1.0,
        "heat_intensity": 1.0,
        "contrast": 0.0,
        "compactness": 1.0,
        "margin": 1.0,
    }
    score = kept_config(kept, "the run").score
    assert (score.separation, score.edge, score.box_size, score.contrast) == (0.0, 0.0, 1.0, 0.0)
    assert ScoreWeights().separation > 0


@pytest.mark.parametrize("name", list_configs())
def test_shipped_configs_are_valid_and_make_prompts(name: str) -> None:
    config = load_config(name)
    tasks = plan_tasks(config.tasks)
    from_text = [task for task in tasks if task.task == "txt2img"]
    made = [prompt for task in from_text for prompt in task_prompts(task, tasks, config.prompts, config.seed)]
    assert config.name == name
    assert len(made) == (config.prompts.count or 0) * len(from_text)
    named = {phrase.class_name for prompt in made for phrase in prompt.phrases}
    assert named >= set(config.prompts.classes) or len(tasks) > len(from_text)


def test_headers_of_shipped_configs_give_command_time_and_weights() -> None:
    for name in list_configs():
        header = config_path(name).read_text(encoding="utf-8").split("\n\n")[0]
        assert re.search(
            rf"Command:  diffugen (bootstrap|improve|generate) {name} |Command:  diffugen bootstrap\n", header
        )
        assert name == "miniature" or f" {name} " in header
        assert "Time:" in header
        assert "Weights:" in header


def test_the_default_is_the_miniature_and_lists_every_key() -> None:
    config = load_config()
    assert config == load_config("miniature") == load_config(config_path("miniature"))
    written = yaml.safe_load(config_path("miniature").read_text(encoding="utf-8"))
    assert config.diffusion.model == "miniature"
    for name, section in config.dump().items():
        if isinstance(section, dict):
            assert set(written[name]) == set(section), f"configs/miniature.yaml lacks keys of {name}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", GOOD),
        ("a.yml", GOOD),
        ("a.json", json.dumps(yaml.safe_load(GOOD))),
        pytest.param(
            "a.toml",
            'name = "test"\n[prompts]\nattributes.colour = ["red", "blue"]\nclasses.car = ["car"]\n'
            'templates = ["a {colour} car", "a {car}"]\n[diffusion]\nsize_wh = [96, 64]\n',
            marks=NEEDS_TOML,
        ),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, text: str) -> None:
    config = load_config(write(tmp_path, text, name))
    assert config == load_config(write(tmp_path, GOOD))
    assert config.diffusion.size_wh == (96, 64)
    assert config.labels.step_weights == (1.0, 1.0, 1.0)


def test_a_dump_round_trips(tmp_path: Path) -> None:
    config = load_config(None, ["labels.threshold=0.4", "score.margin=2", "seed=5"])
    again = load_config(write(tmp_path, json.dumps(config.dump()), "dump.json"))
    assert again.dump() == config.dump()


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().diffusion.model = "other"


def test_overrides_take_precedence_and_are_parsed_as_yaml(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, GOOD),
        [
            "diffusion.size_wh=[128, 64]",
            "diffusion.scheduler=DDIMScheduler",
            "labels.groups={up-*: 1, mid-*: 0.5}",
            "labels.erode_frac=1e-3",
            "prompts.attributes.colour=[no, 12:30]",
            "prompts.count=3",
            "prompts.count=4",
            "prompts.negative=a=b",
        ],
    )
    assert config.diffusion.size_wh == (128, 64)
    assert config.diffusion.scheduler == "DDIMScheduler"
    assert config.labels.groups == {"up-*": 1.0, "mid-*": 0.5}
    assert config.labels.erode_frac == 0.001
    assert config.prompts.attributes["colour"] == ("no", "12:30")
    assert config.prompts.count == 4
    assert config.prompts.negative == "a=b"


def test_an_override_can_make_another_value_invalid(tmp_path: Path) -> None:
    [line] = mistakes(write(tmp_path, GOOD), "labels.min_area_frac=0.97")
    assert "labels.max_area_frac = 0.95: expected more than labels.min_area_frac, which is 0.97" in line


def test_empty_sections_keep_their_defaults(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, GOOD + "labels:\nscore:\n  # margin: 2\nseed:\n"), ["score.margin=2"]
    )
    assert config.labels.threshold == "otsu"
    assert config.score.margin == 2
    assert config.seed == 0


def test_anchors_can_be_merged_and_overridden(tmp_path: Path) -> None:
    text = GOOD + "labels: &labels {accept: 0.5, threshold: 0.4}\n"
    path = write(tmp_path, text.replace("labels: &labels", "labels:\n  <<: &base") + "  threshold: 0.6\n")
    labels = load_config(path).labels
    assert (labels.accept, labels.threshold) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # unknown keys
        (
            "diffusion.num_inference_step=5",
            "diffusion.num_inference_step = 5: unknown key, did you mean 'num_inf",
        ),
        ("diffusio.model=x", "diffusio: unknown key, did you mean 'diffusion'?"),
        ("guidance_scale=2", "guidance_scale = 2: unknown key, did you mean 'diffusion.guidance_scale'?"),
        ("score.zzz=2", "score.zzz = 2: unknown key; the keys here are box_size, heat_intensity,"),
        ("labels.groups=up", 'labels.groups = "up": expected a section of'),
        # types
        ("seed=one", 'seed = "one": expected a whole number'),
        ("seed=1.5", "seed = 1.5: expected a whole number"),
        ("seed=true", "seed = true: expected a whole number"),
        ("seed='1'", 'seed = "1": expected a whole number'),
        ("seed=100000000000000000000", "seed = 100000000000000000000: expected a number below 9.22337e+18"),
        ("diffusion=5", "diffusion = 5: expected a section of 'key: value' lines"),
        ("diffusion.guidance_scale=true", "diffusion.guidance_scale = true: expected a number"),
        ("diffusion.trust_remote_pickle=1", "diffusion.trust_remote_pickle = 1: expected true or false"),
        ("diffusion.model=", "diffusion.model = null: expected text"),
        ("prompts.attributes.colour=red", 'prompts.attributes.colour = "red": expected a list'),
        (
            "prompts.attributes.colour=[red, true]",
            "prompts.attributes.colour[1] = true: expected text; put it in quotes",
        ),
        ("prompts.negative=3", "prompts.negative = 3: expected text; put it in quotes"),
        # ranges
        ("dataset.noise_filter=1", "dataset.noise_filter = 1: expected a number below 1"),
        (
            "diffusion.num_inference_steps=0",
            "diffusion.num_inference_steps = 0: expected a number of at least 1",
        ),
        ("diffusion.guidance_scale=-1", "diffusion.guidance_scale = -1: expected a number of at least 0"),
        ("diffusion.size_wh=[96]", "diffusion.size_wh[1]: expected a value; there is none"),
        (
            "diffusion.size_wh=[96, 64, 3]",
            "diffusion.size_wh = [96, 64, 3]: expected at most 2 values, not 3",
        ),
        ("diffusion.size_wh=[96, 0]", "diffusion.size_wh[1] = 0: expected a number of at least 1"),
        ("diffusion.size_wh=64", "diffusion.size_wh = 64: expected a list"),
        ("labels.erode_frac=0.2", "labels.erode_frac = 0.2: expected a number below 0.2"),
        ("labels.accept=1.1", "labels.accept = 1.1: expected a number of at most 1"),
        ("labels.max_area_frac=0.001", "= 0.001: expected more than labels.min_area_frac, which is 0.002"),
        ("labels.self_attention=5", "labels.self_attention = 5: expected a number of at most 4"),
        (
            "labels.self_attention=1",
            "labels: expected self_attention 0 unless the run's images are generated with "
            "diffusion.keep_self_attention",
        ),
        (
            "labels.step_weights=[0, 0, 0]",
            "labels.step_weights = [0, 0, 0]: expected at least one weight above 0",
        ),
        ("labels.step_weights=[1, 1]", "labels.step_weights[2]: expected a value"),
        ("labels.groups={}", "labels.groups: expected at least one weight above 0"),
        ("labels.groups={up-*: -1}", "labels.groups.up-* = -1: expected a number of at least 0"),
        (
            "score={heat_intensity: 0, contrast: 0, compactness: 0, margin: 0, separation: 0, edge: 0}",
            "score: expected at least one weight above 0",
        ),
        ("prompts.templates=[]", "prompts.templates = []: expected at least one value"),
        ("prompts.classes={}", "prompts.classes: expected at least one value"),
        ("prompts.classes.car=[]", "prompts.classes.car = []: expected at least one value"),
        ("prompts.attributes.colour=['  ']", 'prompts.attributes.colour[0] = "  ": expected some text'),
        ("prompts.count=0", "prompts.count = 0: expected a number of at least 1"),
        # choices
        (
            "labels.method=papr",
            "labels.method = \"papr\": expected 'paper' or 'compete', did you mean 'paper'?",
        ),
        ("prompts.sampling=ballanced", "did you mean 'balanced'?"),
        ("diffusion.dtype=float61", "did you mean 'float16'?"),
        (
            "labels.threshold=ots",
            "labels.threshold = \"ots\": expected 'otsu' or 'adaptive' or a number or a section",
        ),
        ("labels.threshold=1.5", "labels.threshold = 1.5: expected 'otsu' or 'adaptive' or a number below 1"),
        (
            "diffusion.device=cude:0",
            "expected 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu', did you mean 'cuda",
        ),
        ("diffusion.device=cuda:0,1", "expected 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or 'xpu'"),
        ("detector.device=cuda:0,", "or several GPUs such as 'cuda:0,1'"),
        ("detector.device=cpu,cpu", "or several GPUs such as 'cuda:0,1'"),
        ("name=a/b", "name = \"a/b\": expected letters, digits, '.', '_' and '-' only"),
        # templates
        (
            "prompts.templates=[a car, 'a {color} car']",
            'prompts.templates[1] = "a {color} car": expected fields that are attributes or classes, '
            "not {color}, did you mean 'colour'?",
        ),
        # malformed overrides
        ("diffusion.model", "expected key.sub=value"),
        ("=5", "expected key.sub=value"),
        ("diffusion..model=x", "expected key.sub=value"),
        ("name.first=x", "name is not a section"),
        ("prompts.templates.0=x", "prompts.templates is a list; set it as a whole"),
        ("prompts.templates=[a", "--set prompts.templates=[a: invalid YAML in line "),
        ("labels.groups={up: 1, up: 2}", "the key 'up' is already given in line 1"),
    ],
)
def test_a_wrong_override_is_reported(tmp_path: Path, override: str, expected: str) -> None:
    [line] = mistakes(write(tmp_path, GOOD), override)
    assert line.startswith(f"--set {override}: ")
    assert expected in line


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "", "expected lines of 'key: value', found nothing"),
        ("a.yaml", "- a\n- b\n", "expected lines of 'key: value', found a list"),
        ("a.yaml", GOOD + "labels: [1\nx: 2", "invalid YAML in line 12"),
        ("a.yaml", GOOD + "\tlabels: 1", "invalid YAML in line 11"),
        ("a.yaml", GOOD + "labels: !!python/object:os.system {}", "invalid YAML in line 11"),
        ("a.yaml", GOOD + "seed: 1\nseed: 2\n", "line 12: the key 'seed' is already given in line 11"),
        ("a.yaml", GOOD + "  model: a\n  model: b\n", "line 12: the key 'model' is already given in line 11"),
        ("a.yaml", GOOD.replace("car: [car]", "1: [car]"), "line 7: the key 1 is not text"),
        (
            "a.yaml",
            GOOD.replace("  classes:\n    car: [car]\n", ""),
            "prompts.classes: expected a value; there is none",
        ),
        ("a.json", '{"name": "x",}', "invalid JSON in line 1"),
        ("a.json", '{"diffusion": {"model": "a", "model": "b"}}', "the key 'model' is given twice"),
        (
            "a.json",
            '{"diffusion": {"guidance_scale": NaN}}',
            "diffusion.guidance_scale = NaN: expected a finite number",
        ),
        pytest.param("a.toml", "name = test\n", "invalid TOML: ", marks=NEEDS_TOML),
        pytest.param("a.toml", 'name = "a"\nname = "b"\n', "line 2", marks=NEEDS_TOML),
        pytest.param(
            "a.toml",
            "name = 2024-01-01T10:00:00\n",
            'name = "2024-01-01 10:00:00": expected letters',
            marks=NEEDS_TOML,
        ),
    ],
)
def test_a_wrong_file_is_reported(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = write(tmp_path, text, name)
    lines = mistakes(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any(expected in line for line in lines), lines


def test_self_attention_needs_our_tracer(tmp_path: Path) -> None:
    keep = "diffusion.keep_self_attention=true"
    config = load_config("miniature", [keep, "labels.self_attention=2"])
    assert config.labels.self_attention == 2
    with pytest.raises(ConfigError, match=r"keep_self_attention = true: expected false unless diffusion\."):
        load_config("miniature", [keep, "diffusion.attention_backend=daam"])


def test_concepts_need_our_tracer_and_maps_of_outputs(tmp_path: Path) -> None:
    sky, output = "diffusion.concepts=[sky]", "diffusion.map=output"
    assert load_config("miniature", [sky, output]).diffusion.concepts == ("sky",)
    with pytest.raises(ConfigError, match=r'map = "output": expected probability unless diffusion\.'):
        load_config("miniature", [output, "diffusion.attention_backend=daam"])
    with pytest.raises(ConfigError, match=r"concepts.*: expected none unless diffusion\.map is output"):
        load_config("miniature", [sky])
    with pytest.raises(ConfigError, match=r"concepts.*: expected each word once"):
        load_config("miniature", [output, "diffusion.concepts=[sky, Sky]"])


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = """
seeed: 1
prompts:
  classes: {car: [car]}
  templates: ["a {car}", "a {vehicle}", "a {cat}"]
  count: 0
diffusion:
  dtype: float
  dtype: half
labels: {threshold: 2.0, min_area_frac: 0.99, colour: 1}
"""
    path = write(tmp_path, text)
    lines = mistakes(path, "score.margin=-1", "oops")
    starts = [
        f"{path}: line 9: the key 'dtype'",
        "--set oops: expected key.sub=value",
        f"{path}: prompts.templates[1]",
        f"{path}: prompts.templates[2]",
        f"{path}: prompts.count",
        f"{path}: diffusion.dtype",
        f"{path}: labels.threshold",
        f"{path}: labels.max_area_frac",
        f"{path}: labels.colour",
        "--set score.margin=-1: score.margin",
        f"{path}: seeed",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    with pytest.raises(ConfigError, match="11 mistakes in the configuration"):
        load_config(path, ["score.margin=-1", "oops"])


def test_a_broken_file_does_not_hide_a_broken_override(tmp_path: Path) -> None:
    lines = mistakes(write(tmp_path, "a: [", "a.yaml"), "oops")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("miniatur", "no shipped configuration has this name, did you mean 'miniature'?"),
        (
            "zzz",
            "shipped configurations: car-accident, cars, miniature, miniature-tasks, piano-on-own-photos, "
            "piano-on-road; files of your own must end in .yaml",
        ),
        ("no/such/folder/cars.yaml", "no such file, did you mean 'cars'?"),
        ("miniature.yml", "no such file, did you mean 'miniature'?"),
        (str(ROOT / "diffugen"), "expected a file that ends in .yaml"),
        (str(ROOT / "diffugen" / "errors.py"), "expected a file that ends in .yaml"),
    ],
)
def test_a_missing_file_is_reported_with_the_nearest_name(source: str, expected: str) -> None:
    [line] = mistakes(source)
    assert source in line
    assert expected in line


def test_a_file_in_the_same_folder_is_suggested_first(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "pianos.yaml")
    [line] = mistakes(tmp_path / "piano.yaml")
    assert "did you mean 'pianos.yaml'?" in line


def test_a_file_with_another_encoding_is_reported(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    [line] = mistakes(tmp_path / "latin.yaml")
    assert "not UTF-8 text (line 1, byte 6)" in line


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert load_config(path).name == "test"


def test_list_configs_names_the_files_of_the_folder() -> None:
    assert list_configs() == [
        "car-accident",
        "cars",
        "miniature",
        "miniature-tasks",
        "piano-on-own-photos",
        "piano-on-road",
    ]
    assert config_path("cars").name == "cars.yaml"


def test_every_key_is_documented() -> None:
    config = load_config()
    sections = [getattr(config, name) for name in type(config).model_fields]
    for section in (config, *(section for section in sections if isinstance(section, Section))):
        for key in type(section).model_fields:
            assert f"\n        {key}: " in str(section.__doc__), (
                f"the docstring of {type(section).__name__} does not explain {key}"
            )


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ("{task: img2img, attributes: {weathr: [rainy]}}", "not 'weathr', did you mean 'weather'?"),
        (
            "{task: img2img}, {task: img2img, name: b, attributes: {light: [dim]}}",
            "of the task 'b' .* not 'light'",
        ),
        (
            "{task: img2img, templates: ['a {piano}'], attributes: {weather: [rainy]}}",
            "not 'weather'.*'a {piano}'",
        ),
        ("{task: img2img, templates: ['a {sofa}']}", "fields that are attributes or classes, not {sofa}"),
        ("{task: img2img, source: img2img}", "a source that comes before the task 'img2img'"),
        ("{task: img2img, region: {part: middle}}", "no region for img2img"),
        ("{task: inpaint}", "a region for inpaint"),
        ("{task: inpaint, region: {polygon: [[0, 0], [1, 1]]}}", "at least three corners"),
        ("{task: inpaint, region: {polygon: [[0, 0], [1, 1], [2, 0]]}}", "at most 1"),
        ("{task: inpaint, region: {detector: best.pt}}", "detector and find together"),
        ("{task: txt2img, name: more, strength: 0.5}", "neither source nor strength for txt2img"),
        ("{task: txt2img}", "two 'txt2img'"),
    ],
)
def test_mistakes_in_tasks(tasks: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config("miniature", [f"tasks=[{{task: txt2img}}, {tasks}]"])


def test_an_outside_source_allows_new_attributes() -> None:
    config = load_config(
        "miniature", ["tasks=[{task: img2img, source: runs/streets, attributes: {light: [dim]}}]"]
    )
    assert config.tasks[0].attributes == {"light": ("dim",)}


def test_the_value_of_an_option_is_not_parsed(tmp_path: Path) -> None:
    """In YAML, `k1 #2` is `k1` and a comment."""
    config = load_config(write(tmp_path, GOOD), [Option("--known", "dataset.known", "k1 #2: [yes]")])
    assert config.dataset.known == "k1 #2: [yes]"
    with pytest.raises(ConfigError, match=r"--rounds: loop.rounds = 0: expected a number of at least 1"):
        load_config(write(tmp_path, GOOD), [Option("--rounds", "loop.rounds", 0)])


def test_label_settings_set_by_the_user_are_pinned(tmp_path: Path) -> None:
    labelling = load_config(write(tmp_path, GOOD), ["labels.refine=crf", "seed=3"]).labelling
    assert labelling.pinned == {"labels.refine", "seed"}
    tuned = labelling.tuned(LabelSettings(threshold=0.3), ScoreWeights(margin=2.0))
    assert (tuned.settings.refine, tuned.settings.threshold, tuned.weights.margin) == ("crf", 0.3, 2.0)
    assert load_config(write(tmp_path, GOOD)).labelling.pinned == frozenset()


def test_the_segmenter_is_part_of_the_provenance_if_it_is_used() -> None:
    def method(**changes: Any) -> str:
        return Labelling(LabelSettings(**changes), ScoreWeights()).method

    assert method() == "attention-d5c98990f7443f72", "as before there were segmenters"
    assert method(refine="crf") == "attention-f6000312109ca98c"
    assert method(segmenter="sam_b.pt") == method()
    assert method(refine="crf", segmenter="sam_b.pt") == method(refine="crf")
    assert len({method(refine="sam"), method(refine="sam", segmenter="sam_b.pt"), method()}) == 3


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, "attention-d5c98990f7443f72"),
        ({"detector_confidence": 0.25}, "attention-d5c98990f7443f72"),
        ({"source": "both"}, "attention-8befc9f434629f5d"),
        ({"source": "both", "detector_confidence": 0.25}, "attention-243634a6d4395702"),
    ],
)
def test_the_provenance_is_that_of_the_versions_with_witnesses(changes: dict[str, Any], kept: str) -> None:
    base = DetectorSettings(checkpoint="miniature", device="cpu")
    assert Labelling(LabelSettings(**changes), ScoreWeights(), base=base).method == kept


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, "2ed18c6b5b4ceb2e"),
        ({"source": "both"}, "bda58ed61e235c7f"),
        ({"source": "both", "detector_confidence": 0.25}, "f5c040afecb7be4d"),
        ({"detector_confidence": 0.25}, "263bf5c9ffc2de6c"),
    ],
)
def test_studies_keep_the_names_of_the_versions_with_witnesses(changes: dict[str, Any], kept: str) -> None:
    nothing = Instances((96, 64), (), (), np.zeros(0))
    made = _identity(
        [Evidence("a", "f", nothing)], LabelSettings(**changes), ScoreWeights(), HEAT_TERMS, 4, 0
    )
    assert made == kept


def test_the_provenance_of_a_detectors_labels_has_what_decides_them() -> None:
    def method(base: DetectorSettings | None = None, **changes: Any) -> str:
        settings = LabelSettings(source="detector", **changes)
        return Labelling(settings, ScoreWeights(), base=base or DetectorSettings()).method

    assert method().startswith("detector-") and by_detector(method())
    assert method(threshold=0.3, refine="sam") == method(DetectorSettings(epochs=3)) == method()
    other = DetectorSettings(checkpoint="other.pt"), DetectorSettings(class_map={"sedan": "car"})
    assert len({method(), method(detector_confidence=0.9), *map(method, other)}) == 4
    with pytest.raises(ValueError, match="needs a detector"):
        Labelling(LabelSettings(source="detector"), ScoreWeights())


@pytest.mark.parametrize(("then", "now"), [("none", "attention"), ("base", "both")])
def test_a_run_of_an_earlier_version_keeps_who_labels(then: str, now: str) -> None:
    kept = load_config("miniature").dump()
    del kept["labels"]["source"], kept["labels"]["detector_confidence"]
    kept["labels"] |= {"witness": then, "witness_confidence": 0.75}
    labels = kept_config(kept, "the run").labels
    assert (labels.source, labels.detector_confidence) == (now, 0.75)
    settings = json.dumps({"settings": kept["labels"], "weights": kept["score"]})
    assert from_text(TunedSide, settings).settings == labels, "as results of its stages have it"
    assert kept_config(kept, "the run", ["labels.source=detector"]).labels.source == "detector"


def test_a_file_that_says_witness_is_told_what_to_write(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD + "labels: {witness: base, witness_confidence: 0.5, methd: paper}\n")
    told = mistakes(file)
    assert f'{file}: labels.witness = "base": unknown key; write source: both for witness: base' in told[0]
    assert told[1].endswith("labels.witness_confidence = 0.5: unknown key; write detector_confidence")
    assert "did you mean 'method'?" in told[2] and len(told) == 3
    [mistake] = mistakes("miniature", "labels.witness=none")
    assert mistake.startswith("--set labels.witness=none: ") and "source: attention" in mistake


def test_resumable_keys_exist_and_affect_no_image() -> None:
    dump = load_config().dump()
    for key in resumable_keys():
        value: Any = dump
        for part in key.split("."):
            value = value[part]
    assert {"detector", "review", "diffusion.batch_size"} <= set(resumable_keys())
    assert not {"seed", "prompts", "diffusion.model", "dataset.val_frac"} & set(resumable_keys())


def test_training_arguments_are_ultralytics_own() -> None:
    import_ultralytics()  # without settings in the user's home
    from ultralytics.cfg import CFG_FRACTION_KEYS, DEFAULT_CFG_DICT, check_cfg

    config = load_config("miniature", ["detector.extra={mosaic: 0.25, val: false, optimizer: SGD}"])
    given = {"mosaic": 0.25, "val": False, "optimizer": "SGD"}
    kept = config.detector.extra.model_dump()
    assert {key: kept[key] for key in given} == given and None not in kept.values()
    assert set(TrainingArguments.model_fields) <= set(DEFAULT_CFG_DICT)
    for key in set(TrainingArguments.model_fields) & set(CFG_FRACTION_KEYS):
        check_cfg({key: 1.0})
        assert mistakes("miniature", f"detector.extra.{key}=1.5")


@pytest.mark.parametrize(
    ("extra", "expected"),
    {
        "resume": ("resume: true", r"detector\.extra\.resume = true: unknown key"),
        "another configuration": (
            "cfg: https://example.com/x.yaml",
            r"detector\.extra\.cfg = .*: unknown key",
        ),
        "another dataset": ("data: other.yaml", r"detector\.extra\.data"),
        "another folder": ("project: /tmp", r"detector\.extra\.project"),
        "one class": ("single_cls: true", r"detector\.extra\.single_cls"),
        "negative workers": (
            "workers: -1",
            r"detector\.extra\.workers = -1: expected a number of at least 0",
        ),
        "text": ("mosaic: often", r'detector\.extra\.mosaic = "often": expected a number'),
        "too large": ("mosaic: 7", r"detector\.extra\.mosaic = 7: expected a number of at most 1"),
        "a slip of the pen": ("mozaic: 0.5", r"did you mean 'mosaic'"),
        "a setting of its own": ("lr0: 0.1", r"did you mean 'detector\.lr0'"),
        "an unknown optimiser": ("optimizer: adam", r"detector\.extra\.optimizer.*'Adam'"),
    }.values(),
)
def test_other_training_arguments_are_refused(extra: str, expected: str) -> None:
    [mistake] = mistakes("miniature", f"detector.extra={{{extra}}}")
    assert re.search(expected, mistake), mistake


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "cuda:0,1", "cuda:3,0,11", "xpu:1"])
def test_devices_of_a_detector(device: str) -> None:
    assert load_config("miniature", [f"detector.device={device}"]).detector.device == device
