"""The networks of this folder, as plain `nn.Sequential` whose module names become the ONNX names."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

HE_GAIN = math.sqrt(2)
SMALL_GAIN = math.sqrt(1 / 3)


def vgg9() -> nn.Sequential:
    """Build nine 3x3 convolutions in three blocks and one linear classifier, for 1x8x8 images.

    There is no BatchNorm on purpose: it would hide the change of scale that analog variation brings, and
    the point of this network is that nine layers of variation in a row are hard to survive.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    widths = (16, 16, 16, 32, 32, 32, 32, 32, 32)
    for number, width in enumerate(widths, start=1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, width, 3, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = width
        if number in {3, 6}:
            layers[f"pool{number}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs * 2 * 2, 10)
    return nn.Sequential(layers)


def vgg16(classes: int, width: int = 64, *, normalised: bool = False) -> nn.Sequential:
    """Build VGG16 for 3x32x32 images (Simonyan and Zisserman, 2015), with one linear classifier.

    Args:
        classes: Classes of the classifier.
        width: Filters of the first convolution: 64 in VGG16; less makes every layer narrower in proportion.
        normalised: Whether BatchNorm follows every convolution; `folded` takes it away again.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, number = 3, 0
    for block, (convolutions, factor) in enumerate(((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)), start=1):
        for _ in range(convolutions):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, factor * width, 3, padding=1)
            if normalised:
                layers[f"norm{number}"] = nn.BatchNorm2d(factor * width)
            layers[f"relu{number}"] = nn.ReLU()
            inputs = factor * width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


def folded(network: nn.Sequential) -> nn.Sequential:
    """Return a network in evaluation mode with every BatchNorm folded into the convolution before it."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in network.eval().named_children():
        if isinstance(module, nn.BatchNorm2d):
            last = next(reversed(layers))
            layers[last] = fuse_conv_bn_eval(layers[last], module)
        else:
            layers[name] = module
    return nn.Sequential(layers)


def lenet5(channels: int, size: int) -> nn.Sequential:
    """Build LeNet-5 with ReLU and max-pooling (LeCun et al., 1998, had tanh and subsampling).

    Args:
        channels: Image channels.
        size: Image height and width: 28 (padded by two to the original's 32), 32, or 8, where 3x3 kernels
            with padding replace the 5x5 ones so that two poolings still leave a 2x2 map.
    """
    kernel, pad1, pad2 = {28: (5, 2, 0), 32: (5, 0, 0), 8: (3, 1, 1)}[size]
    after = size
    for pad in (pad1, pad2):
        after = (after + 2 * pad - kernel + 1) // 2
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 6, kernel, padding=pad1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, kernel, padding=pad2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * after * after, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
        )
    )


def initialise(network: nn.Sequential, generator: torch.Generator, gain: float) -> None:
    """Draw weights from N(0, gain^2 / fan_in) and zero the biases.

    Nine layers without normalisation need He's gain, sqrt(2), to train at all. In LeNet-5 a start so large
    leaves many weights that cancel each other, and variation undoes that: on MNIST after 4 epochs 70 % at
    sigma 0.5, against 94 % from torch's own default, 1/sqrt(3). So the shallow networks take SMALL_GAIN.
    """
    for module in network:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0, gain / math.sqrt(module.weight[0].numel()), generator=generator)
            nn.init.zeros_(module.bias)
