"""The options of the command line: every setting of ``dha.Config`` under its own name, and those of each command."""

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from dha.config import PARTS, Config
from dha.errors import DhaError, did_you_mean
from dha.settings_file import converted, read_settings

GROUPS = {
    "data": (),  # and what no other group has
    "budget": ("budget", "epochs", "batch_size"),
    "what is learned": ("space", "network", "learn", "every", "settle", "mirrored", "progressive_resizing"),
    "limits": ("max_parameters", "max_flops"),
    "machine": ("device", "devices", "num_nodes", "strategy", "precision", "cache", "seed"),
    "output": ("checkpoint_every",),
}
"""The groups that settings are shown in."""

NETWORK = "the network of the run, where it was your own, as for fit: path/to/file.py:function"
DEVICE = "auto, cpu (the default), cuda, cuda:1, ... or mps"


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        usage: of its arguments that are not options.
        arguments: their names and what they are; the last takes one or more if it ends in "...".
        options: name, placeholder of the value (none for a switch) and help of those that are not settings.
        about: what it does.
        settings: whether it takes the settings of a run.
    """

    about: str
    arguments: Mapping[str, str]
    options: Sequence[tuple[str, str | None, str]]
    settings: bool = False


COMMANDS = {
    "fit": Command(
        "Train a classifier: architecture, augmentation and hyper-parameters are learned with the weights.",
        {
            "source": "digits, a folder of class folders (alone or in train, val, test), a table of paths and labels "
            "(.csv, .tsv, .jsonl, .parquet), .npz, .parquet or WebDataset .tar files or a folder of them, or a Hugging "
            "Face data set"
        },
        [
            ("--out", "FOLDER", "folder of the run; a new runs/NAME-N when not given"),
            ("--resume", None, "go on with the run in --out, by its settings"),
            ("--config", "FILE", "YAML file of settings, as config.yaml of a run; options win"),
        ],
        settings=True,
    ),
    "predict": Command(
        "Classify photographs.",
        {"model": "folder `model` of a run", "images...": "image files"},
        [
            ("--network", "FILE:FUNCTION", NETWORK),
            ("--device", "DEVICE", DEVICE),
            (
                "--on-bad-image",
                "error|skip",
                "skip (the default) names files that cannot be read on standard error and goes on, the exit code is 2; "
                "error ends with the first",
            ),
            ("--json", None, "one JSON object per image, with all probabilities"),
        ],
    ),
    "evaluate": Command(
        "Measure accuracy on labelled images; on the test part of a source that has one.",
        {"model": "folder `model` of a run", "source": "as for fit"},
        [
            ("--network", "FILE:FUNCTION", NETWORK),
            ("--device", "DEVICE", DEVICE),
            ("--on-bad-image", "error|skip", "error (the default), or skip what cannot be read"),
            ("--json", None, "print a JSON object"),
        ],
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        said = re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1: ", message)
        raise DhaError(
            said.replace("expected one argument", "a value is missing").replace("ignored explicit", "takes no")
        )


def parse(name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the arguments and options of a command; of ``fit`` its settings under "config".

    ``help`` is there where help was asked for.

    Raises:
        DhaError: for an option that does not exist, a value that is missing, and arguments too many or too few.
    """
    command = COMMANDS[name]
    before, after = list(arguments), []
    if "--" in before:
        before, after = before[: before.index("--")], before[before.index("--") + 1 :]
    parser = parser_of(name, expert=True)
    # Options as people write them, --image-size, and by the names of Python and YAML, --image_size.
    dashed = [re.sub(r"^--[^=]+", lambda m: m[0].replace("_", "-"), a) for a in before]
    dashed = [re.sub(r"^--class-weights(?==|$)", "--class-weight", a) for a in dashed]
    found, unknown = parser.parse_known_intermixed_args(dashed)
    values = vars(found)
    if values["help"]:
        return values
    unknown = [argument for argument in unknown if argument.startswith("-")]
    if unknown:
        option = unknown[0].partition("=")[0]
        hint = _nearest(option, parser) or f": `dha {name} --help` lists all"
        raise DhaError(f"there is no option {option:.80}{hint}")
    for option, placeholder, _ in command.options:
        value, choices = values[option[2:].replace("-", "_")], (placeholder or "").split("|")
        if len(choices) > 1 and value is not None and value not in choices:
            raise DhaError(f"{option}={value!r:.80}: choose from {', '.join(choices)}{did_you_mean(value, choices)}")
    result = _arguments(command, [*values.pop("arguments"), *after], name)
    if command.settings:
        config = Config() if values["config"] is None else read_settings(values["config"])
        for setting, hint, _ in settings():
            if setting in values:
                section, _, field = setting.rpartition(".")
                setattr(getattr(config, section) if section else config, field, converted(values.pop(setting), hint))
        values["config"] = config
    return values | result


def _arguments(command: Command, given: list[str], name: str) -> dict[str, Any]:
    names = [argument.removesuffix("...") for argument in command.arguments]
    several = list(command.arguments)[-1].endswith("...")
    if len(given) < len(names):
        missing = names[len(given)]
        raise DhaError(f"{missing.upper()} is missing: `{usage(name)}`")
    if len(given) > len(names) and not several:
        raise DhaError(f"there is an argument too many, {given[len(names)]!r:.80}: `{usage(name)}`")
    values: dict[str, Any] = dict(zip(names, given, strict=False))
    if several:
        values[names[-1]] = given[len(names) - 1 :]
    return values


