"""Networks that are a chain of blocks, each chosen by a sparse code, and the genotype that writes one down."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from dha.architecture.choice import SparseChoice, Sum
from dha.architecture.genotype import whole
from dha.errors import DhaError, shortened

Table = Mapping[str, Callable[[], nn.Sequential]]
"""Name -> constructor of the candidates of one block."""

Choice = Callable[[Table, str], nn.Module]
"""Makes the block that a network puts in a place where the candidates of a table are possible, of which the one that is
named is where a search starts."""


@dataclass(frozen=True)
class BlockGenotype:
    """A network of a space of blocks.

    Attributes:
        space: "residual" or "mobile".
        blocks: per block, from the input to the output, the candidates it adds up.
        width: channels of the first convolution; everything else is in proportion.
        depth: blocks per stage (residual), or the most layers of a stage (mobile).
        resolution: largest side in pixels that the first stage works on; the stem halves images until they fit.
        squeeze_excite: whether every layer reweights its channels (mobile).
    """

    space: str
    blocks: tuple[tuple[str, ...], ...]
    width: int
    depth: int
    resolution: int
    squeeze_excite: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "BlockGenotype":
        """Read what ``to_dict`` wrote.

        Raises:
            DhaError: if a key is missing or a size is out of range.
        """
        try:
            sizes = [whole(data[name]) for name in ("width", "depth", "resolution")]
            blocks = tuple(tuple(str(name) for name in block) for block in data["blocks"])
            for block in blocks:  # Before anything is built.
                if len(set(block)) != len(block):
                    raise ValueError(f"a candidate twice in block {shortened(block)}")
            squeeze_excite = data.get("squeeze_excite", False) is True
            genotype = BlockGenotype(str(data["space"]), blocks, *sizes, squeeze_excite=squeeze_excite)
        except (KeyError, TypeError, ValueError) as error:
            raise DhaError(f"not a genotype of blocks ({error!r:.200}): expected what dha wrote") from error
        if not (1 <= sizes[0] <= 4096 and 1 <= sizes[1] <= 100 and 4 <= sizes[2] <= 2048):
            raise DhaError(
                f"genotype with width, depth, resolution = {shortened(sizes)}: expected 1..4096, 1..100, 4..2048"
            )
        return genotype

    def __str__(self) -> str:
        """Return one line per block, as people write architectures."""
        extra = ", squeeze-excite" if self.squeeze_excite else ""
        lines = [f"{self.space} network, {self.width} channels, depth {self.depth}{extra}"]
        return "\n".join(lines + [f"  block {i}: {' + '.join(names)}" for i, names in enumerate(self.blocks)])


def searched(
    *,
    choose: int = 1,
    start: Literal["reference", "random"] = "reference",
    penalty: float = 0.1,
    gradient: Literal["one_step", "implicit"] = "one_step",
    seed: int = 0,
) -> Choice:
    """Return what makes blocks chosen by sparse codes.

    Args:
        choose: how many candidates a block adds up.
        start: where the search begins: with the reference of each table (and the first of the others, as many as are
            chosen), or at random.
        penalty: as in ``SparseCodes``.
        gradient: as in ``SparseCodes``.
        seed: as in ``SparseCodes``; every block gets one of its own.
    """
    seeds = iter(range(1000 * seed, 1000 * (seed + 1)))

    def block(table: Table, reference: str) -> SparseChoice:
        candidates = {name: make() for name, make in table.items()}
        names = _start(table, reference, choose)
        return SparseChoice(
            candidates,
            choose=len(names),
            start=names if start == "reference" else None,
            penalty=penalty,
            gradient=gradient,
            seed=next(seeds),
        )

    return block


def referred(table: Table, reference: str, choose: int = 1) -> Sum:
    """Make a block of the candidates where a search starts: a ``Choice``."""
    return Sum({name: table[name]() for name in _start(table, reference, choose)})


def _start(table: Table, reference: str, choose: int) -> list[str]:
    return [reference, *(name for name in table if name != reference)][:choose]


def written(blocks: Sequence[Sequence[str]]) -> Choice:
    """Return what makes the blocks that a genotype names, in its order.

    Raises:
        DhaError: while blocks are made, if the genotype has too few or names a candidate that is not in the table.
    """
    names: Iterator[Sequence[str]] = iter(blocks)

    def block(table: Table, reference: str) -> Sum:
        chosen = next(names, None)
        if not chosen or any(name not in table for name in chosen):
            raise DhaError(f"genotype with block {shortened(chosen)}: expected some of {', '.join(table)}")
        return Sum({name: table[name]() for name in chosen})

    return block


class BlockNetwork(nn.Module):
    """A network whose architecture is what its blocks have chosen.

    Args:
        space, width, depth, resolution, squeeze_excite: as in ``BlockGenotype``.
    """

    def __init__(self, space: str, width: int, depth: int, resolution: int, squeeze_excite: bool = False) -> None:
        super().__init__()
        self.space, self.width, self.depth, self.resolution = space, width, depth, resolution
        self.squeeze_excite = squeeze_excite

    @property
    def genotype(self) -> BlockGenotype:
        """The architecture as it is now."""
        blocks = tuple(tuple(m.chosen()) for m in self.modules() if isinstance(m, SparseChoice | Sum))
        return BlockGenotype(self.space, blocks, self.width, self.depth, self.resolution, self.squeeze_excite)
