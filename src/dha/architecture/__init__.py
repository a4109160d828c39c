"""Sparse-coded architectures: the LASSO codes, the cell space, and the genotype that a search writes down."""

from dha.architecture.cells import CellNetwork, CellSearchNetwork
from dha.architecture.genotype import Genotype
from dha.architecture.sparse import Recovery, SparseCodes, lasso

__all__ = ["CellNetwork", "CellSearchNetwork", "Genotype", "Recovery", "SparseCodes", "lasso"]
