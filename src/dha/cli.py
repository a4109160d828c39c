"""The command line: ``dha fit``, ``dha predict``, ``dha evaluate``."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dha import __version__
from dha.checking import check
from dha.config import Config
from dha.errors import DhaError, Interrupted, did_you_mean, one_line, printable
from dha.failures import explained_by, written
from dha.options import COMMANDS, in_options, parse, parser_of
from dha.ownership import check_out
from dha.paths import (
    check_device,
    check_files,
    check_images,
    check_model,
    check_network,
    check_place,
    check_source,
    numbered_folder,
)
from dha.signals import EndBySignal, Ended
from dha.terminal import (
    OutputClosed,
    first_process,
    program,
    put,
    put_if_possible,
    quoted,
    say,
    show_warnings_in_one_line,
)

HELP = """usage: dha COMMAND ...

Turn labelled images into a trained classifier, in one run with nothing to tune.

  fit       train a classifier
  predict   classify photographs
  evaluate  measure accuracy

`dha COMMAND --help` tells of each; `dha --version` prints the version."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    That is 0; 2 after bad input, which is named in one line on standard error; 1 after an error of dha itself; 128 and
    the number of a signal that ended the command; 141 if nobody reads its output any more.

    Args:
        arguments: those of this process when not given, which is then taken to be there for this command alone.
    """
    started = time.monotonic()
    own = arguments is None
    words = list(sys.argv[1:] if arguments is None else arguments)
    _let_threads_sleep()
    if own:
        show_warnings_in_one_line()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # What torch warns of is not for who runs a command.
    with EndBySignal(to_the_end=own):
        return _guarded(words, started, own)


def _let_threads_sleep() -> None:
    """Let threads spin for less than a millisecond when they wait for each other, unless something else is wished.

    Who spins for longer makes a step up to ten times slower as soon as another program wants a core; who sleeps at once
    makes it a tenth slower where none does. Read when torch is loaded, which is later.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # of GNU's library; others only know the policy


def _guarded(words: list[str], started: float, own: bool) -> int:
    """Run a command; whatever it raises becomes a line on standard error and an exit code."""
    name = words[0] if words and words[0] in COMMANDS else ""
    speaker, debug, values = f"dha {name}".strip(), "--debug" in words, {}
    try:
        if not name:
            return _without_command(words)
        values |= parse(name, words[1:])
        if values["help"]:
            put(parser_of(name, values["help"] == "expert").format_help().rstrip())
            return 0
        return {"fit": _fit, "predict": _predict, "evaluate": _evaluate}[name](values, started, own)
    except OutputClosed:
        return 128 + signal.SIGPIPE
    except Interrupted as interrupted:
        if first_process():
            say(f"{speaker}: {interrupted}; go on with it by\n  {resuming(values)}")
        return 128 + interrupted.signal
    except KeyboardInterrupt as interrupt:
        number = interrupt.signal if isinstance(interrupt, Ended) else signal.SIGINT
        if first_process():
            going_on = f"; go on with it by\n  {resuming(values)}" if _can_resume(values) else ""
            say(f"{speaker}: interrupted by signal {number:d}{going_on}")
        return 128 + number
    except Exception as error:
        explained = explained_by(error)
        if debug:
            say("".join(traceback.format_exception(error)).rstrip())
        if explained is None:
            place = "above" if debug else written(error, values.get("out"))
            said = f"{type(error).__name__}: {one_line(error)[:300]}"
            say(f"{speaker}: unforeseen {said}; please report it with the traceback {place}")
            return 1
        if os.environ.get("LOCAL_RANK", "0") == "0":  # What one process finds wrong, all of a machine do.
            say(f"{speaker}: {in_options(one_line(explained)) if name else one_line(explained)}")
        return 2


def _without_command(words: list[str]) -> int:
    if words in (["--version"], ["-V"]):
        put(f"dha {__version__}")
    elif words and words[0] in ("--help", "-h", "help"):
        put(HELP)
    else:
        known = f"give {', '.join(COMMANDS)}, or --help"
        if not words:
            raise DhaError(f"a command is missing: {known}")
        raise DhaError(f"there is no command {words[0]!r:.80}{did_you_mean(words[0], COMMANDS) or ': ' + known}")
    return 0


def _can_resume(values: dict[str, Any]) -> bool:
    return values.get("out") is not None and any(Path(values["out"]).glob("checkpoint*.pt"))


