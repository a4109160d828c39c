"""What becomes of the policy in the joint step: fixed, or moved by what is planted in the validation images."""

import copy
import itertools

import pytest
import torch

from dha import AugmentationConfig, HyperparametersConfig
from dha.augmentation import AugmentationPolicy, adversarial_gradient, validation_gradient
from dha.data import Preprocessing, load_source, measure, split
from dha.engine import make_fabric
from dha.prepare import prepare, resolve


@pytest.fixture(scope="module")
def splits():
    return split(load_source("digits"), validation_fraction=0.2, test_fraction=0.0, seed=0)


def begin(splits, config):
    """Return endless training batches, and joint training and learning of its policy before the first step."""
    fabric = make_fabric("cpu", "32", 8)
    preprocessing = Preprocessing(8, 1, *measure(splits.train.images))
    batches, *_, joint = prepare(splits, preprocessing, resolve(config, splits, preprocessing, fabric), fabric)
    joint.network.train()
    assert joint.batching.learner is not None
    return batches.forever(), joint, joint.batching.learner


@pytest.mark.parametrize("learn", ["none", "augmentation"])
def test_a_fixed_policy_is_applied_and_never_moves(splits, small, tmp_path, learn):
    AugmentationPolicy(["identity", "invert", "rotate"], "pairs", 0.4).save(tmp_path / "policy.json")
    settings = AugmentationConfig(rule="fixed", start=str(tmp_path / "policy.json"))
    batches, joint, learner = begin(splits, small(learn=learn, every=1, augmentation=settings))
    joint.validation = iter([])  # No probe, no validation gradient: nobody asks for an image.
    policy, applied = learner.policy, []
    before, apply = policy.to_dict(), policy.apply
    policy.apply = lambda images, draws: applied.append(draws) or apply(images, draws)
    for step, batch in enumerate(itertools.islice(batches, 5)):
        joint.step(*batch, progress=0.24 * step)  # to .96: a fixed policy is applied to the end
    assert policy.to_dict() == before
    assert len(applied) == 5
    assert len(torch.cat([draws.pairs for draws in applied]).unique(dim=0)) == 9


@pytest.mark.parametrize("rule", ["generalisation", "validation", "adversarial"])
def test_the_last_steps_see_images_as_they_are_and_move_no_policy(splits, small, rule):
    settings = AugmentationConfig(rule=rule, identity=0.001, until=0.8)
    batches, joint, learner = begin(splits, small(learn="augmentation", every=1, settle=1.0, augmentation=settings))
    applied, policies, augment = [], [], learner.augment
    learner.augment = lambda images, batches=1: applied.append(progress) or augment(images, batches)
    for progress, batch in zip((0.0, 0.5, 0.79, 0.8, 0.99), batches, strict=False):
        joint.step(*batch, progress=progress)
        policies.append(learner.policy.to_dict())
    assert applied == [0.0, 0.5, 0.79]
    assert policies[0] != policies[2]
    assert policies[2] == policies[3] == policies[4]


def test_without_a_file_a_fixed_policy_is_the_one_near_identity(splits, small):
    settings = AugmentationConfig(rule="fixed", identity=0.6)
    *_, learner = begin(splits, small(learn="none", augmentation=settings))
    assert learner.policy.untouched() == pytest.approx(0.36)


def test_a_saved_policy_draws_and_does_the_same_from_its_file(splits, small, tmp_path):
    images = splits.train.images[:64].float() / 255
    *_, first = begin(splits, small(learn="augmentation", seed=3, augmentation=AugmentationConfig(identity=0.2)))
    first.policy.save(tmp_path / "policy.json")
    settings = AugmentationConfig(rule="fixed", start=str(tmp_path / "policy.json"))
    *_, second = begin(splits, small(seed=3, augmentation=settings))
    *_, other = begin(splits, small(seed=4, augmentation=settings))
    (changed, [draws]), (again, [same]), (_, [others]) = (learner.augment(images) for learner in (first, second, other))
    assert torch.equal(draws.pairs, same.pairs)
    assert torch.equal(draws.uniforms, same.uniforms)
    assert torch.equal(changed, again)
    assert not torch.equal(changed, images)
    assert not torch.equal(draws.uniforms, others.uniforms)


