"""Whole files of every format, as this package and as other libraries write them: what the mutations begin with.

A file is a dict of bytes by path within a folder; a single file has the path "". Files of this package carry a checksum
in most formats, so nearly every change is refused there. Files of other libraries have none and let changes through.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import tempfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ports.weights.files import formats
from ports.weights.files.formats import EXTENDED, FORMATS, Content

Files = dict[str, bytes]
Tensors = dict[str, np.ndarray]
TYPES = ("float16", "float32", "float64", "complex64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
TYPES += ("uint64", "bool", "bfloat16", "float8_e4m3fn", "float8_e5m2")
ABOUT = {"licence": "MIT", "author": "Ada Lovelace", "format": "pt"}
NETWORK = "cifar_resnet20"


def bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of random bits: NaN payloads, infinities, subnormals and negative zeros among them."""
    kind = formats.dtype_of(dtype)
    count = int(np.prod(shape))
    raw = np.frombuffer(rng.bytes(count * kind.itemsize), np.uint8)
    array = ((raw % 2).astype(bool) if dtype == "bool" else raw.view(kind)).copy()
    if kind.kind == "f" and count:
        array[0] = -0.0
    return array.reshape(shape)


def plain() -> Tensors:
    rng = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (2, 3, 3, 3),
        "layer1.0.bn1.weight": (4,),
        "layer1.0.bn1.running_var": (4,),
        "fc.weight": (3, 4),
    }
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return tensors | {"layer1.0.bn1.num_batches_tracked": np.array(7)}


def odd() -> Tensors:
    """Return empty tensors, a scalar, and names that need care."""
    rng = np.random.default_rng(2)
    return {
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(3.5, np.float64),
        "flags": np.array([True, False]),
        "größe.层": bits(rng, "float32", (3,)),
        "a/b.c": bits(rng, "bfloat16", (2, 2)),
        "x" * 120: bits(rng, "int64", (1, 2, 1)),
    }


def types() -> Tensors:
    rng = np.random.default_rng(1)
    return {f"t.{dtype}": bits(rng, dtype, (2, 3)) for dtype in TYPES}


