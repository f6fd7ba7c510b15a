"""Run a model that cnpass wrote on simulated chips, with ONNX Runtime and the native library alone.

    python run_chip.py LIBCNPASS_ORT MODEL INPUT.npy CHIP...

For every chip the outputs are printed, one sample in a line; -1 is the ideal chip.
"""

import sys

import numpy as np
import onnxruntime as ort


def main() -> None:
    """Run the model on each chip."""
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    library, model, data, *chips = sys.argv[1:]
    options = ort.SessionOptions()
    options.log_severity_level = 3  # ONNX Runtime warns of inputs with a default, as the chip is one
    options.register_custom_ops_library(library)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # The model says what its chip input is called; whoever does not set it gets chip 0.
    chip_input = session.get_modelmeta().custom_metadata_map["cnpass.chip_input"]
    x = np.load(data).astype(np.float32)
    for chip in chips:
        feeds = {session.get_inputs()[0].name: x, chip_input: np.array(int(chip), np.int64)}
        for values in session.run(None, feeds)[0].reshape(len(x), -1):
            print(chip, *(f"{value:.9g}" for value in values))


if __name__ == "__main__":
    main()