def learned(splits, small, tmp_path, rule, steps, seen):
    """Return the probability of identity, flip and inversion in each slot after some steps.

    They follow as many without a policy: a network that knows nothing minds no operation. ``seen`` makes the validation
    images.
    """
    AugmentationPolicy(["identity", "horizontal_flip", "invert"], identity_probability=0.5).save(tmp_path / "p.json")
    augmentation = AugmentationConfig(rule=rule, start=str(tmp_path / "p.json"), learning_rate=0.2)
    settings = {"learn": "augmentation", "space": "residual", "every": 1, "augmentation": augmentation}
    batches, joint, learner = begin(
        splits, small(**settings, hyperparameters=HyperparametersConfig(learning_rate=0.05))
    )
    joint.validation = ((seen(images), labels) for images, labels in joint.validation)
    joint.batching.learner = None
    for step, batch in enumerate(itertools.islice(batches, 2 * steps)):
        if step == steps:
            joint.batching.learner = learner
        joint.step(*batch, progress=0.5 * step / steps)
    return learner.policy.operation_probabilities()


@pytest.mark.parametrize(("rule", "gradient"), [("validation", "validation"), ("adversarial", "adversarial")])
def test_a_rule_by_signal_scores_pairs_by_the_policy_that_drew_them(splits, small, monkeypatch, rule, gradient):
    settings = AugmentationConfig(rule=rule, learning_rate=0.2)
    batches, joint, learner = begin(splits, small(learn="augmentation", every=1, augmentation=settings))
    name = f"dha.policy_learning.{gradient}_gradient"
    drawn, scored, draw = [], [], learner.policy.draw
    compute = {"validation": validation_gradient, "adversarial": adversarial_gradient}[gradient]

    def noted(policy, pairs, *rest, **settings):
        scored.append((pairs, policy.operation_probabilities()))
        return compute(policy, pairs, *rest, **settings)

    def drawing(*given):
        drawn.append(learner.policy.operation_probabilities())
        return draw(*given)

    monkeypatch.setattr(learner.policy, "draw", drawing)
    monkeypatch.setattr(name, noted)
    for batch in itertools.islice(batches, 5):
        joint.step(*batch, progress=0.3)
    assert len(scored) == 4
    assert not torch.equal(drawn[1], drawn[2]), "it moves"
    assert all(torch.equal(ours, theirs) for ours, (_, theirs) in zip(drawn, scored, strict=False))


@pytest.mark.parametrize("rule", ["generalisation", "validation", "adversarial"])
def test_what_a_policy_has_not_learned_from_yet_is_in_its_state(splits, small, rule):
    settings = AugmentationConfig(rule=rule, learning_rate=0.2)
    policies = []
    several = None
    for resumed in (False, True):
        batches, joint, learner = begin(splits, small(learn="augmentation", every=1, augmentation=settings))
        several = several or list(itertools.islice(batches, 6))
        joint.validation = itertools.cycle(list(itertools.islice(joint.validation, 2)))
        for step, batch in enumerate(several):
            if resumed and step == 4:
                state = copy.deepcopy(learner.state_dict())
                learner.pending = learner.probed = None
                learner.policy.set_slots(torch.zeros(2, 17), torch.zeros(17))
                learner.load_state_dict(state)
            joint.step(*batch, progress=0.1 * step)
        policies.append(learner.policy.to_dict())
    assert policies[0] == policies[1]


def test_signals_that_are_not_finite_say_nothing_about_their_pairs(splits, small):
    settings = AugmentationConfig(rule="adversarial", learning_rate=0.2)
    *_, learner = begin(splits, small(learn="augmentation", augmentation=settings))
    signal, start = torch.full((64,), 2.0), learner.policy.to_dict()
    signal[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for _ in range(2):
        learner.note(learner.policy.draw(64, learner.generator), signal)
    assert learner.policy.to_dict() == start, "all others are equal"


PLANTED = pytest.mark.parametrize(
    ("rule", "steps"), [("generalisation", 30), ("generalisation", 40), ("validation", 30)]
)


@PLANTED
def test_images_are_mirrored_where_unseen_images_are_mirrored(splits, small, tmp_path, rule, steps):
    shares = learned(splits, small, tmp_path, rule, steps, lambda images: images.flip(-1))
    assert shares[:, 1].max() > 0.4, "from .25; once trained on, they close the gap, and there is less need of them"
    assert shares[:, 2].max() < 0.15, "from .25"


@PLANTED
def test_images_are_left_alone_where_every_operation_hurts(splits, small, tmp_path, rule, steps):
    shares = learned(splits, small, tmp_path, rule, steps, lambda images: images)
    assert shares[:, 0].min() > 0.75, "from .5"
