"""The command line: ``dha fit``, ``dha predict``, ``dha evaluate``."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # pyright: ignore[reportPrivateImportUsage]

from dha.config import Config
from dha.errors import DhaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    That is 0; 2 after bad input, which is named on standard error; 128 and the number of a signal that ended a run.
    """
    started = time.monotonic()
    _let_threads_sleep()
    parser = _parser()
    options = parser.parse_args([_underscored(a) for a in (sys.argv[1:] if arguments is None else arguments)])
    options = parser.instantiate(options)
    command = options.command
    try:
        return {"fit": _fit, "predict": _predict, "evaluate": _evaluate}[command](options[command], started)
    except DhaError as error:
        print(f"dha {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dha {command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _let_threads_sleep() -> None:
    """Let threads spin for less than a millisecond when they wait for each other, unless something else is wished.

    Who spins for longer makes a step up to ten times slower as soon as another program wants a core; who sleeps at once
    makes it a tenth slower where none does. Read when torch is loaded, which is later.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # of GNU's library; others only know the policy


def _underscored(argument: str) -> str:
    """Take --image-size for --image_size, as people write options; the names are those of Python and YAML."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="dha", description="Turn labelled images into a trained classifier, in one run with nothing to tune."
    )
    commands = parser.add_subcommands(dest="command")

    fit = ArgumentParser(
        description="Train a classifier: architecture, augmentation and hyper-parameters learned with the weights."
    )
    fit.add_argument(
        "source",
        help="digits, a folder of class folders, .npz, .parquet or WebDataset .tar files or a folder of them, or a "
        "Hugging Face data set",
    )
    fit.add_argument("--out", required=True, help="folder of the run, made here")
    fit.add_argument(
        "--config", action=ActionConfigFile, help="settings from a YAML file, such as config.yaml of an earlier run"
    )
    fit.add_argument(
        "--resume", action="store_true", help="go on with the run in --out from its last checkpoint, by its settings"
    )
    fit.add_class_arguments(Config)
    commands.add_subcommand("fit", fit, help="train a classifier")

    brought = "the network that was brought to the run, as for fit: path/to/file.py:function"
    predict = ArgumentParser(description="Classify photographs.")
    predict.add_argument("model", help="folder `model` of a run")
    predict.add_argument("images", nargs="+", help="image files")
    predict.add_argument("--network", help=brought)
    predict.add_argument("--json", action="store_true", help="one JSON object per image, with all probabilities")
    commands.add_subcommand("predict", predict, help="classify photographs")

    evaluate = ArgumentParser(
        description="Measure accuracy on labelled images; on the test part of a source that has one."
    )
    evaluate.add_argument("model", help="folder `model` of a run")
    evaluate.add_argument("source", help="as for fit")
    evaluate.add_argument("--network", help=brought)
    evaluate.add_argument("--json", action="store_true", help="print a JSON object")
    commands.add_subcommand("evaluate", evaluate, help="measure accuracy")
    return parser


def _fit(options: Namespace, started: float) -> int:
    # Imported here, as in the other commands, so that `dha --help` doesn't wait for torch.
    from dha.display import Display, summary
    from dha.engine import first_process
    from dha.errors import Interrupted
    from dha.fit import run

    config = Config(**{field.name: options[field.name] for field in fields(Config)})
    try:
        with Display() as display:
            result = run(
                options.source,
                config=config,
                out=options.out,
                started=started,
                watch=display.update,
                resume=options.resume,
                stoppable=True,
            )
    except Interrupted as interrupted:
        command = shlex.join(["dha", "fit", options.source, f"--out={options.out}", "--resume"])
        print(f"dha fit: {interrupted}; go on with it by\n  {command}", file=sys.stderr)
        return 128 + interrupted.signal
    if first_process():
        print(summary(result))
    # The model lies elsewhere where the folder of the run had no room for it.
    return 0 if result.place in (None, Path(options.out) / "model") else 2


def _predict(options: Namespace, started: float) -> int:
    from dha.data import load_images
    from dha.model import TrainedModel

    model = TrainedModel.load(options.model, network=options.network)
    images = load_images(options.images, model.preprocessing.image_format)
    for path, row in zip(options.images, model.probabilities(images).tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        if options.json:
            probabilities = {str(c): round(p, 6) for c, p in zip(model.classes, row, strict=True)}
            print(
                json.dumps(
                    {
                        "image": path,
                        "class": model.classes[best],
                        "probability": round(row[best], 6),
                        "probabilities": probabilities,
                    }
                )
            )
        else:
            # A line break in a name would make two rows of one.
            print(f"{path if path.isprintable() else repr(path)}\t{model.classes[best]}\t{100 * row[best]:.1f} %")
    return 0


def _evaluate(options: Namespace, started: float) -> int:
    from dha.model import TrainedModel, labelled_images

    model = TrainedModel.load(options.model, network=options.network)
    images = labelled_images(model, options.source)
    accuracy = (model.probabilities(images).argmax(1) == images.labels).float().mean().item()
    if options.json:
        print(json.dumps({"accuracy": accuracy, "images": len(images)}))
    else:
        print(f"accuracy: {100 * accuracy:.2f} % of {len(images)} images")
    return 0
