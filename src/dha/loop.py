"""The loop of a run: training steps until the budget is over, recoveries of the codes, checkpoints, metrics."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dha import record
from dha.data import Splits
from dha.engine import Agreement, Checkpoints, summed
from dha.errors import Interrupted
from dha.evaluation import closing_seconds, diverged, interim, mirroring, validate
from dha.signals import Stop
from dha.skipping import WATCHED
from dha.state import RunState

RECOVERIES = 20
WRITING, BY_CLOCK = 0.01, 0.05
"""The shares of the time that checkpoints at the ends of epochs, and those by the clock, may take."""
LARGE = 0.5
"""A state that takes so many seconds to keep is not written after the first epoch before it is due, nor in the end."""
RETRIES = 3
"""How often a training that has diverged goes back to its last good state, with half the learning rate."""

Watch = Callable[[float, dict[str, Any]], None]


def train(
    state: RunState,
    splits: Splits,
    folder: Path | None,
    checkpoints: Checkpoints,
    watch: Watch | None,
    stop: Stop,
) -> None:
    """The loop: steps until the budget is over, the search inside its share of it, validation images trained on, too,
    after what is learned has settled, one row of metrics per epoch.
    """
    joint, budget, position, config = state.joint, state.budget, state.position, state.config
    settings, retries = config.architecture, 0
    budget.closing = closing_seconds(joint, splits, config)
    agreed, metrics = Agreement(joint.fabric), record.Metrics(folder)

    def keep(whole: bool) -> None:
        """Write a checkpoint, and the model so far with it if ``whole``; but never one that has diverged."""
        nonlocal saved, cost
        began = time.monotonic()
        if joint.is_sound():
            checkpoints.save(state.state_dict())
            if whole:
                record.interim(folder, interim(joint, splits, config, joint.batching.side(progress)), state, splits)
        saved = time.monotonic()
        cost = saved - began

    def so_far() -> float:
        return progress

    saved = time.monotonic()
    checkpoints.save(state.state_dict(), write=False)
    cost = time.monotonic() - saved
    (progress,) = agreed(budget.progress())
    while progress < 1:
        if position.totals is None:
            if progress >= config.settle and not joint.settled:
                # Now, because the validation images are still unseen.
                position.mirrored = mirroring(joint.plain, joint, splits, config, joint.batching.side(progress))
                joint.settle()
            joint.space_looks()
            position.totals = torch.zeros(3, device=joint.fabric.device)
            position.changes = [0.0] * position.nodes
        joint.network.train()
        in_trouble, signal = False, 0.0
        for batches in joint.batching.drawn(state.everything if joint.settled else state.batches, so_far):
            for batch in batches:
                losses, correct = joint.train(batch, progress)
                position.totals += torch.stack([losses.sum(), correct.sum(), torch.ones_like(losses).sum()])
                budget.advance()
                progress, signal = agreed(budget.progress(), stop.signal or 0)
                if settings.recover_every is not None:
                    due = joint.steps - position.recovered_step >= settings.recover_every
                else:
                    due = progress - position.recovered >= settings.deadline / RECOVERIES
                if joint.searching and (due or progress >= settings.deadline):
                    position.recovered, position.recovered_step = progress, joint.steps
                    change, frozen = joint.recover()
                    position.changes = [max(pair) for pair in zip(position.changes, change, strict=True)]
                    if frozen or progress >= settings.deadline:
                        record.codes(folder, joint)
                        joint.finish_search()
                        checkpoints.save(state.state_dict(), write=False)
                if watch is not None:
                    watch(progress, position.history[-1] if position.history else {})
                in_trouble = joint.skipped.recently > WATCHED // 2
                if in_trouble or progress >= 1:
                    break
            if in_trouble or progress >= 1:
                break
            # A checkpoint knows of whole draws of batches alone.
            if signal:
                keep(whole=True)
                raise Interrupted(int(signal), progress)
            if time.monotonic() - saved > max(config.checkpoint_every, cost / BY_CLOCK):
                keep(whole=False)
        if in_trouble:
            if retries == RETRIES:
                raise diverged(config)
            retries += 1
            state.load_state_dict(joint.fabric.broadcast(checkpoints.latest()["run"]), clock=False)
            joint.optimizer.slow_down(0.5**retries)
            continue
        position.totals = summed(position.totals, joint.fabric)
        side = joint.batching.side(progress)
        validation = None if joint.settled and splits.held_out else validate(joint, splits, config, side)
        position.history.append(record.row(joint, position, validation, budget.used()))
        position.totals = None
        metrics.write(position.history)
        # What is left to do in the end may take less time than writing what to go on from.
        either_end = len(position.history) == 1 or progress >= 1
        if (either_end and cost < LARGE) or (progress < 1 and time.monotonic() - saved > cost / WRITING):
            keep(whole=True)
        (progress,) = agreed(budget.progress())
