"""The tensors of a checkpoint's safetensors files, one file or many shards, read one at a time.

Invariant: nothing of a file stays in memory but the tensor that was asked for: each read maps the file,
copies one tensor and unmaps it, so that loading peaks at what is kept and not at twice that.
Knows names and shapes, not what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint import INDEX_FILE, WEIGHTS_FILE, CheckpointError, read_json


class TensorFiles:
    """shapes: of every tensor, by name, from the files' headers."""

    def __init__(self, directory: Path) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        for path in tensor_paths(directory):
            self._read_header(path)

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())
                    self._file_of[name] = path
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        with safe_open(self._file_of[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            # Always a copy: a tensor that shares the mapping would keep the whole file mapped.
            return tensor.to(device, dtype, copy=True)


def tensor_paths(directory: Path) -> list[Path]:
    """The one file, else the shards that the index names: in transformers' order, which reads the rest."""
    index = directory / INDEX_FILE
    if (directory / WEIGHTS_FILE).exists() or not index.exists():
        return [directory / WEIGHTS_FILE]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} holds no weight_map")
    return [directory / shard for shard in sorted(set(shards.values()))]


class Part(Mapping[str, Tensor]):
    """Some tensors under other names; each is read when it is asked for, and not kept."""

    def __init__(
        self, files: TensorFiles, names: Mapping[str, str], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._files, self._names, self._dtype, self._device = files, names, dtype, device

    def __getitem__(self, name: str) -> Tensor:
        return self._files.read(self._names[name], self._dtype, self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
