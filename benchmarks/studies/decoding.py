"""Tokens per second of decoders with a cache, beside transformers' `generate`, measured in one run.

    python -m benchmarks.studies.decoding gpt2 smollm2-135m --new 64 --json decoding.json

Every subject has the same weights and the same prompt, and takes the likeliest token at each step. A subject whose
tokens are not those of transformers is not timed. The subjects run in turn, so that other work of the machine affects
all of them alike. A figure is the new tokens of the whole batch, divided by the median seconds for prompt and new
tokens. Compiling is not part of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import ports
from benchmarks.subjects.transformers_decoders import original
from parity.reports import terminal
from ports import families
from ports.errors import UserError

NAME = "benchmarks.studies.decoding"

# Gives the new tokens (batch, new) after a prompt (batch, length).
Generates = Callable[[np.ndarray], np.ndarray]


def in_transformers(net: Any, new: int, **options: Any) -> Generates:
    """Return transformers' own way: `generate`, greedy, which does not stop at an end token."""
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0

    def generate(prompt: np.ndarray) -> np.ndarray:
        text = torch.from_numpy(prompt)
        with torch.no_grad():
            found = net.generate(
                text, attention_mask=torch.ones_like(text), max_new_tokens=new, do_sample=False, **options
            )
        return found[:, prompt.shape[1] :].numpy()

    return generate


