"""The PMT-IQA network: multi-scale features, level classification and score regression, with a distortion head.

Shapes: B batch, H height, W width, h = H//32 and w = W//32, L levels (10), K distortion kinds.
After "Progressive multi-task learning for blind image quality assessment"; global average pooling takes any size.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.iqa.backbones import BACKBONES

LEVELS = 10
SCALE_CHANNELS = (16, 32, 64)
SCALE_FEATURES = 28
WINDOW = 7  # cells of the stride-32 grid: the 224-pixel crop the network is trained on


class Quality(NamedTuple):
    """Raw outputs: `score_B` in 0–1 (1 is best), and logits."""

    score_B: Tensor
    level_logits_BL: Tensor
    distortion_logits_BK: Tensor


class MultiScaleHead(nn.Module):
    """Each scale's map → 28 features of its average, over the whole image or over windows; concatenated."""

    def __init__(self, channels: tuple[int, ...], multi_scale: bool) -> None:
        super().__init__()
        self.multi_scale = multi_scale
        self.reduce = nn.ModuleList(
            nn.Conv2d(deep, shallow, 1) for deep, shallow in zip(channels[:3], SCALE_CHANNELS, strict=True)
        )
        widths = (*SCALE_CHANNELS, channels[3]) if multi_scale else (channels[3],)
        self.project = nn.ModuleList(nn.Linear(width, SCALE_FEATURES) for width in widths)
        self.features = SCALE_FEATURES * len(widths)

    def cells(self, maps: list[Tensor]) -> list[Tensor]:
        """Every scale averaged onto the stride-32 grid: (B, C, h, w) each."""
        if not self.multi_scale:
            return [maps[3]]
        reduced = [F.relu(reduce(features)) for reduce, features in zip(self.reduce, maps[:3], strict=True)]
        return [*(F.avg_pool2d(features, 8 >> scale) for scale, features in enumerate(reduced)), maps[3]]

    def combine(self, pooled: list[Tensor]) -> Tensor:
        """(…, C) of each scale → (…, features)."""
        return torch.cat([project(scale) for project, scale in zip(self.project, pooled, strict=True)], -1)


class PMTIQA(nn.Module):
    """`image_B3HW` (float, 0–255, sides ≥ 32) → Quality; `with_map` scores each window in the same pass."""

    def __init__(self, kinds: int, backbone: str = "efficientnet-lite0", multi_scale: bool = True) -> None:
        super().__init__()
        self.backbone = BACKBONES[backbone]()
        self.head = MultiScaleHead(self.backbone.channels, multi_scale)
        width = self.head.features
        self.trunk = nn.Sequential(nn.Linear(width, 112), nn.LeakyReLU(), nn.Linear(112, 14), nn.LeakyReLU())
        self.level = nn.Sequential(nn.Linear(14, 14), nn.LeakyReLU(), nn.Linear(14, LEVELS))
        self.score = nn.Linear(14, 1)
        self.distortion = nn.Linear(width, kinds)

    def load_imagenet(self, path: Path | None = None) -> None:
        """Start the backbone from ImageNet weights (see the backbone)."""
        self.backbone.load_imagenet(path)

    def forward(self, image_B3HW: Tensor) -> Quality:
        return self._assess([cells.mean((2, 3)) for cells in self.head.cells(self.backbone(image_B3HW))])

    def _assess(self, pooled: list[Tensor]) -> Quality:
        features = self.head.combine(pooled)
        shared = self.trunk(features)
        return Quality(torch.sigmoid(self.score(shared)).squeeze(-1), self.level(shared), self.distortion(features))

    def with_map(self, image_B3HW: Tensor) -> tuple[Quality, Tensor]:
        """Quality and `map_Bhw`, the score (0–1) of the WINDOW × WINDOW cells around each cell, less at the border."""
        cells = self.head.cells(self.backbone(image_B3HW))
        local = [F.avg_pool2d(scale, WINDOW, 1, WINDOW // 2, count_include_pad=False) for scale in cells]
        map_Bhw = torch.sigmoid(
            self.score(self.trunk(self.head.combine([scale.permute(0, 2, 3, 1) for scale in local])))
        ).squeeze(-1)
        return self._assess([scale.mean((2, 3)) for scale in cells]), map_Bhw


class ServedGraph(nn.Module):
    """What is exported: `image` uint8 (B, H, W, 3) sRGB → score, level and distortion probabilities, quality map."""

    def __init__(self, model: PMTIQA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores and map in 0–100, 100 is best."""
        quality, quality_map = self.model.with_map(image.to(torch.float32).permute(0, 3, 1, 2))
        return (
            100 * quality.score_B,
            quality.level_logits_BL.softmax(-1),
            quality.distortion_logits_BK.softmax(-1),
            100 * quality_map,
        )


def level_of(score_B: Tensor) -> Tensor:
    """Scores in 0–100 → level 0–9; a score of exactly 100 belongs to the last level."""
    return (score_B / 100 * LEVELS).long().clamp(0, LEVELS - 1)
