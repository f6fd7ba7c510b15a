"""Figures over chips in torch, for networks that need a GPU.

The chips are those of ONNX Runtime, bit for bit (`cnpass.runtime.reference.program_weight`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cnpass.data import Split
from cnpass.document import Document
from cnpass.evaluation.statistics import summarise
from cnpass.files import write_text
from cnpass.mapping import plan
from cnpass.progress import Progress
from cnpass.records import Point
from cnpass.runtime.devices import make_device
from cnpass.training.crossbars import Crossbars
from cnpass.training.forward import Forward, Samples
from cnpass.training.lift import lift
from cnpass.training.validation import Validator

_ROWS = 1000
"""Samples per call."""


def over_chips(
    document: Document,
    test: Split,
    sigmas: Sequence[float],
    chips: int,
    *,
    seed: int,
    device: torch.device,
    path: Path,
    progress: Progress,
) -> tuple[float, list[Point]]:
    """Return the accuracy without variation, and its figures over chips at every sigma.

    Args:
        document: The model in standard operators, with the copies that its weights have.
        test: Samples with labels.
        sigmas: Sigmas of log-normal variation.
        chips: How many, numbered from 0.
        seed: Seed of the chips.
        device: Where to compute.
        path: File that keeps finished chips.
        progress: Told what happens.
    """
    module = lift(document).on(device)
    forward = Forward(module, min(_ROWS, len(test)))
    found = plan(document)
    crossbars = [
        Crossbars.of(found, make_device("lognormal", sigma=sigma), module.weights) for sigma in sigmas
    ]
    samples = Samples.of(test, module.input_names, device)
    validator = Validator(samples, np.asarray(test.y), "top1", crossbars[0], seed, range(1))
    clean = replace(validator, crossbars=crossbars[0].only(())).score(forward)
    done: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    points = []
    with progress.task("chips", chips * len(sigmas), done=sum(map(len, done.values()))) as task:
        for sigma, programmed in zip(sigmas, crossbars, strict=True):
            values = done.setdefault(str(sigma), [])
            left = replace(validator, crossbars=programmed, chips=range(len(values), chips))
            for value in left.figures(forward):
                values.append(value)
                write_text(path, json.dumps(done) + "\n")
                task.advance()
            points.append(summarise("lognormal", programmed.device.attributes(), seed, values))
    return clean, points
