"""The loop of a run: training steps until the budget is over, recoveries of the codes, checkpoints, metrics."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dha import record
from dha.batching import Batch
from dha.data import Splits
from dha.engine import Agreement, Checkpoints, summed
from dha.errors import Interrupted
from dha.evaluation import closing_seconds, diverged, interim, mirroring, validate
from dha.hyperparameters import weighed
from dha.prepare import build
from dha.signals import Stop
from dha.skipping import TROUBLE
from dha.state import RunState

RECOVERIES = 20
WRITING, BY_CLOCK = 0.01, 0.05
"""The shares of the time that checkpoints at the ends of epochs, and those by the clock, may take."""
LARGE = 0.5
"""A state that takes so many seconds to keep is not written after the first epoch before it is due, nor in the end."""
RETRIES = 3
"""How often a training that has diverged goes back to its last good state: with a half, a quarter and an eighth of the
learning rate it had."""
GOOD_EPOCHS, GOOD_SHARE = 2, 0.05
"""Epochs without a skipped step, and share of the run that they take at least, after which trouble counts as over. One
epoch may have been lucky with the order of its images; epochs of a few steps say little however many they are."""
LONG_EPOCH = 0.3
"""An epoch that takes this share of the run is long: what else waits for its end is done in the middle of it."""

Watch = Callable[[float, dict[str, Any]], None]


class TrainingLoop:
    """The loop of a run.

    Args:
        state: of the run.
        splits: the images.
        folder: of the run; None writes nothing.
        checkpoints: of the run.
        watch: called after every step with the share of the run that is over and the latest row of metrics.
        stop: notes signals that ask the run to end.
    """

    def __init__(
        self,
        state: RunState,
        splits: Splits,
        folder: Path | None,
        checkpoints: Checkpoints,
        watch: Watch | None,
        stop: Stop,
    ) -> None:
        self.state, self.splits, self.folder = state, splits, folder
        self.checkpoints, self.watch, self.stop = checkpoints, watch, stop
        self.joint, self.budget, self.position, self.config = state.joint, state.budget, state.position, state.config
        self.agreed, self.metrics = Agreement(self.joint.fabric), record.Metrics(folder)
        self.progress = self.saved = self.cost = 0.0

    def run(self) -> None:
        """Train until the budget is over. The search ends within its share of the run; validation images that were
        held out are trained on, too, once policy and hyper-parameters have settled.

        Raises:
            DhaError: if the training has diverged for good.
            Interrupted: if a signal has ended the training.
        """
        self.budget.closing = closing_seconds(self.joint, self.splits, self.config)
        began = time.monotonic()
        self.checkpoints.save(self.state.state_dict(), write=False)
        self.saved = time.monotonic()
        self.cost = self.saved - began
        (self.progress,) = self.agreed(self.budget.progress())
        while self.progress < 1:
            if self.position.totals is None:
                self._begin_epoch()
            self.joint.network.train()
            self._train()
        if not self.position.history and self.position.retries:
            raise diverged(self.config, self._cause())

    def _begin_epoch(self) -> None:
        position, joint = self.position, self.joint
        if self.progress >= self.config.settle and not joint.settled:
            self._settle()
        joint.space_looks()
        position.totals = torch.zeros(4, device=joint.fabric.device)
        position.changes = [0.0] * position.nodes
        position.began, position.validation = self.progress, None

    def _train(self) -> None:
        """Train on one pass over the images, or what is left of it; less where something else is to be gone on with."""
        joint, history = self.joint, self.position.history
        source = self.state.everything if joint.settled else self.state.batches
        for batches in joint.batching.drawn(source, lambda: self.progress):
            before = joint.searching, self.position.retries
            epochs, signal = len(history), 0.0
            for batch in batches:
                signal = self._step(batch)
                # By the clock, what is left of the run is no more than what there is.
                in_trouble = joint.skipped.recently > TROUBLE and (self.progress < 1 or self.budget.seconds is None)
                if in_trouble or (self.progress >= 1 and not joint.is_sound()):
                    self._go_back()
                    return
                # Of as many steps as a pass over the training images, however many images there are in the end.
                if self.progress >= 1 or self.budget.taken >= (len(history) + 1) * len(self.state.batches):
                    self._end_epoch()
                    if self.progress >= 1:
                        # What is left to do may take less time than writing what to go on from.
                        if self.cost < LARGE:
                            self._keep(whole=True)
                        return
                    self._begin_epoch()
                    joint.network.train()
            # A checkpoint knows of whole draws of batches alone.
            self._look_into_long_epoch()
            if signal:
                self._keep(whole=True, at_once=True)
                raise Interrupted(int(signal), self.progress)
            since = time.monotonic() - self.saved
            first = epochs == 0 and self.cost < LARGE
            if len(history) > epochs and (first or since > self.cost / WRITING):
                self._keep(whole=True)
            elif since > max(self.config.checkpoint_every, self.cost / BY_CLOCK):
                self._keep()
            elif before != (joint.searching, self.position.retries):
                # Not back to before the end of the search, nor to a learning rate that was too high.
                self._keep(write=False)
            if joint.settled and source is not self.state.everything:
                return

    def _step(self, batch: Batch) -> float:
        """Train on one batch; return the number of a signal that has come, or 0."""
        joint, position, settings = self.joint, self.position, self.config.architecture
        losses, correct = joint.train(batch, self.progress)
        finite = losses.isfinite()
        counted = finite if batch.weights is None else finite * batch.weights
        assert position.totals is not None
        position.totals += torch.stack(
            [
                weighed(losses.masked_fill(~finite, 0.0), batch.weights).sum(),
                correct.sum(),
                torch.ones_like(losses).sum(),
                counted.sum(),
            ]
        )
        self.budget.advance()
        self.progress, signal = self.agreed(self.budget.progress(), self.stop.signal or 0)
        if settings.recover_every is not None:
            due = joint.steps - position.recovered_step >= settings.recover_every
        else:
            due = self.progress - position.recovered >= settings.deadline / RECOVERIES
        if joint.searching and (due or self.progress >= settings.deadline):
            position.recovered, position.recovered_step = self.progress, joint.steps
            change, frozen = joint.recover()
            position.changes = [max(pair) for pair in zip(position.changes, change, strict=True)]
            if frozen or self.progress >= settings.deadline:
                record.codes(self.folder, joint)
                joint.finish_search()
        if self.watch is not None:
            self.watch(self.progress, position.history[-1] if position.history else {})
        return signal

    def _look_into_long_epoch(self) -> None:
        """Do in the middle of a long epoch what else waits for its end."""
        joint, position, length = self.joint, self.position, len(self.state.batches)
        done = self.budget.taken / length - len(position.history)
        if done <= 0 or self.progress - position.began < LONG_EPOCH * done:
            return
        joint.space_looks()
        if joint.settled or self.progress < self.config.settle:
            return
        joint.clean_statistics()
        if self.splits.held_out:
            # The last that is seen of validation images before they are trained on.
            position.validation = validate(joint, self.splits, self.config, joint.batching.side(self.progress))
        self._settle()
        joint.network.train()

    def _settle(self) -> None:
        # Now, because the validation images are still unseen.
        joint, side = self.joint, self.joint.batching.side(self.progress)
        self.position.mirrored = mirroring(joint.plain, joint, self.splits, self.config, side)
        joint.settle()

    def _end_epoch(self) -> None:
        joint, position = self.joint, self.position
        joint.clean_statistics()
        assert position.totals is not None
        position.totals = summed(position.totals, joint.fabric)
        validation = position.validation
        if validation is None and not (joint.settled and self.splits.held_out):
            validation = validate(joint, self.splits, self.config, joint.batching.side(self.progress))
        row = record.row(joint, position, validation, self.budget.used())
        position.history.append(row)
        position.totals = None
        self.metrics.write(position.history)
        self._forgive(row["skipped_steps"])
        (self.progress,) = self.agreed(self.budget.progress())

    def _forgive(self, skipped: int) -> None:
        """Let earlier trouble count no more once some epochs were good; the learning rate stays as it is."""
        position = self.position
        if skipped > position.skipped:
            position.skipped, position.good, position.troubled = skipped, 0, max(position.troubled, self.progress)
        elif self.progress > position.troubled:
            position.good += 1
        if position.good >= GOOD_EPOCHS and self.progress - position.troubled >= GOOD_SHARE:
            position.retries = self.joint.hyper.halvings = 0

    def _keep(self, whole: bool = False, at_once: bool = False, write: bool = True) -> None:
        """Keep a checkpoint, and the model so far with it if ``whole``; but no state that has diverged, and unless it
        has to be at once none in trouble of which the host has not heard yet.
        """
        began, joint = time.monotonic(), self.joint
        joint.clean_statistics()
        if not joint.is_sound() or (joint.skipped.unseen() > TROUBLE and not at_once):
            return
        self.checkpoints.save(self.state.state_dict(), write)
        if whole:
            side = joint.batching.side(self.progress)
            record.interim(self.folder, interim(joint, self.splits, self.config, side), self.state, self.splits)
        if write:
            self.saved = time.monotonic()
            self.cost = self.saved - began

    def _go_back(self) -> None:
        """Go back to the last good state, with half the learning rate that it was left with."""
        joint, position = self.joint, self.position
        if position.retries == RETRIES:
            raise diverged(self.config, self._cause())
        retries, troubled = position.retries + 1, max(self.progress, position.troubled)
        counts = joint.skipped.counts.clone()
        saved = joint.fabric.broadcast(self.checkpoints.latest()["run"])
        if joint.found is not None and saved["joint"]["found"] is None:
            joint.search_again(build(self.config, joint.preprocessing, len(self.splits.classes), joint.fabric.device))
        self.state.load_state_dict(saved, clock=False)
        joint.skipped.reset(counts)
        position.retries, position.troubled = retries, troubled
        position.good, position.skipped = 0, int(counts[0])
        joint.hyper.slow_down(retries)
        (self.progress,) = self.agreed(self.budget.progress())

    def _cause(self) -> str:
        skipped, by_gradient = self.joint.skipped.counts.tolist()
        if not self.joint.is_sound():
            return "its weights are not finite"
        if 2 * by_gradient > skipped:
            return f"its loss is finite and the gradient of the loss is not, in {by_gradient} steps"
        return f"its loss is not a finite number, in {skipped} steps"
