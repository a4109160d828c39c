"""The written form of an architecture of the cell space: enough to build the plain network again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dha.architecture.operations import OPERATIONS
from dha.errors import DhaError, shortened

Node = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Genotype:
    """A network of the cell space.

    Attributes:
        normal: per node the (input, operation) pairs it adds up; inputs 0 and 1 are the two cells before, 2.. are
            earlier nodes.
        reduction: the same for the cells that halve height and width.
        cells: number of cells; the ones at one third and two thirds of the depth are reduction cells.
        channels: channels of a node in the first cell; they double at every reduction.
        resolution: largest side in pixels that cells work on; the stem halves images until they fit.
    """

    normal: tuple[Node, ...]
    reduction: tuple[Node, ...]
    cells: int
    channels: int
    resolution: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {"space": "cells", **asdict(self)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Genotype":
        """Read what ``to_dict`` wrote.

        Raises:
            DhaError: if a key is missing, an operation is unknown, an input does not exist, or a size is out of range.
        """
        try:
            sizes = [whole(data[name]) for name in ("cells", "channels", "resolution")]
            genotype = Genotype(_nodes(data["normal"]), _nodes(data["reduction"]), *sizes)
        except (KeyError, TypeError, ValueError) as error:
            raise DhaError(f"not a genotype of the cell space ({error!r:.200}): expected what dha wrote") from error
        if not (1 <= sizes[0] <= 100 and 1 <= sizes[1] <= 4096 and 4 <= sizes[2] <= 2048):
            raise DhaError(
                f"genotype with cells, channels, resolution = {shortened(sizes)}: expected 1..100, 1..4096, 4..2048"
            )
        return genotype

    def __str__(self) -> str:
        """Return one line per cell type and node, as people write architectures."""
        lines = [f"{self.cells} cells, {self.channels} channels"]
        for kind in ("normal", "reduction"):
            for index, node in enumerate(getattr(self, kind)):
                terms = " + ".join(f"{operation}({_input_name(source)})" for source, operation in node)
                lines.append(f"  {kind:9} node {index}: {terms}")
        return "\n".join(lines)


def whole(value: object) -> int:
    """Return a whole number of a file as it is; a ``TypeError`` where it is another value, that ``int`` would take."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.80} is no whole number")
    return value


def _input_name(index: int) -> str:
    return ("cell k-2", "cell k-1")[index] if index < 2 else f"node {index - 2}"


def _nodes(data: Any) -> tuple[Node, ...]:
    nodes = tuple(tuple((whole(source), str(operation)) for source, operation in node) for node in data)
    if not 1 <= len(nodes) <= 16:
        raise ValueError(f"{len(nodes)} nodes")
    for index, node in enumerate(nodes):
        if not 1 <= len(node) <= 2 or len(set(node)) != len(node):
            raise ValueError(f"{len(node)} inputs of node {index}, where 1 or 2 different ones are expected")
        for source, operation in node:
            if operation not in OPERATIONS:
                raise ValueError(f"unknown operation {shortened(operation)} in node {index}")
            if not 0 <= source < index + 2:
                raise ValueError(f"input {source} of node {index} does not exist")
    return nodes
