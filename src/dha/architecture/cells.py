"""The cell space: a network whose two kinds of cells are chosen by sparse codes while its weights are trained.

Source: the space of DARTS (Liu et al., ICLR 2019), searched as in ISTA-NAS (Yang et al., NeurIPS 2020) and DHA (Zhou et
al., TMLR 2022).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dha.architecture.genotype import Genotype, Node
from dha.architecture.operations import OPERATIONS, absorb, dense_gradient, reduce_norm, relu_conv_norm, weighted
from dha.architecture.sparse import SparseCodes

INPUTS_PER_NODE = 2
REFERENCES = {
    "light": (("skip", "separable_3x3"), ("max_pool_3x3", "separable_3x3")),
    "heavy": (("separable_3x3", "separable_3x3"), ("avg_pool_3x3", "separable_3x3")),
}
"""Where a search starts with little time and with more, in every node of a normal and of a reduction cell: what it does
with the older and the newer input of the cell."""


def stem(channels_in: int, channels_out: int, image_size: int, resolution: int) -> nn.Sequential:
    """Return a 3x3 convolution, after as many of stride 2 as bring a side to at most ``resolution`` pixels."""
    layers: list[nn.Module] = []
    while image_size > resolution:
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
        channels_in, image_size = channels_out, (image_size + 1) // 2
    layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)]
    return nn.Sequential(*layers)


class Cell(nn.Module):
    """One cell: two inputs brought to ``channels``, then nodes that add up operations on them and on earlier nodes.

    Args:
        nodes: per node the (input, operation) pairs that exist as modules: the chosen ones, or all candidates of a
            search.
        before_last, last: channels of the outputs of the two cells before.
        channels: channels of every node; the output concatenates all nodes.
        reduction: whether this cell halves height and width.
        after_reduction: whether the cell before did, so that the older input must be halved too.
    """

    def __init__(
        self,
        nodes: Sequence[Sequence[tuple[int, str]]],
        before_last: int,
        last: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.older = (reduce_norm if after_reduction else relu_conv_norm)(before_last, channels)
        self.newer = relu_conv_norm(last, channels)
        self.nodes = nn.ModuleList(
            nn.ModuleDict(
                {
                    f"{source}-{name}": OPERATIONS[name](channels, 2 if reduction and source < 2 else 1)
                    for source, name in node
                }
            )
            for node in nodes
        )

    def forward(
        self, older: Tensor, newer: Tensor, nodes: Sequence[Node], weights: Sequence[Sequence[Tensor]] | None = None
    ) -> Tensor:
        """Compute only the operations that ``nodes`` names, each multiplied by its weight where weights are given."""
        states = [self.older(older), self.newer(newer)]
        for index, (operations, node) in enumerate(zip(self.nodes, nodes, strict=True)):
            chosen = [(operations[f"{source}-{name}"], states[source]) for source, name in node]  # pyright: ignore[reportIndexIssue]
            if weights is None:
                terms = [operation(state) for operation, state in chosen]
            else:
                terms = [weighted(*pair, weight) for pair, weight in zip(chosen, weights[index], strict=True)]
            states.append(sum(terms[1:], start=terms[0]))
        return torch.cat([dense_gradient(state) for state in states[2:]], dim=1)


class CellNetwork(nn.Module):
    """A plain network of the cell space: what a search delivers, with no architecture parameters.

    Args:
        genotype: the architecture.
        channels_in: channels of the images.
        classes: number of outputs.
        image_size: side of the images in pixels; decides how often the stem halves them.
        candidates: the operations that exist as modules per node, for both kinds of cells; those of the genotype when
            not given.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels_in: int,
        classes: int,
        image_size: int,
        candidates: Sequence[Sequence[tuple[int, str]]] | None = None,
    ) -> None:
        super().__init__()
        self._genotype = genotype
        channels = genotype.channels
        before_last = last = 3 * channels
        self.stem = stem(channels_in, last, image_size, genotype.resolution)
        self.cells = nn.ModuleList()
        self.reductions = [i in (genotype.cells // 3, 2 * genotype.cells // 3) for i in range(genotype.cells)]
        after_reduction = False
        for reduction in self.reductions:
            channels *= 2 if reduction else 1
            nodes = candidates or (genotype.reduction if reduction else genotype.normal)
            self.cells.append(Cell(nodes, before_last, last, channels, reduction, after_reduction))
            before_last, last, after_reduction = last, channels * len(nodes), reduction
        self.head = nn.Linear(last, classes)

    @property
    def genotype(self) -> Genotype:
        """The architecture."""
        return self._genotype

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        return self._forward(images, None, None)

    def _forward(
        self, images: Tensor, normal: Sequence[Sequence[Tensor]] | None, reduction: Sequence[Sequence[Tensor]] | None
    ) -> Tensor:
        older = newer = self.stem(images)
        genotype = self.genotype
        for cell, reduces in zip(self.cells, self.reductions, strict=True):
            nodes = genotype.reduction if reduces else genotype.normal
            older, newer = newer, cell(older, newer, nodes, reduction if reduces else normal)
        return self.head(torch.relu(newer).mean(dim=(2, 3)))


class CellSearchNetwork(CellNetwork):
    """The cell space during its search: all candidates hold weights, only the chosen ones are computed.

    Its cost and memory per step are those of the derived network. ``codes`` are the architecture parameters: train
    ``codes.compressed`` like any other parameter and recover them from time to time.

    Args:
        channels_in, classes, image_size: as in ``CellNetwork``.
        cells, channels, resolution: as in ``Genotype``.
        nodes: nodes per cell.
        start: where the search begins: with one of ``REFERENCES``, or at random.
        code_size, penalty, gradient, seed: as in ``SparseCodes``.
    """

    def __init__(
        self,
        channels_in: int,
        classes: int,
        image_size: int,
        *,
        cells: int = 5,
        channels: int = 16,
        resolution: int = 20,
        nodes: int = 4,
        start: Literal["light", "heavy", "random"] = "light",
        code_size: int = 7,
        penalty: float = 0.1,
        gradient: Literal["one_step", "implicit"] = "one_step",
        seed: int = 0,
    ) -> None:
        names = list(OPERATIONS)
        candidates = [[(source, name) for source in range(2 + node) for name in names] for node in range(nodes)]
        codes = SparseCodes(
            [2 + node for _ in range(2) for node in range(nodes)],
            len(names),
            choose=INPUTS_PER_NODE,
            size=code_size,
            penalty=penalty,
            gradient=gradient,
            start=None if start == "random" else _start(names, nodes, start),
            seed=seed,
        )
        super().__init__(
            _genotype(codes, names, cells, channels, resolution), channels_in, classes, image_size, candidates
        )
        self.names = names
        self.codes = codes
        self._rebuild = (channels_in, classes, image_size)

    @property
    def genotype(self) -> Genotype:
        """The architecture that the codes choose now."""
        sizes = self._genotype
        return _genotype(self.codes, self.names, sizes.cells, sizes.channels, sizes.resolution)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes); differentiable in weights and codes."""
        weights = [row.unbind() for row in self.codes.weights().unbind()]
        nodes = len(weights) // 2
        return self._forward(images, weights[:nodes], weights[nodes:])

    @torch.no_grad()
    def derive(self) -> CellNetwork:
        """Return a plain copy with the chosen operations only, mixing weights absorbed: the same function."""
        genotype = self.genotype
        network = CellNetwork(genotype, *self._rebuild).to(self.head.weight.device)
        state = self.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        weights = self.codes.weights()
        for cell, reduces in zip(network.cells, self.reductions, strict=True):
            nodes = genotype.reduction if reduces else genotype.normal
            offset = len(nodes) if reduces else 0
            for index, node in enumerate(nodes):
                for (source, name), weight in zip(node, weights[offset + index], strict=True):
                    absorb(cell.nodes[index][f"{source}-{name}"], weight)  # pyright: ignore
        return network.train(self.training)


def start_genotype(
    start: Literal["light", "heavy"], nodes: int, cells: int, channels: int, resolution: int
) -> Genotype:
    """Return the architecture where a search starts: one of ``REFERENCES``, in every node.

    Args:
        start: which one.
        nodes: nodes per cell.
        cells: as in ``Genotype``.
        channels: as in ``Genotype``.
        resolution: as in ``Genotype``.
    """
    normal, reduction = ((tuple(enumerate(names)),) * nodes for names in REFERENCES[start])
    return Genotype(normal, reduction, cells, channels, resolution)


def _start(names: Sequence[str], nodes: int, start: str) -> list[list[int]]:
    """Return the candidates of every node where a search starts, normal cells first."""
    return [
        [source * len(names) + names.index(name) for source, name in enumerate(reference)]
        for reference in REFERENCES[start]
        for _ in range(nodes)
    ]


def _genotype(codes: SparseCodes, names: Sequence[str], cells: int, channels: int, resolution: int) -> Genotype:
    nodes = tuple(tuple((edge, names[operation]) for edge, operation in node) for node in codes.choices())
    half = len(nodes) // 2
    return Genotype(nodes[:half], nodes[half:], cells, channels, resolution)
