"""Checkpoints of the real classes of other libraries, where they are installed: recognised, converted, and the same."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ports
from ports.weights import convert, open_checkpoint
from ports.weights.live.pytorch import to_numpy

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 65, 64))


def imported(name: str) -> Any:
    """The library, or a skip with its reason; what it warns of is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return __import__(name)
        except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch
            pytest.skip(f"{name} does not import here: {str(error).splitlines()[0]}")


def transformers_net(network: str) -> tuple[torch.nn.Module, Any]:
    """Hugging Face's class with random weights and statistics, and its logits."""
    library = imported("transformers")
    kind = {
        "resnet18": {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]},
        "resnet50": {},
    }
    net = library.ResNetForImageClassification(library.ResNetConfig(num_labels=1000, **kind[network]))
    return net, lambda images: net(images).logits


def timm_net(network: str) -> tuple[torch.nn.Module, Any]:
    net = imported("timm").create_model(network, pretrained=False)
    return net, net


REAL = [
    (transformers_net, "resnet18", "transformers"),
    (transformers_net, "resnet50", "transformers"),
    (timm_net, "resnet18", "torchvision"),
    (timm_net, "resnet50d", "torchvision"),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("make", "network", "dialect"), REAL, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_real_class_is_the_port(make: Any, network: str, dialect: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, logits = make(network)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
        torch.save(net.state_dict(), tmp_path / "real.pth")
        net.double().eval()
        expected = logits(torch.from_numpy(IMAGES)).numpy()
    held = open_checkpoint(tmp_path / "real.pth")
    assert held.found is not None
    assert (held.found.network, held.found.dialect) == (network, dialect)
    convert(tmp_path / "real.pth", tmp_path / "port.safetensors")
    port = ports.create(network, "pytorch", seed=None, dtype="float64")
    ports.weights.write(port, ports.weights.load(tmp_path / "port.safetensors"))
    with torch.no_grad():
        got = to_numpy(port.eval()(torch.from_numpy(IMAGES)))
    assert np.linalg.norm(got - expected) <= 1e-12 * np.linalg.norm(expected)