def _nearest(option: str, parser: argparse.ArgumentParser) -> str:
    known = [text for action in parser._actions for text in action.option_strings]
    hint = did_you_mean(option, known)
    if not hint:  # --width for --architecture.width
        last = {text.rpartition(".")[2]: text for text in known if "." in text}
        near = did_you_mean(option.lstrip("-").rpartition(".")[2], last)
        hint = f": did you mean {last[near.removeprefix(': did you mean ')[:-1]]}?" if near else ""
    return hint


def settings() -> Iterator[tuple[str, Any, Any]]:
    """Yield name, type and default of every setting, those of the parts as part.name."""
    for prefix, section in (("", Config()), *((f"{part}.", getattr(Config(), part)) for part in PARTS)):
        hints = get_type_hints(type(section))
        for field in fields(section):
            if not is_dataclass(getattr(section, field.name)):
                yield prefix + field.name, hints[field.name], getattr(section, field.name)


def usage(name: str) -> str:
    """Return how a command is called."""
    words = [
        argument.removesuffix("...").upper() + argument[len(argument.removesuffix("...")) :]
        for argument in COMMANDS[name].arguments
    ]
    return " ".join(["dha", name, *words, "[options]"])


def parser_of(name: str, expert: bool) -> argparse.ArgumentParser:
    """Return the parser of a command, with the settings of the parts of a run if ``expert``."""
    command = COMMANDS[name]

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34)

    parser = _Parser(
        usage=usage(name), add_help=False, allow_abbrev=False, formatter_class=formatter, description=_about(command)
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    groups = {title: parser.add_argument_group(title) for title in (GROUPS if command.settings else ["output"])}
    output = groups["output"]
    for option, placeholder, text in command.options:
        if placeholder is None:
            output.add_argument(option, action="store_true", help=text)
        else:
            output.add_argument(option, metavar=placeholder, help=text)
    output.add_argument("--debug", action="store_true", help="show the traceback of an error")
    output.add_argument("-h", "--help", action="store_const", const="main", help="show this")
    if not command.settings:
        return parser
    output.add_argument("--help-expert", dest="help", action="store_const", const="expert", help="show all settings")
    texts = _texts(whole=expert)
    for setting, hint, default in settings():
        part, _, field = setting.rpartition(".")
        if part and not expert:
            continue
        title = part or next((title for title, names in GROUPS.items() if field in names), "data")
        if title not in groups:
            groups[title] = parser.add_argument_group(part)
        text = texts[setting] + (
            "" if default in (None, "auto") or field == "learn" else f" (default {_shown(default)})"
        )
        option = "--" + setting.replace("_", "-")
        values: dict[str, Any] = {"dest": setting, "default": argparse.SUPPRESS, "metavar": _placeholder(hint, field)}
        groups[title].add_argument(option, **values, help=text.replace("%", "%%"))
        if setting == "class_weight":  # The name is scikit-learn's; here they are several.
            groups[title].add_argument(f"{option}s", **{**values, "help": argparse.SUPPRESS})
    return parser


def in_options(message: str) -> str:
    """Return an error about settings with their names as options have them: --image-size=3 for image_size=3."""
    names = "|".join(
        re.escape(name) for name in (*(setting for setting, _, _ in settings()), "out", "config", "resume")
    )
    return re.sub(rf"(?:^|(?<= and ))({names})(?==|:)", lambda m: "--" + m[0].replace("_", "-"), message)


def _about(command: Command) -> str:
    arguments = (
        textwrap.fill(
            f"{name.removesuffix('...').upper():<10}{text}", 78, initial_indent="  ", subsequent_indent=" " * 12
        )
        for name, text in command.arguments.items()
    )
    return "\n".join([command.about, "", *arguments])


def _texts(whole: bool) -> dict[str, str]:
    """Return what the docstrings say of each setting, or the first sentence of it."""
    texts = {}
    for prefix, section in (("", Config), *((f"{part}.", type(getattr(Config(), part))) for part in PARTS)):
        described = re.split(r"\n {8}(?=\w[\w, ]*: )", "\n" + (section.__doc__ or "").partition("Args:")[2])[1:]
        for entry in described:
            names, _, text = " ".join(entry.split()).partition(": ")
            for name in names.split(", "):
                text = text.replace("`", "").removesuffix(".")
                texts[prefix + name] = text if whole else re.split(r"[.;] ", text)[0]
    return texts


def _placeholder(hint: Any, name: str) -> str:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if bool in kinds:
        return "true|false"
    for kind, placeholder in ((str, "TEXT"), (int, "N"), (float, "X")):
        if kind in kinds:
            return {
                "budget": "TIME",
                "start": "FILE",
                "class_weight": "balanced|none|FILE",
                "learn": "NAMES",
                "strategy": "NAME",
            }.get(name, placeholder)
    return {"network": "FILE:FUNCTION"}.get(name, "VALUE")


def _shown(default: Any) -> str:
    return (
        str(default).lower()
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )
