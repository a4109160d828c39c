"""Sparse-coded architectures: the LASSO codes, blocks and spaces chosen by them, and the genotypes they write down."""

from dha.architecture.blocks import BlockGenotype, BlockNetwork, referred
from dha.architecture.cells import CellNetwork, CellSearchNetwork
from dha.architecture.choice import SparseChoice, Sum, derive
from dha.architecture.costs import count
from dha.architecture.drop_path import DropPath, drop_factors, drop_paths, dropping
from dha.architecture.genotype import Genotype
from dha.architecture.given import GivenGenotype, genotype_of, given_limits, given_network, head_weights, layout
from dha.architecture.limits import Limits
from dha.architecture.mobile import MobileNetwork
from dha.architecture.operations import OPERATIONS, Scale
from dha.architecture.recovery import recover, sparse_codes
from dha.architecture.residual import BRANCHES, ResidualNetwork
from dha.architecture.spaces import HEAVY, SIZES, Size, plain_network, search_network, start_network
from dha.architecture.sparse import Recovery, SparseCodes, lasso
from dha.architecture.timing import candidate_seconds
from dha.architecture.usercode import prepare_call
from dha.architecture.whitening import whiten

__all__ = [
    "BRANCHES",
    "HEAVY",
    "OPERATIONS",
    "SIZES",
    "BlockGenotype",
    "BlockNetwork",
    "CellNetwork",
    "CellSearchNetwork",
    "DropPath",
    "Genotype",
    "GivenGenotype",
    "Limits",
    "MobileNetwork",
    "Recovery",
    "ResidualNetwork",
    "Scale",
    "Size",
    "SparseChoice",
    "SparseCodes",
    "Sum",
    "candidate_seconds",
    "count",
    "derive",
    "drop_factors",
    "drop_paths",
    "dropping",
    "genotype_of",
    "given_limits",
    "given_network",
    "head_weights",
    "lasso",
    "layout",
    "plain_network",
    "prepare_call",
    "recover",
    "referred",
    "search_network",
    "sparse_codes",
    "start_network",
    "whiten",
]
