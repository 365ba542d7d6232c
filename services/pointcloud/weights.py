"""The trained network of a bundle as `weights.safetensors`: encoder, decoder and classifier, for who trains or audits.

    python -m services.pointcloud.weights BUNDLE

adds them to a bundle made before bundles carried them, from its graphs, which hold the same numbers. The single-view
network is left out: nothing asks for it. Shapes: B clouds, N points, K neighbours, G points of the surface, C classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.pointcloud.calibration import FILE, load_calibration
from services.pointcloud.classifier import Classifier
from services.pointcloud.model import CODEWORD, FEATURES, Autoencoder
from services.pointcloud.neighbours import NEIGHBOURS
from services.pointcloud.schemas import TrainConfig
from shared.bundles import Bundle, BundleRejected, write_manifest
from shared.jobs.config import read_config
from shared.sessions import OnnxSession

WEIGHTS = "weights.safetensors"
PARITY = 1e-5


class Network(nn.Module):
    """The autoencoder with the classifier of its codewords, where there is one."""

    def __init__(self, autoencoder: Autoencoder, classifier: Classifier | None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.classifier = classifier

    def forward(self, features_BN12: Tensor, neighbours_BNK: Tensor) -> Tensor:
        """Codewords (B, 512)."""
        return self.autoencoder.encoder(features_BN12, neighbours_BNK)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """By the names of their graphs."""
        found: dict[str, nn.Module] = {"encoder": self.autoencoder.encoder, "decoder": self.autoencoder.decoder}
        return found if self.classifier is None else found | {"classifier": self.classifier}


def save_weights(network: Network, folder: Path) -> None:
    """Write the file. The source surface is not in it: the calibration says what it is."""
    save_file(
        {
            f"{part}.{name}": value.contiguous()
            for part, module in network.parts.items()
            for name, value in module.state_dict().items()
        },
        folder / WEIGHTS,
    )


def load_network(bundle: Bundle) -> Network:
    """In evaluation mode on the CPU, with the weights that the bundle carries."""
    state = load_file(bundle.path(WEIGHTS))
    network = _empty(bundle)
    for part, module in network.parts.items():
        module.load_state_dict({name: state[f"{part}.{name}"] for name in module.state_dict()})
    return network.eval()


def recover(bundle: Bundle) -> Network:
    """The network whose graphs the bundle serves; raises BundleRejected where it does not answer as they do.

    The exporter keeps the names of what it writes as it is; matrices that it turned round have lost theirs and come in
    the order of the network's layers.
    """
    network = _empty(bundle)
    for part, module in network.parts.items():
        _take(module, bundle.path(f"{part}.onnx"))
    network.eval()
    _check(network, bundle)
    return network


def _empty(bundle: Bundle) -> Network:
    """The network as the bundle's config and calibration describe it, with its source surface and random weights."""
    config = read_config(TrainConfig, bundle.manifest.config)
    calibration = load_calibration(bundle.path(FILE))
    autoencoder = Autoencoder(config.encoder, config.decoder, config.source, config.resolution)
    source = calibration.source
    if source is not None and source.values is not None:
        with torch.no_grad():
            autoencoder.source_GS.copy_(torch.from_numpy(source.points()))
    labels = len(calibration.labels)
    nothing = np.zeros((labels, CODEWORD), np.float32), np.zeros(labels, np.float32)
    return Network(autoencoder, Classifier(*nothing) if labels else None)


def _take(module: nn.Module, path: Path) -> None:
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    wanted = module.state_dict()
    turned = [value.T for name, value in stored.items() if name not in wanted]
    lost = [name for name in wanted if name not in stored]
    if [wanted[name].shape for name in lost] != [value.shape for value in turned]:
        raise BundleRejected(f"The matrices of {path.name} are not those of the network that its manifest describes.")
    found = {name: stored[name] for name in wanted if name in stored} | dict(zip(lost, turned, strict=True))
    module.load_state_dict({name: torch.from_numpy(np.array(value, order="C")) for name, value in found.items()})


@torch.inference_mode()
def _check(network: Network, bundle: Bundle) -> None:
    """Codewords, points and probabilities on random clouds are the graphs' to PARITY, as a share of the largest where
    that is above 1."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "features": torch.rand(4, 100, FEATURES, generator=generator),
        "neighbours": torch.randint(0, 100, (4, 100, NEIGHBOURS), generator=generator),
    }
    code_BD, source_GS = network(*given.values()), network.autoencoder.source_GS
    folded = {"codeword": code_BD} | (
        {} if load_calibration(bundle.path(FILE)).source is None else {"source": source_GS}
    )
    answers = [("encoder", given, code_BD), ("decoder", folded, network.autoencoder.decoder(code_BD, source_GS))]
    if network.classifier is not None:
        answers.append(("classifier", {"codeword": code_BD}, network.classifier(code_BD)))
    for name, inputs, mine in answers:
        session = OnnxSession(bundle.path(f"{name}.onnx"))
        [served] = session.infer({key: value.numpy() for key, value in inputs.items()}).values()
        size = max(1.0, float(np.abs(served).max()))
        far = float(np.abs(served - mine.numpy()).max()) / size
        if not far <= PARITY:
            raise BundleRejected(f"What was taken from {name}.onnx answers otherwise than the graph: off by {far:.1g}.")


def main() -> None:
    folder = Path(sys.argv[1])
    bundle = Bundle.open(folder)
    save_weights(recover(bundle), folder)
    fields = bundle.manifest.model_dump(exclude={"files"})
    write_manifest(folder, files=[*bundle.manifest.files, WEIGHTS], **fields)


if __name__ == "__main__":
    main()
