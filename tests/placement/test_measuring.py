"""Placements are measured alike in this process and in others, and as the placement alone would be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cnpass.compensation.site import find_sites
from cnpass.errors import CnpassError
from cnpass.mapping import plan
from cnpass.placement.measuring import FEWEST_CHIPS, Measurer, PlacementRunner, Unit, write_job
from cnpass.placement.sharing import Supernet
from cnpass.placement.space import Choice
from cnpass.training.writeback import write_back

PLACEMENTS = [
    (),
    (Choice("c1", "residual", 0.25),),
    (Choice("c1", "gain", 0.8), Choice("fc", "residual", 0.1)),
    (Choice("c2", "gain", 0.1),),
    (Choice("c2", "residual", 0.8), Choice("fc", "gain", 0.25)),
]


@pytest.fixture
def shared(document, lifted) -> Supernet:
    """A shared network whose compensation has random values."""
    nodes = list(find_sites(document, plan(document))[0])
    supernet = Supernet(document, nodes, ("gain", "residual"), (0.1, 0.25, 0.8), seed=7)
    weights = lifted(supernet.document).module.weights
    generator = torch.Generator().manual_seed(0)
    values = {
        key: weights[key].detach() + 0.2 * torch.randn(weights[key].shape, generator=generator)
        for key in sorted(supernet.keys & weights.keys())
    }
    write_back(supernet.document, values)
    return supernet


@pytest.fixture
def job(shared, problem, tmp_path):
    return write_job(tmp_path, shared, shared.document, None, problem.validator)


def test_processes_give_what_this_process_gives_in_order_and_to_the_bit(job, tmp_path) -> None:
    found = []
    for workers in (1, 2):
        with Measurer(job, workers, tmp_path) as measurer:
            found.append([list(measurer(PLACEMENTS, ())) for _ in range(2)])
    assert found[0] == found[1]
    assert found[0][0] == found[0][1]
    assert len({tuple(values) for values in found[0][0]}) > 2


def test_figures_are_those_of_the_placement_alone(shared, problem, job, lifted, tmp_path) -> None:
    weights = lifted(shared.document).module.weights
    with Measurer(job, 1, tmp_path) as measurer:
        for placement, values in zip(PLACEMENTS, measurer(PLACEMENTS, ()), strict=True):
            alone = lifted(shared.extract(weights, placement))
            np.testing.assert_allclose(values, problem.validator.values(alone), atol=1 / 40)


def test_what_is_surely_worse_is_given_up(job) -> None:
    runner = PlacementRunner(job)
    whole = runner.measure(Unit(0, (), ())).value
    assert len(whole) == FEWEST_CHIPS == len(range(*job.chips))
    longer = PlacementRunner(replace(job, chips=(job.chips[0], job.chips[1] + 4)))
    assert len(longer.measure(Unit(0, (), ())).value) == FEWEST_CHIPS + 4
    assert longer.measure(Unit(0, (), (2.0,) * 8)).value == whole


def test_the_number_of_threads_is_left_as_it_was(job) -> None:
    threads = torch.get_num_threads()
    PlacementRunner(job).measure(Unit(0, (), ()))
    assert torch.get_num_threads() == threads


def test_a_worker_that_cannot_work_says_why(job, tmp_path) -> None:
    (tmp_path / "network.onnx").unlink()
    with Measurer(job, 2, tmp_path) as measurer, pytest.raises(CnpassError, match=r"network\.onnx"):
        list(measurer(PLACEMENTS, ()))
