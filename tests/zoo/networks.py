"""Small networks with random weights, one of each common architecture, for exporting to ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Network:
    """An architecture and inputs that it takes; their first axis is the batch.

    Attributes:
        build: makes the module; its weights come from torch's global generator.
        inputs: makes example inputs.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], tuple[torch.Tensor, ...]]


def _floats(*shape: int) -> Callable[[torch.Generator], tuple[torch.Tensor, ...]]:
    return lambda generator: (torch.randn(2, *shape, generator=generator),)


def _tokens(*lengths: int) -> Callable[[torch.Generator], tuple[torch.Tensor, ...]]:
    return lambda generator: tuple(torch.randint(0, _WORDS, (2, n), generator=generator) for n in lengths)


_WORDS = 24
_WIDTH = 16


def mlp() -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 5)
    )


def lenet() -> nn.Module:
    """LeNet-5 on 16 x 16 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def vgg_bn() -> nn.Module:
    """Convolutions with batch normalisation, pools, dropout and a dense head."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 8, 12):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = width
    head = [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 10),
    ]
    return _with_statistics(nn.Sequential(*layers, *head))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


def resnet() -> nn.Module:
    """Three residual blocks."""
    return _with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            _Residual(8, 8, 1),
            _Residual(8, 12, 2),
            _Residual(12, 12, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    )


class _Inverted(nn.Module):
    def __init__(self, before: int, after: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = before * expand
        self.residual = stride == 1 and before == after
        self.layers = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 1)
        self.up = nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(scale)


def mobilenet() -> nn.Module:
    """Inverted residuals with depthwise convolutions, squeeze-and-excitation and hard swish."""
    return _with_statistics(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            _Inverted(8, 8, 1, 2),
            _SqueezeExcite(8),
            _Inverted(8, 12, 2, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    )


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 6, 3, padding=1)
        self.down2 = nn.Conv2d(6, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.up2 = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.join2 = nn.Conv2d(16, 6, 3, padding=1)
        self.join1 = nn.Conv2d(12, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.leaky_relu(self.down1(x))
        b = F.leaky_relu(self.down2(F.max_pool2d(a, 2)))
        c = F.elu(self.middle(F.max_pool2d(b, 2)))
        d = F.relu(self.join2(torch.cat([self.up2(c), b], 1)))
        e = F.interpolate(d, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.sigmoid(self.head(self.norm(self.join1(torch.cat([e, a], 1)))))


class _ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, _WIDTH))
        self.position = nn.Parameter(torch.randn(1, 17, _WIDTH))
        self.blocks = nn.ModuleList([_Block() for _ in range(2)])
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class _Attention(nn.Module):
    """Written out, as many public models do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, _WIDTH // 2).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(_WIDTH // 2), -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, _WIDTH))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.attention = _Attention()
        self.dense = nn.Sequential(nn.Linear(_WIDTH, 32), nn.GELU(), nn.Linear(32, _WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.dense(self.norm2(x))


class _Encoder(nn.Module):
    """torch's own encoder layers on token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        layer = nn.TransformerEncoderLayer(_WIDTH, 2, 32, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(_WIDTH, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.words(tokens)).mean(1))


class _Decoder(nn.Module):
    """Causal self-attention, cross-attention, and an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.own = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(_WIDTH, 32), nn.ReLU(), nn.Linear(32, _WIDTH))
        self.norm = nn.LayerNorm(_WIDTH)
        self.register_buffer("future", torch.triu(torch.full((9, 9), -math.inf), 1))

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, m = self.words(tokens), self.words(memory)
        x = x + self.own(x, x, x, attn_mask=self.future, need_weights=False)[0]
        y, weights = self.cross(x, m, m)
        x = self.norm(x + y)
        return F.linear(x + self.dense(x), self.words.weight), weights


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU], *, both: bool) -> None:
        super().__init__()
        self.cells = kind(6, 8, num_layers=2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])


def conv1d() -> nn.Module:
    """Dilated and strided convolutions over time, one of them depthwise."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, stride=2, padding=2),
        nn.PReLU(8),
        nn.Conv1d(8, 8, 3, dilation=2, groups=8),
        nn.ConstantPad1d((2, 1), 0.5),
        nn.Conv1d(8, 6, 4),
        nn.Softplus(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def conv3d() -> nn.Module:
    """Convolutions over volumes."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=(1, 0, 1)),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 6, (1, 3, 2), groups=2),
        nn.InstanceNorm3d(6, affine=True),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def _with_statistics(module: nn.Module) -> nn.Module:
    """Batch normalisation as after training: statistics and affine parameters that are not 0 and 1."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.2)
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5)
    return module


NETWORKS = {
    "mlp": Network(mlp, _floats(1, 6, 6)),
    "lenet": Network(lenet, _floats(1, 16, 16)),
    "vgg-bn": Network(vgg_bn, _floats(3, 16, 16)),
    "resnet": Network(resnet, _floats(3, 12, 12)),
    "mobilenet": Network(mobilenet, _floats(3, 16, 16)),
    "unet": Network(_UNet, _floats(1, 16, 16)),
    "vit": Network(_ViT, _floats(3, 16, 16)),
    "encoder": Network(_Encoder, _tokens(7)),
    "decoder": Network(_Decoder, _tokens(9, 5)),
    "lstm": Network(lambda: _Recurrent(nn.LSTM, both=True), _floats(5, 6)),
    "gru": Network(lambda: _Recurrent(nn.GRU, both=False), _floats(5, 6)),
    "conv1d": Network(conv1d, _floats(3, 20)),
    "conv3d": Network(conv3d, _floats(1, 6, 8, 6)),
}
