import copy
import os
from typing import Any

import pytest
import torch
from torch import nn

from dha import DhaError
from dha.architecture import GivenGenotype, SparseChoice, Sum, derive, genotype_of, given_network, head_weights, layout


def given(*arguments: Any) -> Any:
    return given_network(*arguments)


def net(*extra: nn.Module, head: Any = nn.Linear):
    last = head(10) if head is nn.LazyLinear else head(4 * 36, 10)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *extra, nn.Flatten(), last)


def choice(channels=4, **settings):
    candidates = {"a": nn.Conv2d(channels, channels, 3, padding=1), "b": nn.Identity(), "c": nn.Sequential()}
    return SparseChoice(candidates, **settings)


def test_a_module_is_copied_and_brought_to_float32():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    network = given(module, 1, 10, 8)
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network[1].weight.double(), module[1].weight)


def test_trying_a_network_leaves_its_statistics_alone():
    network = given(net(head=nn.LazyLinear), 1, 10, 8)
    assert network[1].num_batches_tracked == 0
    assert network[-1].weight.shape == (10, 4 * 36), "lazy weights are there"


@pytest.mark.parametrize(
    ("function", "made"),
    [
        ("def make(): return Net(64, 10)", (64, 10)),
        ("def make(classes): return Net(64, classes)", (64, 10)),
        ("def make(*, image_size, classes, channels=3): return Net(channels * image_size**2, classes)", (64, 10)),
        ("def make(classes, width=64, *rest, **more): return Net(width, classes)", (64, 10)),
        ("make = lambda channels: Net(64 * channels, 10)", (64, 10)),
        ("class make(Net):\n    def __init__(self, classes): super().__init__(64, classes)", (64, 10)),
    ],
)
def test_a_function_gets_the_arguments_that_it_asks_for(tmp_path, function, made):
    (tmp_path / "neighbour.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n"
        "    def __init__(self, a, b): super().__init__(nn.Flatten(), nn.Linear(a, b))\n"
    )
    (tmp_path / "net.py").write_text(f"from neighbour import Net\n{function}\n")
    network = given(f"{tmp_path}/net.py:make", 1, 10, 8)
    assert (network[1].in_features, network[1].out_features) == made
    assert not (tmp_path / "__pycache__" / "net.pyc").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no function 'make'"),
        ("make = 3", r"has no function 'make'"),
        ("def make(", r"cannot be read \(SyntaxError"),
        ("import nowhere_at_all", r"running .*net.py failed \(ModuleNotFoundError: .*nowhere_at_all"),
        ("raise SystemExit('bye')", r"failed \(SystemExit: bye"),
        ("def make(): return 1 / 0", r"the function failed \(ZeroDivisionError: division by zero"),
        ("def make(depth): pass", r"asks for 'depth'.*channels, classes, image_size.*default"),
        ("def make(classes, /): pass", r"asks for 'classes'"),
        ("def make(): return 'resnet'", r"returned str.*torch.nn.Module"),
    ],
)
def test_a_file_that_makes_no_network_is_named(tmp_path, text, message):
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(DhaError, match=f"(?s)network='.*net.py:make'.*{message}") as raised:
        given(f"{tmp_path}/net.py:make", 1, 10, 8)
    assert (raised.value.__cause__ is not None) == ("(" in message and "\\" in message)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("net.py", r"network='net.py' names no function.*file.py:function"),
        ("net.py:", r"names no function"),
        (":make", r"names no function"),
        ("nowhere/net.py:make", r"there is no file nowhere/net.py"),
        (5, r"network=5: give a torch.nn.Module"),
        (nn.Linear, r"give a torch.nn.Module"),
    ],
)
def test_what_is_no_network_is_named(network, message):
    with pytest.raises(DhaError, match=message):
        given(network, 1, 10, 8)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        logits = self.head(x.flatten(1))
        return (logits, logits) if self.training else logits


class Extra(nn.Sequential):
    def get_extra_state(self):
        return {"key": 1}


class Blind(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*flat())

    def forward(self, x):
        return self.body(x).detach()


def flat():
    return nn.Flatten(), nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), r"<Sequential> cannot take images of shape \(2, 1, 8, 8\).*image_size"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"returned \(2, 7\).*expected logits of shape \(2, 10\)"),
        (nn.Sequential(nn.Conv2d(1, 10, 1)), r"returned \(2, 10, 8, 8\)"),
        (Auxiliary(), r"<Auxiliary> returned tuple for 2 images in training mode"),
        (Extra(*flat()), r"<Extra> has extra state"),
        (Blind(), r"<Blind> has no weight to train: set requires_grad"),
        (nn.Sequential(*flat()).requires_grad_(False), r"no weight to train"),
        (nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.ReplicationPad1d((0, 9))), r"no weight to train"),
        (SparseChoice({"a": nn.Sequential(*flat()), "b": net(head=nn.LazyLinear)}, start=["a"]), r"lazy layers"),
        (nn.Sequential(*flat()).to("meta"), r"cannot be brought to cpu \(NotImplementedError"),
    ],
)
def test_a_module_that_does_not_map_images_to_logits_is_named(module, message):
    with pytest.raises(DhaError, match=message):
        given(copy.deepcopy(module), 1, 10, 8)