def in_pytorch(net: Any, new: int, compiled: bool = False) -> Generates:
    """Return the loop over the PyTorch port's `decode`."""
    decode = torch.compile(net.decode) if compiled else net.decode

    def generate(prompt: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits, cache = net.prefill(torch.from_numpy(prompt), prompt.shape[1] + new)
            tokens = [logits[:, -1].argmax(-1, keepdim=True)]
            for _ in range(new - 1):
                logits, cache = decode(tokens[-1], cache)
                tokens.append(logits[:, -1].argmax(-1, keepdim=True))
        return torch.cat(tokens, 1).numpy()

    return generate


def in_jax(prefill: Callable[..., Any], decode: Callable[..., Any], new: int, whole: bool = False) -> Generates:
    """Return the loop over a Flax port's `decode`, one program for each step, or one for all of them."""

    def likeliest(logits: jax.Array) -> jax.Array:
        return logits[:, -1:].argmax(-1)

    @jax.jit
    def begin(prompt: jax.Array) -> Any:
        logits, cache = prefill(prompt, prompt.shape[1] + new)
        return likeliest(logits), cache

    def step(token: jax.Array, cache: Any) -> Any:
        logits, cache = decode(token, cache)
        return likeliest(logits), cache

    one = jax.jit(step, donate_argnums=1)

    @jax.jit
    def every(token: jax.Array, cache: Any) -> jax.Array:
        def body(held: Any, _: None) -> Any:
            token, cache = step(*held)
            return (token, cache), token[:, 0]

        _, tokens = jax.lax.scan(body, (token, cache), None, new - 1)
        return jnp.concatenate([token, tokens.T], 1)

    def generate(prompt: np.ndarray) -> np.ndarray:
        token, cache = begin(jnp.asarray(prompt))
        if whole:
            return np.asarray(every(token, cache))
        tokens = [token]
        for _ in range(new - 1):
            token, cache = one(token, cache)
            tokens.append(token)
        return np.asarray(jnp.concatenate(tokens, 1))

    return generate


def of_nnx(net: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `prefill` and `decode` of an NNX port that is taken apart once."""
    graph, state = nnx.split(net)

    def method(name: str) -> Callable[..., Any]:
        return lambda *args: getattr(nnx.merge(graph, state), name)(*args)

    return method("prefill"), method("decode")


def of_linen(net: Any, variables: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `prefill` and `decode` of a Linen port."""

    def method(name: str) -> Callable[..., Any]:
        return lambda *args: net.apply(variables, *args, method=name)

    return method("prefill"), method("decode")


def subjects(network: Any, new: int, compiled: bool) -> dict[str, Generates]:
    """Return all subjects with the same weights, transformers' first."""
    spec = families.get(network)
    own = ports.create(network, "pytorch", seed=0).eval()
    state = ports.weights.read(own)
    theirs = original(spec).eval()
    ports.weights.write(theirs, state)
    nnx_net = ports.create(network, "nnx", seed=None)
    ports.weights.write(nnx_net, state)
    linen_net, _ = net = ports.create(network, "linen", seed=None)
    variables = ports.weights.write(net, state)
    prefill, decode = of_nnx(nnx_net)
    found = {"transformers": in_transformers(theirs, new)}
    if compiled:
        found["transformers-static"] = in_transformers(theirs, new, cache_implementation="static")
    found["pytorch"] = in_pytorch(own, new)
    if compiled:
        found["pytorch-compile"] = in_pytorch(own, new, compiled=True)
    found["nnx"] = in_jax(prefill, decode, new)
    found["nnx-scan"] = in_jax(prefill, decode, new, whole=True)
    found["linen"] = in_jax(*of_linen(linen_net, variables), new)
    return found


def measure(network: Any, batch: int, length: int, new: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Return the figures of one network, given by its name or its description.

    Raises:
        UserError: the network is no decoder, or the text is too long for it.
    """
    spec = families.get(network)
    if not hasattr(spec, "stacked"):
        raise UserError(f"{spec.name}: got a network without a cache, expected a decoder, such as gpt2")
    longest = getattr(spec, "length", length + new)
    if length + new > longest:
        got = f"got {length} + {new} tokens, expected {longest} at most"
        raise UserError(f"{spec.name}: {got}; lower --prompt or --new")
    prompt = np.random.default_rng(0).integers(0, spec.vocabulary, (batch, length))
    every = subjects(network, new, compiled)
    first: dict[str, float] = {}
    expected, wrong = None, list[str]()
    for name, generate in every.items():
        begin = time.perf_counter()
        tokens = generate(prompt)
        first[name] = time.perf_counter() - begin
        expected = tokens if expected is None else expected
        wrong += [] if np.array_equal(tokens, expected) else [name]
    seconds: dict[str, list[float]] = {name: [] for name in every if name not in wrong}
    for _ in range(rounds):
        for name, found in seconds.items():
            begin = time.perf_counter()
            every[name](prompt)
            found.append(time.perf_counter() - begin)
    rows = [
        {
            "subject": name,
            "tokens_per_second": round(batch * new / statistics.median(found), 2),
            "times_transformers": round(statistics.median(seconds["transformers"]) / statistics.median(found), 3),
            "seconds": [round(one, 4) for one in found],
            "first_seconds": round(first[name], 2),
        }
        for name, found in seconds.items()
    ]
    return {"network": spec.name, "batch": batch, "prompt": length, "new": new, "subjects": rows, "other_tokens": wrong}


def line(result: dict[str, Any]) -> str:
    """Return a network's figures in one line."""
    said = ", ".join(
        f"{row['subject']} {row['tokens_per_second']:.1f} ({row['times_transformers']:.2f})"
        for row in result["subjects"]
    )
    others = f"; other tokens, not timed: {', '.join(result['other_tokens'])}" if result["other_tokens"] else ""
    return f"{result['network']}, batch {result['batch']}: tokens/s (times transformers): {said}{others}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["gpt2"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens that are generated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="also time torch.compile, which takes minutes")
    parser.add_argument("--json", type=Path, help="write the result there")
    asked = parser.parse_args()
    for name in ("batch", "prompt", "new", "rounds"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name}: got {getattr(asked, name)}, expected 1 or more")
    terminal.writable("--json", asked.json)
    results = []
    for network in asked.networks:
        results.append(measure(network, asked.batch, asked.prompt, asked.new, asked.rounds, asked.compiled))
        print(line(results[-1]), flush=True)
    if asked.json:
        from parity.api import environment

        whole = {"schema": 1, "networks": results, "environment": environment()}
        terminal.write("--json", asked.json, json.dumps(whole, indent=1) + "\n")
    return 1 if any(result["other_tokens"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(terminal.script(NAME, main))
