"""Names of tensors in published files, translated into ours: families whose file does not do it itself.

A rule takes a state dictionary and returns one; keys that it does not know stay as they are. Rules written in
the file of a family are registered there, as the net's capability `keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

Rule = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

CONVOLUTIONS = {"0": "conv1", "3": "conv2", "6": "conv3", "8": "conv4", "10": "conv5"}
ALEXNET = {"1": "fc6", "4": "fc7", "6": "fc8"}
VGG = {
    "classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8",
    "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8",
}  # fmt: skip


def alexnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's AlexNet: `features.N` and `classifier.N` are places in a sequence with ReLU and pools."""
    names = {f"features.{n}": ours for n, ours in CONVOLUTIONS.items()}
    names |= {f"classifier.{n}": ours for n, ours in ALEXNET.items()}
    return _renamed(state, names)


def vgg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and timm's VGG: `features.N` is a place in a sequence; both kinds of classifier.

    A pool between two convolutions makes the step from one to the next longer by one. timm's fc6 and fc7 are
    convolutions of 7x7 and 1x1: the same numbers in the same order.
    """
    places = sorted(
        {
            int(key.split(".")[1])
            for key in state
            if key.startswith("features.") and key.split(".")[1].isdigit()
        }
    )
    convolutions = [n for n in places if _ndim(state, f"features.{n}.weight") == 4]
    names = dict(VGG)
    # convolution, ReLU; with batch norm one more.
    step = 3 if any(_ndim(state, f"features.{n}.weight") == 1 for n in places) else 2
    group, number, last = 1, 0, None
    for place in convolutions:
        if last is not None and place - last > step:
            group, number = group + 1, 0
        number, last = number + 1, place
        names[f"features.{place}"] = f"conv{group}_{number}"
        if step == 3:
            names[f"features.{place + 1}"] = f"bn{group}_{number}"
    renamed = _renamed(state, names)
    for key in ("fc6.weight", "fc7.weight"):
        if key in renamed and renamed[key].ndim == 4:
            renamed[key] = renamed[key].flatten(1)
    return renamed


def _ndim(state: Mapping[str, Tensor], key: str) -> int:
    return state[key].ndim if key in state else 0


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Every `module.leaf` with the module's other name."""

    def ours(key: str) -> str:
        module, dot, leaf = key.rpartition(".")
        return names.get(module, module) + dot + leaf

    return {ours(key): tensor for key, tensor in state.items()}


RULES: dict[str, dict[str, Rule]] = {"alexnet": {"torchvision": alexnet}, "vgg": {"torchvision": vgg}}
