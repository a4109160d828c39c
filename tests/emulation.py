"""CUDA graphs on a CPU: the operations of a function are recorded, and repeated on the same tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dha.engine.graphs import Recording


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        named = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
        written = [named.get(a.name) for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        written += [named.get("running_mean"), named.get("running_var")]  # which the schema does not tell
        self.before += [(t, t.detach().clone()) for t in tree_leaves(written) if isinstance(t, torch.Tensor)]
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def restore(self):
        """Undo all changes: to record is not to do."""
        for tensor, content in reversed(self.before):
            tensor.copy_(content)

    def repeat(self):
        made = []
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            if func._schema.is_mutable or any(r.alias_info for r in func._schema.returns):
                continue  # it has changed the tensors themselves, or looked at them in another way
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)
                    made.append(old)
        for tensor in made:
            # Another recording may have put something else there by now.
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)


class EmulatedRecording(Recording):
    """A recording on a CPU."""

    def __init__(self, function, arguments, results, pool):
        self.arguments, self.results = [argument.detach().clone() for argument in arguments], results
        with _Tape() as self.tape:
            self.run(function)
        with torch.no_grad():
            self.tape.restore()

    def replay(self, arguments):
        for mine, argument in zip(self.arguments, arguments, strict=True):
            mine.copy_(argument)
        with torch.no_grad():
            self.tape.repeat()
        return self.results
