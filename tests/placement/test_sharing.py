"""The shared network computes what each placement alone would, at its cost, and trains only itself."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper

from cnpass.compensation.kinds import kind_names
from cnpass.compensation.overhead import cost, is_compensation, overhead, weight_keys
from cnpass.compensation.site import find_sites
from cnpass.document import Document
from cnpass.mapping import plan
from cnpass.placement.sharing import Supernet, insert_all, train_shared
from cnpass.placement.space import Choice
from cnpass.training.objective import Objective
from cnpass.training.retrain import TrainOptions
from cnpass.training.writeback import write_back

RATIOS = (0.1, 0.25, 0.8)


@pytest.fixture
def nodes(document) -> list[str]:
    return list(find_sites(document, plan(document))[0])


@pytest.fixture
def supernet(document, nodes) -> Supernet:
    return Supernet(document, nodes, kind_names(), RATIOS, seed=7)


@pytest.fixture
def scattered(supernet, lifted):
    """The shared network with random values everywhere in its compensation."""
    forward = lifted(supernet.document)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key in sorted(supernet.keys & forward.module.weights.keys()):
            weight = forward.module.weights[key]
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return forward


def placements(supernet, count):
    space, draw = supernet.space(limit=1.0), random.Random(0)
    for _ in range(count):
        choices = (Choice(n, draw.choice(kind_names()), draw.choice(RATIOS)) for n in supernet.nodes)
        yield tuple(choice for choice in choices if draw.random() < 0.7 and choice in space.costs)


def computed(supernet, network, placement, images):
    """The first output of a placement's part of the shared network."""
    forward, weights = supernet.variant(network, placement)
    return forward.module(images, weights=weights)[0]


def test_no_placement_is_the_model_itself_bit_for_bit(document, supernet, scattered, lifted, images) -> None:
    found = computed(supernet, scattered, (), images)
    assert torch.equal(found, lifted(document).module(images)[0])


def test_a_placement_runs_only_what_it_needs(supernet, scattered, images) -> None:
    """Weights that it does not need may be anything, even what would spoil every sum."""
    placement = (Choice("c1", "residual", 0.25),)
    used = weight_keys(supernet.extract(scattered.module.weights, placement))
    expected = computed(supernet, scattered, placement, images)
    with torch.no_grad():
        for key in supernet.keys & scattered.module.weights.keys() - used:
            scattered.module.weights[key].fill_(torch.nan)
    assert torch.equal(computed(supernet, scattered, placement, images), expected)


def test_masks_equal_a_compensation_that_is_really_that_narrow(supernet, scattered, lifted, images) -> None:
    module = scattered.module
    for placement in placements(supernet, 12):
        alone = lifted(supernet.extract(module.weights, placement)).module
        expected = alone(images)[0]
        found = computed(supernet, scattered, placement, images)
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=1e-6 * float(expected.detach().abs().max())
        )


@pytest.mark.parametrize("kind", kind_names())
def test_every_kind_and_width_of_every_node_is_masked_as_it_would_be_inserted(
    kind, supernet, scattered, lifted, images
) -> None:
    module, space = scattered.module, supernet.space(limit=1.0)
    plain = computed(supernet, scattered, (), images)
    suited = [node for node in supernet.nodes if Choice(node, kind, RATIOS[0]) in space.costs]
    assert len(suited) == (2 if kind == "probe" else len(supernet.nodes))
    for node in suited:
        seen = []
        for ratio in RATIOS:
            placement = (Choice(node, kind, ratio),)
            expected = lifted(supernet.extract(module.weights, placement)).module(images)[0]
            found = computed(supernet, scattered, placement, images)
            torch.testing.assert_close(
                found, expected, rtol=1e-6, atol=1e-6 * float(expected.detach().abs().max())
            )
            assert not torch.allclose(found, plain)
            seen.append(found)
        assert torch.allclose(seen[0], seen[-1]) == (kind == "affine")  # which has one width


def test_costs_are_those_counted_on_the_graph(document, supernet, scattered) -> None:
    space = supernet.space(limit=1.0)
    for choice in space.costs:
        alone, _ = insert_all(document, [choice], seed=0)
        assert space.costs[choice] == cost(n for n in plan(alone).nodes if is_compensation(n))
    for placement in placements(supernet, 8):
        extracted = supernet.extract(scattered.module.weights, placement)
        assert space.overhead(placement) == overhead(extracted)


def test_a_model_of_unknown_shape_is_limited_by_parameters_alone(build) -> None:
    weight = np.ones((4, 4, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "k"], ["y"], "conv")
    document = Document.from_proto(build([node], {"k": weight}, inputs={"x": ["n", 4, "h", "w"]}))
    space = Supernet(document, ["conv"], ["residual"], (0.25, 0.5), seed=0).space(limit=0.15)
    small, wide = (space.overhead([Choice("conv", "residual", ratio)]) for ratio in (0.25, 0.5))
    assert small.macs is None
    assert small.params == (8 + 4 + 1 + 4) / 144
    assert wide.params > 0.15
    assert {c.ratio for seed in range(20) for c in space.sample(seed)} == {0.25}


def test_samples_say_what_a_model_of_unknown_shape_costs(build) -> None:
    weight = np.ones((4, 4, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "k"], ["y"], "conv")
    open_ = Document.from_proto(build([node], {"k": weight}, inputs={"x": ["n", 4, "h", "w"]}))
    open_.samples = {"x": (4, 8, 9)}
    fixed = Document.from_proto(build([node], {"k": weight}, inputs={"x": ["n", 4, 8, 9]}))
    choice = [Choice("conv", "residual", 0.5)]
    found, expected = (
        Supernet(document, ["conv"], ["residual"], (0.5,), seed=0).space(limit=1).overhead(choice)
        for document in (open_, fixed)
    )
    assert found == expected
    assert overhead(insert_all(open_, choice, seed=0)[0]) == expected


