"""Everything that a run depends on, as one tree of tensors, numbers and strings: what a checkpoint holds."""

import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dha.checking import check
from dha.config import LEARNED, PARTS, Config, config_dict, learned_parts
from dha.data import Batches, Splits
from dha.engine import Budget
from dha.errors import DhaError, shortened
from dha.history import packed, unpacked
from dha.joint import JointTraining

OF_THE_MACHINE = ("cache", "devices", "num_nodes", "strategy", "checkpoint_every")
"""Settings that a run may be gone on with in another way."""

PATH = 400
"""Characters of the path of a network that a message shows at most."""

SAMPLES = 4096
"""The most images that the fingerprint of a data set looks at."""

CHUNK = 256
"""How many of them are in memory at a time."""


@dataclass
class Position:
    """Where the loop of a run is.

    Attributes:
        nodes: of all sparse codes that the run began with.
        history: one row of metrics per finished epoch.
        totals: of the epoch under way, on the device: sum of the finite losses, hits, images and weights of the finite
            losses, 1 each where images have none; None between two epochs.
        began: share of the run that was over when the epoch under way began.
        validation: loss and accuracy on validation images in the middle of the epoch under way, if it trains on them
            from then on.
        changes: the largest move of the sparse code of each node in the epoch under way.
        recovered: share of the run that was over at the last recovery of the sparse codes.
        recovered_step: and the number of steps.
        mirrored: whether the model predicts from mirror images, too; None until that is decided.
        retries: how often the run has gone back to its last good state for trouble that is not over.
        skipped: steps left out until the end of the last epoch in which one was.
        troubled: share of the run that was over then, or when it went back.
        good: epochs since then.
    """

    nodes: int
    history: list[dict[str, Any]] = field(default_factory=list)
    totals: Tensor | None = None
    began: float = 0.0
    validation: tuple[float, float] | None = None
    changes: list[float] = field(default_factory=list)
    recovered: float = 0.0
    recovered_step: int = 0
    mirrored: bool | None = None
    retries: int = 0
    skipped: int = 0
    troubled: float = 0.0
    good: int = 0