def test_sparse_codes_outside_of_a_choice_are_named():
    from dha.architecture import CellSearchNetwork

    with pytest.raises(DhaError, match=r"belong to no SparseChoice.*space='cells'"):
        given(CellSearchNetwork(1, 10, 8, cells=1, channels=2, nodes=1), 1, 10, 8)


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(len(x), -1))


def test_a_network_that_views_its_activations_has_row_major_images():
    assert layout(given(net(), 1, 10, 8)) == torch.channels_last
    network = given(Viewing(), 1, 10, 8)
    assert layout(network) == layout(copy.deepcopy(network)) == torch.contiguous_format
    assert network.body[1].weight.is_contiguous()


def test_the_head_is_the_last_layer_with_an_output_per_class():
    network = given(net(), 1, 10, 8)
    assert head_weights(network, 10) == {"4.weight", "4.bias"}
    assert head_weights(network, 7) == set()
    pointwise = nn.Sequential(nn.Linear(8, 10), nn.Conv2d(1, 10, 1), nn.Conv2d(10, 10, 3), nn.Flatten())
    assert head_weights(pointwise, 10) == {"1.weight", "1.bias"}
    network[:4].requires_grad_(False)
    assert head_weights(network, 10) == set(), "nothing is trained but the head"
    network[:4].requires_grad_(True)
    network[4].requires_grad_(False)
    assert head_weights(network, 10) == set()


def test_layers_inside_of_a_choice_are_no_head():
    heads = SparseChoice({"small": nn.Linear(64, 10), "large": nn.Sequential(nn.Linear(64, 10))})
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), heads)
    assert head_weights(network, 10) == head_weights(derive(network), 10) == set()


def test_chosen_blocks_are_kept_in_a_network_made_anew():
    def make():
        torch.manual_seed(3)
        inner = SparseChoice({"x": nn.Identity(), "y": nn.Conv2d(4, 4, 1)}, start=["y"])
        shared = choice(start=["a"])
        outer = SparseChoice({"a": nn.Sequential(inner, nn.ReLU()), "b": nn.Identity()}, start=["a"])
        return net(shared, nn.ReLU(), shared, outer)

    search = given(make(), 1, 10, 8)
    trained: Any = derive(search).eval()
    assert not any(isinstance(m, SparseChoice) for m in trained.modules())
    assert trained[3] is trained[5], "a block that stands in two places stays one"
    genotype = genotype_of(trained, "net.py:make")
    assert isinstance(genotype, GivenGenotype)
    assert genotype == GivenGenotype("net.py:make", {"3": ("a",), "6": ("a",), "6.candidates.a.0.0": ("y",)})
    assert GivenGenotype.from_dict(genotype.to_dict()) == genotype
    assert str(genotype) == "given, net.py:make\n  3: a\n  6: a\n  6.candidates.a.0.0: y"
    again = given(make(), 1, 10, 8, genotype.blocks)
    again.load_state_dict(trained.state_dict())
    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(again.eval()(images), trained(images))
    torch.testing.assert_close(search.eval()(images), trained(images))


def test_a_network_that_is_a_choice_itself():
    network = given(SparseChoice({"a": nn.Sequential(*flat()), "b": net()}, start=["b"]), 1, 10, 8)
    derived = derive(network)
    assert genotype_of(derived, nn.Identity()) == GivenGenotype("Identity", {"0": ("b",)})
    assert isinstance(derive(network[0]), Sum)


@pytest.mark.parametrize("blocks", [{}, {"3": ("z",)}, {"3": ()}, {"9": ("a",)}, {"0.x": ("a",)}])
def test_blocks_that_the_network_does_not_have_are_named(blocks):
    with pytest.raises(DhaError, match="is not the network that the model was trained with"):
        given(net(choice()), 1, 10, 8, blocks)


@pytest.mark.parametrize(
    "data", [{}, {"network": "x"}, {"network": "x", "blocks": 3}, {"network": "x", "blocks": {"a": 1}}]
)
def test_a_damaged_genotype_is_named(data):
    with pytest.raises(DhaError, match="not the genotype of a given network"):
        GivenGenotype.from_dict(data)


CHANGES_DIRECTORY = """
import os
from torch import nn
os.chdir("/")

def make(channels, classes):
    os.chdir("/tmp")
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, classes))
"""

CANNOT_BE_COPIED = """
from torch import nn

class make(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.rows = (row for row in range(3))

    def forward(self, images):
        return super().forward(images.flatten(1))
"""


def test_code_that_changes_the_working_directory_moves_nothing(tmp_path):
    (tmp_path / "net.py").write_text(CHANGES_DIRECTORY)
    before = os.getcwd()
    given_network(f"{tmp_path}/net.py:make", 1, 10, 8)
    assert os.getcwd() == before


@pytest.mark.parametrize(
    ("code", "message"),
    [("make = type", "what it takes is unknown"), (CANNOT_BE_COPIED, "cannot be copied, which a run does")],
)
def test_functions_that_cannot_be_called_and_networks_that_cannot_be_copied_are_named(code, message, tmp_path):
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(DhaError, match=message):
        given_network(f"{tmp_path}/net.py:make", 1, 10, 8)
