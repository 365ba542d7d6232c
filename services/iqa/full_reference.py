"""Four full-reference quality metrics whose consensus labels the synthetic training set.

Shapes: B batch, C channels (3, sRGB), H height, W width. Every metric takes `reference_BCHW` and `distorted_BCHW` as
float tensors in 0–255 and returns (B,). The labels made from them are a full-reference proxy, never opinion scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows give the new channels from R, G, B.
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_LHM = ((0.2989, 0.5870, 0.1140), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17))
_LMN = ((0.06, 0.63, 0.27), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17))
_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.9642119944211994, 1.0, 0.8251882845188288)  # D50, as the authors of VSI convert to Lab

_PREWITT = ((1.0, 0.0, -1.0), (1.0, 0.0, -1.0), (1.0, 0.0, -1.0))
_SCHARR = ((3.0, 0.0, -3.0), (10.0, 0.0, -10.0), (3.0, 0.0, -3.0))


def mdsi(reference_BCHW: Tensor, distorted_BCHW: Tensor) -> Tensor:
    """Mean deviation similarity index (Nafchi and others, IEEE Access 2016); 0 for identical images, larger is worse.

    The deviation of GCS^(1/4) over the image, raised to 1/4, where GCS is 0.6 × gradient + 0.4 × chroma similarity.
    """
    reference, distorted = (_lower_resolution(image, early=True) for image in (reference_BCHW, distorted_BCHW))
    reference, distorted = _convert(reference, _LHM), _convert(distorted, _LHM)
    light_r, light_d = reference[:, :1], distorted[:, :1]
    slope_r, slope_d = _gradient(light_r, _PREWITT, 3), _gradient(light_d, _PREWITT, 3)
    slope_f = _gradient((light_r + light_d) / 2, _PREWITT, 3)
    structure = (
        _similarity(slope_r, slope_d, 140) + _similarity(slope_r, slope_f, 55) - _similarity(slope_d, slope_f, 55)
    )
    chroma_r, chroma_d = reference[:, 1:], distorted[:, 1:]
    energy = (chroma_r**2 + chroma_d**2).sum(1, keepdim=True)
    chroma = (2 * (chroma_r * chroma_d).sum(1, keepdim=True) + 550) / (energy + 550)
    # The similarity can fall below zero, where its fourth root is complex.
    root = torch.complex(0.6 * structure + 0.4 * chroma, torch.zeros_like(chroma)) ** 0.25
    deviation = (root - root.mean((1, 2, 3), keepdim=True)).abs().mean((1, 2, 3))
    return deviation**0.25


def vsi(reference_BCHW: Tensor, distorted_BCHW: Tensor) -> Tensor:
    """Visual saliency induced index (Zhang and others, IEEE TIP 2014); 1 for identical images, smaller is worse."""
    saliency_r, saliency_d = (
        _lower_resolution(_saliency(image), replicate=True) for image in (reference_BCHW, distorted_BCHW)
    )
    reference, distorted = (
        _lower_resolution(_convert(image, _LMN), replicate=True) for image in (reference_BCHW, distorted_BCHW)
    )
    slope_r, slope_d = _gradient(reference[:, :1], _SCHARR, 16), _gradient(distorted[:, :1], _SCHARR, 16)
    chroma = _similarity(reference[:, 1:], distorted[:, 1:], 130).prod(1, keepdim=True)
    # A real power of a possibly negative number: |c|^β cos(β·arg c).
    chroma = chroma.abs() ** 0.02 * torch.where(chroma < 0, math.cos(0.02 * math.pi), 1.0)
    similarity = _similarity(saliency_r, saliency_d, 1.27) * _similarity(slope_r, slope_d, 386) ** 0.4 * chroma
    weight = torch.maximum(saliency_r, saliency_d)
    tiny = torch.finfo(weight.dtype).eps
    return ((similarity * weight).sum((1, 2, 3)) + tiny) / (weight.sum((1, 2, 3)) + tiny)


def haarpsi(reference_BCHW: Tensor, distorted_BCHW: Tensor) -> Tensor:
    """Haar wavelet perceptual similarity index (Reisenhofer and others, 2018), C = 30, α = 4.2; 1 is identical."""
    steepness = 4.2
    reference, distorted = (_halve(_convert(image, _YIQ)) for image in (reference_BCHW, distorted_BCHW))
    details_r, details_d = _haar(reference[:, :1]), _haar(distorted[:, :1])  # (B, scale, direction, H, W)
    weights = torch.maximum(details_r[:, 2], details_d[:, 2])
    local = _similarity(details_r[:, :2], details_d[:, :2], 30).mean(1)
    chroma_r, chroma_d = (
        F.avg_pool2d(F.pad(image[:, 1:], (0, 1, 0, 1)), 2, stride=1).abs() for image in (reference, distorted)
    )
    local = torch.cat([local, _similarity(chroma_r, chroma_d, 30).mean(1, keepdim=True)], 1)
    weights = torch.cat([weights, weights.mean(1, keepdim=True)], 1)
    tiny = torch.finfo(weights.dtype).eps
    pooled = ((local * steepness).sigmoid() * weights).sum((1, 2, 3)) + tiny
    pooled = pooled / (weights.sum((1, 2, 3)) + tiny)
    return (torch.logit(pooled) / steepness) ** 2


def ms_gmsdc(reference_BCHW: Tensor, distorted_BCHW: Tensor) -> Tensor:
    """Multi-scale gradient magnitude similarity deviation with chroma (Zhang and others, 2017); 0 is identical."""
    reference, distorted = _convert(reference_BCHW, _YIQ), _convert(distorted_BCHW, _YIQ)
    total = torch.zeros(len(reference), dtype=reference.dtype)
    for scale, weight in enumerate((0.096, 0.596, 0.289, 0.019)):
        if scale:
            reference, distorted = _halve(reference), _halve(distorted)
        slope_r, slope_d = _gradient(reference[:, :1], _PREWITT, 3), _gradient(distorted[:, :1], _PREWITT, 3)
        # Masking α = 0.5 and T = 170 as in the paper.
        cross = slope_r * slope_d
        similar = (2 * cross - 0.5 * cross + 170) / (slope_r**2 + slope_d**2 - 0.5 * cross + 170)
        total = total + weight * similar.var((1, 2, 3), unbiased=False)
    deviation = total.sqrt()
    chroma = ((reference[:, 1:] - distorted[:, 1:]) ** 2).mean((2, 3)).sum(1).sqrt()
    gamma = 2 / (1 + 0.32 * torch.exp(-15 * deviation)) - 1
    return gamma * deviation + (1 - gamma) * 0.01 * chroma


# Name → (metric, +1 if larger is better, −1 if smaller is).
METRICS: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mdsi": (mdsi, -1),
    "vsi": (vsi, 1),
    "haarpsi": (haarpsi, 1),
    "ms_gmsdc": (ms_gmsdc, -1),
}


def _convert(image_BCHW: Tensor, rows: tuple[tuple[float, ...], ...]) -> Tensor:
    matrix = torch.tensor(rows, dtype=image_BCHW.dtype, device=image_BCHW.device)
    return torch.einsum("oc,bchw->bohw", matrix, image_BCHW)


def _similarity(left: Tensor, right: Tensor, constant: float) -> Tensor:
    return (2 * left * right + constant) / (left**2 + right**2 + constant)


def _gradient(plane_B1HW: Tensor, kernel: tuple[tuple[float, ...], ...], scale: float) -> Tensor:
    horizontal = torch.tensor(kernel, dtype=plane_B1HW.dtype) / scale
    kernels = torch.stack([horizontal, horizontal.T])[:, None]
    return (F.conv2d(plane_B1HW, kernels, padding=1) ** 2).sum(1, keepdim=True).sqrt()


def _lower_resolution(image_BCHW: Tensor, *, early: bool = False, replicate: bool = False) -> Tensor:
    """Average-pool so that the shorter side is about 256, as MDSI and VSI prescribe."""
    factor = max(1, round(min(image_BCHW.shape[-2:]) / 256))
    if factor // 2:
        before, after = (factor - 1) // 2, factor // 2
        if not early:
            before, after = after, before
        image_BCHW = F.pad(image_BCHW, (before, after, before, after), mode="replicate" if replicate else "constant")
    return F.avg_pool2d(image_BCHW, factor)


def _halve(image_BCHW: Tensor) -> Tensor:
    odd = max(image_BCHW.shape[2] % 2, image_BCHW.shape[3] % 2)
    return F.avg_pool2d(F.pad(image_BCHW, (0, odd, 0, odd)), 2)


def _haar(plane_B1HW: Tensor) -> Tensor:
    """Magnitudes of the Haar details at three scales in two directions: (B, 3, 2, H, W)."""
    scales: list[Tensor] = []
    for scale in (1, 2, 3):
        side = 2**scale
        kernel = torch.full((side, side), 2.0**-scale, dtype=plane_B1HW.dtype)
        kernel[side // 2 :] *= -1
        padded = F.pad(plane_B1HW, (side // 2 - 1, side // 2, side // 2 - 1, side // 2))
        scales.append(F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None]).abs())
    return torch.stack(scales, 1)


def _saliency(image_BCHW: Tensor) -> Tensor:
    """SDSP saliency (Zhang and others, ICIP 2013) in 0–1: band-passed Lab energy × centre prior × warm-colour prior.

    The constants are those that the paper of VSI sets: ω₀ = 0.021, σF = 1.34, σD = 145, σC = 0.001.
    """
    size = 256
    lab = _lab(F.interpolate(image_BCHW, (size, size), mode="bilinear", align_corners=False))
    axis = torch.linspace(-size / 2, size / 2 - 1, size, dtype=lab.dtype) / size
    radius = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    band = torch.fft.ifftshift(torch.where(radius <= 0.5, radius, 0.0))
    passed = torch.where(band > 0, torch.exp(-(torch.log(band.clamp_min(1e-12) / 0.021) ** 2) / (2 * 1.34**2)), 0.0)
    # Frequencies outside the circle have radius 0 after the mask: the paper's filter is zero there in the limit.
    energy = torch.fft.ifft2(torch.fft.fft2(lab) * passed).real.square().sum(1, keepdim=True).sqrt()
    centre = torch.exp(-((axis[:, None] * size + 1) ** 2 + (axis[None, :] * size + 1) ** 2) / 145**2)
    low, high = lab.amin((2, 3), keepdim=True), lab.amax((2, 3), keepdim=True)
    tiny = torch.finfo(lab.dtype).eps
    warm = ((lab - low) / (high - low + tiny))[:, 1:].square().sum(1, keepdim=True)
    saliency = energy * centre * (1 - torch.exp(-warm / 0.001**2))
    saliency = F.interpolate(saliency, image_BCHW.shape[-2:], mode="bilinear", align_corners=True)
    low, high = saliency.amin((2, 3), keepdim=True), saliency.amax((2, 3), keepdim=True)
    return (saliency - low) / (high - low + tiny)


def _lab(image_BCHW: Tensor) -> Tensor:
    """sRGB in 0–255 → CIE L*a*b* against the D50 white."""
    encoded = image_BCHW / 255
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = _convert(linear, _XYZ) / torch.tensor(_WHITE, dtype=linear.dtype)[:, None, None]
    curve = torch.where(xyz <= 0.008856, xyz * (903.3 / 116) + 16 / 116, xyz.clamp_min(1e-12) ** (1 / 3))
    x, y, z = curve.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