@dataclass(frozen=True)
class RunState:
    """All that moves while a run goes on, and what it has been told.

    Attributes:
        config: the resolved settings.
        images: fingerprint of the images.
        joint, batches, everything, validation: as ``dha.prepare.prepare`` returns them.
        budget: how much of the run is over.
        position: where its loop is.
        blocks: of rows of metrics that are compressed already.
    """

    config: Config
    images: str
    joint: JointTraining
    batches: Batches
    everything: Batches
    validation: Batches
    budget: Budget
    position: Position
    blocks: list[Tensor] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, from which a run goes on to the same weights, to the bit on a CPU."""
        random = {"cpu": torch.get_rng_state()}
        if self.joint.fabric.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.joint.fabric.device)
        run = {
            "joint": _joint_state(self.joint),
            "batches": self.batches.state_dict(),
            "everything": self.everything.state_dict(),
            "validation": self.validation.state_dict(),
            "budget": self.budget.state_dict(),
            "position": {**vars(self.position), "history": packed(self.position.history, self.blocks)},
            "random": random,
        }
        return {"config": config_dict(self.config), "images": self.images, "run": run}

    def load_state_dict(self, state: Mapping[str, Any], clock: bool = True) -> None:
        """Go on from the "run" of what ``state_dict`` returned, in a run of the same settings and images.

        Args:
            state: of the run.
            clock: whether to go back to the time that was used by then, too.

        Raises:
            DhaError: if something is missing in it, or does not fit the run.
        """
        try:
            if clock:  # From a file, not a state of this process, in the middle of whose run other things are None.
                own = self.state_dict()["run"]
                for part in own.keys() - {"position"}:
                    _check_kinds(state[part], own[part], part)
            _load_joint(self.joint, state["joint"])
            self.batches.load_state_dict(state["batches"])
            self.everything.load_state_dict(state["everything"])
            self.validation.load_state_dict(state["validation"])
            self.budget.load_state_dict(state["budget"], clock)
            for name in (f.name for f in fields(Position) if f.name != "history"):
                setattr(self.position, name, state["position"][name])
            self.position.history[:], self.blocks[:] = unpacked(state["position"]["history"])
            if self.position.totals is not None:
                self.position.totals = self.position.totals.to(self.joint.fabric.device)
            torch.set_rng_state(state["random"]["cpu"])
            if "cuda" in state["random"] and self.joint.fabric.device.type == "cuda":
                torch.cuda.set_rng_state(state["random"]["cuda"], self.joint.fabric.device)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise DhaError(
                f"the checkpoint does not fit this run ({reason}): go on with the version of dha that wrote it, or "
                "begin again in another folder"
            ) from error


def fingerprint(splits: Splits) -> str:
    """Return what tells one set of training, validation and test images from another, in hexadecimal digits."""
    digest = hashlib.sha256(repr(splits.classes).encode())
    for part in (splits.train, splits.validation, splits.test):
        if part is not None:
            digest.update(repr((len(part), *part.shape)).encode())
            digest.update(part.labels.numpy().data)
            if part.weights is not None:
                digest.update(part.weights.numpy().data)
            some = part.select(torch.arange(0, len(part), max(1, math.ceil(len(part) / SAMPLES))))
            for images, *_ in some.chunks(CHUNK):
                digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def resumed_config(given: Config, saved: Mapping[str, Any]) -> Config:
    """Return the settings of a run that is gone on with.

    Args:
        given: what the user says now; what is left at its default is taken from the run.
        saved: ``config_dict`` of the settings of the run.

    Raises:
        DhaError: if another value is given than the run was begun with, settings are missing, or the run has a network
            of its own, whose code has to be named anew.
    """
    resumed = Config()
    _check_names(saved, config_dict(resumed))
    _check_values(saved)
    pairs = [(resumed, given, Config(), saved, "")]
    pairs += [(getattr(resumed, p), getattr(given, p), getattr(Config(), p), saved[p], f"{p}.") for p in PARTS]
    for section, wanted, default, values, prefix in pairs:
        for name in (f.name for f in fields(section) if f.name not in PARTS and f.name != "network"):
            value = getattr(wanted, name)
            begun = value if name in OF_THE_MACHINE else values[name]
            if name == "learn":
                names = LEARNED if prefix else PARTS
                value, begun = (",".join(learned_parts(v, names, f"{prefix}learn")) or "none" for v in (value, begun))
            if value not in (begun, getattr(default, name)):
                raise DhaError(
                    f"{prefix}{name}={value!r}: the run was begun with {shortened(begun)}, which cannot change; leave "
                    "it out"
                )
            setattr(section, name, begun)
    resumed.network = _resumed_network(given.network, saved["network"])
    return resumed


def _check_names(saved: Any, expected: Mapping[str, Any], prefix: str = "") -> None:
    """Make sure that the settings of a run have the names of this version."""
    found = saved.keys() if isinstance(saved, dict) else set()
    names = sorted(prefix + str(name) for name in found ^ expected.keys())
    if names:
        raise DhaError(
            f"the settings of the run differ from those of this version of dha in {shortened(', '.join(names))}: go on "
            "with the version that began it, or begin again in another folder"
        )
    for part in () if prefix else PARTS:
        _check_names(saved[part], expected[part], f"{part}.")


def _check_values(saved: Mapping[str, Any]) -> None:
    """Make sure that the settings of a run have values that they can have."""
    begun = Config(**{name: value for name, value in saved.items() if name not in (*PARTS, "network")})
    for part in PARTS:
        getattr(begun, part).set_params(**saved[part])
    try:
        check(begun)
    except DhaError as error:
        raise DhaError(f"the settings of the run are damaged ({error}): begin again in another folder") from error


def _resumed_network(given: Any, begun: Any) -> Any:
    """Return the network that a run goes on with: the one given now, because no code runs that a folder names."""
    if begun is None:
        if given is not None:
            raise DhaError(f"network={shortened(given, PATH)}: the run was begun without; leave it out")
        return None
    begun = str(begun)
    if given is None:
        if begun.startswith("<"):
            raise DhaError(f"the run was begun with the module network={begun}: give it once more")
        raise DhaError(
            f"the run was begun with network={shortened(begun, PATH)}, and no code runs because a folder names it: "
            f"give it once more, as network={shortened(begun, PATH)} in Python or --network {shlex.quote(begun)}"
        )
    # The same file may lie elsewhere by now.
    if isinstance(given, str) and Path(given).name != Path(begun).name:
        raise DhaError(
            f"network={given!r}: the run was begun with {shortened(begun, PATH)}, which cannot change: give that"
        )
    return given


def _check_kinds(found: Any, expected: Any, place: str) -> None:
    """Raise a ``TypeError`` where a part of a state is of another kind than in this run: it might show much later."""
    kinds = dict, (list, tuple), Tensor, (int, float), str
    for kind in kinds:
        if isinstance(expected, kind) and not issubclass(type(found), kind):
            # What a run has not, or not yet, is None; a number is always there.
            if found is not None or kind == (int, float):
                raise TypeError(f"{place} is a {type(found).__name__}")
            return
    if isinstance(expected, dict):
        for key in expected.keys() & found.keys():
            _check_kinds(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        for number, pair in enumerate(zip(found, expected, strict=False)):
            _check_kinds(*pair, f"{place}.{number}")
    elif isinstance(expected, Tensor) and found.dtype != expected.dtype:
        raise TypeError(f"{place} is a tensor of {found.dtype}")


def _joint_state(joint: JointTraining) -> dict[str, Any]:
    state: dict[str, Any] = {
        "found": joint.found,
        "network": joint.plain.state_dict(),
        "optimizer": joint.optimizer.state_dict(),
        "hyperparameters": joint.hyper.state_dict(),
        "skipped": joint.skipped.state_dict(),
        "steps": joint.steps,
        "settled": joint.settled,
        "every": joint.every,
    }
    if joint.searching:
        state["code_optimizer"] = joint.code_optimizer.state_dict()
    if joint.average is not None:
        state["average"] = joint.average.state_dict()
    if joint.batching.learner is not None:
        state["policy"] = joint.batching.learner.state_dict()
    return state


@torch.no_grad()
def _load_joint(joint: JointTraining, state: Mapping[str, Any]) -> None:
    if joint.searching and state["found"] is not None:
        for codes, chosen in zip(joint.codes, state["found"], strict=True):
            codes.take(chosen.to(codes.chosen))
        joint.finish_search()
    joint.plain.load_state_dict(state["network"])
    joint.passes.forget()
    joint.optimizer.load_state_dict(state["optimizer"])
    joint.hyper.load_state_dict(state["hyperparameters"])
    joint.skipped.load_state_dict(state["skipped"])
    joint.steps, joint.settled, joint.every = state["steps"], state["settled"], state["every"]
    if joint.searching:
        joint.code_optimizer.load_state_dict(state["code_optimizer"])
    if joint.average is not None:
        joint.average.load_state_dict(state["average"])
    if joint.batching.learner is not None:
        joint.batching.learner.load_state_dict(state["policy"])
