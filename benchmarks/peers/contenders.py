"""The simulators, each ready to run one simulated chip after the other.

What two of them do under one title is the same work: programming all weights of a new chip, and running all
images through it. Device models and peripheries are those that the peer has; ours is set to the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from workloads import Workload

import cnpass
from cnpass.document import Document
from cnpass.passes import Pipeline
from cnpass.passes.calibrate_ranges import calibrate

OURS = "cnpass"
SIGMA = 0.5
DAY = 86_400.0
TILE = 512
CALIBRATION = 16
"""Images that ranges of converters are taken from."""
CROSSSIM_IMAGES = {"vgg16": 16}
"""Images that CrossSim runs at a time, where all of them take more memory than this comparison may."""

CONSTANT = "constant weights, no chip"
LOG_NORMAL = f"log-normal weights, sigma {SIGMA}"
PCM = "PCM pairs, a day after programming"
PCM_PERIPHERY = f"PCM pairs, {TILE}x{TILE} tiles, 7-bit DAC, 9-bit ADC, output noise"
PAIRS = "pairs with 32 conductances each"
PAIRS_PERIPHERY = f"pairs with 32 conductances each, {TILE}x{TILE} tiles, 8-bit DAC and ADC"

_PCM = f"device=pcm,t={DAY},on-off=1e6"
_PAIRS = "device=conductance,levels=32,on-off=100,noise=0.5"
_TILES = f"tile-rows={TILE},tile-cols={TILE}"
_OURS = {
    LOG_NORMAL: f"sigma={SIGMA}",
    PCM: _PCM,
    # aihwkit: resolutions 1/(2^7 - 2) and 1/(2^9 - 2), output noise 0.06 on a bound of 12
    PCM_PERIPHERY: f"{_PCM},{_TILES},dac-bits=7,adc-bits=9,read-noise={0.06 / 12}",
    PAIRS: _PAIRS,
    PAIRS_PERIPHERY: f"{_PAIRS},{_TILES},dac-bits=8,adc-bits=8",
}


@dataclass(frozen=True)
class Contender:
    """A simulator with a network in it.

    Attributes:
        title: The work that it does.
        name: Who it is.
        images: How many images `forward` runs; where fewer than all, its time is scaled up.
        program: Makes the chip of the given number; nothing where `forward` does that.
        forward: Runs the images, on the chip of that number.
    """

    title: str
    name: str
    images: int
    program: Callable[[int], object]
    forward: Callable[[int], np.ndarray | torch.Tensor]


def contenders(workload: Workload) -> Iterator[Contender]:
    """All of them, for one network; ours first under each title."""
    yield from _references(workload)
    yield _ours(workload, LOG_NORMAL)
    yield _torch_loop(workload)
    yield _ours(workload, PCM)
    yield from _aihwkit(workload, PCM, perfect=True)
    yield _ours(workload, PCM_PERIPHERY)
    yield from _aihwkit(workload, PCM_PERIPHERY, perfect=False)
    yield _ours(workload, PAIRS)
    yield _crosssim(workload, PAIRS, periphery=False)
    yield _ours(workload, PAIRS_PERIPHERY)
    yield _crosssim(workload, PAIRS_PERIPHERY, periphery=True)


def _nothing(_: int) -> None: ...


def _references(workload: Workload) -> Iterator[Contender]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = workload.model.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"input": workload.images.numpy()}
    yield Contender(
        CONSTANT, "ONNX Runtime", len(workload.images), _nothing, lambda _: session.run(None, feeds)[0]
    )
    yield Contender(
        CONSTANT, "torch", len(workload.images), _nothing, lambda _: workload.network(workload.images)
    )


def _ours(workload: Workload, title: str) -> Contender:
    document = Document.from_proto(workload.model)
    images = workload.images.numpy()
    Pipeline.parse(f"map-crossbar{{{_OURS[title]},portable=never}}").run(document)
    if "bits" in _OURS[title]:
        calibrate(document, {"input": images[:CALIBRATION]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        document.save(path)
        session = cnpass.Session(path, threads=1)
    return Contender(title, OURS, len(images), _nothing, lambda chip: session.run(images, chip=chip)[0])


def _torch_loop(workload: Workload) -> Contender:
    parameters = dict(workload.network.named_parameters())
    generator = torch.Generator().manual_seed(2026)  # another than that of the networks' first weights

    def forward(_: int) -> torch.Tensor:
        held = {
            name: value * torch.exp(SIGMA * torch.randn(value.shape, generator=generator))
            if name.endswith("weight")
            else value
            for name, value in parameters.items()
        }
        return torch.func.functional_call(workload.network, held, (workload.images,))

    return Contender(LOG_NORMAL, "torch, written by hand", len(workload.images), _nothing, forward)


def _aihwkit(workload: Workload, title: str, *, perfect: bool) -> Iterator[Contender]:
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

    for name, kind in (
        ("aihwkit, C++ tiles", InferenceRPUConfig),
        ("aihwkit, torch tiles", TorchInferenceRPUConfig),
    ):
        config = kind(drift_compensation=None)  # it would measure the chip, which ours does not
        config.forward.is_perfect = perfect
        if perfect:
            config.mapping.max_input_size = config.mapping.max_output_size = 0  # one tile, the faster way
        network = convert_to_analog(workload.network, config).eval()

        def program(_: int, network: torch.nn.Module = network) -> None:
            network.program_analog_weights()
            network.drift_analog_weights(DAY)

        def forward(_: int, network: torch.nn.Module = network) -> torch.Tensor:
            return network(workload.images)

        yield Contender(title, name, len(workload.images), program, forward)


def _crosssim(workload: Workload, title: str, *, periphery: bool) -> Contender:
    from simulator import CrossSimParameters
    from simulator.algorithms.dnn.torch.convert import from_torch, reinitialize

    g_max, on_off, noise = 25.0, 100.0, 0.5
    described = []
    for layer, (entering, leaving) in zip(workload.layers(), workload.ranges(), strict=True):
        parameters = CrossSimParameters()
        device = parameters.xbar.device
        device.Rmin, device.Rmax, device.cell_bits = 1e6 / g_max, on_off * 1e6 / g_max, 5
        device.programming_error.enable = True
        device.programming_error.model = "NormalIndependentDevice"
        device.programming_error.magnitude = noise / g_max
        if periphery:
            parameters.core.rows_max = parameters.core.cols_max = TILE
            inputs, xbar = parameters.core.mapping.inputs.mvm, parameters.xbar
            inputs.clipping, inputs.min, inputs.max = True, -entering, entering
            xbar.dac.mvm.model, xbar.dac.mvm.bits = "SignMagnitudeDAC", 8
            # The converter sees weights and inputs in fractions of the largest.
            end = leaving / entering / float(layer.weight.abs().max()) * device.Grange_norm
            xbar.adc.mvm.model, xbar.adc.mvm.bits = "SignMagnitudeADC", 8
            xbar.adc.mvm.calibrated_range = [-end, end]
        described.append(parameters)
    network = from_torch(workload.network, described).eval()
    images = workload.images[: CROSSSIM_IMAGES.get(workload.model.graph.name)]
    return Contender(
        title, "CrossSim", len(images), lambda _: reinitialize(network), lambda _: network(images)
    )
