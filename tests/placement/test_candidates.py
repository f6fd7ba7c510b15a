"""Suffix injection finds what a loop written out by hand finds, and says what it leaves out and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cnpass.mapping import plan
from cnpass.placement import candidates
from cnpass.placement.candidates import find_candidates
from cnpass.runtime.devices import make_device
from cnpass.runtime.reference import program_weight

ORDER = ("k1", "k2", "w3", "w4")


def by_hand(document, forward, validator) -> list[float]:
    """The figure with variation from layer i on, for every i."""
    streams = plan(document).streams
    figures = []
    for first in range(len(ORDER)):
        hits = []
        for chip in validator.chips:
            noisy = {
                key: torch.from_numpy(
                    np.asarray(
                        program_weight(
                            forward.module.weights[key].detach().numpy(),
                            validator.crossbars.device,
                            seed=validator.seed,
                            stream=streams[key],
                            chip=chip,
                        )
                    )
                )
                for key in ORDER[first:]
            }
            with torch.no_grad():
                output = forward.module(*validator.samples.inputs, weights=noisy)[0]
            hits.append(float((output.argmax(1).numpy() == validator.expected).mean()))
        figures.append(float(np.mean(hits)))
    return figures


@pytest.mark.parametrize("enough", [0.6, 0.8, 0.9, 0.95, 1.1])
def test_the_rule_finds_what_a_loop_by_hand_finds(enough, document, problem, lifted, monkeypatch) -> None:
    monkeypatch.setattr(candidates, "ENOUGH", enough)
    forward = lifted(document)
    figures = by_hand(document, forward, problem.validator)
    assert figures[0] < figures[-1] < 1.0
    labels = [entry.label for entry in plan(document).analog]
    first = next((i for i, figure in enumerate(figures) if figure > enough), len(labels))
    found = find_candidates(document, forward, problem.validator)
    assert found.clean == 1.0
    assert list(found.suffix.values()) == figures[: first + 1]
    if first:
        assert found.nodes == tuple(labels[:first])
        assert set(found.excluded) == set(labels[first:])
        assert found.note is None
    else:
        assert found.nodes == tuple(labels)
        assert "no node" in found.note


def test_a_robust_network_keeps_all_nodes_and_says_so(document, problem, lifted) -> None:
    crossbars = replace(problem.crossbars, device=make_device("lognormal", sigma=1e-4))
    calm = replace(problem.validator, crossbars=crossbars)
    found = find_candidates(document, lifted(document), calm)
    assert len(found.nodes) == len(ORDER)
    assert list(found.suffix) == ["c1"]
    assert "every node that can be compensated is a candidate" in found.note


def test_without_class_scores_all_nodes_are_candidates(document, problem, lifted) -> None:
    clean = problem.clean.numpy()
    found = find_candidates(
        document, lifted(document), replace(problem.validator, metric="ser", expected=clean)
    )
    assert len(found.nodes) == len(ORDER)
    assert not found.suffix
    assert "class scores" in found.note


def test_a_tied_weight_varies_as_one_set_of_devices(network, problem, lifted) -> None:
    """k1 also feeds a second convolution, variation from there on is variation of k1."""
    from onnx import helper

    from cnpass.document import Document

    tied = type(network)()
    tied.CopyFrom(network)
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["again"], "c1b", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["h1", "again"], ["twice"]),
    ]
    tied.graph.node[1].input[0] = "twice"
    for place, node in enumerate(nodes, start=1):
        tied.graph.node.insert(place, node)
    document = Document.from_proto(tied)
    found = find_candidates(document, lifted(document), problem.validator)
    assert found.suffix["c1"] == found.suffix["c1b"]


def test_nodes_that_cannot_be_compensated_are_listed_with_the_reason(document, problem, lifted) -> None:
    from cnpass.passes.insert_compensation import InsertCompensation

    InsertCompensation(node="c1")(document)
    unnamed = plan(document).analog[-1].label
    InsertCompensation(node=unnamed)(document)
    found = find_candidates(document, lifted(document), problem.validator)
    assert found.excluded["c1"] == "is compensated already"
    assert found.excluded[unnamed] == "is compensated already"
    assert "c1" not in found.nodes
