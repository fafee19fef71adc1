"""Trains a network in PyTorch, a step at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

import ports
from benchmarks.depth.plan import DepthPlan
from ports.family import Description


class TorchTrainer:
    """A network with its optimizer.

    Args:
        weights: the initial ones, in the torch form.
        dtype: `float64` or `float32`; of weights, images and everything else.
    """

    def __init__(
        self, spec: Description, weights: Mapping[str, np.ndarray], plan: DepthPlan, dtype: str, device: str
    ) -> None:
        self.where = torch.device("cuda" if device == "gpu" else "cpu")
        self.dtype = getattr(torch, dtype)
        net = ports.create(spec, "pytorch", seed=None, dtype=dtype)
        ports.weights.write(net, weights)
        self.net = net.to(self.where)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), plan.rate, momentum=plan.momentum, weight_decay=plan.decay
        )

    def _logits(self, images: np.ndarray) -> torch.Tensor:
        return self.net(torch.from_numpy(images).to(self.where, self.dtype))

    def step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Take a step of SGD; return the loss before it, and how many images were classified wrong."""
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        logits, targets = self._logits(images), torch.from_numpy(labels).to(self.where)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        self.optimizer.step()
        return loss.item(), int((logits.argmax(1) != targets).sum())

    def gradient_norms(self) -> dict[str, float]:
        """Return the norm of the last step's gradient, by the name of the parameter."""
        given = {name: p.grad for name, p in self.net.named_parameters()}
        return {name: torch.linalg.vector_norm(g).item() for name, g in given.items() if g is not None}

    def wrong(self, images: np.ndarray, labels: np.ndarray) -> int:
        """Return how many images are classified wrong with the running statistics."""
        self.net.eval()
        with torch.inference_mode():
            return int((self._logits(images).argmax(1).cpu().numpy() != labels).sum())
