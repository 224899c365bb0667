"""The commands that list, copy and run loops; `bootstrap` and `improve` are loops with their own commands."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from diffugen.cli.output import as_value, console, duration, say, table
from diffugen.cli.shared import (
    ConfigArgument,
    RunOption,
    SetOption,
    changed_settings,
    copy_shipped,
    examples,
    open_or_create_run,
)
from diffugen.cli.status import rounds_table
from diffugen.errors import DiffugenError, counted, did_you_mean, shell_command

if TYPE_CHECKING:
    from diffugen.config.files import Option
    from diffugen.run import Round, Run

loops_app = typer.Typer(help="List, copy and run loops.", no_args_is_help=True, rich_markup_mode=None)

RoundsOption = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Maximum number of rounds. Default: loop.rounds.")
]
ReviewOption = Annotated[
    str | None,
    typer.Option("--review", help="Review mode: none, static (HTML page) or fiftyone. Default: review.mode."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait in each round until the review is done, like review.wait.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples(
            "diffugen bootstrap",
            "diffugen bootstrap piano-on-road --review fiftyone --wait",
            "diffugen bootstrap --rounds 2 --set prompts.count=40 --run runs/small",
        )
    )(bootstrap)
    app.command(
        epilog=examples(
            "diffugen improve cars --known datasets/cars",
            "diffugen improve --known datasets/known --checkpoint best.pt --run runs/better",
        )
    )(improve)
    loops_app.command("list")(loops_list)
    loops_app.command("copy", epilog=examples("diffugen loops copy bootstrap my-loop.py"))(loops_copy)
    loops_app.command("run", epilog=examples("diffugen loops run my-loop.py miniature --run runs/mine"))(
        loops_run
    )
    app.add_typer(loops_app, name="loops")


def bootstrap(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    rounds: RoundsOption = None,
    review: ReviewOption = None,
    wait: WaitOption = False,
) -> None:
    """Make a detector for a rare class from prompts alone. Run it again to continue."""
    _run_loop("bootstrap", config, [*(set_ or ()), *_options(rounds, review, wait)], run)


def improve(
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    known: Annotated[
        str | None,
        typer.Option(help="Labelled images to train on as well: a YOLO-seg folder or a COCO .json."),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The detector to improve.")] = None,
    rounds: RoundsOption = None,
    review: ReviewOption = None,
    wait: WaitOption = False,
) -> None:
    """Improve a detector, or train one from an existing dataset."""
    from diffugen.config.files import Option

    given = [
        Option(name, key, value)
        for name, key, value in (
            ("--known", "dataset.known", known),
            ("--checkpoint", "detector.checkpoint", checkpoint),
        )
        if value is not None
    ]
    _run_loop("improve", config, [*(set_ or ()), *given, *_options(rounds, review, wait)], run)


def loops_list() -> None:
    """List the loops that come with DiffuGen."""
    shown = table("name", "purpose")
    for path in sorted(_loops_folder().glob("*.py")):
        shown.add_row(path.stem, (inspect.getdoc(load_loop(str(path))) or "").split("\n", 1)[0])
    console().print(shown)


def loops_copy(
    name: Annotated[str, typer.Argument(help="A name from: diffugen loops list")],
    to: Annotated[Path | None, typer.Argument(help="The new file. Default: ./<name>.py.")] = None,
) -> None:
    """Copy a loop, to edit it. An existing file is never overwritten."""
    source = loop_path(name)
    target = to or Path(source.name)
    copy_shipped(source, target, "loops", "copy", name)
    say(f"copied to {target}. Use it: {shell_command('loops', 'run', target)}")


def loops_run(
    loop: Annotated[
        str, typer.Argument(help="Name of a loop, or a Python file with a function main(config, run).")
    ],
    config: ConfigArgument = None,
    set_: SetOption = None,
    run: RunOption = None,
    rounds: RoundsOption = None,
    review: ReviewOption = None,
    wait: WaitOption = False,
) -> None:
    """Run a loop: a shipped one or your own. A loop is Python code: run only files that you trust."""
    _run_loop(loop, config, [*(set_ or ()), *_options(rounds, review, wait)], run)


def _options(rounds: int | None, review: str | None, wait: bool) -> list[Option]:
    from diffugen.config.files import Option

    given: list[Option] = []
    if rounds is not None:
        given.append(Option("--rounds", "loop.rounds", rounds))
    if review is not None:
        given.append(Option("--review", "review.mode", review))
    if wait:
        given.append(Option("--wait", "review.wait", True))
    return given


def _run_loop(loop: str, config: str | None, overrides: Sequence[str | Option], folder: Path | None) -> None:
    from diffugen.stages import preflight

    module = load_loop(loop)
    with open_or_create_run(config, overrides, folder) as opened:
        run, settings = opened.run, opened.config
        run.loop = loop
        before, at_most = run.finished_rounds(), settings.loop.rounds
        run.on_round = lambda round: _show_round(round, at_most) if round.number >= before else None
        if before >= at_most:
            say(f"run {run.folder}: all {before} rounds are already done")
        elif before:
            say(f"run {run.folder}: continuing after round {before - 1}")
        preflight(run, settings)
        report = module.main(settings, run)
        done = run.finished_rounds()
        if done == before:
            _show_table(run)
        _say_result(run, done)
        changed = changed_settings(opened, "loop.rounds", *(["loop.patience"] if done < at_most else []))
    say(f"report: {report}")
    name = [loop] if loop in ("bootstrap", "improve") else ["loops", "run", loop]
    command = [*name, "--run", str(run.folder), *changed]
    if done < at_most:
        say(f"Stopped: no better detector in {counted(settings.loop.patience, 'round')}.")
        command += ["--set", f"loop.patience={settings.loop.patience + 2}"]
    say(f"more rounds: {shell_command(*command, '--rounds', done + 2)}")


def _show_round(round: Round, at_most: int) -> None:
    """Show the rounds so far, and how long those that may follow will take, at the speed of these."""
    _show_table(round.run)
    left = at_most - round.number - 1
    if left:
        rounds = round.store.summary().rounds
        done = [sum(one.stages.values()) for number, one in rounds.items() if number <= round.number]
        seconds = sum(done) / len(done) * left
        say(f"{round.title} is done; at most {counted(left, 'more round')}, about {duration(seconds)} left")


def _show_table(run: Run) -> None:
    console().print(rounds_table(run.store))


def _say_result(run: Run, done: int) -> None:
    """Print the detector, and what the truth says of it."""
    from diffugen.stages.detector import resolve_checkpoint

    results = [run.store.results(number) for number in reversed(range(done))]
    promoted = next((one.promote for one in results if one.promote), None)
    if promoted:
        say(f"detector: {resolve_checkpoint(run.store, promoted.checkpoint)}")
    measured = (
        ("before the loop", [one.evaluate_base for one in results]),
        ("now", [one.evaluate for one in results]),
        ("exact labels", [one.evaluate_reference for one in results]),
    )
    for what, found in measured:
        newest = next(filter(None, found), None)
        if newest:
            values = f"mask AP50 {as_value(newest.mask.ap50)}, AP50-95 {as_value(newest.mask.ap50_95)}"
            say(f"{what + ':':17}{values} on {newest.images} images of {newest.truth}")


def load_loop(name: str) -> ModuleType:
    """Load a loop by its name or path.

    Raises:
        DiffugenError: There is no such loop, it cannot be loaded, or it has no function ``main(config,
            run)``.
    """
    path = loop_path(name)
    spec = importlib.util.spec_from_file_location(f"diffugen_loop_{path.stem.replace('-', '_')}", path)
    if spec is None or spec.loader is None:
        raise DiffugenError(f"{path} is not a Python file; give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise DiffugenError(f"the loop {path} cannot be loaded: {error}") from error
    main = getattr(module, "main", None)
    if not callable(main):
        raise DiffugenError(
            f"the loop {path} has no function main(config, run); diffugen loops copy bootstrap shows one"
        )
    if len(inspect.signature(main).parameters) != 2:
        raise DiffugenError(
            f"the loop {path} has main{inspect.signature(main)}, written for an older DiffuGen; a loop is "
            "now "
            "main(config, run): diffugen loops copy bootstrap shows one"
        )
    return module


def loop_path(name: str) -> Path:
    """Return the file of a loop.

    Raises:
        DiffugenError: There is no such loop.
    """
    for path in (_loops_folder() / f"{name}.py", Path(name)):
        if path.is_file():
            return path
    names = sorted(path.stem for path in _loops_folder().glob("*.py"))
    raise DiffugenError(
        f"no loop {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}, or give a Python file "
        "of your own"
    )


def _loops_folder() -> Path:
    shipped = Path(__file__).parents[1] / "_loops"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "loops"
