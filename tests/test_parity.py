"""The same outputs as torchvision's and timm's own models, where those can be imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from striate.nets.net import Net
from striate.nets.published import CARDS, published
from striate.nets.weights import empty, load_into

# One card of each form of net: cards of the same form differ in their numbers only.
TORCHVISION = [name for name in CARDS if name.endswith(".imagenet1k_v1")]
TIMM = [
    "vgg11.tv_in1k", "vgg13_bn.tv_in1k", "vgg16.tv_in1k", "vgg19_bn.tv_in1k", "resnet18.a1_in1k",
    "resnet50.tv2_in1k", "inception_v3.tf_in1k", "inception_v3.tv_in1k", "inception_v4.tf_in1k",
    "inception_resnet_v2.tf_in1k", "mobilenetv2_100.ra_in1k", "efficientnet_lite0.ra_in1k",
    "tf_efficientnet_lite0.in1k", "tf_efficientnet_lite1.in1k", "tf_efficientnet_lite2.in1k",
]  # fmt: skip


def library(name: str) -> Any:
    """The library, or a skipped test that says why."""
    try:
        return __import__(f"{name}.models").models if name == "torchvision" else __import__(name)
    # Wheels of torchvision for another PyTorch fail in many ways.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        pytest.skip(f"{name} cannot be imported here ({type(error).__name__}: {reason})")


def seasoned(model: nn.Module, x: Tensor) -> nn.Module:
    """Norms as after some training, so that a wrong epsilon or a statistic in a wrong place shows.

    The statistics are those of a batch with the picture: deep nets neither die out nor overflow.
    """
    torch.manual_seed(1)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in norms:
            layer.momentum = 1.0
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(0, 0.1)
        if norms:
            model.train()(torch.cat([x, 0.5 * x.flip(3)]))
    return model.eval()


def close(ours: Tensor, theirs: Tensor) -> bool:
    scale = max(1.0, float(theirs.abs().max()))
    return float(theirs.std()) > 1e-6 and float((ours - theirs).abs().max()) <= 1e-5 * scale


def compare(name: str, model: nn.Module, x: Tensor) -> Net:
    seasoned(model, x)
    net = load_into(empty(published(name)), model.state_dict(), where=name).eval()
    with torch.no_grad():
        assert close(net(x), model(x))
    return net


def picture(name: str) -> Tensor:
    """Levels 0 to 1, as large as the card says."""
    torch.manual_seed(2)
    return torch.rand(1, 3, *published(name).preprocess["size"])


def normalised(levels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    place = {"dtype": levels.dtype}
    return (levels - torch.tensor(mean, **place).view(3, 1, 1)) / torch.tensor(std, **place).view(3, 1, 1)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    models = library("torchvision")
    torch.manual_seed(0)
    arch = name.partition(".")[0]
    auxiliary = arch in ("googlenet", "inception_v3")
    options = {"aux_logits": True, "init_weights": False} if auxiliary else {}
    levels, facts = picture(name), published(name).preprocess
    model = getattr(models, arch)(weights=None, **options)
    net = compare(name, model, normalised(levels, facts["mean"], facts["std"]))
    if auxiliary:
        # As torchvision uses its file: ImageNet's normalisation, undone inside. In double precision, since
        # the two ways round differently.
        model.transform_input = True
        levels = levels.double()
        with torch.no_grad():
            theirs = model.double()(normalised(levels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
            assert close(net.double()(normalised(levels, facts["mean"], facts["std"])), theirs)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = library("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    facts = published(name).preprocess
    cfg = model.pretrained_cfg
    assert (list(cfg["mean"]), list(cfg["std"])) == (facts["mean"], facts["std"])
    compare(name, model, normalised(picture(name), facts["mean"], facts["std"]))


@pytest.mark.parametrize("which", ["torchvision", "timm"])
def test_the_lists_of_names_and_shapes_are_those_of_the_libraries(which):
    import keylists

    models = library(which)
    for section in keylists.sections(which):
        net, _, tag = section.partition(".")
        auxiliary: dict[str, Any] = {"aux_logits": True} if tag or which == "torchvision" else {}
        if which == "torchvision":
            auxiliary = {**auxiliary, "init_weights": False} if net in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            model = getattr(models, net)(**auxiliary) if which == "torchvision" else models.create_model(
                net, **auxiliary
            )  # fmt: skip
        theirs = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert theirs == {key: t.shape for key, t in keylists.tensors(which, section).items()}
