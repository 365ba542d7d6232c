"""FoldingNet in torch: graph encoders with max-pooling, the folding decoder, and the dense decoder it is compared with.

Shapes: B clouds, N points, K neighbours, C channels, D codeword, G points of the source surface, S its dimension.
After Yang et al., FoldingNet (CVPR 2018), and Wang et al., DGCNN (2019); no batch norm anywhere. Layers that feed
another layer begin as He et al. (2015) draw them; those whose outputs are points, as torch does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.pointcloud import surface
from services.pointcloud.surface import SurfaceKind

CODEWORD = 512
FEATURES = 12
EDGE_NEIGHBOURS = 20
# Covariances of neighbours on a unit ball are near 0.001; times this they are of the size of the coordinates.
COVARIANCE_SCALE = 100.0
_MAX = 2  # the number that torch.embedding_bag has for its mode

EncoderKind = Literal["foldingnet", "dgcnn"]
DecoderKind = Literal["folding", "dense"]


def graph_max(values_BNC: Tensor, neighbours_BNK: Tensor) -> Tensor:
    """Largest value of each channel among a point's neighbours, (B, N, C). (B, N, K, C) never exists."""
    batch, count, channels = values_BNC.shape
    flat_MC = values_BNC.reshape(-1, channels)
    offset_B11 = (torch.arange(batch, device=values_BNC.device) * count)[:, None, None]
    flat_MK = (neighbours_BNK + offset_B11).reshape(-1, neighbours_BNK.shape[-1])
    if torch.is_grad_enabled():
        # One index a value is all that the gradient takes, and any other form costs three times as much. Gathered
        # with it, the values can be differentiated twice, which those of embedding_bag itself cannot.
        with torch.no_grad():
            starts_M = torch.arange(0, flat_MK.numel(), flat_MK.shape[1], device=flat_MK.device)
            largest_MC = torch.embedding_bag(flat_MC, flat_MK.reshape(-1), starts_M, False, _MAX)[3]
        return flat_MC.gather(0, largest_MC).reshape(values_BNC.shape)
    best_MC = flat_MC.index_select(0, flat_MK[:, 0])
    for index_M in flat_MK.T[1:]:
        best_MC = torch.maximum(best_MC, flat_MC.index_select(0, index_M))
    return best_MC.reshape(values_BNC.shape)


def linear_max(layer: nn.Linear, values_BNC: Tensor) -> Tensor:
    """max over the points of layer(values), (B, O).

    Only the points where a channel is largest get a gradient, so while training the layer runs without one to find
    them, and again on those alone: the same value and gradient for a third of the work.
    """
    # Points last: a maximum along memory takes half the time of one across it, in ONNX Runtime a tenth.
    if not torch.is_grad_enabled():
        return (layer.weight @ values_BNC.transpose(1, 2)).amax(-1) + layer.bias
    with torch.no_grad():
        largest_BO = (layer.weight @ values_BNC.transpose(1, 2)).max(-1)[1]
    index_BOC = largest_BO[:, :, None].expand(-1, -1, values_BNC.shape[2])
    picked_BOC = values_BNC.gather(1, index_BOC)
    return torch.einsum("boc,oc->bo", picked_BOC, layer.weight) + layer.bias


def he_initialised(*modules: nn.Module) -> None:
    """He et al. 2015 for every linear layer: through a ReLU the signal keeps its size. Torch's own draw makes it √6
    times smaller a layer; FoldingNet's codeword then is some hundredths, a hundred times less, and trainings stand
    still until the weights have grown."""
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.Linear):
            for name, value in layer.named_parameters():
                if name == "weight":
                    nn.init.kaiming_normal_(value, nonlinearity="relu")
                else:
                    nn.init.zeros_(value)


