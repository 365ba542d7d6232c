"""A network and its optimiser as named arrays, and back: what a training goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

State = dict[str, NDArray[Any]]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = "") -> State:
    state = {f"{prefix}model.{name}": value.cpu().numpy() for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {
            f"{prefix}optimizer.{index}.{name}": torch.as_tensor(value).cpu().numpy() for name, value in moments.items()
        }
    return state


def weights_of(model: nn.Module) -> State:
    """A copy of the weights, which training does not change."""
    return {name: value.cpu().numpy().copy() for name, value in model.state_dict().items()}


def load_weights(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    # Counters have no dimension; not every store keeps that.
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict(
        {name: torch.from_numpy(np.array(value)).reshape(shapes[name]) for name, value in weights.items()}
    )


def part_of(state: Mapping[str, NDArray[Any]], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, NDArray[Any]], prefix: str = ""
) -> None:
    load_weights(model, part_of(state, f"{prefix}model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part_of(state, f"{prefix}optimizer.").items():
        index, _, key = name.partition(".")
        tensor = torch.from_numpy(np.array(value))
        moments.setdefault(int(index), {})[key] = tensor.reshape(()) if key == "step" else tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
