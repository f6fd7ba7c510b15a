"""Exports the networks of `networks.py` with torch's two exporters.

Run it as a script to look at the models: `python tests/zoo/export.py FOLDER`.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path

import onnx
import torch
from networks import NETWORKS
from torch.onnx import TrainingMode

OLDEST = {"encoder": 14, "decoder": 14}
"""Oldest opset that the TorchScript exporter has the operators for; of all others 9."""


def example(name: str, seed: int = 0) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The network of a name, and inputs for it."""
    network = NETWORKS[name]
    inputs = network.inputs(torch.Generator().manual_seed(seed))
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        module = network.build().eval()
        with torch.no_grad():
            module(*inputs)  # lazy layers get their weights
    return module, inputs


def export(name: str, exporter: str, opset: int) -> tuple[onnx.ModelProto, tuple[torch.Tensor, ...]]:
    """A network as ONNX with a batch of open size, and inputs for it."""
    module, inputs = example(name)
    names = [f"in{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            if exporter == "dynamo":
                batch = torch.export.Dim("batch")
                shapes = tuple({0: batch} for _ in inputs)
                program = torch.onnx.export(
                    module,
                    inputs,
                    input_names=names,
                    opset_version=opset,
                    dynamic_shapes=shapes,
                    verbose=False,
                )
                assert program is not None
                return program.model_proto, inputs
            file = io.BytesIO()
            torch.onnx.export(
                module,
                inputs,
                file,
                input_names=names,
                opset_version=opset,
                dynamo=False,
                dynamic_axes={n: {0: "batch"} for n in names},
                training=TrainingMode.PRESERVE,  # keeps batch normalisation apart
            )
            return onnx.load_from_string(file.getvalue()), inputs
        finally:
            logging.disable(logging.NOTSET)


def main() -> None:
    """Write every network, at the oldest and newest opset of either exporter."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        for exporter, opset in (("torchscript", OLDEST.get(name, 9)), ("torchscript", 20), ("dynamo", 18)):
            model, _ = export(name, exporter, opset)
            path = folder / f"{name}-{exporter}-{opset}.onnx"
            path.write_bytes(model.SerializeToString())
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
