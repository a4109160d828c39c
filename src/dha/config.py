"""Everything a run can be told, as one tree of dataclasses: the same names in Python, YAML and on the command line."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from dha.errors import DhaError, did_you_mean

PARTS = ("architecture", "augmentation", "hyperparameters")
LEARNED = ("learning_rate", "weight_decay", "momentum", "label_smoothing", "drop_path")
LEARNED_BY_DEFAULT = "learning_rate,weight_decay"


@dataclass
class Section:
    """Gives a dataclass scikit-learn's parameter access: ``set_params(architecture__width=8)`` reaches into it."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # pyright: ignore[reportArgumentType]

    def set_params(self, **values: Any) -> "Section":
        """Set fields by name; a ``DhaError`` names an unknown one."""
        for name, value in values.items():
            if name not in self.get_params():
                known = self.get_params()
                raise DhaError(
                    f"{type(self).__name__} has no {name!r}: choose from {', '.join(known)}{did_you_mean(name, known)}"
                )
            setattr(self, name, value)
        return self


@dataclass
class ArchitectureConfig(Section):
    """How the network is built and searched.

    Args:
        width: channels of the first stage (residual, mobile) or of a node in the first cell (cells); follows from
            images, budget and machine when not given.
        depth: blocks per stage (residual), most layers of a stage (mobile), or number of cells (cells).
        resolution: largest side in pixels that the first stage or cell works on; the stem halves images until they fit.
        nodes: nodes per cell.
        choose: how many candidates a block of the residual space adds up.
        start: where a search begins, and what is trained when there is none: the "light" or the "heavy" architecture of
            the space (the residual space has one), or a "random" one; "reference" is the heavy one if a budget leaves
            time for it, else the light one.
        code_size: length of the compressed code of each node of a cell.
        squeeze_excite: whether every layer of a mobile network reweights its channels.
        penalty: weight of the L1 norm in the LASSO that recovers the sparse codes.
        gradient: how mixing weights depend on the codes: "one_step" of the ISTA iteration, or "implicit" (exact on the
            support).
        loss: what the codes descend: the "training" loss at every step, or the "validation" loss every `every` steps.
        learning_rate: of Adam on the compressed codes.
        recover_every: steps between two recoveries of the sparse codes; 20 recoveries per search when not given.
        deadline: share of the run after which the search ends at the latest; the rest belongs to the final network.
        tolerance: a node freezes when its sparse code moves at most this far between two recoveries.
    """

    width: int | None = None
    depth: int | None = None
    resolution: int | None = None
    nodes: int = 4
    choose: int = 1
    start: Literal["reference", "light", "heavy", "random"] = "reference"
    code_size: int = 7
    squeeze_excite: bool = False
    penalty: float = 0.1
    gradient: Literal["one_step", "implicit"] = "one_step"
    loss: Literal["training", "validation"] = "training"
    learning_rate: float = 0.001
    recover_every: int | None = None
    deadline: float = 0.4
    tolerance: float = 0.001


@dataclass
class AugmentationConfig(Section):
    """How the augmentation policy is learned.

    Args:
        rule: "generalisation" (operations that close the gap between training and validation loss), "validation" (pairs
            whose images help the validation loss at the next step), "adversarial" (pairs with high training loss), or
            "fixed": the policy is applied as it is and not learned, whatever `learn` says.
        memory: of the generalisation rule, share of the run after which a probe counts 1/e.
        temperature: of the generalisation rule, in units of the validation loss; the lower, the more the best
            operations are preferred.
        harm: of the generalisation rule, what a nat of loss that an operation adds to unseen images weighs against one
            that it adds to training images; less beyond ``full_gap``.
        full_gap: of the generalisation rule, the generalisation gap, in units of the validation loss, from which on
            every image is augmented.
        until: share of the run after which training images are left alone, so that the last steps see images as they
            are; not of a fixed policy, which is applied to the end.
        structure: "slots" (one softmax for each of the two operations) or "pairs" (a free matrix over all ordered
            pairs).
        identity: probability of leaving the image alone, in each of the two slots, at the start.
        start: the policy.json of another run, to start from instead; its operations and structure are kept.
        learning_rate: of Adam on the logits, in the other rules.
    """

    rule: Literal["generalisation", "validation", "adversarial", "fixed"] = "generalisation"
    memory: float = 0.5
    temperature: float = 0.3
    harm: float = 2.0
    full_gap: float = 0.2
    until: float = 0.96
    structure: Literal["slots", "pairs"] = "slots"
    identity: float = 0.5
    start: str | None = None
    learning_rate: float = 0.02


