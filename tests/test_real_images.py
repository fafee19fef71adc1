"""Real images that everybody has: `tests/data/cifar10.npz`. A network that learned them says the same in all ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import parity
import ports
from parity.running.probes import MEAN, STD

FILE = Path(__file__).parent / "data" / "cifar10.npz"
STEPS, BATCH = 30, 50


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Normalised images (300, height, width, channels) in float32, and labels."""
    data = np.load(FILE)
    assert data["images"].shape == (300, 32, 32, 3)
    assert np.bincount(data["labels"]).tolist() == [30] * 10
    return ((data["images"] / 255 - MEAN) / STD).astype(np.float32), data["labels"].astype(np.int64)


@pytest.fixture(scope="module")
def trained(images: tuple[np.ndarray, np.ndarray]) -> torch.nn.Module:
    """A small ResNet that has learned something of the images."""
    pixels, labels = (torch.from_numpy(array) for array in images)
    net: Any = ports.create("cifar_resnet20", "pytorch", seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)
    order, losses = torch.from_numpy(np.random.default_rng(0).permutation(300)), []
    for step in range(STEPS):
        chosen = order[(step * BATCH) % 300 :][:BATCH]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(pixels[chosen].permute(0, 3, 1, 2)), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6]), losses
    return net.eval()


@pytest.mark.nightly
def test_all_ports_see_the_same_in_real_images(images: tuple[np.ndarray, np.ndarray], trained: torch.nn.Module) -> None:
    pixels, _ = images
    with torch.inference_mode():
        expected = trained(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).numpy()
    assert len(set(expected.argmax(1))) > 2
    net: Any = ports.create("cifar_resnet20", "nnx", seed=None)
    ports.weights.write(net, ports.weights.read(trained))
    net.eval()
    module, variables = ports.create("cifar_resnet20", "linen", seed=None)
    variables = ports.weights.write((module, variables), ports.weights.read(trained))
    found = {
        "nnx": nnx.jit(lambda net, x: net(x))(net, pixels),
        "linen": jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, pixels),
    }
    for port, logits in found.items():
        assert np.abs(np.asarray(logits) - expected).max() < 1e-3 * np.abs(expected).max(), port
        assert (np.asarray(logits).argmax(1) == expected.argmax(1)).mean() > 0.99, port


@pytest.mark.nightly
def test_a_network_is_checked_on_images_of_ones_own(
    images: tuple[np.ndarray, np.ndarray], trained: torch.nn.Module, tmp_path: Path
) -> None:
    """Trained weights, and a folder of images as `--images` takes it."""
    for number, pixels in enumerate(np.load(FILE)["images"][:3]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    weights = ports.weights.read(trained)
    options: Any = {"ports": ("nnx",), "images": tmp_path, "batch": 3, "weights": weights, "steps": 1}
    report = parity.check_network("cifar_resnet20", **options)
    assert report, report.failure()


def test_the_photographs_of_the_check_come_with_the_package() -> None:
    from parity.running.probes import PHOTOGRAPHS, photographs

    assert [image.size for image in photographs()] == [(640, 427), (640, 427)]
    licence = (PHOTOGRAPHS / "LICENCE.md").read_text()
    assert all(file.name in licence for file in PHOTOGRAPHS.glob("*.jpg"))
