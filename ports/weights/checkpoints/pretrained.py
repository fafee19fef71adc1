"""Published weights by name: `hf://owner/name` and `torchvision://network/WEIGHTS`, downloaded by their own libraries.

    hf://timm/resnet50.a1_in1k            the repository's safetensors, or its PyTorch or Flax file, and its config.json
    hf://owner/name@revision/file         one file of a revision
    torchvision://resnet50/IMAGENET1K_V2

Source of the addresses: torchvision's resnet.py; the eight digits in a name are the first of the file's sha256, which
`torch.hub` checks.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from ports.config import NAME as CONFIG
from ports.weights.checkpoints.described import FILES
from ports.weights.form.torch_form import WeightsError

HF, TORCHVISION = "hf://", "torchvision://"
HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "flax_model.msgpack")
SITE = "https://download.pytorch.org/models"
DIGITS = {
    "resnet18": {"IMAGENET1K_V1": "f37072fd"},
    "resnet34": {"IMAGENET1K_V1": "b627a593"},
    "resnet50": {"IMAGENET1K_V1": "0676ba61", "IMAGENET1K_V2": "11ad3fa6"},
    "resnet101": {"IMAGENET1K_V1": "63fe2227", "IMAGENET1K_V2": "cd907fc2"},
    "resnet152": {"IMAGENET1K_V1": "394f9c45", "IMAGENET1K_V2": "f82ba261"},
    "resnext50_32x4d": {"IMAGENET1K_V1": "7cdf4587", "IMAGENET1K_V2": "1a0047aa"},
    "resnext101_32x8d": {"IMAGENET1K_V1": "8ba56ff5", "IMAGENET1K_V2": "110c445d"},
    "resnext101_64x4d": {"IMAGENET1K_V1": "173b62eb"},
    "wide_resnet50_2": {"IMAGENET1K_V1": "95faca4d", "IMAGENET1K_V2": "9ba9bcbe"},
    "wide_resnet101_2": {"IMAGENET1K_V1": "32ee1156", "IMAGENET1K_V2": "d733dc28"},
}


def fetched(source: str | Path) -> Path:
    """Give a local file: the named one, or a download.

    Raises:
        WeightsError: an unknown name, a missing library, or an unreachable file; the message says which file to fetch
            by hand.
    """
    text = str(source)
    if text.startswith(HF):
        return _hugging_face(text.removeprefix(HF))
    if text.startswith(TORCHVISION):
        return _torchvision(text.removeprefix(TORCHVISION))
    if match := re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise WeightsError(
            f"{text}: unknown kind of address {match[0]}; expected {HF}owner/name or {TORCHVISION}network/WEIGHTS"
        )
    return Path(source)


def _torchvision(name: str) -> Path:
    network, _, weights = name.partition("/")
    known = DIGITS.get(network)
    if known is None:
        raise WeightsError(f"{TORCHVISION}{name}: unknown network; expected one of {', '.join(DIGITS)}")
    weights = weights or list(known)[-1]
    if weights not in known:
        raise WeightsError(f"{TORCHVISION}{name}: unknown weights; {network} has {', '.join(known)}")
    import torch

    file = f"{network}-{known[weights]}.pth"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path, address = folder / file, f"{SITE}/{file}"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            torch.hub.download_url_to_file(address, str(Path(place) / file), known[weights], progress=False)
            (Path(place) / file).replace(path)
    except Exception as error:
        raise WeightsError(
            f"{TORCHVISION}{name}: {_reason(error)}; fetch {address} and give the file instead"
        ) from None
    return path


def _hugging_face(name: str) -> Path:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", name)
    if match is None:
        raise WeightsError(f"{HF}{name}: expected {HF}owner/name, with @revision and /file where they are needed")
    repository, revision, file = match.groups()
    try:
        library: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        address = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{file or HF_FILES[0]}"
        raise WeightsError(
            f"{HF}{name}: needs huggingface_hub (pip install 'ports-parity[hub]'); or fetch {address} and give the file"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # otherwise it logs every attempt
    if file is None or file in FILES:
        # Many repositories have no config. Without a network the weights may still be in the library's cache.
        with contextlib.suppress(Exception):
            library.hf_hub_download(repository, CONFIG, revision=revision)
    for candidate in (file,) if file else HF_FILES:
        try:
            path = Path(library.hf_hub_download(repository, candidate, revision=revision))
            if candidate.endswith(".index.json"):
                _shards(library, repository, revision, path)
            return path
        except WeightsError:
            raise
        except Exception as error:
            if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
                continue  # the repository has no such file; the other error means that there is no network
            address = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{candidate}"
            raise WeightsError(f"{HF}{name}: {_reason(error)}; fetch {address} and give the file instead") from None
    raise WeightsError(f"{HF}{name}: has none of {', '.join((file,) if file else HF_FILES)}")


def _shards(library: Any, repository: str, revision: str | None, index: Path) -> None:
    from ports.weights.files.formats import sharded
    from ports.weights.files.source import Source

    for file in dict.fromkeys(sharded.weight_map(Source(index), present=False).values()):
        library.hf_hub_download(repository, file, revision=revision)


def _reason(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {text}"[:160]
