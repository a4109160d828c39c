"""Networks that a person brings: a module or a function in a file, checked before a run and written down after it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dha.architecture.blocks import BlockGenotype
from dha.architecture.choice import SparseChoice, Sum, replace_choices
from dha.architecture.genotype import Genotype
from dha.architecture.limits import Limits
from dha.architecture.recovery import sparse_codes
from dha.architecture.usercode import attempt, called
from dha.errors import DhaError, shortened
from dha.paths import NETWORK

LONGEST = 4096
"""Characters of the name of a file and a function in it."""


@dataclass(frozen=True)
class GivenGenotype:
    """A network that was brought to the run.

    Attributes:
        network: the file and function it came from, or the name of its class.
        blocks: place of each ``SparseChoice`` in the network -> the candidates it adds up.
    """

    network: str
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"space": "given", "network": self.network, "blocks": {k: list(v) for k, v in self.blocks.items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "GivenGenotype":
        """Read what ``to_dict`` wrote.

        Raises:
            DhaError: if a key is missing, or the network has no name that a file can have.
        """
        try:
            if not isinstance(data["network"], str) or len(data["network"]) > LONGEST:
                raise TypeError(f"network is {shortened(data['network'])}")
            blocks = {str(place): tuple(str(name) for name in names) for place, names in data["blocks"].items()}
            return GivenGenotype(data["network"], blocks)
        except (KeyError, TypeError, AttributeError) as error:
            raise DhaError(f"not the genotype of a given network ({error!r:.200}): expected what dha wrote") from error

    def __str__(self) -> str:
        """Return the network, and a line per block that was chosen."""
        lines = [f"{place or 'network'}: {' + '.join(names)}" for place, names in self.blocks.items()]
        return "\n  ".join([f"given, {self.network}", *lines])


def genotype_of(network: nn.Module, given: str | nn.Module | None) -> Genotype | BlockGenotype | GivenGenotype:
    """Return how a plain network is written down; ``given`` is what it was made from, None for one of our spaces."""
    if given is None:
        return cast(Genotype | BlockGenotype, network.genotype)
    blocks = {place: tuple(m.chosen()) for place, m in network.named_modules() if isinstance(m, SparseChoice | Sum)}
    return GivenGenotype(given if isinstance(given, str) else type(given).__name__, blocks)


def given_network(
    given: str | nn.Module,
    channels: int,
    classes: int,
    image_size: int,
    blocks: Mapping[str, tuple[str, ...]] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Return a network that a person brought, in float32, tried on two images.

    Args:
        given: a module, which is copied; or "path/to/file.py:function", which is called with those of the next three
            that it asks for by name.
        channels: channels of the images.
        classes: number of outputs that the network must have.
        image_size: side of the images in pixels.
        blocks: what each ``SparseChoice`` in it has chosen, as in ``GivenGenotype``; not given for a network that is
            still to be trained, which is tried in training mode too.
        device: where the network is brought to.

    Raises:
        DhaError: if there is no such network, or it does not map images to logits.
    """
    if isinstance(given, str):
        network = called(given, {"channels": channels, "classes": classes, "image_size": image_size})
    elif isinstance(given, nn.Module):
        network = attempt(lambda: copy.deepcopy(given), f"{_label(given)} cannot be copied")
    else:
        raise DhaError(f"network={given!r}: give a torch.nn.Module or {NETWORK}")
    network = attempt(lambda: network.to(device, torch.float32), f"{_label(given)} cannot be brought to {device}")
    owned = [m.codes for m in network.modules() if isinstance(m, SparseChoice)]
    if len(owned) != len(sparse_codes(network)):
        raise DhaError(f"{_label(given)} has sparse codes that belong to no SparseChoice: for cells give space='cells'")
    if isinstance(network, SparseChoice):
        network = nn.Sequential(network)
    if blocks is not None:
        _keep(network, blocks, _label(given))
    if not all(isinstance(value, Tensor) for value in network.state_dict().values()):
        raise DhaError(f"{_label(given)} has extra state that is no tensor, which cannot be saved: leave it out")
    network.eval().row_major = True  # pyright: ignore[reportArgumentType]
    shape = channels, image_size, image_size
    with torch.no_grad():
        _logits(network, shape, classes, given)
        if any(is_lazy(p) for p in network.parameters()):
            raise DhaError(f"{_label(given)} has lazy layers that a forward pass does not reach: give their sizes")
        # Channels-last is faster, where no `view` of an activation wants row-major memory.
        del network.row_major
        try:
            _logits(network.to(memory_format=torch.channels_last), shape, classes, given)  # pyright: ignore[reportCallIssue]
        except (DhaError, RuntimeError):
            network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            network.row_major = True  # pyright: ignore[reportArgumentType]
    # On a copy, because BatchNorm records what it sees.
    if blocks is not None:
        return network
    copied = attempt(lambda: copy.deepcopy(network), f"{_label(given)} cannot be copied, which a run does")
    if not _logits(copied.train(), shape, classes, given).requires_grad:
        raise DhaError(f"{_label(given)} has no weight to train: set requires_grad of some that its output depends on")
    return network


