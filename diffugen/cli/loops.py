"""The commands that run whole loops, and those that look at runs and loops."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffugen.cli.shared import (
    ConfigArgument,
    RunOption,
    SetOption,
    again,
    console,
    copy_shipped,
    new_or_old_run,
    progress,
    settle,
    table,
)
from diffugen.errors import DiffugenError

if TYPE_CHECKING:
    from diffugen.config.sections import Config
    from diffugen.run.store import RunStore

loops_app = typer.Typer(help="List, copy and run loops.", no_args_is_help=True, rich_markup_mode=None)

RoundsOption = Annotated[
    int | None, typer.Option("--rounds", min=1, help="At most so many rounds; loop.rounds if not given.")
]
ReviewOption = Annotated[
    str,
    typer.Option("--review", help="How a person looks at disagreements: none, static (a page) or fiftyone."),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait in each round until the person is done.")]
ReviewerOption = Annotated[str, typer.Option("--reviewer", help="Who decides; kept with each decision.")]
PortOption = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the FiftyOne App.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    examples = (
        "Examples:  diffugen bootstrap   |   diffugen bootstrap piano-on-road --review fiftyone --wait   |   "
    )
    app.command(epilog=examples + "diffugen bootstrap --rounds 2 --set prompts.count=40 --run runs/small")(
        bootstrap
    )
    app.command(
        epilog="Examples:  diffugen improve cars --known datasets/cars   |   "
        "diffugen improve --known datasets/known --checkpoint best.pt --run runs/better"
    )(improve)
    app.command(epilog="Examples:  diffugen status   |   diffugen status runs/pianos")(status)
    loops_app.command("list")(loops_list)
    loops_app.command("copy", epilog="Example:  diffugen loops copy bootstrap my-loop.py")(loops_copy)
    loops_app.command("run", epilog="Example:  diffugen loops run my-loop.py miniature --run runs/mine")(
        loops_run
    )
    app.add_typer(loops_app, name="loops")


def bootstrap(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    rounds: RoundsOption = None,
    review: ReviewOption = "none",
    wait: WaitOption = False,
    reviewer: ReviewerOption = "reviewer",
    port: PortOption = 5151,
) -> None:
    """Make a detector for a rare class from prompts alone. Interrupted, the same command goes on where it
    stopped.
    """
    _run_loop("bootstrap", config, set_, run, rounds, mode=review, wait=wait, reviewer=reviewer, port=port)


def improve(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    known: Annotated[
        str | None, typer.Option(help="Labelled images that you have: a YOLO-seg folder or a COCO .json.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="The detector that you have; trained further.")
    ] = None,
    rounds: RoundsOption = None,
    review: ReviewOption = "none",
    wait: WaitOption = False,
    reviewer: ReviewerOption = "reviewer",
    port: PortOption = 5151,
) -> None:
    """Make a detector better that exists, or one from a dataset that exists. Generated images show it what it
    lacks.
    """
    given = {"dataset.known": known, "detector.checkpoint": checkpoint}
    overrides = [*(set_ or ()), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    _run_loop("improve", config, overrides, run, rounds, mode=review, wait=wait, reviewer=reviewer, port=port)


def status(run: Annotated[Path, typer.Argument(help="The run's folder.")] = Path("runs/miniature")) -> None:
    """Show what a run holds and how far its loop is. Works also while another process writes it."""
    from diffugen.run.store import RunStore

    out = console()
    with RunStore.open(run, readonly=True) as store:
        summary = store.summary()
        out.print(
            f"run {summary['folder']}: {summary['images']} images, {summary['bytes'] / 1e6:.1f} MB, "
            f"made by diffugen {summary['diffugen_version']}, last activity "
            f"{summary['last_activity'] or 'never'}",
            soft_wrap=True,
        )
        shown = table("round", "images", "s/image", "labelled (objects)", "decisions", "last stage")
        for number, one in summary["rounds"].items():
            per_image = one["seconds"] / one["images"] if one["images"] else 0.0
            labelled = ", ".join(
                f"{name} {count} ({one['objects'][name]})" for name, count in one["label_sets"].items()
            )
            decisions = ", ".join(f"{name} {count}" for name, count in one["decisions"].items())
            last = next(reversed(one["stages"]), "-")
            images = f"{one['images']}" + (f" (+ {one['dropped']} dropped)" if one["dropped"] else "")
            shown.add_row(str(number), images, f"{per_image:.2f}", labelled, decisions or "-", last)
        out.print(shown)
        if any("promote" in one["stages"] for one in summary["rounds"].values()):
            out.print(rounds_table(store))


def rounds_table(store: RunStore) -> Any:
    """Return a table with a line for each round: what it was trained on, and how good its detector is.

    ``val AP50`` is the new detector's on held-out evidence, ``better`` whether it was promoted for that; ``AP50`` and ``AP50-95``
    are those of the promoted detector's masks on the truth; ``min`` is the time of all stages in minutes.
    """
    shown = table("round", "agreed", "differ", "train", "val", "val AP50", "better", "AP50", "AP50-95", "min")
    for number, one in store.summary()["rounds"].items():
        stages = {name: store.stage_done(number, name) or {} for name in one["stages"]}
        made, vote, truth = (stages.get(name, {}) for name in ("dataset", "promote", "evaluate"))
        origins = made.get("by_origin", {})
        shown.add_row(
            str(number),
            str(origins.get("agreed", "-")),
            str(sum(one["disagreements"].values()) if "compare" in stages else "-"),
            str(made.get("train", "-")),
            str(made.get("val", "-")),
            _value(vote.get("candidate", {}).get("ap50")),
            "-" if not vote else "yes" if vote["promoted"] else "no",
            _value(truth.get("mask", {}).get("ap50")),
            _value(truth.get("mask", {}).get("ap50_95")),
            f"{sum(one['stages'].values()) / 60:.1f}",
        )
    return shown


def loops_list() -> None:
    """List the loops that come with DiffuGen."""
    shown = table("name", "what for")
    for path in sorted(_loops_folder().glob("*.py")):
        shown.add_row(path.stem, (inspect.getdoc(load_loop(str(path))) or "").split("\n", 1)[0])
    console().print(shown)


def loops_copy(
    name: Annotated[str, typer.Argument(help="A name from: diffugen loops list")],
    to: Annotated[Path | None, typer.Argument(help="The new file; ./<name>.py if not given.")] = None,
) -> None:
    """Copy a loop, to be edited. An existing file is never overwritten."""
    source = loop_path(name)
    target = to or Path(source.name)
    copy_shipped(source, target, f"diffugen loops copy {name}")
    console().print(f"copied to {target}. Use it: diffugen loops run {target}")


def loops_run(
    loop: Annotated[str, typer.Argument(help="A loop's name, or a Python file with a function main.")],
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    rounds: RoundsOption = None,
    review: ReviewOption = "none",
    wait: WaitOption = False,
    reviewer: ReviewerOption = "reviewer",
    port: PortOption = 5151,
) -> None:
    """Run a loop: one that comes with DiffuGen, or your own."""
    _run_loop(loop, config, set_, run, rounds, mode=review, wait=wait, reviewer=reviewer, port=port)


def _run_loop(
    loop: str,
    config: str | None,
    set_: list[str] | None,
    run: Path | None,
    rounds: int | None,
    *,
    mode: str,
    **review: Any,
) -> None:
    from diffugen.stages.review import check_mode

    module = load_loop(loop)
    check_mode(mode)
    settings, folder = settle(config, set_, run)
    most = rounds or settings.loop.rounds
    out = console()
    with new_or_old_run(folder, settings) as store:
        before = finished_rounds(store)
        if before:
            _say_how_far(before, most, settings, folder)
        report = module.main(
            settings,
            store,
            rounds=most,
            watch=progress,
            tell=lambda round: out.print(rounds_table(store)),
            review={"mode": mode, "tell": out.print, **review},
        )
        done = finished_rounds(store)
        out.print(rounds_table(store))
        _say_result(store, done)
    out.print(f"report: {report}", soft_wrap=True)
    command = f"diffugen {loop if loop in ('bootstrap', 'improve') else f'loops run {loop}'} {again(config, run)}".rstrip()
    if done < most:
        out.print(f"stopped: no better detector for {settings.loop.patience} rounds", soft_wrap=True)
        command += f" --set loop.patience={settings.loop.patience + 2}"
    out.print(f"more rounds: {command} --rounds {done + 2}", soft_wrap=True)


def _say_how_far(before: int, most: int, settings: Config, folder: Path) -> None:
    if before >= most:
        console().print(
            f"the {before} rounds of run {folder} are done; nothing is done twice", soft_wrap=True
        )
    else:
        console().print(f"run {folder} goes on after {before} rounds", soft_wrap=True)


def _say_result(store: RunStore, done: int) -> None:
    results = {
        name: next(filter(None, (store.stage_done(round, name) for round in reversed(range(done)))), None)
        for name in ("evaluate", "evaluate-base", "evaluate-reference", "promote")
    }
    out = console()
    if results["promote"]:
        out.print(f"detector: {store.folder / results['promote']['checkpoint']}", soft_wrap=True)
    for name, what in (
        ("evaluate-base", "before the loop"),
        ("evaluate", "now"),
        ("evaluate-reference", "exact labels"),
    ):
        found = results[name]
        if found:
            values = f"mask AP50 {_value(found['mask']['ap50'])}, AP50-95 {_value(found['mask']['ap50_95'])}"
            out.print(
                f"{what + ':':17}{values} on {found['images']} images of {found['truth']}", soft_wrap=True
            )


def finished_rounds(store: RunStore) -> int:
    """Return how many rounds, from the first on, have been finished."""
    done = 0
    while store.stage_done(done, "promote") is not None:
        done += 1
    return done


def load_loop(name: str) -> ModuleType:
    """Load a loop by its name or path.

    Raises:
        DiffugenError: There is no such loop, it cannot be loaded, or it has no function ``main``.
    """
    path = loop_path(name)
    spec = importlib.util.spec_from_file_location(f"diffugen_loop_{path.stem.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise DiffugenError(f"{path} is no Python file; give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise DiffugenError(f"the loop {path} cannot be loaded: {error}") from error
    if not callable(getattr(module, "main", None)):
        raise DiffugenError(f"the loop {path} has no function main; diffugen loops copy bootstrap shows one")
    return module


def loop_path(name: str) -> Path:
    """Return the file of a loop.

    Raises:
        DiffugenError: There is no such loop.
    """
    for path in (_loops_folder() / f"{name}.py", Path(name)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in _loops_folder().glob("*.py")))
    raise DiffugenError(f"no loop {name!r}; there are {names}, or give a Python file of your own")


def _loops_folder() -> Path:
    shipped = Path(__file__).parents[1] / "_loops"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "loops"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
