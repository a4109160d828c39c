"""What a person sees: a live line while a run goes on, and a summary when it has ended."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dha.errors import printable
from dha.fit import Run
from dha.hyperparameter_learning import BACKBONE
from dha.terminal import first_process


class _Lenient:
    """A stream that takes what cannot be written to it, because a terminal was closed or a disk is full, for written.

    Args:
        stream: to write to; None where a process has none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """A live progress bar on standard error with the metrics of the latest epoch; a context manager.

    Args:
        shown: False shows nothing.
    """

    def __init__(self, shown: bool = True) -> None:
        console = Console(file=cast(TextIO, _Lenient(sys.stderr)))
        self.bar = Progress(
            TextColumn("[bold]dha"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not (shown and first_process()),
        )
        self.task = self.bar.add_task("", total=1.0, metrics="reading images")
        self.next_update = 0.0

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        # An error is one line.
        self.bar.live.transient = kind is not None
        (self.bar.stop if kind is None else self.bar.live.stop)()

    def tell(self, lines: Sequence[str]) -> None:
        """Show lines above the progress bar."""
        if not self.bar.disable:
            for line in lines:
                self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, progress: float, row: dict[str, Any]) -> None:
        """Show the share of the run that is over and the latest row of metrics; cheap enough for every step."""
        now = time.monotonic()
        if now < self.next_update and progress < 1:
            return
        self.next_update = now + 0.2
        metrics = "first epoch"
        if row:
            loss, validation = row["train_loss"], row["validation_accuracy"]
            metrics = (
                f"epoch {row['epoch']}"
                + ("" if loss == "" else f"  loss {loss:.3f}")
                + ("" if validation == "" else f"  validation {100 * validation:.2f} %")
                + f"  lr {row['learning_rate']:.3g}"
                + ("  searching" if row["searching"] else "")
            )
        self.bar.update(self.task, completed=progress, metrics=metrics)


def summary(run: Run) -> str:
    """Return the closing lines: test accuracy, architecture, policy, hyper-parameters, and where the model lies."""
    first, last = run.history[0], run.history[-1]
    lines = [
        f"architecture: {run.model.genotype}",
        *_by_group(run),
        *(
            f"{name.replace('_', ' ')}: {getattr(run.config.hyperparameters, name):g} -> {last[name]:g}"
            for name in ("momentum", "label_smoothing", "drop_path")
            if name in run.config.hyperparameters.learned()
        ),
    ]
    if last["policy_top_pairs"]:
        lines.append(
            f"policy: entropy {first['policy_entropy']} -> {last['policy_entropy']} nats; {last['policy_top_pairs']}"
        )
    if run.model.mirrored:
        lines.append("predicts from: image and mirror image (twice the time; --mirrored false for the image alone)")
    if run.skipped:
        lines.append(f"skipped: {run.skipped} files that are not images")
    lines.append(f"time: {run.seconds:.1f} s, {len(run.history)} epochs")
    if run.test_accuracy is not None:
        lines.append(f"test accuracy: {100 * run.test_accuracy:.2f} %")
    if run.place is not None:
        lines.append(f"model: {printable(str(run.place))}")
    return "\n".join(lines)


def _by_group(run: Run) -> list[str]:
    last, (rate, decay) = run.history[-1], run.config.hyperparameters.starts()
    split = last["head_learning_rate"] != ""
    lines = [
        f"learning rate: {BACKBONE * rate if split else rate:g} -> {last['learning_rate']:g} (peak of the schedule)",
        f"weight decay: {decay:g} -> {last['weight_decay']:g}",
    ]
    if split:
        lines += [
            f"learning rate of the head: {rate:g} -> {last['head_learning_rate']:g}",
            f"weight decay of the head: {decay:g} -> {last['head_weight_decay']:g}",
        ]
    return lines
