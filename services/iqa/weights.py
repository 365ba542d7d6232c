"""The trained weights of a bundle: what its fp32 graph does not hold as it was trained, as `weights.safetensors`.

    python -m services.iqa.weights BUNDLE

adds the file to a folder whose version was trained before bundles carried it. The exporter multiplies every
convolution of the backbone by the batch normalisation behind it, w′ = w·γ/√(v + ε) and b′ = β − μ·γ/√(v + ε). So the
file holds the heads and the batch normalisations, a thirtieth of the bundle, and the backbone's kernels w come out of
the graph again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.iqa.model import PMTIQA
from services.iqa.schemas import TrainConfig
from shared.bundles import Bundle, write_manifest
from shared.jobs.config import read_config
from shared.problems import InputError

WEIGHTS = "weights.safetensors"
LEAST_SCALE = 1e-6  # of γ/√(v + ε): below it the kernel is lost in the product, and stays in the file
ROUNDING = 1e-5  # of a kernel's largest weight


def save_weights(model: PMTIQA, path: Path) -> None:
    """Write what the graph of `model` does not hold."""
    state = model.state_dict()
    for name, norm in _norms(model).items():
        if float(_scale(norm).abs().min()) >= LEAST_SCALE:
            del state[name]
    save_file({name: value.cpu().contiguous() for name, value in state.items()}, path)


def load_network(bundle: Bundle, config: TrainConfig) -> PMTIQA:
    """The bundle's network as it was trained, in evaluation mode on the CPU; its file of weights must be there."""
    model = PMTIQA(len(bundle.manifest.constants["kinds"]), config.backbone, config.multi_scale)
    state = load_file(bundle.path(WEIGHTS))
    own = {name: state[name] for name in model.state_dict() if name in state}
    model.load_state_dict(own, strict=False)  # the normalisations first: the kernels are told by them
    graph = onnx.load(bundle.graph("fp32")).graph
    missing = {name: kernel for name, (kernel, _) in _folded(model, graph).items() if name not in state}
    model.load_state_dict(own | missing)
    return model.eval()


def recover(bundle: Bundle, config: TrainConfig) -> PMTIQA:
    """The network of a version without the file: the function that is served, as the network that was trained.

    A training from ImageNet weights leaves μ and v as they are, so they are known. Of w and γ the graph knows the
    product alone: γ is taken to be ImageNet's, and w has what training changed in both. Raises InputError where the
    version was trained otherwise.
    """
    if config.backbone != "efficientnet-lite0" or not config.pretrained or config.weights is not None:
        raise InputError("Only a version trained from the package's own ImageNet weights can be recovered.")
    model = PMTIQA(len(bundle.manifest.constants["kinds"]), config.backbone, config.multi_scale)
    model.load_imagenet()
    imagenet = {name: value.clone() for name, value in model.state_dict().items()}
    graph = onnx.load(bundle.graph("fp32")).graph
    state = {name.removeprefix("model."): value for name, value in _stored(graph).items() if name.startswith("model.")}
    folded, norms = _folded(model, graph), _norms(model)
    with torch.no_grad():
        for name, (kernel, bias) in folded.items():
            norm = norms[name]
            state[name] = kernel
            norm.bias.copy_(bias + norm.running_mean * _scale(norm))  # pyright: ignore[reportOptionalOperand]
    model.load_state_dict(model.state_dict() | state)
    still = {id(part) for part in model.backbone.first(config.frozen_blocks) for part in part.modules()}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and (config.freeze_backbone or id(part) in still):
            _compare(part.weight.detach(), imagenet[f"{name}.weight"], name)
    return model.eval()


def _compare(kernel: Tensor, imagenet: Tensor, name: str) -> None:
    if float((kernel - imagenet).abs().max()) > ROUNDING * float(imagenet.abs().max()):
        raise InputError(f"{name} was not trained, but is not ImageNet's: the version began from other weights.")


def _norms(model: PMTIQA) -> dict[str, nn.BatchNorm2d]:
    """The backbone's kernels by name → the batch normalisation behind each, in the order in which they are run."""
    found: dict[str, nn.BatchNorm2d] = {}
    last = ""
    for name, part in model.backbone.named_modules(prefix="backbone"):
        if isinstance(part, nn.Conv2d):
            last = f"{name}.weight"
        elif isinstance(part, nn.BatchNorm2d):
            found[last] = part
    return found


def _scale(norm: nn.BatchNorm2d) -> Tensor:
    """γ/√(v + ε) of each channel."""
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()  # pyright: ignore[reportOptionalOperand]


def _folded(model: PMTIQA, graph: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The backbone's kernels by name → (w, b′): the kernel by the model's normalisation, and the graph's bias."""
    stored, norms = _stored(graph), _norms(model)
    nodes = [node for node in graph.node if node.op_type == "Conv"][: len(norms)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for (name, norm), node in zip(norms.items(), nodes, strict=True):
        kernel, bias = (stored[tensor] for tensor in node.input[1:3])
        # A channel without a scale has nothing to tell: its kernel is in the file.
        found[name] = (kernel.double() / _scale(norm).double()[:, None, None, None]).float(), bias
    return found


def _stored(graph: Any) -> dict[str, Tensor]:
    def tensor(value: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(value))

    return {one.name: tensor(numpy_helper.to_array(one)) for one in graph.initializer}


def main() -> None:
    folder = Path(sys.argv[1])
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    if WEIGHTS in manifest.files:
        raise InputError("The bundle has its weights.")
    known = {name: value for name, value in manifest.config.items() if name in TrainConfig.model_fields}
    save_weights(recover(bundle, read_config(TrainConfig, known)), folder / WEIGHTS)
    write_manifest(folder, files=[*manifest.files, WEIGHTS], **manifest.model_dump(exclude={"files"}))


if __name__ == "__main__":
    main()
