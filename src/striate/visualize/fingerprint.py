"""What a stopped run must agree in with the one that goes on: weights and pictures, as short hashes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from striate.model import Model


def of_model(model: Model) -> str:
    """The name of the net and a hash of its weights and its preprocessing."""
    digest = hashlib.blake2b(repr(model.preprocess.to_dict()).encode(), digest_size=8)
    for name, tensor in model.net.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return f"{getattr(model.net, 'name', type(model.net).__name__)} {digest.hexdigest()}"


def of_pixels(pixels: NDArray[Any]) -> str:
    """Shape and hash of a picture."""
    data = np.ascontiguousarray(pixels)
    return f"{data.shape} {hashlib.blake2b(data.tobytes(), digest_size=8).hexdigest()}"