@functools.cache
def network() -> Tensors:
    """Return a network that this package knows, as small as it has one, in half of the bytes."""
    import ports

    net: Any = ports.create(NETWORK, "pytorch", seed=0)
    arrays = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}
    return {name: array.astype(np.float16) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def trained(tensors: Tensors, kind: str) -> Any:
    """Return a training checkpoint as a script saves it, with the state of an optimizer."""
    import torch

    parameters = {
        n: torch.from_numpy(a.copy()) for n, a in tensors.items() if a.dtype.kind == "f" and "running" not in n
    }
    slots = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[kind]
    state = {
        i: {slot: torch.zeros_like(p) for slot in slots} | ({"step": torch.tensor(7.0)} if kind == "adam" else {})
        for i, p in enumerate(parameters.values())
    }
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "maximize": False, "foreach": None}
    options |= (
        {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
        if kind == "adam"
        else {"momentum": 0.9, "dampening": 0, "nesterov": False}
    )
    optimizer = {"state": state, "param_groups": [{**options, "params": list(range(len(parameters)))}]}
    model = OrderedDict((name, torch.from_numpy(a.copy())) for name, a in tensors.items())
    return {"model": model, "optimizer": optimizer, "epoch": 3, "global_step": 7, "best": 0.5, "args": {"lr": 0.1}}


def collected(path: Path) -> Files:
    """Return a file, or the files of a folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def laid(path: Path, files: Files) -> Path:
    """Write a file, or a folder of files."""
    if "" in files:
        path.write_bytes(files[""])
        return path
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return path


def everything(names: list[str], *, small: bool = False) -> dict[str, list[Files]]:
    """Return the whole files of each format. Call it in a process of its own: Orbax leaves threads behind.

    Args:
        small: without those of a whole network.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax warns of what is no trouble here
    with tempfile.TemporaryDirectory() as folder:
        return {name: [collected(path) for path in _written(Path(folder), name, small)] for name in names}


def _written(folder: Path, name: str, small: bool) -> Iterator[Path]:
    ways: list[Callable[[Path], Any]] = [*_own(name), *OTHERS[name]]
    if not small:
        ways += [*_networks(name, folder), *LARGE.get(name, [])]
    for i, way in enumerate(ways):
        path = folder / f"{name}{i}{suffix(name)}"
        way(path)
        yield path


def suffix(name: str) -> str:
    """Return the suffix of a format's files; a folder has none."""
    return FORMATS[name].suffixes[0] if FORMATS[name].suffixes else ""


def _own(name: str) -> Iterator[Callable[[Path], Any]]:
    """Return writers of small files of this package."""
    row = FORMATS[name]
    options = {"shard_size": 100} if name == "sharded" else {}
    for make in (plain, odd, types):
        tree: Any = _tree(make()) if row.nested else make()
        yield lambda path, tree=tree: formats.write(path, Content(tree, dict(ABOUT)), row, **options)


def _networks(name: str, folder: Path) -> Iterator[Callable[[Path], Any]]:
    """Return conversions of a network by this package, with and without its training."""
    import torch

    from ports.weights import convert

    for kind in ("adam", "sgd"):
        source = folder / f"source-{kind}.pt"
        torch.save(trained(network(), kind), source)
        size: dict[str, Any] = {"shard_size": 300_000} if name == "sharded" else {"format": name}
        yield lambda path, source=source, size=size, alone=kind == "sgd": convert(
            source, path, weights_only=alone, **size
        )


def _torch(tensors: Tensors) -> Any:
    import torch

    def one(array: np.ndarray) -> Any:
        if array.dtype.name in EXTENDED:
            size = f"uint{8 * array.dtype.itemsize}"
            return torch.from_numpy(array.view(size).copy()).view(getattr(torch, array.dtype.name))
        return torch.from_numpy(array.copy())

    return OrderedDict((name, one(array)) for name, array in tensors.items())


def _save_torch(content: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import torch

        torch.save(content(), path, **options)

    return write


def _views() -> Any:
    """Tensors of one storage, with strides; a parameter; a quantity that is no tensor."""
    import torch

    base = torch.arange(24, dtype=torch.float32)
    return {"a": base[:12].view(3, 4).T, "b": base[4:], "c": torch.nn.Parameter(base[::2]), "d": base.view(2, 3, 4)}


def _kinds() -> Any:
    """All that a training checkpoint may hold besides tensors."""
    import torch

    plain = [None, True, 1, -(2**40), 2**70, 0.5, 2j, "text", b"bytes", bytearray(b"x"), (1, (2, (3,))), {1, 2}]
    made = [torch.Size([2, 3]), torch.device("cpu"), torch.float16, torch.strided, Counter("abca"), OrderedDict(a=1)]
    odd = {"sparse": torch.eye(2).to_sparse(), "meta": torch.ones(2, device="meta"), "conj": torch.ones(2) * 1j}
    odd["conj"] = odd["conj"].conj()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's old storages are going away; its files have them
        named = torch.nn.Parameter(torch.ones(2, 3)), torch.ones(3).storage(), torch.ones(2, 2).untyped_storage()
    return {"state_dict": _torch(plain_and_scalar()), "kinds": plain + made, "named": named, "odd": odd, "ema": {}}


def _readable() -> Any:
    """The same without what is refused."""
    return {key: one for key, one in _kinds().items() if key != "odd"}


def plain_and_scalar() -> Tensors:
    return plain() | {"scalar": np.array(2.5)}


def _spread(kind: str) -> Any:
    """A training checkpoint of a known network, all of whose tensors are views of a few numbers: a small file."""
    import torch

    numbers: dict[Any, Any] = {}

    def small(node: Any) -> Any:
        if isinstance(node, dict):
            return type(node)((key, small(one)) for key, one in node.items())
        if isinstance(node, torch.Tensor):
            return numbers.setdefault(node.dtype, torch.full((), 3).to(node.dtype)).expand(node.shape)
        return node

    return small(trained(network(), kind))


def _trained_flat() -> Tensors:
    """A state dict with the state of an optimizer under names of this package."""
    tensors = plain()
    floats = [name for name, array in tensors.items() if array.dtype.kind == "f" and "running" not in name]
    state = {f"optimizer/{slot}/{name}": tensors[name] for slot in ("exp_avg", "exp_avg_sq") for name in floats}
    return {**tensors, **state, "optimizer/step": np.array(7)}


def _trained_tree() -> Any:
    """The tree of an NNX network with the state of an optimizer of this package."""
    tree = _tree(plain())
    return {
        "model": tree,
        "opt_state": {"count": np.array(3, np.int32), "tensors": {"exp_avg": tree, "momentum": tree}},
    }


def _compressed(compressor: Any) -> Callable[[Path], None]:
    """An array in several pieces, compressed in a way that Orbax does not take by itself."""

    def write(path: Path) -> None:
        import tensorstore

        formats.write(path, Content({"a": np.ones(1)}), FORMATS["orbax"])
        (path / "_CHECKPOINT_METADATA").unlink()
        for piece in (path / "a").iterdir():
            piece.unlink()
        metadata = {"shape": [5, 7], "chunks": [3, 4], "dtype": "<f4", "compressor": compressor}
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/a/"}, "metadata": metadata}
        array: Any = tensorstore.open(spec, create=True).result()
        array.write(np.arange(35, dtype=np.float32).reshape(5, 7)).result()

    return write


def _protocol_4(path: Path) -> None:
    pickle_of = io.BytesIO()
    import torch

    torch.save(_torch(plain()), pickle_of, pickle_protocol=4)
    path.write_bytes(pickle_of.getvalue())


def _safetensors(make: Callable[[], Tensors], metadata: dict[str, str] | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from safetensors.torch import save_file

        save_file(_torch(make()), path, metadata)

    return write


def _sharded(path: Path) -> None:
    """As transformers writes them."""
    from safetensors.torch import save_file

    path.mkdir()
    tensors = list(_torch(plain()).items())
    table = {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        part = dict(tensors[i::2])
        save_file(part, path / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for _, t in tensors)}, "weight_map": table}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (path / "config.json").write_text('{"model_type": "resnet"}')


def _npz(make: Callable[[], Tensors], compressed: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = {name: array for name, array in make().items() if array.dtype.name not in EXTENDED}
        arguments: dict[str, Any] = tensors
        (np.savez_compressed if compressed else np.savez)(path, **arguments)

    return write


def _fortran(path: Path) -> None:
    np.savez(path, a=np.asfortranarray(np.arange(6.0).reshape(2, 3)), b=np.arange(3, dtype=">i4"))


def _msgpack(make: Callable[[], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import flax.serialization

        path.write_bytes(flax.serialization.msgpack_serialize(make()))

    return write


def _tree(tensors: Tensors) -> Any:
    return formats.nested((tuple(name.split(".")), array) for name, array in tensors.items())


def _linen() -> Any:
    rng = np.random.default_rng(5)
    params = {"Dense_0": {"kernel": rng.standard_normal((3, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)}}
    state = {"0": {"count": np.array(3, np.int32), "mu": params, "nu": params}, "1": {}}
    return {
        "step": 3,
        "params": params,
        "batch_stats": {"mean": np.zeros(2)},
        "opt_state": state,
        "x": 2j,
        "none": None,
    }


def _chunked() -> Any:
    """One array in chunks, as Flax writes those above a gigabyte."""
    chunks = {"0": np.arange(4, dtype=np.float32), "1": np.arange(2, dtype=np.float32)}
    return {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": chunks}, "n": np.float32(2)}


def _orbax(make: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import orbax.checkpoint as ocp

        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(path, make())

    return write


OTHERS: dict[str, list[Callable[[Path], Any]]] = {
    "torch": [
        _save_torch(lambda: _torch(plain())),
        _save_torch(lambda: _torch(types())),
        _save_torch(_views),
        _save_torch(lambda: trained(plain(), "adam")),
        _save_torch(lambda: trained(plain(), "sgd")),
        _save_torch(lambda: _torch(plain()), _use_new_zipfile_serialization=False),
        _save_torch(lambda: trained(plain(), "adam"), _use_new_zipfile_serialization=False),
        _protocol_4,
        _save_torch(_kinds),
        _save_torch(_readable),
        _save_torch(_readable, _use_new_zipfile_serialization=False),
    ],
    "safetensors": [
        _safetensors(plain, None),
        _safetensors(odd, {"format": "pt", "note": "卷积"}),
        _safetensors(types, {"format": "np"}),
        _safetensors(_trained_flat, None),
    ],
    "sharded": [_sharded],
    "npz": [_npz(plain, False), _npz(odd, True), _npz(types, True), _fortran, _npz(_trained_flat, False)],
    "msgpack": [
        _msgpack(lambda: _tree(plain())),
        _msgpack(odd),
        _msgpack(_linen),
        _msgpack(_chunked),
        _msgpack(lambda: {"params": _tree(plain())}),
        _msgpack(_trained_tree),
    ],
    "orbax": [
        _orbax(lambda: _tree(plain())),
        _orbax(lambda: _tree(plain()), use_zarr3=True, use_ocdbt=False),
        _orbax(lambda: {"a": {"b": np.arange(6.0).reshape(2, 3)}, "step": 3, "s": "text"}, use_ocdbt=False),
        _orbax(_trained_tree, use_ocdbt=False),
        *(_compressed(one) for one in (None, {"id": "zlib", "level": 1}, {"id": "blosc", "cname": "lz4", "clevel": 5})),
        _orbax(lambda: {"params": _tree(plain()), "opt_state": [{"count": np.array(3)}, None]}),
    ],
}
LARGE: dict[str, list[Callable[[Path], Any]]] = {
    "torch": [
        _save_torch(lambda: trained(network(), "adam")),
        _save_torch(lambda: _spread("adam")),
        _save_torch(lambda: _spread("sgd"), _use_new_zipfile_serialization=False),
    ],
    "safetensors": [_safetensors(network, {"format": "pt"})],
    "npz": [_npz(network, True), _npz(lambda: {n: a * 0 for n, a in network().items()}, True)],
}