@dataclass
class HyperparametersConfig(Section):
    """Optimiser settings of the network weights: where they start, and how fast those that are learned may move.

    Args:
        optimizer: "sgd" (with Nesterov momentum), "muon" (the same, with orthogonal steps of convolutions), "adamw", or
            "auto": Muon, and SGD for a network that was brought.
        learn: which of learning_rate, weight_decay, momentum, label_smoothing and drop_path are learned, separated by
            commas.
        learning_rate: peak of the schedule at the start; of a network that was brought, the peak of its head, which is
            the last layer with an output per class: its other weights start at 0.15 times that, and learn their own.
            When not given 0.2, or 0.002 (adamw).
        weight_decay: at the start, L2 coefficient, or decoupled from the gradient (adamw, and what Muon makes
            orthogonal); when not given 5e-4, or 0.05 (adamw). 0 stays 0: it is not learned.
        momentum: of SGD and Muon; the first beta of AdamW.
        label_smoothing: share of each label that is spread over all classes, in the training loss.
        drop_path: probability that a block which adds to its input leaves out what it would add, in training, for each
            image on its own (residual and mobile space, and any ``DropPath`` in a network that was brought).
        warmup: share of the run in which the learning rate rises linearly.
        horizon: share of the run over which a hypergradient looks back at what a learned value has done to the weights;
            0 looks at the last step alone.
        rate: how far the logarithm of a learning rate moves per update at full agreement of the gradients over a
            horizon; a weight decay moves three times as far, and what is judged by the last step alone a tenth as far;
            follows the schedule after its warm-up. Both are drawn back to their starts, a decay from below alone.
        resting_cosine: cosine between the validation gradient and the way that the weights have come at which the
            learning rate stays where it is, and of that between it and the weights at which their decay does.
    """

    optimizer: Literal["auto", "sgd", "muon", "adamw"] = "auto"
    learn: str | Sequence[str] = LEARNED_BY_DEFAULT
    learning_rate: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    label_smoothing: float = 0.1
    drop_path: float = 0.0
    warmup: float = 0.05
    horizon: float = 0.25
    rate: float = 10.0
    resting_cosine: float = -0.007

    def learned(self) -> tuple[str, ...]:
        """Return the names of the values to learn, in their canonical order; a ``DhaError`` names an unknown one."""
        return learned_parts(self.learn, LEARNED, "hyperparameters.learn")

    def starts(self) -> tuple[float, float]:
        """Return learning rate and weight decay at the start: those given, or what suits the optimiser."""
        rate, decay = (0.002, 0.05) if self.optimizer == "adamw" else (0.2, 5e-4)
        return (
            rate if self.learning_rate is None else self.learning_rate,
            decay if self.weight_decay is None else self.weight_decay,
        )


Resize = Literal["pad", "crop", "squash"]
Background = Literal["white", "black"]

RESIZE: Resize = "squash"
BACKGROUND: Background = "white"