def test_operators_of_unknown_work_make_the_limit_no_wider(build) -> None:
    weight = np.ones((4, 4, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["h"], "conv"),
        helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    choice = [Choice("conv", "residual", 0.5)]
    found = []
    for count in (1, 2):
        model = build(nodes[:count], {"k": weight}, inputs={"x": ["n", 4, 8, 8]}, outputs=("hy"[count - 1],))
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        document = Document.from_proto(model)
        found.append(Supernet(document, ["conv"], ["residual"], (0.5,), seed=0).space(1).overhead(choice))
    assert found[0].macs is not None
    assert found[0] == found[1]


def test_the_shared_network_is_in_order_whichever_kinds_a_node_has(document, nodes) -> None:
    for kinds in (kind_names(), kind_names()[::-1]):
        graph = Supernet(document, nodes, kinds, RATIOS, seed=7).document.to_proto().graph
        written = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
        for node in graph.node:
            assert written.issuperset(node.input)
            written.update(node.output)


def test_samples_and_the_cheapest_stay_within_the_limit_and_reach_every_choice(supernet) -> None:
    space = supernet.space(limit=0.2)
    drawn = [space.sample(seed) for seed in range(500)]
    assert all(space.excess(placement) <= 0 for placement in [*drawn, space.cheapest()])
    assert all(len({c.node for c in placement}) == len(placement) for placement in drawn)
    reached = {choice for placement in drawn for choice in placement}
    assert reached == {choice for choice in space.costs if space.excess([choice]) <= 0}
    assert space.cheapest()
    assert not replace(space, limit=0.0).cheapest()


def options(epochs: int) -> TrainOptions:
    return TrainOptions(epochs=epochs, batch=10, levels=(1.0,), seed=4)


def test_training_moves_shared_weights_only_and_helps(supernet, lifted, problem) -> None:
    forward = lifted(supernet.document)
    before = {key: weight.detach().clone() for key, weight in forward.module.weights.items()}
    result = train_shared(supernet, supernet.space(0.5), forward, problem, options(4))
    after = forward.module.weights
    for key in after.keys() - supernet.keys:
        assert after[key].detach().numpy().tobytes() == before[key].numpy().tobytes()
    assert set(result.weights) == supernet.keys & after.keys()
    assert sum(not torch.equal(after[key], before[key]) for key in result.weights) > len(result.weights) / 2


def test_shared_weights_are_worth_having(document, nodes, lifted, problem) -> None:
    """Measured by the error of outputs, which any placement can make smaller: variation adds to means."""
    clean = problem.clean
    validator = replace(problem.validator, metric="ser", expected=clean.numpy())
    task = replace(problem, objective=Objective.of("ser", clean), validator=validator)
    supernet = Supernet(document, nodes, ["gain"], RATIOS, seed=7)
    forward, space = lifted(supernet.document), supernet.space(0.5)
    train_shared(supernet, space, forward, task, options(30))
    plain, *others = (
        validator.score(*supernet.variant(forward, placement))
        for placement in ((), *(space.sample(seed) for seed in range(3)))
    )
    assert min(others) > plain + 1.0  # dB


def test_a_step_trains_only_what_its_placement_uses(supernet, scattered, images) -> None:
    module = scattered.module
    choice = Choice("c1", "residual", 0.25)
    loss = computed(supernet, scattered, (choice,), images).square().sum()
    loss.backward()
    used = weight_keys(supernet.extract(module.weights, (choice,)))
    touched = {key for key in supernet.keys & module.weights.keys() if module.weights[key].grad is not None}
    assert len(touched) == len(used) == 4
    closing = next(k for k in touched if "compensator.weight" in k)
    gradient = module.weights[closing].grad
    assert gradient is not None
    assert bool((gradient[:, :2] != 0).any())
    assert not bool((gradient[:, 2:] != 0).any())


def test_training_goes_on_to_the_same_bits_after_an_interruption(
    supernet, lifted, problem, tmp_path, monkeypatch
) -> None:
    space = supernet.space(0.5)
    whole = train_shared(supernet, space, lifted(supernet.document), problem, options(6))

    class StopError(Exception):
        pass

    calls = 0

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        if calls > 14:
            raise StopError
        return loss(*arguments)

    path, loss = tmp_path / "shared.pt", Objective.__call__
    monkeypatch.setattr(Objective, "__call__", stopping)
    with pytest.raises(StopError):
        train_shared(supernet, space, lifted(supernet.document), problem, options(6), path=path)
    monkeypatch.undo()
    resumed = train_shared(supernet, space, lifted(supernet.document), problem, options(6), path=path)
    for key, weight in whole.weights.items():
        assert torch.equal(resumed.weights[key], weight)


def test_an_extracted_placement_keeps_the_analog_weights_and_can_be_written_back(
    document, supernet, scattered, lifted
) -> None:
    extracted = supernet.extract(scattered.module.weights, (Choice("fc", "gain", 0.8),))
    before, after = lifted(document).module.weights, lifted(extracted).module.weights
    for key, weight in before.items():
        assert weight.detach().numpy().tobytes() == after[key].detach().numpy().tobytes()
    assert write_back(extracted, after) == []
