"""A ResNet-20 trained by others, in all three ports: its published error of 8.27 % on the CIFAR-10 test images.

The weights are not part of this project; without the folder that holds them these tests are skipped.
Source: akamaster/pytorch_resnet_cifar10, `resnet20-12fca82f.th`; He et al. 2016a, section 4.2 (option A).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
import ports
from parity.running.probes import MEAN, STD
from ports.weights import Default, Rename

RULES = (
    Rename(r"^linear\.", "fc.", why="that code calls the classifier linear"),
    Default("num_batches_tracked", 0, why="saved before PyTorch counted batches"),
)
# Of how many images how many are classified wrong: 8.27 % of all of them.
WRONG = {1_000: 85, 10_000: 827}
BATCH = 1000


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> dict[str, np.ndarray]:
    return ports.weights.load(shared_data / "resnet20-12fca82f.th")


@pytest.fixture(scope="module")
def images(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised NHWC images and labels."""
    data = np.load(shared_data / "cifar10_test.npz")
    return ((data["images"] / 255 - MEAN) / STD).astype(np.float32), data["labels"]


def predictions(port: str, weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    net: Any = ports.create("cifar_resnet20", port, seed=None)
    batches = np.split(images, len(images) // BATCH)
    if port == "pytorch":
        import torch

        ports.weights.write(net, weights, rules=RULES)
        net.eval()
        with torch.inference_mode():
            logits = [net(torch.from_numpy(b.transpose(0, 3, 1, 2).copy())).numpy() for b in batches]
    elif port == "nnx":
        from flax import nnx

        ports.weights.write(net, weights, rules=RULES)
        net.eval()
        forward = nnx.jit(lambda net, x: net(x))
        logits = [np.asarray(forward(net, b)) for b in batches]
    else:
        import jax

        module, variables = net
        variables = ports.weights.write((module, variables), weights, rules=RULES)
        apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
        logits = [np.asarray(apply(variables, b)) for b in batches]
    return np.concatenate(logits).argmax(1)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("port", ports.PORTS)
def test_published_error(
    port: str, count: int, weights: dict[str, np.ndarray], images: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels, labels = images
    assert len(labels) == 10_000
    assert int((predictions(port, weights, pixels[:count]) != labels[:count]).sum()) == WRONG[count]


def test_trained_weights_pass_the_check(weights: dict[str, np.ndarray]) -> None:
    net = ports.create("cifar_resnet20", "pytorch", seed=None)
    ports.weights.write(net, weights, rules=RULES)
    report = parity.check_network("cifar_resnet20", weights=ports.weights.read(net))
    assert report, report.failure()
