"""LPIPS against the same network written in torch, from files as torchvision and the lpips package have them."""

import numpy as np
import pytest
from helpers.refusals import broken

from drender.errors import InputError
from drender.metrics.image import evaluate
from drender.metrics.lpips import ALEX, LPIPS, VGG

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
from torch import nn  # noqa: E402

pytestmark = pytest.mark.oracle


def alexnet(c):
    """torchvision's `features`, of `c` channels: their names are the positions in the sequence."""
    conv = lambda i, o, size, stride, padding: [nn.Conv2d(i, o, size, stride, padding), nn.ReLU()]
    return nn.Sequential(
        *conv(3, c[0], 11, 4, 2), nn.MaxPool2d(3, 2), *conv(c[0], c[1], 5, 1, 2), nn.MaxPool2d(3, 2),
        *conv(c[1], c[2], 3, 1, 1), *conv(c[2], c[3], 3, 1, 1), *conv(c[3], c[4], 3, 1, 1), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16(c):
    layers, before = [], 3
    for channels, convs in zip(c, (2, 2, 3, 3, 3), strict=True):
        for _ in range(convs):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


NETS = {
    "alex": (alexnet, (5, 6, 7, 8, 9), (1, 4, 7, 9, 11), "alexnet-owt-7be5be79.pth", ALEX),
    "vgg": (vgg16, (4, 5, 6, 7, 8), (3, 8, 15, 22, 29), "vgg16-397923af.pth", VGG),
}


def write(folder, kind, seed=0):
    """Random weights in the two files; returns the network and the heads."""
    make, channels, _, file, _ = NETS[kind]
    torch.manual_seed(seed)
    features = make(channels)
    for parameter in features.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1)
    heads = [torch.rand(1, c, 1, 1) for c in channels]
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, folder / file)
    torch.save({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, folder / f"{kind}.pth")
    return features, heads


@torch.no_grad()
def oracle(kind, features, heads, first, second):
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    a, b = ((torch.tensor(x).permute(0, 3, 1, 2) * 2 - 1 - shift) / scale for x in (first, second))
    taps, total = NETS[kind][2], 0
    for index, layer in enumerate(features[: taps[-1] + 1]):
        a, b = layer(a), layer(b)
        if index in taps:
            unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
            difference = (unit[0] - unit[1]).square()
            total = total + nn.functional.conv2d(difference, heads[taps.index(index)]).mean((1, 2, 3))
    return total.numpy()


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    first = random.random((3, 64, 80, 3), np.float32)
    return first, np.clip(first + 0.3 * random.standard_normal(first.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize("kind", NETS)
def test_agrees_with_torch(tmp_path, pair, kind):
    expected = oracle(kind, *write(tmp_path, kind), *pair)
    distance = LPIPS.load(tmp_path)
    assert distance.network is NETS[kind][4] and expected.min() > 0.01
    np.testing.assert_allclose(distance(*pair), expected, rtol=1e-4)
    np.testing.assert_allclose(distance(pair[0], pair[0]), 0, atol=1e-6)
    np.testing.assert_allclose(distance(pair[0][1], pair[1][1]), expected[1], rtol=1e-4)


def test_pictures_are_measured_with_it(tmp_path, pair):
    features, heads = write(tmp_path, "alex")
    predicted, truth = pair
    mask = np.zeros(truth.shape[:-1], bool)
    mask[:, 8:30, 10:40] = True
    scaled = predicted * (np.sum(predicted * truth, axis=(0, 1, 2)) / np.sum(predicted**2, axis=(0, 1, 2)))
    distance = LPIPS.load(tmp_path)
    found = evaluate("rgb", predicted, truth, lpips=distance)["scaled_lpips_alex"]
    np.testing.assert_allclose(found, oracle("alex", features, heads, scaled, truth).mean(), rtol=1e-4)
    masked = evaluate("rgb", predicted, truth, mask, distance)
    assert 0 < masked["scaled_lpips_alex"] < found
    outside = evaluate("rgb", np.where(mask[..., None], predicted, 0).astype(np.float32), truth, mask, distance)
    assert outside == masked


def test_alexnet_comes_first(tmp_path):
    write(tmp_path, "vgg"), write(tmp_path, "alex")
    assert LPIPS.load(tmp_path).network is ALEX
    (tmp_path / "alex.pth").unlink()
    assert LPIPS.load(tmp_path).network is VGG


@pytest.mark.parametrize("kind", NETS)
def test_images_too_small(tmp_path, kind):
    write(tmp_path, kind)
    smallest = NETS[kind][4].smallest
    images = np.random.default_rng(0).random((2, smallest, smallest, 3), np.float32)
    distance = LPIPS.load(tmp_path)
    assert np.isfinite(distance(images[0], images[1]))
    message = f"images of {smallest}x{smallest - 1} pixels are too small for LPIPS .{kind}.: {smallest} or more"
    with pytest.raises(InputError, match=message):
        distance(images[0, 1:], images[1, 1:])


def test_files_that_are_wrong(tmp_path):
    assert "no weights of LPIPS; expected alexnet-*.pth with alex.pth or vgg16-*.pth" in broken(LPIPS.load, tmp_path)
    write(tmp_path, "alex")
    heads, trunk = tmp_path / "alex.pth", tmp_path / NETS["alex"][3]
    torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, heads)
    assert f"{heads}: lin0.model.1.weight is 1x64x1x1, where LPIPS needs 1x5x1x1" in broken(LPIPS.load, tmp_path)
    torch.save({"features.0.weight": torch.ones(5, 3, 11, 11)}, trunk)
    assert f"{trunk}: features.0.bias is missing, where LPIPS needs 5" in broken(LPIPS.load, tmp_path)
    trunk.write_bytes(b"no weights")
    assert f"{trunk}: damaged" in broken(LPIPS.load, tmp_path)
