"""CorrectNet's compensation (reconstructed): one linear map over the output and the generator's filters."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from cnpass.compensation.builder import Builder
from cnpass.compensation.kinds.residual import generator


def paper(builder: Builder, width: int) -> gs.Variable:
    """Add the paper's compensation with ``width`` filters; its compensator costs ``C_out (C_out + width)``.

    The compensator starts as the identity on the output and zero on the generator.
    """
    site = builder.site
    joined = builder.concat([builder.analog, generator(builder, width)], "compensator.input")
    return builder.linear(joined, np.eye(site.outputs, site.outputs + width), "compensated")