class GraphEncoder(nn.Module):
    """FoldingNet's encoder: features (B, N, 12) and neighbours (B, N, 16) → codeword (B, 512).

    12→64→64→64, graph max, →128, graph max, →1024, largest over the points, →512→512.
    """

    def __init__(self, codeword: int = CODEWORD) -> None:
        super().__init__()
        self.points = nn.Sequential(
            nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.graph = nn.Linear(64, 128)
        self.whole = nn.Linear(128, 1024)
        self.head = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, codeword))
        he_initialised(self)

    def forward(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        return self.head(self.pooled(features_BN12, neighbours_BNK))

    def pooled(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        """The 1,024 largest values over the points, before the last two layers (B, 1024)."""
        return linear_max(self.whole, graph_max(self.local(features_BN12, neighbours_BNK), neighbours_BNK))

    def local(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        """The layer of 128 channels a point, (B, N, 128)."""
        points_BNC = self.points(scaled(features_BN12))
        return F.relu(self.graph(graph_max(points_BNC, neighbours_BNK)))


class EdgeConv(nn.Module):
    """act(max over neighbours j of Θ(x_j − x_i) + Φ x_i): the maximum needs Θ x_j alone, once a point."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.difference = nn.Linear(before, after, bias=False)
        self.itself = nn.Linear(before, after)

    def forward(self, values_BNC: Tensor, neighbours_BNK: Tensor) -> Tensor:
        moved_BNC = self.difference(values_BNC)
        return F.leaky_relu(graph_max(moved_BNC, neighbours_BNK) - moved_BNC + self.itself(values_BNC), 0.2)


class DGCNNEncoder(nn.Module):
    """DGCNN's encoder with the inputs of `GraphEncoder`: the first graph is the given one, the others the 20 nearest
    in the channels of the layer before."""

    def __init__(self, codeword: int = CODEWORD) -> None:
        super().__init__()
        widths = (FEATURES, 64, 64, 128, 256)
        self.edges = nn.ModuleList(EdgeConv(a, b) for a, b in pairwise(widths))
        self.whole = nn.Linear(sum(widths[1:]), 1024)
        self.head = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(1024, 512), nn.LeakyReLU(0.2), nn.Linear(512, codeword))
        # Edge convolutions add two shares and lose little: drawn larger, codewords begin far too large.
        he_initialised(self.whole, self.head[:-1])

    def forward(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        return self.head(self.pooled(features_BN12, neighbours_BNK))

    def pooled(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        """The 1,024 largest values over the points, before the last two layers (B, 1024)."""
        return linear_max(self.whole, self._levels(features_BN12, neighbours_BNK))

    def local(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        """All edge convolutions' channels a point, (B, N, 512)."""
        return self._levels(features_BN12, neighbours_BNK)[:, : features_BN12.shape[1]]

    def _levels(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        # As many copies of point 0 as there are neighbours, so that even one point has 20 rows to choose among.
        extra = (-1, EDGE_NEIGHBOURS, -1)
        features = torch.cat([features_BN12, features_BN12[:, :1].expand(extra)], 1)
        neighbours = torch.cat([neighbours_BNK, neighbours_BNK[:, :1].expand(extra)], 1)
        padding_BN = _padding(neighbours)
        values_BNC = scaled(features)
        levels: list[Tensor] = []
        for number, edge in enumerate(self.edges):
            if number:
                neighbours = _nearest_in_channels(values_BNC, padding_BN)
            values_BNC = edge(values_BNC, neighbours)
            levels.append(values_BNC)
        return torch.cat(levels, -1)


def scaled(features_BN12: Tensor) -> Tensor:
    return torch.cat([features_BN12[..., :3], features_BN12[..., 3:] * COVARIANCE_SCALE], -1)


def _padding(neighbours_BNK: Tensor) -> Tensor:
    """Rows (B, N) that repeat row 0 with its neighbours. A real duplicate of point 0 has point 0 as its neighbour."""
    same_BN = (neighbours_BNK == neighbours_BNK[:, :1]).all(-1)
    return same_BN & (torch.arange(same_BN.shape[1], device=same_BN.device) > 0)


@torch.no_grad()
def _nearest_in_channels(values_BNC: Tensor, padding_BN: Tensor) -> Tensor:
    """The 20 nearest rows (B, N, 20), a point itself among them, padding never."""
    norm_BN = values_BNC.square().sum(-1)
    far_BNN = norm_BN[:, None, :] - 2 * values_BNC @ values_BNC.transpose(1, 2)
    far_BNN = far_BNN.masked_fill(padding_BN[:, None, :], torch.inf)
    distance_BNK, index_BNK = far_BNN.topk(EDGE_NEIGHBOURS, largest=False)
    return torch.where(distance_BNK == torch.inf, index_BNK[..., :1], index_BNK)


class Fold(nn.Module):
    """One folding: (source ‖ codeword) → 512 → 512 → 3, with the codeword's share of the first layer computed once a
    cloud, not once a point."""

    def __init__(self, source: int, codeword: int, hidden: int) -> None:
        super().__init__()
        self.source = nn.Linear(source, hidden, bias=False)
        self.codeword = nn.Linear(codeword, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        he_initialised(self)
        self.out = nn.Linear(hidden, 3)

    def forward(self, source: Tensor, codeword_BD: Tensor) -> Tensor:
        """`source` (G, S) or (B, G, S) → points (B, G, 3)."""
        first_BGH = F.relu(self.source(source) + self.codeword(codeword_BD)[:, None])
        return self.out(F.relu(self.hidden(first_BGH)))


class FoldingDecoder(nn.Module):
    """FoldingNet's decoder: the source surface folded twice, codeword (B, D) and source (G, S) → points (B, G, 3)."""

    def __init__(self, source: int = 2, codeword: int = CODEWORD, hidden: int = 512) -> None:
        super().__init__()
        self.first = Fold(source, codeword, hidden)
        self.second = Fold(3, codeword, hidden)

    def forward(self, codeword_BD: Tensor, source_GS: Tensor) -> Tensor:
        return self.second(self.first(source_GS, codeword_BD), codeword_BD)


class DenseDecoder(nn.Module):
    """The fully connected decoder of the comparison: 512→1024→2048→3·2048. It looks at no surface."""

    def __init__(self, points: int = 2048, codeword: int = CODEWORD) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(codeword, 1024), nn.ReLU(), nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, points * 3)
        )
        he_initialised(self.layers[:-1])

    def forward(self, codeword_BD: Tensor, source_GS: Tensor | None = None) -> Tensor:
        return self.layers(codeword_BD).unflatten(-1, (-1, 3))


class Autoencoder(nn.Module):
    """Encoder, decoder and source surface. `source_GS` is a parameter when the surface is learnt."""

    def __init__(
        self,
        encoder: EncoderKind = "foldingnet",
        decoder: DecoderKind = "folding",
        source: SurfaceKind = "grid",
        resolution: int = surface.RESOLUTION,
    ) -> None:
        super().__init__()
        self.encoder = GraphEncoder() if encoder == "foldingnet" else DGCNNEncoder()
        self.decoder = FoldingDecoder(surface.dimension(source)) if decoder == "folding" else DenseDecoder()
        start_GS = torch.from_numpy(surface.points(source, resolution))
        self.source_GS = nn.Parameter(start_GS, requires_grad=source == "learned" and decoder == "folding")

    def forward(self, features_BN12: Tensor, neighbours_BNK: Tensor, source_GS: Tensor | None = None) -> Tensor:
        """Points (B, G, 3), folded from the model's own surface or from `source_GS`."""
        source = self.source_GS if source_GS is None else source_GS
        return self.decoder(self.encoder(features_BN12, neighbours_BNK), source)


def parameters_in(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