def layout(network: nn.Module) -> torch.memory_format:
    """Return the memory format of a network's weights and images: channels-last, which is fastest, where it can be."""
    return torch.contiguous_format if getattr(network, "row_major", False) else torch.channels_last


def head_weights(network: nn.Module, classes: int) -> frozenset[str]:
    """Return the names of the weights of the head: the last linear layer or 1x1 convolution with an output per class.

    None, if there is no such layer outside of the choices of a search, or nothing is trained but the head.
    """
    choices = [name for name, module in network.named_modules() if isinstance(module, SparseChoice | Sum)]
    head: frozenset[str] = frozenset()
    for name, module in network.named_modules():
        linear = isinstance(module, nn.Linear) and module.out_features == classes
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.out_channels == classes
        if (linear or pointwise) and not any(name.startswith(f"{choice}.") for choice in choices):
            head = frozenset(f"{name}.{weight}" for weight, _ in module.named_parameters())
    codes = {c.compressed for c in sparse_codes(network)}
    trained = {name for name, p in network.named_parameters() if p.requires_grad and p not in codes}
    return head if trained & head and trained - head else frozenset()


def given_limits(
    network: nn.Module,
    given: str | nn.Module,
    shape: tuple[int, int, int],
    max_parameters: int | None,
    max_flops: int | None,
) -> Limits | None:
    """Return the limits of a given network, whose author decides what its candidates are; None if there are none.

    Raises:
        DhaError: if no choice keeps them, or the cost of the network cannot be counted.
    """
    if max_parameters is None and max_flops is None:
        return None
    return attempt(
        lambda: Limits(network, shape, max_parameters=max_parameters, max_flops=max_flops, weightless=1.0),
        f"{_label(given)}: its cost cannot be counted, leave max_parameters and max_flops out",
    )


def _logits(network: nn.Module, shape: tuple[int, int, int], classes: int, given: str | nn.Module) -> Tensor:
    device = next((p.device for p in network.parameters()), None)
    # Strides of channels-last even where there is a single channel, which `contiguous` would not bring about.
    images = torch.zeros(2, *shape[1:], shape[0], device=device).permute(0, 3, 1, 2)
    if layout(network) == torch.contiguous_format:
        images = torch.zeros(2, *shape, device=device)
    mode = "training" if network.training else "evaluation"
    logits = attempt(
        lambda: network(images),
        f"{_label(given)} cannot take images of shape {tuple(images.shape)} in {mode} mode (image_size sets the side)",
    )
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DhaError(
            f"{_label(given)} returned {got} for 2 images in {mode} mode: expected logits of shape {(2, classes)}, one "
            "per class"
        )
    return logits


def _keep(network: nn.Module, blocks: Mapping[str, tuple[str, ...]], label: str) -> None:
    message = f"{label} is not the network that the model was trained with"
    chosen = attempt(lambda: {network.get_submodule(place): names for place, names in blocks.items()}, message)

    def plain(choice: SparseChoice) -> Sum:
        names = chosen.get(choice, ())
        if not names or not set(names) <= set(choice.names):
            raise DhaError(
                f"{message}: a block with the candidates {', '.join(choice.names)} has to keep {shortened(names)}"
            )
        return Sum({name: choice.candidates[name] for name in names})

    replace_choices(network, plain)


def _label(given: str | nn.Module) -> str:
    return f"network={given!r}" if isinstance(given, str) else f"network=<{type(given).__name__}>"
