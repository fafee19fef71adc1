"""The subjects that are timed, one row each.

A peer is a network that people might use instead of the ports of this package. To add one, add a row here (`subject.py`
explains its fields), and a function in the module that the row names. The function returns a
`benchmarks.measure.clock.BuiltSubject`; most are a few lines around `TorchRun` or `JaxRun`. The gate refuses a subject
whose numbers are not PyTorch's, whoever wrote it.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.subjects.subject import FAST, SWEPT, SubjectOptions, TimedSubject

USUAL = SubjectOptions()
CHANNELS_LAST = SubjectOptions(channels_last=True)
COMPILE = replace(CHANNELS_LAST, compile="default")
MOST = replace(COMPILE, compile="max-autotune", freeze=True)
GRAPHS = replace(COMPILE, compile="reduce-overhead")
TUNE = SubjectOptions(tune=True)

KERAS = {"stride_at": 0}  # of the bottleneck, as He et al. have it

# Flags of XLA that are worth a try (`--flags`), on the NNX port, whose program is Linen's. A flag that this XLA does
# not know ends its process, and the table says so.
FLAGS = {
    "gpu": {
        "conv-fusion": "--xla_gpu_experimental_enable_conv_fusion=true",
        "no-command-buffer": "--xla_gpu_enable_command_buffer=",
        "triton-gemm-any": "--xla_gpu_triton_gemm_any=true",
        "cudnn-gemm-fusion": "--xla_gpu_cudnn_gemm_fusion_level=3",
        "latency-hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
        "conv-nhwc": "--xla_gpu_force_conv_nhwc=true",
        "fusion-autotuner": "--xla_gpu_experimental_enable_fusion_autotuner=true",
    },
    "cpu": {
        "xnnpack": "--xla_cpu_use_xnnpack=true",
        "onednn": "--xla_cpu_use_onednn=true",
        "no-ynnpack": "--xla_cpu_experimental_ynn_fusion_type=",
        "all-ynnpack": "--xla_cpu_experimental_ynn_fusion_type="
        "DOT,ELTWISE,REDUCE,INDIVIDUAL_DOT,INDIVIDUAL_CONVOLUTION",
        "fast-math": "--xla_cpu_enable_fast_math=true",
        "vectors-512": "--xla_cpu_prefer_vector_width=512",
        "plain-scheduler": "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        "one-thread": "--xla_cpu_multi_thread_eigen=false",
    },
}

# By default glibc gives the memory of large arrays back to the system at every step and takes it again, page by page;
# with this variable glibc keeps that memory, so the process holds more.
KEPT = (
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
    ":glibc.malloc.top_pad=1000000000"
)


def fast(plain: str, framework: str, build: str, options: SubjectOptions = USUAL) -> TimedSubject:
    """Return the row of a port with `ports.fast`."""
    about, options = f"as {plain}, with ports.fast", replace(options, fast=True)
    return TimedSubject(f"{plain}{FAST}", framework, build, about, options, devices=("cpu",), quick=False, images=True)


# The networks of the libraries in which they were published, under this package's names.
RESNETS = ("resnet18", "resnet50", "resnet152")
VITS = ("vit_b_16", "vit_b_32", "vit_l_16")
SEGMENTATION = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")
DECODERS = ("gpt2", "gpt2-medium", "llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m")


def original(
    name: str, build: str, about: str, needs: tuple[str, ...], networks: tuple[str, ...]
) -> tuple[TimedSubject, TimedSubject]:
    """Return the rows of a class of the library that published it: compiled, and eager."""
    build = f"peers:build_{build}"
    return (
        TimedSubject(
            name,
            "pytorch",
            build,
            f"{about}, torch.compile, channels last",
            COMPILE,
            peer=True,
            needs=needs,
            networks=networks,
        ),
        TimedSubject(
            f"{name}-eager",
            "pytorch",
            build,
            f"{about}, eager, channels last",
            CHANNELS_LAST,
            peer=True,
            needs=needs,
            networks=networks,
        ),
    )


SUBJECTS = {
    row.name: row
    for row in (
        TimedSubject("pytorch", "pytorch", "torch_steps:build", "eager"),
        TimedSubject(
            "pytorch-channels-last",
            "pytorch",
            "torch_steps:build",
            "eager, channels last",
            CHANNELS_LAST,
        ),
        TimedSubject("pytorch-compile", "pytorch", "torch_steps:build", "torch.compile, channels last", COMPILE),
        TimedSubject(
            "pytorch-max-autotune",
            "pytorch",
            "torch_steps:build",
            "torch.compile(mode='max-autotune'), channels last; in inference Inductor's freezing",
            MOST,
        ),
        fast("pytorch-compile", "pytorch", "torch_steps:build", COMPILE),
        fast("pytorch-max-autotune", "pytorch", "torch_steps:build", MOST),
        TimedSubject(
            "pytorch-cuda-graphs",
            "pytorch",
            "torch_steps:build",
            "torch.compile(mode='reduce-overhead'), channels last",
            GRAPHS,
            devices=("gpu",),
        ),
        TimedSubject(
            "pytorch-folded",
            "pytorch",
            "torch_steps:build",
            "torch.compile, channels last, BatchNorm folded",
            COMPILE,
            modes=("inference",),
            quick=False,
            folded=True,
        ),
        TimedSubject(
            "pytorch-export",
            "pytorch",
            "deployed:build_torch",
            "torch.export's file, BatchNorm folded; torch.compile, channels last",
            COMPILE,
            modes=("inference",),
            quick=False,
            folded=True,
        ),
        TimedSubject("nnx", "jax", "jax_steps:build_nnx", "split once, jax.jit on a list of arrays, small ones packed"),
        TimedSubject(
            "nnx-autotune",
            "jax",
            "jax_steps:build_nnx",
            "as nnx, with the quickest XLA options on this machine",
            TUNE,
            devices=("cpu",),
            quick=False,
        ),
        fast("nnx", "jax", "jax_steps:build_nnx"),
        fast("nnx-autotune", "jax", "jax_steps:build_nnx", TUNE),
        TimedSubject("nnx-jit", "jax", "jax_steps:build_nnx", "nnx.jit", SubjectOptions(plain=True)),
        TimedSubject(
            "nnx-folded",
            "jax",
            "jax_steps:build_nnx",
            "as nnx, BatchNorm folded",
            modes=("inference",),
            quick=False,
            folded=True,
        ),
        TimedSubject(
            "nnx-export",
            "jax",
            "deployed:build_nnx",
            "jax.export's file of nnx, BatchNorm folded, weights are constants",
            modes=("inference",),
            quick=False,
            folded=True,
        ),
        TimedSubject("linen", "jax", "jax_steps:build_linen", "jax.jit"),
        TimedSubject(
            "linen-autotune",
            "jax",
            "jax_steps:build_linen",
            "as linen, with the quickest XLA options on this machine",
            TUNE,
            devices=("cpu",),
            quick=False,
        ),
        TimedSubject(
            "linen-folded",
            "jax",
            "jax_steps:build_linen",
            "as linen, BatchNorm folded",
            modes=("inference",),
            quick=False,
            folded=True,
        ),
        fast("linen", "jax", "jax_steps:build_linen"),
        TimedSubject("own-pytorch", "pytorch", "own_pair:build_torch", "your PyTorch model, eager", own=True),
        TimedSubject(
            "own-pytorch-compile",
            "pytorch",
            "own_pair:build_torch",
            "your PyTorch model, torch.compile",
            SubjectOptions(compile="default"),
            own=True,
        ),
        TimedSubject("own-flax", "jax", "own_pair:build_flax", "your Flax model, jax.jit", own=True),
        TimedSubject(
            "own-flax-autotune",
            "jax",
            "own_pair:build_flax",
            "as own-flax, with the quickest XLA options on this machine",
            TUNE,
            devices=("cpu",),
            own=True,
        ),
        TimedSubject(
            "transformers",
            "pytorch",
            "peers:build_transformers",
            "Hugging Face's ResNet, torch.compile, channels last",
            COMPILE,
            peer=True,
            needs=("transformers",),
            networks=("resnet50",),
        ),
        TimedSubject(
            "transformers-max-autotune",
            "pytorch",
            "peers:build_transformers",
            "Hugging Face's ResNet as pytorch-max-autotune",
            MOST,
            peer=True,
            needs=("transformers",),
            networks=("resnet50",),
        ),
        TimedSubject(
            "transformers-eager",
            "pytorch",
            "peers:build_transformers",
            "Hugging Face's ResNet, eager, channels last",
            CHANNELS_LAST,
            peer=True,
            needs=("transformers",),
            networks=("resnet50",),
        ),
        *original("torchvision", "torchvision", "torchvision's", ("torchvision",), (*RESNETS, *VITS, *SEGMENTATION)),
        *original("timm", "timm", "timm's", ("timm", "torchvision"), RESNETS),
        *original(
            "segmentation-models",
            "segmentation_models",
            "segmentation_models_pytorch's Unet",
            ("segmentation_models_pytorch", "torchvision"),
            ("unet_resnet34",),
        ),
        *original("transformers-decoder", "decoder", "Hugging Face's decoder", ("transformers",), DECODERS),
        *(
            TimedSubject(
                f"transformers-flax-{kind}",
                "jax",
                f"peers_flax:build_{kind}",
                f"Hugging Face's {name} of transformers 4.57, jax.jit",
                peer=True,
                needs=("transformers", f"transformers.models.{kind}.modeling_flax_{kind}"),
                networks=networks,
            )
            for kind, name, networks in (
                ("vit", "FlaxViTForImageClassification", VITS),
                ("gpt2", "FlaxGPT2LMHeadModel", ("gpt2", "gpt2-medium")),
            )
        ),
        TimedSubject(
            "haiku",
            "jax",
            "peers:build_haiku",
            "dm-haiku's hk.nets, jax.jit",
            peer=True,
            needs=("haiku",),
            networks=("resnet18", "resnet50", "resnet152"),
        ),
        TimedSubject(
            "haiku-autotune",
            "jax",
            "peers:build_haiku",
            "as haiku, with the quickest XLA options on this machine",
            TUNE,
            devices=("cpu",),
            peer=True,
            needs=("haiku",),
            networks=("resnet18", "resnet50", "resnet152"),
        ),
        TimedSubject(
            "keras-jax",
            "jax",
            "peers_keras:build_jax",
            "keras.applications on JAX, jax.jit; stride on the first 1x1",
            changes=KERAS,
            peer=True,
            needs=("keras",),
            networks=("resnet50",),
        ),
        TimedSubject(
            "keras-jax-autotune",
            "jax",
            "peers_keras:build_jax",
            "as keras-jax, with the quickest XLA options on this machine",
            TUNE,
            devices=("cpu",),
            changes=KERAS,
            peer=True,
            needs=("keras",),
            networks=("resnet50",),
        ),
        TimedSubject(
            "keras-torch",
            "pytorch",
            "peers_keras:build_torch",
            "keras.applications on PyTorch, eager; stride on the first 1x1",
            changes=KERAS,
            peer=True,
            needs=("keras",),
            networks=("resnet50",),
        ),
    )
}


def swept(plain: str, name: str, device: str, variable: str, value: str) -> TimedSubject:
    """Return a row for `--flags`: an existing row, in a process with an additional variable."""
    return replace(
        SUBJECTS[plain],
        name=f"{plain}{SWEPT}{name}",
        about=f"as {plain}, {variable}={value}",
        devices=(device,),
        quick=False,
        swept=True,
        environment={variable: value},
    )


SUBJECTS |= {
    row.name: row
    for row in (
        *(swept("nnx", name, where, "XLA_FLAGS", flag) for where in FLAGS for name, flag in FLAGS[where].items()),
        *(swept(plain, "kept-memory", "cpu", "GLIBC_TUNABLES", KEPT) for plain in ("nnx", "pytorch-compile")),
    )
}
