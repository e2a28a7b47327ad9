"""What this machine offers an engine, and whether a checkpoint's files are whole: findings for people.

Knows nothing of services; loads no weights.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, resolve
from model.dtypes import AUTO, resolve_dtype
from model.native.build import obtainable


@dataclass(frozen=True)
class TorchFacts:
    """cuda_build: the CUDA version torch was built for, None for a CPU build. auto_dtype: on the CPU.

    kernels: how the native kernels are had, None where torch's operations must do.
    """

    version: str
    cuda_build: str | None
    gpus: tuple[str, ...]
    auto_dtype: str
    kernels: str | None


def torch_facts() -> TorchFacts:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kernels = obtainable()
    dtype = resolve_dtype(AUTO, torch.device("cpu"), native=kernels is not None)
    names = tuple(torch.cuda.get_device_name(index) for index in range(count))
    return TorchFacts(
        torch.__version__, torch.version.cuda, names, str(dtype).removeprefix("torch."), kernels
    )


def checkpoint_bytes(base: str, twig: str | None) -> int:
    """The size of all tensors; OSError or ValueError, in one line, where a file is missing or cut short."""
    base_path, twig_path = resolve(base, twig)
    folders = [folder for folder in (base_path, twig_path) if folder is not None]
    return sum(_folder_bytes(folder) for folder in folders)


def _folder_bytes(folder: Path) -> int:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder / CONFIG_FILE} is not there")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder / WEIGHTS_FILE} is not there")
    return sum(_whole(path) for path in files)


def _whole(path: Path) -> int:
    """The tensors' bytes, from the header alone; what Git LFS leaves in a file's place has no such header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ValueError(f"{path} is not a whole safetensors file ({size} bytes)")
        tensors = json.loads(file.read(length))
    end = max(
        (entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0
    )
    if size < 8 + length + end:
        raise ValueError(f"{path} is cut short: {size} of {8 + length + end} bytes")
    return int(end)
