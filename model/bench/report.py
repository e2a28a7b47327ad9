"""What a benchmark ran on, and its results as a table for people."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# The instruction sets that decide the speed of bf16 and int8 on a CPU.
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")

SHORT = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
# All of it fits into 80 columns.
FULL = {"method": len("generate_batched"), "dtype": len("dtype")}


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def machine(threads: int) -> dict[str, Any]:
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def print_table(report: dict[str, Any], *, aside: bool = False) -> None:
    """aside: to standard error, where something else has standard output."""
    where, models = report["machine"], {row["model"] for row in report["results"]}
    title = f"{', '.join(sorted(models))} · {where['threads']} threads · {where['cpu']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    for name in (
        "batch",
        "method",
        "dtype",
        "R̄",
        "tokens/s",
        "× generate",
        "roofline",
        "TTFT ms",
        "accepted",
    ):
        told = name in ("method", "dtype")
        table.add_column(name, justify="left" if told else "right", no_wrap=True, min_width=FULL.get(name))
    for row in report["results"]:
        table.add_row(
            str(row["batch"]),
            row["method"],
            SHORT.get(row["dtype"], row["dtype"]),
            str(row["retained_tokens"]),
            _cell(row["tokens_per_s"], ".1f"),
            _cell(row["ratio"], ".2f"),
            _cell(row["roofline"], ".0%"),
            _cell(row["ttft_ms"], ".0f"),
            _cell(row["acceptance"], ".2f"),
        )
    Console(stderr=aside).print(table)