def resuming(values: dict[str, Any]) -> str:
    """Return the command that goes on with a run: with all that its folder does not hold, or that may be another."""
    from dha.state import OF_THE_MACHINE

    words, config = [*program(), "fit"], values["config"]
    source = values["source"]
    more = [f"--out={values['out']}", "--resume"]
    for name in (*OF_THE_MACHINE, "network"):
        value = getattr(config, name)
        if value != getattr(Config(), name):
            more.append(f"--{name.replace('_', '-')}={value}")
    words += [*more, "--", source] if source.startswith("-") else [source, *more]
    return " ".join(map(quoted, words))


def _fit(values: dict[str, Any], started: float, own: bool) -> int:
    config, source = values["config"], values["source"]
    check(config)
    check_source(source)
    check_files(config)
    made = None
    if values["out"] is None and first_process():
        if values["resume"]:
            raise DhaError("out is missing: name the folder of the run to go on with, --out FOLDER")
        made = values["out"] = numbered_folder(source)
        put_if_possible(f"out: {printable(made)}")
    if values["out"] is not None and first_process():
        check_place(values["out"])
        check_out(values["out"], values["resume"])
    # Imported here, as in the other commands, so that what is wrong so far is said at once, not after torch is loaded.
    from dha.display import Display, summary
    from dha.fit import run

    try:
        with Display() as display:
            result = run(
                source,
                config=config,
                out=values["out"],
                started=started,
                watch=display.update,
                resume=values["resume"],
                own_process=True,
                tell=lambda lines: put_if_possible("\n".join(lines)),
            )
    finally:
        if made is not None:
            with suppress(OSError):  # It is kept unless it is empty.
                os.rmdir(made)
                os.rmdir(os.path.dirname(made))
    if first_process():
        put_if_possible(summary(result))
    # The model lies elsewhere where the folder of the run had no room for it.
    return 0 if result.place in (None, Path(str(values["out"])) / "model") else 2


def _predict(values: dict[str, Any], started: float, own: bool) -> int:
    _check_model(values)
    check_images(values["images"], all_of_them=values["on_bad_image"] == "error")
    from dha.data import stream_images
    from dha.model import TrainedModel

    model = TrainedModel.load(values["model"], values["device"] or "cpu", values["network"])
    left_out = 0
    # All that can be predicted is, and is printed before an error ends the command.
    for chunk in stream_images(values["images"], model.preprocessing.image_format, "skip"):
        for path, row in zip(chunk.paths, model.probabilities(chunk.pixels).tolist(), strict=True):
            put(_prediction(str(path), row, model.classes, values["json"]))
        left_out += len(chunk.errors)
        for _, error in chunk.errors:
            if values["on_bad_image"] == "error":
                raise error
            say(f"dha predict: {error}")
    if left_out:
        say(f"dha predict: {left_out} of {len(values['images'])} files could not be read and are left out")
    return 2 if left_out else 0


def _prediction(path: str, row: list[float], classes: Sequence[Any], as_json: bool) -> str:
    best = max(range(len(row)), key=row.__getitem__)
    if as_json:
        found = {"image": path, "class": classes[best], "probability": round(row[best], 6)}
        probabilities = {str(c): round(p, 6) for c, p in zip(classes, row, strict=True)}
        return json.dumps({**found, "probabilities": probabilities}, allow_nan=False)
    # A line break in a name would make two rows of one.
    return f"{printable(path)}\t{printable(str(classes[best]))}\t{100 * row[best]:.1f} %"


def _evaluate(values: dict[str, Any], started: float, own: bool) -> int:
    _check_model(values)
    check_source(values["source"])
    from dha.model import TrainedModel, labelled_images

    model = TrainedModel.load(values["model"], values["device"] or "cpu", values["network"])
    images = labelled_images(model, values["source"], on_bad_image=values["on_bad_image"] or "error")
    accuracy = (model.probabilities(images).argmax(1) == images.labels).float().mean().item()
    if values["json"]:
        put(json.dumps({"accuracy": accuracy, "images": len(images)}, allow_nan=False))
    else:
        put(f"accuracy: {100 * accuracy:.2f} % of {len(images)} images")
    return 0


def _check_model(values: dict[str, Any]) -> None:
    check_model(values["model"])
    if values["device"] is not None:
        check_device(values["device"])
    if values["network"] is not None:
        check_network(values["network"])
