"""SmoothGrad, integrated gradients and the class maps against values worked out by hand or in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from little_models import conv_model, linear_model, pictures
from striate.core.errors import StriateError
from striate.visualize.cams import enlarged
from striate.visualize.gradients import coloured
from striate.visualize.method import net_input, visualize


def test_integrated_gradients_of_a_linear_net_are_exact() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 1.0, 0.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    model, image = linear_model(weight), np.array([[0, 255], [255, 0]], np.uint8)
    for baseline, b in [("mean", 0.0), ("black", -1.0), ("white", 1.0)]:
        arrays = visualize(
            "integrated-gradients", model, image, target="dark", baseline=baseline, steps=3
        ).arrays
        want = weight[0].numpy() * (np.array([-1, 1, 1, -1]) - b)
        np.testing.assert_allclose(arrays["attribution"][0].ravel(), want, atol=1e-5)
        np.testing.assert_allclose(arrays["completeness"][0, :2], want.sum(), atol=1e-4)


def test_integrated_gradients_are_complete() -> None:
    model, image = conv_model(), pictures(1)[0]
    picture = visualize("integrated-gradients", model, image, target=1, steps=200)
    arrays = picture.arrays
    x = net_input(model, image)
    with torch.no_grad():
        difference = float(model.net(x)[0, 1] - model.net(torch.zeros_like(x))[0, 1])
    got, said, error = arrays["completeness"][0]
    assert said == pytest.approx(difference, rel=1e-4)
    assert got == pytest.approx(difference, rel=0.02, abs=1e-4)
    assert error == pytest.approx(abs(got - said) / abs(said), rel=1e-3)
    np.testing.assert_allclose(arrays["attribution"][0], arrays["values"][0].sum(0), rtol=1e-6)
    assert arrays["attribution"].sum() == pytest.approx(got, rel=1e-3)
    few = visualize("integrated-gradients", model, image, target=1, steps=1)
    assert few.arrays["completeness"][0, 2] > error
    # Straight sums over many points come to the same.
    points = [(k + 0.5) / 400 for k in range(400)]
    total = torch.zeros_like(x)
    for a in points:
        p = (a * x).requires_grad_()
        total += torch.autograd.grad(model.net(p)[0, 1], p)[0]
    np.testing.assert_allclose(arrays["values"][0], (total / 400 * x)[0].numpy(), atol=2e-3)


def test_smoothgrad_is_the_mean_gradient_over_noise() -> None:
    model, image = conv_model(), pictures(1)[0]
    plain = visualize("saliency", model, image).arrays["gradient"]
    still = visualize("smoothgrad", model, image, noise=0, samples=20).arrays["gradient"]
    np.testing.assert_allclose(still, plain, rtol=1e-4, atol=1e-7)
    x = net_input(model, image)
    # Drawn in parts of 16.
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn((n, *x.shape[1:]), generator=source) for n in (16, 2)]
    draws = torch.cat(parts)
    p = (x + 0.2 * float(x.max() - x.min()) * draws).requires_grad_()
    want = torch.autograd.grad(model.net(p)[:, 2].sum(), p)[0].mean(0)
    got = visualize("smoothgrad", model, image, target=2, noise=0.2, samples=18).arrays["gradient"][0]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-7)


def test_class_maps_of_a_net_with_global_average() -> None:
    model, image = conv_model(), pictures(1)[0]
    with torch.no_grad():
        maps = model.net.conv1(net_input(model, image))
        for name in ("bn1", "relu1", "drop1", "conv2", "relu2"):
            if name != "conv1":
                maps = model.net.get_submodule(name)(maps)
    weight = model.net.fc3.weight.detach()
    want = torch.einsum("c,chw->hw", weight[1], maps[0]).numpy()
    cam = visualize("cam", model, image, target=1, signed=True).arrays
    np.testing.assert_allclose(cam["coarse"][0, 0], want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(cam["map"][0], want, rtol=1e-4, atol=1e-6)
    # The mean of the map and the bias are the logit; Grad-CAM is the same map, over the positions.
    assert want.mean() + float(model.net.fc3.bias[1].detach()) == pytest.approx(
        float(cam["score"][0]), rel=1e-4
    )
    grad = visualize("grad-cam", model, image, target=1, stage="relu2").arrays
    np.testing.assert_allclose(grad["coarse"][0, 0] * 64, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(grad["weights"][0] * 64, weight[1].numpy(), rtol=1e-4)
    np.testing.assert_array_equal(grad["map"], grad["coarse"][:, 0].clip(0))
    guided = visualize("guided-backprop", model, image, target=1).arrays["signal"][0]
    both = visualize("guided-grad-cam", model, image, target=1).arrays
    np.testing.assert_allclose(both["signal"][0], guided * both["coarse"][0].clip(0), rtol=1e-4, atol=1e-9)


def test_grad_cam_by_hand_at_an_early_stage() -> None:
    model, image = conv_model(), pictures(1)[0]
    net, x = model.net, net_input(model, image)
    with torch.no_grad():
        a = net.relu1(net.bn1(net.conv1(x)))
    a.requires_grad_()
    logit = net.fc3(net.relu2(net.conv2(a)).mean((2, 3)))[0, 0]
    weights = torch.autograd.grad(logit, a)[0].mean((2, 3))
    want = (weights[0, :, None, None] * a[0]).sum(0).detach().numpy()
    got = visualize("grad-cam", model, image, target=0, stage="relu1").arrays["coarse"][0, 0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_nets_without_class_weights_on_maps_have_no_cam() -> None:
    with pytest.raises(StriateError, match="cam has no meaning for this net"):
        visualize("cam", linear_model(torch.ones(3, 4)), pictures(1, 2, 2, 1))
    model = conv_model()
    model.net.relu2 = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Tanh())
    model.net.avgpool = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(StriateError, match="cam has no meaning for this net"):
        visualize("cam", model, pictures(1))


def test_maps_are_enlarged_between_centres() -> None:
    large = enlarged(np.array([[0.0, 1.0]], np.float32), np.zeros((2, 8, 3), np.uint8))
    np.testing.assert_allclose(large[0], [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])


def test_signals_are_drawn_around_grey() -> None:
    drawn = coloured(np.array([[[1.0, -1.0, 0.0]]], np.float32), 100)
    assert drawn.ravel().tolist() == [255, 0, 128]
