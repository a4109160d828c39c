"""CUDA graphs: what a GPU does for a function is recorded once, and launched as a whole from then on.

With small networks a GPU is faster than Python can tell it what to do, kernel by kernel. A graph is one launch.
"""

# torch documents its `_foreach` functions but leaves them out of its type stubs.
# pyright: reportPrivateImportUsage=false

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

KEPT = 16
"""Recordings that are kept: images have a few sizes in a run, and batches of two kinds."""

Results = Sequence[Tensor | None]


class Graphs:
    """Calls functions of tensors, and where that is possible replays what their second call recorded.

    A function must do the same for all tensors of the same shapes: wait for nothing, copy nothing from the host, and
    depend on no number of the host that changes. It may look at and change tensors that it has not been given, which
    must then stay where they are. What is returned is overwritten by the next call of the same function that returns
    something of the same shape there: until ``forget`` it is always at the same place, so that another function may
    know of it.

    Args:
        possible: whether to record; else functions are called as they are. Wants a CUDA device, and is taken back, with
            a warning, where that refuses to record.
    """

    def __init__(self, possible: bool) -> None:
        self.possible = possible
        self.forget()

    def forget(self) -> None:
        """Record anew: what functions do has changed."""
        # One pool, in which recordings have their intermediate results at the same places: they never run at once. It
        # goes with the last of them.
        self._pool: Any = None
        self._places: dict[Any, Tensor] = {}
        self._results: dict[Any, Results] = {}
        self._recordings: dict[Any, Recording] = {}

    def __call__(self, function: Callable[..., Results], *arguments: Tensor) -> Results:
        """Return what the function returns for these arguments."""
        if not self.possible:
            return function(*arguments)
        key = function, tuple((a.shape, a.stride(), a.dtype, a.device) for a in arguments)
        if key not in self._results:
            # Libraries make themselves ready at the first call, which cannot be recorded.
            results = function(*arguments)
            places = [self._place(function, number, result) for number, result in enumerate(results)]
            _put(results, places)
            self._results[key] = places
            return places
        if key not in self._recordings:
            if len(self._recordings) == KEPT:
                oldest = next(iter(self._recordings))
                del self._recordings[oldest], self._results[oldest]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            try:
                self._recordings[key] = Recording(function, arguments, self._results[key], self._pool)
            except RuntimeError as error:
                warnings.warn(
                    f"nothing is replayed from CUDA graphs, and slower: {error}", RuntimeWarning, stacklevel=2
                )
                self.possible = False
                self.forget()
                return function(*arguments)
        return self._recordings[key].replay(arguments)

    def _place(self, function: Callable[..., Results], number: int, result: Tensor | None) -> Tensor | None:
        """Return where what a function returns in this position belongs."""
        if result is None:
            return None
        key = function, number, result.shape, result.dtype, result.device
        if key not in self._places:
            self._places[key] = torch.empty_like(result)
        return self._places[key]


class Recording:
    """What a GPU does for a function, with the tensors that it does it with.

    Args:
        function: as in ``Graphs``.
        arguments: of the function; copied.
        results: where to put what it returns. Beside the pool, where the next recording may put anything.
        pool: of the memory that it uses for anything else.
    """

    def __init__(
        self, function: Callable[..., Results], arguments: Sequence[Tensor], results: Results, pool: Any
    ) -> None:
        self.arguments, self.results = [argument.detach().clone() for argument in arguments], results
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, which read images, may go on meanwhile.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.run(function)

    def run(self, function: Callable[..., Results]) -> None:
        """Call the function with its own arguments, and put the results in their place."""
        _put(function(*self.arguments), self.results)

    def replay(self, arguments: Sequence[Tensor]) -> Results:
        """Return the results for other arguments of the same shapes."""
        for mine, argument in zip(self.arguments, arguments, strict=True):
            mine.copy_(argument)
        self.graph.replay()
        return self.results


@torch.no_grad()
def _put(results: Results, places: Results) -> None:
    there = [place for place in places if place is not None]
    if there:
        torch._foreach_copy_(there, [result for result in results if result is not None])
