import copy
import gc
import itertools
import math
import warnings
import weakref

import pytest
import torch
from tests.emulation import EmulatedRecording
from torch import nn
from torch.nn import functional as F

from dha import ArchitectureConfig, AugmentationConfig, Config, DhaError, HyperparametersConfig
from dha.architecture import DropPath, drop_paths
from dha.augmentation import AugmentationPolicy
from dha.config import LEARNED
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.hyperparameter_learning import BACKBONE, CLIP
from dha.hyperparameters import cosine, linear_schedule, smoothing_direction
from dha.hyperparameters.learned_optimizer import DECAYS
from dha.joint import RARELY, JointTraining
from dha.prepare import prepare, resolve
from dha.skipping import WATCHED
from dha.state import _joint_state, _load_joint


@pytest.fixture(scope="module")
def splits():
    return split(load_source("digits"), validation_fraction=0.1, test_fraction=0.0, seed=0)


def joint_training(splits, config, device="cpu"):
    fabric = make_fabric(device, "32", 8)
    preprocessing = Preprocessing(8, 1, *measure(splits.train.images))
    config = resolve(config, splits, preprocessing, fabric)
    batches, *_, joint = prepare(splits, preprocessing, config, fabric)
    return batches, joint


def test_batches_that_are_augmented_at_once_are_augmented_as_their_draws_say(splits, small):
    batches, joint = joint_training(splits, small(augmentation=AugmentationConfig(identity=0.1), batch_size=16))
    images, labels = next(iter(batches))
    assert len(labels) == 64, "four batches"
    several = joint.batching.batches(images, labels, progress=0.5)
    assert [len(batch.labels) for batch in several] == [16] * 4
    assert torch.equal(torch.cat([batch.images for batch in several]), images / 255)
    assert torch.equal(torch.cat([batch.labels for batch in several]), labels)
    assert joint.policy is not None
    draws = [batch.draws for batch in several if batch.draws is not None]
    assert len(draws) == 4
    assert not torch.equal(draws[0].uniforms, draws[1].uniforms)
    for batch, drawn in zip(several, draws, strict=True):
        torch.testing.assert_close(batch.augmented, joint.policy.apply(batch.images, drawn), rtol=0, atol=1e-6)
        assert not torch.equal(batch.augmented, batch.images)
    twin = joint_training(splits, small(augmentation=AugmentationConfig(identity=0.1), batch_size=16))[1]
    for training in (joint, twin):
        training.network.train()
        assert training.batching.learner is not None
        training.batching.learner.generator.manual_seed(1)
    losses, correct = joint.step(images, labels, progress=0.5)
    one_by_one = [twin.train(batch, progress=0.5) for batch in twin.batching.batches(images, labels, progress=0.5)]
    assert joint.steps == twin.steps == 4
    assert torch.equal(losses, torch.cat([loss for loss, _ in one_by_one]))
    assert torch.equal(correct, torch.cat([right for _, right in one_by_one]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_step_is_that_of_torch_when_nothing_is_learned(splits, small, optimizer):
    settings = HyperparametersConfig(
        optimizer=optimizer, learning_rate=0.01, weight_decay=0.01, momentum=0.8, warmup=0.0, label_smoothing=0.0
    )
    # Not cells: where BatchNorm follows BatchNorm there are gradients of nothing but rounding, which Adam enlarges.
    batches, joint = joint_training(splits, small(learn="none", space="residual", hyperparameters=settings))
    oracle = copy.deepcopy(joint.plain).train()
    if optimizer == "sgd":
        optimizer = torch.optim.SGD(oracle.parameters(), lr=0.01, momentum=0.8, weight_decay=0.01, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(oracle.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.01)
    joint.network.train()
    for (images, labels), _ in zip(batches, range(6), strict=False):
        losses, correct = joint.step(images, labels, progress=0.0)
        inputs = joint.preprocessing.normalise(images / 255).contiguous(memory_format=torch.channels_last)
        logits = oracle(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(losses.mean(), loss.detach(), rtol=1e-4, atol=1e-5)
        assert correct.float().mean() == (logits.argmax(1) == labels).float().mean()
    for ours, theirs in zip(joint.plain.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_learning_rate_moves_by_the_cosine_at_the_new_weights(splits, small):
    settings = HyperparametersConfig(
        learning_rate=0.05, horizon=0.0, rate=3.0, resting_cosine=-0.1, warmup=0.0, label_smoothing=0.2
    )
    batches, joint = joint_training(splits, small(learn="hyperparameters", every=1, hyperparameters=settings))
    held_out = next(iter(joint.validation))
    joint.validation = iter([held_out] * 2)
    joint.network.train()
    # Two steps, so that there is a momentum, and the update is what the weights moved by.
    joint.step(*next(iter(batches)), progress=0.0)
    before, rate = [p.detach().clone() for p in joint.plain.parameters()], joint.hyper.peaks[0].value.clone()
    joint.step(*next(iter(batches)), progress=0.02)
    network = copy.deepcopy(joint.plain)
    inputs = joint.preprocessing.normalise(held_out[0] / 255).contiguous(memory_format=torch.channels_last)
    loss = F.cross_entropy(network(inputs), held_out[1], label_smoothing=0.2)
    gradient = torch.autograd.grad(loss, list(network.parameters()))
    update = [old - new.detach() for old, new in zip(before, joint.plain.parameters(), strict=True)]
    # After two hundredths of the run, and so in full.
    moves = 0.3 * linear_schedule(0.02, 0.0)
    expected = rate * torch.exp(moves * (cosine(gradient, update) + 0.1))
    assert abs(expected - rate) > 1e-5
    torch.testing.assert_close(joint.hyper.peaks[0].value, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_only_the_values_asked_for_move(splits, small, name):
    settings = HyperparametersConfig(learn=name, warmup=0.0, drop_path=0.1)
    config = small(learn="hyperparameters", space="residual", every=1, hyperparameters=settings)
    batches, joint = joint_training(splits, config)
    scalars = (
        joint.hyper.peaks[0],
        joint.hyper.decays[0],
        joint.hyper.friction,
        joint.hyper.smoothing,
        joint.hyper.depth.probability,
    )
    values = [scalar.value for scalar in scalars]
    before = [value.clone() for value in values]
    joint.network.train()
    for (images, labels), index in zip(batches, range(3), strict=False):
        joint.step(images, labels, 0.1 * index)
    moved = [not torch.equal(value, old) for value, old in zip(values, before, strict=True)]
    assert moved == [name == other for other in LEARNED]
    used = joint.optimizer.optimizer.param_groups[0]["momentum"]
    assert (used == 0.9) == (name != "momentum")


def test_label_smoothing_moves_by_its_cosine_with_the_plain_loss(splits, small):
    settings = HyperparametersConfig(learn="label_smoothing", label_smoothing=0.2, rate=5.0, warmup=0.0)
    batches, joint = joint_training(splits, small(learn="hyperparameters", every=1, hyperparameters=settings))
    images, labels = next(iter(batches))
    held_out = next(iter(joint.validation))
    joint.validation = itertools.repeat(held_out)
    joint.hyper.smoothing.value.fill_(0.05)
    joint.network.train()
    logits = copy.deepcopy(joint.plain)(joint.inputs(images))
    losses, _ = joint.step(images, labels, progress=0.0)
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.05))
    network = copy.deepcopy(joint.plain)
    weights = list(network.parameters())
    loss = F.cross_entropy(network(joint.inputs(held_out[0])), held_out[1])
    gradient = torch.autograd.grad(loss, weights)
    expected = 0.05 * torch.exp(
        0.5 * cosine(gradient, smoothing_direction(network(joint.inputs(images)), labels, weights))
    )
    assert abs(expected - 0.05) > 1e-5
    torch.testing.assert_close(joint.hyper.smoothing.value, expected, rtol=1e-4, atol=0)


def test_branches_are_dropped_in_training_and_the_probability_moves_by_its_cosine(splits, small):
    settings = HyperparametersConfig(learn="drop_path", drop_path=0.3, rate=5.0, warmup=0.0)
    config = small(learn="hyperparameters", space="residual", every=1, hyperparameters=settings)
    batches, joint = joint_training(splits, config)
    images, labels = next(iter(batches))
    held_out = next(iter(joint.validation))
    joint.validation = itertools.repeat(held_out)
    generator = torch.Generator().set_state(joint.hyper.depth.generator.get_state())
    joint.network.train()

    def training_losses(network, uniforms, probability):
        for path, row in zip(drop_paths(network), uniforms >= probability, strict=True):
            path.factors = row.float() / (1 - probability)
        losses = F.cross_entropy(network(joint.inputs(images)), labels, reduction="none", label_smoothing=0.1)
        for path in drop_paths(network):
            path.factors = None
        return losses

    expected = training_losses(copy.deepcopy(joint.plain), torch.rand(6, len(labels), generator=generator), 0.3)
    losses, _ = joint.step(images, labels, progress=0.0)
    torch.testing.assert_close(losses, expected)
    assert all(path.factors is None for path in drop_paths(joint.plain))
    network = copy.deepcopy(joint.plain)
    weights = list(network.parameters())
    loss = F.cross_entropy(network(joint.inputs(held_out[0])), held_out[1], label_smoothing=0.1)
    gradient = torch.autograd.grad(loss, weights)
    uniforms = torch.rand(6, len(labels), generator=generator)
    more, less = (training_losses(network, uniforms, p).mean() for p in (0.405, 0.195))
    direction = torch.autograd.grad(more - less, weights)
    expected = 0.3 * torch.exp(0.5 * cosine(gradient, direction))
    assert abs(expected - 0.3) > 1e-4
    torch.testing.assert_close(joint.hyper.depth.probability.value, expected, rtol=1e-4, atol=0)


def test_a_network_without_branches_to_drop_is_refused(splits, small):
    settings = HyperparametersConfig(drop_path=0.1)
    with pytest.raises(DhaError, match=r"drop_path=0.1: nothing can be dropped.*residual"):
        joint_training(splits, small(hyperparameters=settings))
    brought_path = brought(DropPath(), hyperparameters=settings)
    assert len(joint_training(splits, brought_path)[1].passes.paths) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adamw"])
def test_what_is_learned_goes_on_where_it_was(splits, small, optimizer):
    settings = HyperparametersConfig(optimizer=optimizer, learn=LEARNED, warmup=0.0, drop_path=0.1)
    config = small(learn="hyperparameters", space="residual", every=2, hyperparameters=settings)
    several = list(itertools.islice(joint_training(splits, config)[0].forever(), 12))
    joints = [joint_training(splits, config)[1] for _ in range(2)]
    for joint in joints:
        joint.validation = itertools.repeat(next(joint.validation))
        joint.network.train()
    for index, batch in enumerate(several[:6]):
        joints[0].step(*batch, progress=0.05 * index)
    _load_joint(joints[1], copy.deepcopy(_joint_state(joints[0])))
    for joint in joints:
        for index, batch in enumerate(several[6:]):
            joint.step(*batch, progress=0.3 + 0.05 * index)
    values = [
        [
            s.value
            for s in (
                *j.hyper.peaks,
                *j.hyper.decays,
                j.hyper.friction,
                j.hyper.smoothing,
            )
        ]
        for j in joints
    ]
    assert values[0] == values[1]
    assert len({joint.hyper.smoothing.value.item() for joint in joints}) == 1
    assert len({joint.hyper.depth.probability.late for joint in joints}) == 1
    assert all(torch.equal(a, b) for a, b in zip(*(j.plain.state_dict().values() for j in joints), strict=True))


def brought(*middle, **settings):
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *middle, nn.Flatten(), nn.Linear(72, 10)
    )
    return Config(network=network, epochs=1, device="cpu", **settings)


def test_the_step_of_a_given_network_has_two_rates_and_a_bounded_gradient(splits):
    settings = HyperparametersConfig(
        learning_rate=0.5, weight_decay=0.01, momentum=0.8, warmup=0.0, label_smoothing=0.0
    )
    batches, joint = joint_training(splits, brought(learn="none", hyperparameters=settings))
    oracle = copy.deepcopy(joint.plain).train()
    assert isinstance(oracle, nn.Sequential)
    groups = [
        {"params": oracle[:-1].parameters(), "lr": 0.5 * BACKBONE},
        {"params": oracle[-1].parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.8, nesterov=True)
    joint.network.train()
    lengths = []
    for images, labels in batches:
        joint.step(images, labels, progress=0.0)
        loss = F.cross_entropy(oracle(joint.inputs(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        lengths.append(nn.utils.clip_grad_norm_(oracle.parameters(), CLIP))
        for weight in oracle.parameters():
            assert weight.grad is not None
            weight.grad += 0.01 * weight.detach()
        optimizer.step()
    assert min(lengths) < CLIP < max(lengths), "both cases have come up"
    for ours, theirs in zip(joint.plain.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_backbone_and_head_move_by_their_own_cosines(splits):
    settings = HyperparametersConfig(
        learning_rate=0.05, horizon=0.5, rate=0.3, resting_cosine=-0.05, warmup=0.0, label_smoothing=0.0
    )
    batches, joint = joint_training(splits, brought(learn="hyperparameters", every=2, hyperparameters=settings))
    held_out = next(iter(joint.validation))
    joint.validation = itertools.repeat(held_out)
    joint.network.train()
    endless = batches.forever()
    joint.step(*next(endless), progress=0.0)
    assert [peak.value.item() for peak in joint.hyper.peaks] == pytest.approx([0.05 * BACKBONE, 0.05]), (
        "no way to look back"
    )
    past = [w.clone() for w in joint.optimizer.trail.values]
    joint.step(*next(endless), progress=0.1)
    past = [p + 0.4 * (w.detach() - p) for p, w in zip(past, joint.plain.parameters(), strict=True)]
    joint.step(*next(endless), progress=0.2)
    network = copy.deepcopy(joint.plain)
    gradient = torch.autograd.grad(
        F.cross_entropy(network(joint.inputs(held_out[0])), held_out[1]), network.parameters()
    )
    way = [old - new.detach() for old, new in zip(past, network.parameters(), strict=True)]
    starts, parts = (0.05 * BACKBONE, 0.05), (slice(0, 4), slice(4, 6))
    rate, covered = 0.3 * linear_schedule(0.2, 0.0), 1 - math.exp(-0.2 / 0.5)
    signs = set()
    for peak, decay, start, part in zip(joint.hyper.peaks, joint.hyper.decays, starts, parts, strict=True):
        for scalar, begin, direction, far in (
            (peak, start, cosine(gradient[part], way[part]) + 0.05, rate),
            (decay, 5e-4, cosine(gradient[part], past[part]) + 0.05, DECAYS * rate),
        ):
            signs.add(direction.sign().item())
            counts = direction if direction > 0 else covered * direction
            expected = begin * torch.exp(far * counts)
            assert abs(expected / begin - 1) > 1e-4
            torch.testing.assert_close(scalar.value, expected, rtol=1e-5, atol=0)
    assert signs == {-1, 1}, "both cases have come up"


@pytest.mark.parametrize(("steps", "every"), [(0, 24), (500, 24), (720, 48), (3600, 240)])
def test_looks_at_validation_images_become_rarer_as_steps_add_up(splits, small, steps, every):
    _, joint = joint_training(splits, small())
    joint.steps = steps
    joint.space_looks()
    assert joint.every == every


def test_a_look_is_due_when_it_is_said_to_be(splits, small, monkeypatch):
    batches, joint = joint_training(splits, small(learn="hyperparameters", every=2))
    joint.network.train()
    looks, learn = [], joint._learn
    monkeypatch.setattr(joint, "_learn", lambda *given: looks.append(joint.steps) or learn(*given))
    for step, batch in zip(range(10), batches.forever(), strict=False):
        if step == 4:
            joint.every = 6
        joint.step(*batch, progress=0.0)
    assert looks == [0, 2, 6]


@pytest.mark.parametrize(
    ("every", "drop_path", "untouched"),
    [(RARELY, 0.0, [0, 10, 20]), (RARELY, 0.1, []), (2, 0.0, [])],
)
def test_the_rare_steps_that_are_probed_train_on_untouched_images(
    splits, small, every, drop_path, untouched, monkeypatch
):
    augmentation = AugmentationConfig(identity=0.1)
    settings = HyperparametersConfig(drop_path=drop_path)
    config = small(space="residual", every=every, augmentation=augmentation, hyperparameters=settings)
    batches, joint = joint_training(splits, config)
    joint.network.train()
    assert joint.batching.learner is not None
    trained, probes, train, learn = [], [], joint.passes.train, joint.batching.learner.learn
    monkeypatch.setattr(joint.passes, "train", lambda inputs, *rest: (trained.append(inputs), train(inputs, *rest))[1])
    monkeypatch.setattr(joint.batching.learner, "learn", lambda *probe: (probes.append(probe), learn(*probe)))
    several = (batch for draw in batches.forever() for batch in joint.batching.batches(*draw, progress=0.3))
    plain = []
    for number, batch in zip(range(24), several, strict=False):
        before = joint.passes.losses(batch.images, batch.labels)
        joint.train(batch, progress=0.3)
        if torch.equal(trained[-1], joint.passes.normalise(batch.images)):
            plain.append(number)
        if number % every == 0:
            (draws, known, changed), _, _ = probes[-1]
            torch.testing.assert_close(known, before)
            assert len(draws.pairs) == len(changed) == len(known)
            assert not torch.equal(known, changed)
    assert plain == untouched
    assert len(probes) == -(-24 // every)


class Noisy(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


def test_dropout_is_off_where_policy_and_hyperparameters_learn(splits):
    batches, joint = joint_training(splits, brought(nn.Dropout(0.5), Noisy(), every=1))
    joint.network.train()
    images, labels = next(iter(batches))
    held_out = next(joint.validation)
    joint.validation = itertools.repeat(held_out)
    (gradient, losses), (again, others) = (
        joint.passes.held_out(held_out[0] / 255, held_out[1], torch.tensor(0.1), joint.weights) for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(gradient, again, strict=True))
    assert torch.equal(losses, others)
    inputs = joint.inputs(images)
    signals = [joint.passes.alignments(inputs, labels, joint.weights, gradient) for _ in range(2)]
    assert torch.equal(*signals)
    assert all(module.training for module in joint.plain.modules())
    assert not torch.equal(joint.plain(inputs), joint.plain(inputs)), "and on where the weights do"
    joint.step(images, labels, 0.2)


# One training pass is recorded. Others are not: the validation pass and two of the alignments; or two of a probe of
# training images, one where the training pass has the other's losses, the validation pass, which has some of the probe
# of validation images, and one more of that.
@pytest.mark.parametrize(
    ("rule", "every", "recorded"),
    [
        ("validation", 1, [True, False, False, False]),
        ("generalisation", 1, [False, False, True, False, False]),
        ("generalisation", RARELY, [False, True, False, False]),
    ],
)
def test_running_statistics_see_training_images_only(splits, small, rule, every, recorded):
    batches, joint = joint_training(splits, small(every=every, augmentation=AugmentationConfig(rule=rule)))
    joint.network.train()
    images, labels = (tensor[: joint.batching.size] for tensor in next(iter(batches)))
    joint.step(images, labels, 0.0)
    norm = joint.plain.stem[-1]
    before = norm.running_mean.clone(), norm.running_var.clone()
    held_out = next(joint.validation)
    joint.validation = iter([(torch.full_like(held_out[0], 255), held_out[1])] * 2)
    passes = []
    hook = norm.register_forward_hook(lambda module, inputs, output: passes.append(module.track_running_stats))
    joint.steps = 0
    joint.step(images, labels, 0.0)
    hook.remove()
    assert passes == recorded
    assert not torch.equal(norm.running_mean, before[0])
    assert norm.track_running_stats


@pytest.mark.parametrize("parts", ["none", "architecture", "augmentation", "hyperparameters"])
def test_only_the_parts_asked_for_move(splits, small, parts):
    batches, joint = joint_training(splits, small(learn=parts, every=1))
    joint.network.train()
    assert joint.searching == (parts == "architecture")
    compressed = [codes.compressed.detach().clone() for codes in joint.codes]
    policy = None if joint.policy is None else joint.policy.to_dict()
    peak = joint.hyper.peaks[0].value.clone()
    for (images, labels), index in zip(batches, range(4), strict=False):
        joint.step(images, labels, 0.1 * index)
    moved = [not torch.equal(codes.compressed, b) for codes, b in zip(joint.codes, compressed, strict=True)]
    assert moved == ([True] if parts == "architecture" else [])
    assert (joint.policy is not None) == (parts == "augmentation")
    if joint.policy is not None:
        assert joint.policy.to_dict() != policy
    assert torch.equal(joint.hyper.peaks[0].value, peak) == (parts != "hyperparameters")


def test_what_has_settled_looks_at_no_validation_image(splits, small):
    batches, joint = joint_training(splits, small(every=1))
    joint.network.train()
    joint.step(*next(iter(batches)), progress=0.2)
    joint.settle()
    assert joint.policy is not None
    learned = (
        joint.policy.to_dict(),
        joint.hyper.peaks[0].value.clone(),
        joint.hyper.decays[0].value.clone(),
    )
    joint.validation = iter([])
    joint.step(*next(iter(batches)), progress=0.9)
    assert (
        joint.policy.to_dict(),
        joint.hyper.peaks[0].value,
        joint.hyper.decays[0].value,
    ) == learned


def test_unused_candidates_stay_as_they_are(splits, small):
    batches, joint = joint_training(splits, small(learn="architecture"))
    joint.network.train()
    before = {name: p.detach().clone() for name, p in joint.plain.named_parameters()}
    joint.step(*next(iter(batches)), progress=0.2)
    moved = {name for name, p in joint.plain.named_parameters() if not torch.equal(p, before[name])}
    genotype = joint.plain.genotype
    for name in before:
        if ".nodes." in name:
            cell, node, operation = name.split(".")[1], int(name.split(".")[3]), name.split(".")[4]
            kind = genotype.reduction if joint.plain.reductions[int(cell)] else genotype.normal
            used = operation in {f"{source}-{o}" for source, o in kind[node]}
            assert used == (name in moved), name


def test_finishing_the_search_changes_nothing_that_the_network_computes(splits, small):
    batches, joint = joint_training(splits, small())
    images, labels = next(iter(batches))
    joint.network.train()
    for _ in range(5):
        joint.step(images, labels, 0.2)
    joint.recover()
    joint.plain.eval()
    inputs = joint.preprocessing.normalise(images / 255)
    before = joint.plain(inputs)
    joint.finish_search()
    assert not joint.searching
    torch.testing.assert_close(joint.plain.eval()(inputs), before, rtol=0, atol=1e-5)
    joint.network.train()
    joint.step(images, labels, 0.5)


def test_policy_learns_the_one_operation_that_helps(splits, small):
    # The validation images are negatives of the training images: inverting is what helps, and the policy must find out.
    config = small(
        learn="augmentation",
        every=1,
        augmentation=AugmentationConfig(rule="validation"),
        hyperparameters=HyperparametersConfig(learning_rate=0.1),
    )
    batches, joint = joint_training(splits, config)
    joint = JointTraining(
        _search_network(config),
        AugmentationPolicy(operations=("identity", "invert", "translate_x"), identity_probability=0.5),
        ((255 - images, labels) for images, labels in joint.validation),
        joint.preprocessing,
        joint.config,
        joint.fabric,
        torch.Generator().manual_seed(0),
    )
    joint.finish_search()
    assert joint.policy is not None
    assert joint.batching.learner is not None
    joint.batching.learner.optimizer.param_groups[0]["lr"] = 0.1
    joint.network.train()

    def inverted() -> float:
        p = joint.policy.probabilities()  # pyright: ignore[reportOptionalMemberAccess]
        return float(p[1].sum() + p[:, 1].sum() - p[1, 1])

    before = inverted()
    for _ in range(3):
        for images, labels in batches:
            joint.step(images, labels, 0.2)
    assert before < 0.45
    assert inverted() > before + 0.2


def test_an_overflowing_loss_does_not_poison_the_policy(splits, small):
    config = small(learn="augmentation", every=1, augmentation=AugmentationConfig(rule="validation"))
    batches, joint = joint_training(splits, config)
    assert joint.policy is not None
    joint.network.train()
    joint.step(*next(iter(batches)), progress=0.2)
    assert joint.batching.learner is not None
    assert joint.batching.learner.pending is not None
    joint.batching.learner.pending[2].copy[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    joint.step(*next(iter(batches)), progress=0.2)
    assert joint.policy.probabilities().isfinite().all()


def _search_network(config):
    from dha.architecture import CellSearchNetwork

    settings = config.architecture
    return CellSearchNetwork(1, 10, 8, cells=settings.depth, channels=settings.width, nodes=settings.nodes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("space", ["cells", "residual", "mobile"])
@pytest.mark.parametrize("found", [False, True])
def test_the_step_never_waits_for_the_gpu(splits, small, space, found):
    settings = HyperparametersConfig(learn=",".join(LEARNED), drop_path=0.1 if space != "cells" else 0.0)
    config = small(space=space, every=3, device="cuda", hyperparameters=settings)
    batches, joint = joint_training(splits, config, "cuda")
    if found:
        joint.finish_search()
    joint.network.train()
    several = batches.forever()
    for _ in range(2 * WATCHED):
        joint.step(*next(several), progress=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2 * WATCHED):
                joint.step(*next(several), progress=0.4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert joint.is_sound()


@pytest.mark.parametrize(
    ("space", "loss"),
    [("cells", "validation"), ("residual", "training"), ("residual", "validation"), ("mobile", "training")],
)
@pytest.mark.parametrize("learned", ["learning_rate,weight_decay", ",".join(LEARNED)])
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_recorded_steps_are_the_plain_ones(splits, small, space, loss, learned, device, monkeypatch):
    if device == "cpu":
        monkeypatch.setattr("dha.engine.graphs.Recording", EmulatedRecording)
        monkeypatch.setattr("torch.cuda.graph_pool_handle", object)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings = HyperparametersConfig(learn=learned, drop_path=0.1 if space != "cells" else 0.0, warmup=0.0)
    architecture = ArchitectureConfig(depth=2, width=4, nodes=2, loss=loss)
    config = small(space=space, every=2, hyperparameters=settings, architecture=architecture, device=device)
    ends = []
    for recorded in (False, True):
        batches, joint = joint_training(splits, config, device)
        joint.network.train()
        several, losses = batches.forever(), []
        for number in range(9):
            if number == 3:
                before, chance = [codes.choices() for codes in joint.codes], torch.Generator().manual_seed(0)
                for codes in joint.codes:
                    codes.compressed.data.copy_(torch.randn(codes.compressed.shape, generator=chance))
                joint.recover()
                assert [codes.choices() for codes in joint.codes] != before
            if number == 6:
                joint.finish_search()
            joint.passes.graphs.possible = recorded
            losses += joint.step(*next(several), progress=0.3 + 0.01 * number)
        functions = {key[0] for key in joint.passes.graphs._recordings}
        assert (joint.passes._gradients in functions) == recorded
        assert (joint._move in functions) == (recorded and joint.optimizer.recordable)
        assert joint.batching.learner is not None
        values = joint.batching.learner.policy.probabilities(), joint.hyper.peaks[0].value, joint.hyper.smoothing.value
        ends.append([*losses, *joint.plain.state_dict().values(), *values])
    rtol, atol = (0.0, 0.0) if device == "cpu" else (1e-2, 1e-3)
    for plain, replayed in zip(*ends, strict=True):
        torch.testing.assert_close(replayed, plain, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_batches_that_are_got_ready_meanwhile_are_the_same(splits, small, device, monkeypatch):
    # Else the gradients of two runs on a GPU may differ in the last bit, and all that follows from there.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ways = []
    for meanwhile in (True, False):
        batches, joint = joint_training(splits, small(space="residual", every=2, device=device), device)
        joint.network.train()
        several = batches.forever()
        ahead, at_once = joint.batching.drawn(several, lambda: 0.3), joint.batching.batches
        drawn = ahead if meanwhile else (at_once(images, labels, 0.3) for images, labels, *_ in several)
        seen = []
        for _ in range(12):
            for batch in next(drawn):
                seen += [batch.augmented.clone(), batch.labels.clone(), *joint.train(batch, 0.3)]
        ways.append(seen)
    assert len(ways[0]) >= 48
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_nothing_of_a_search_is_left_when_it_is_over(splits, small, monkeypatch):
    monkeypatch.setattr("dha.engine.graphs.Recording", EmulatedRecording)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", object)
    batches, joint = joint_training(splits, small(space="residual", every=2))
    joint.network.train()
    joint.passes.graphs.possible = True
    several = batches.forever()
    for _ in range(6):
        joint.step(*next(several), progress=0.3)
    assert joint.passes.graphs._recordings
    candidate = weakref.ref(joint.plain)
    gc.collect()
    gc.disable()  # circles would be found sooner or later
    try:
        joint.finish_search()
        assert candidate() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("space", ["cells", "residual", "mobile"])
@pytest.mark.parametrize("found", [False, True])
def test_recorded_passes_are_the_plain_ones(splits, small, space, found):
    batches, joint = joint_training(splits, small(space=space, device="cuda", precision="32"), "cuda")
    if found:
        joint.finish_search()
    passes, several, smoothing = joint.passes, batches.forever(), torch.tensor(0.1, device="cuda")
    joint.network.train()

    def all_passes(images, labels):
        inputs = joint.inputs(images)
        factors = torch.randint(2, (len(passes.paths), len(images)), device="cuda").float() if passes.paths else None
        results = []
        for recorded in (True, False):
            passes.graphs.possible = recorded
            losses, logits = passes.train(inputs, labels, smoothing, factors)
            gradients = [weight.grad.clone() for weight in passes.trained if weight.grad is not None]
            results.append([losses, logits.clone(), *gradients, passes.losses(images / 255, labels)])
            active = [weight for weight in passes.trained if weight.grad is not None]
            held_out, plain = passes.held_out(images / 255, labels, smoothing, active)
            results[-1] += [*held_out, plain]
            for weight in passes.trained:
                weight.grad = None
        return results

    for number in range(7):
        if number == 4 and not found:
            for codes in joint.codes:
                # Of a block, the next candidate; of a node of a cell, the next operation on the same edge.
                size = codes.operations if codes.operations > 1 else codes.real.shape[1]
                codes.take(codes.chosen // size * size + (codes.chosen + 1) % size)
            passes.forget()
        recorded, plain = all_passes(*next(several))
        assert len(recorded) == len(plain)
        for ours, theirs in zip(recorded, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for weight in joint.weights:
                weight.mul_(0.9)