@dataclass(eq=False)
class Config:
    """The settings of a run.

    Args:
        budget: time for everything: "90s", "10m", "1.5h" or seconds. When neither this nor epochs is given, 40 ms per
            training image, at least half a minute and at most 20 minutes.
        epochs: passes over the training images instead of a budget.
        space: the search space. "residual" (dense convolutions), "mobile" (inverted residuals), "cells" (of DARTS), or
            "auto".
        network: your own network instead of one of a space. A ``torch.nn.Module`` that maps (N, channels, height,
            width) to logits (N, classes), which is copied; or "path/to/file.py:function", a function that returns one
            and is called with those of channels, classes, image_size that it asks for. Training starts from the weights
            in it and leaves alone those without ``requires_grad``. Every ``SparseChoice`` in it is searched.
        learn: parts that are learned beside the weights, or none. Separated by commas: architecture, augmentation,
            hyperparameters.
        image_size: side in pixels that images are scaled to; when not given, their own (the median of their shorter
            sides, or of their longer sides unless resize is "crop"), at most 64.
        resize: what becomes of images that are not square. "squash" (the default) scales both sides to image_size,
            "pad" scales the longer side to it and adds grey borders, "crop" cuts out the central square. The model
            keeps it: predict and evaluate do the same.
        background: what shows through transparent pixels; kept as resize is.
        progressive_resizing: whether training begins on smaller images. They have 5/8 of the side, but at least 20
            pixels, and come to the full size in three steps; a custom network trains at the full size only.
            When not given, where a run with a budget sees 1.4 times as many images for it, which is timed; with epochs
            instead everywhere but on a CUDA device.
        mirrored: whether to predict from an image and its mirror image. That takes twice as long; when not given, if
            validation images are predicted better so, and those of no class worse.
        batch_size: images per step; when not given 128, or 64 with fewer than 2,000 training images.
        every: steps between updates of policy and hyper-parameters. They learn from one validation batch so often at
            first, and more rarely as steps add up; from 10 on these steps train on images that are not augmented, if
            the policy follows the gap.
        class_weight: how much the images of each class count in training and validation losses: all alike when not
            given; "balanced", so that all classes count alike in all (n / (K n_k), with n_k of n training images in one
            of K classes); or a weight for each class, also as the name of a JSON, YAML or CSV file. They are scaled to
            a mean of 1 over the training images. Accuracies follow no weights.
        validation_fraction: share of the training images held out for validation. Policy and hyper-parameters are
            learned on them; where the source has validation images, those are taken.
        settle: share of the run after which policy and hyper-parameters stay. Validation images that were held out of
            the training images are trained on from then on, too; 1 keeps them apart to the end.
        test_fraction: share of the images held out for the test; where the source has test images, those are taken.
        seed: of all that is random. Weights, dictionaries, order of images and draws.
        max_parameters: the most weights that any architecture of the run may have.
        max_flops: the most multiply-adds per image.
        device: where to compute. "auto", "cpu", "cuda" or "mps".
        devices: processes on this machine. Each has a device of its own, and they share every batch.
        num_nodes: machines.
        strategy: how processes share the work, of Lightning Fabric; "auto" is distributed data-parallel.
        precision: number format to compute in. "32", "bf16" or "auto": the faster one, timed for a few steps of the
            network at the start; with epochs instead of a budget nothing is timed, and it follows from the hardware and
            the size of the images.
        checkpoint_every: the most seconds between two checkpoints; there are more at the ends of epochs, if cheap, and
            fewer where writing one takes more than a twentieth of that.
        on_bad_image: what becomes of files that cannot be read. "error", or "skip" them.
        path_column: column of a table with the paths of images. They are relative to the table; when this is not given,
            as with the next two, the column of a usual name is taken.
        label_column: column of a table with the labels.
        split_column: column of a table with the parts: train, validation, test.
        cache: where decoded images are kept. In "memory", on "disk" (in a file in the folder of the run until it is
            over), or "auto": on disk what would take more than a quarter of the memory.
        architecture, augmentation, hyperparameters: the settings of each part.
    """

    budget: str | float | None = None
    epochs: int | None = None
    space: Literal["auto", "residual", "mobile", "cells"] = "auto"
    network: Any = None
    learn: str | Sequence[str] = "architecture,augmentation,hyperparameters"
    image_size: int | None = None
    resize: Resize = RESIZE
    background: Background = BACKGROUND
    progressive_resizing: bool | None = None
    mirrored: bool | None = None
    batch_size: int | None = None
    every: int = 24
    class_weight: str | dict[Any, float] | None = None
    validation_fraction: float = 0.1
    settle: float = 0.7
    test_fraction: float = 0.15
    seed: int = 0
    max_parameters: int | None = None
    max_flops: int | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["auto", "32", "bf16"] = "auto"
    checkpoint_every: float = 60.0
    on_bad_image: Literal["error", "skip"] = "error"
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    cache: Literal["auto", "memory", "disk"] = "auto"
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    hyperparameters: HyperparametersConfig = field(default_factory=HyperparametersConfig)

    def images_per_step(self) -> int:
        """Return the batch size once it is decided."""
        assert self.batch_size is not None
        return self.batch_size


def config_dict(config: Config) -> dict[str, Any]:
    """Return the settings as nested plain values, ready for YAML or JSON."""
    values = {f.name: getattr(config, f.name) for f in fields(Config)}
    values["learn"] = ",".join(learned_parts(config.learn)) or "none"
    if config.network is not None and not isinstance(config.network, str):
        values["network"] = f"<{type(config.network).__name__}>"
    return {k: asdict(v) if isinstance(v, Section) else v for k, v in values.items()}


def optimizer_of(config: Config) -> Literal["sgd", "muon", "adamw"]:
    """Return the optimiser of a run: what the settings name, or what suits the network."""
    named = config.hyperparameters.optimizer
    if named != "auto":
        return named
    return "muon" if config.network is None else "sgd"


def learned_parts(learn: str | Sequence[str], parts: Sequence[str] = PARTS, name: str = "learn") -> tuple[str, ...]:
    """Return the parts to learn in their canonical order.

    Raises:
        DhaError: if one is none of ``parts`` or "none"; it calls the setting ``name``.
    """
    wanted = [n.strip() for n in (learn.split(",") if isinstance(learn, str) else learn)]
    wanted = [n for n in wanted if n and n != "none"]
    for part in wanted:
        if part not in parts:
            choices = f"choose from {', '.join(parts)}, separated by commas, or none"
            raise DhaError(
                f"{name}={part!r:.80}: {choices}{did_you_mean(part, parts) if isinstance(part, str) else ''}"
            )
    return tuple(p for p in parts if p in wanted)


def parse_budget(budget: str | float) -> float:
    """Return a budget in seconds from "90s", "10m", "1.5h" or a number of seconds.

    Raises:
        DhaError: if it is not a positive, finite length of time.
    """
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h)?\s*", budget)
        seconds = float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2], 1) if match else math.nan
    else:
        seconds = float(budget)
    if not (math.isfinite(seconds) and seconds > 0):
        raise DhaError(f'budget={budget!r} is not a length of time: write "90s", "10m", "1.5h" or seconds')
    return seconds
