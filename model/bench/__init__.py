"""`twigserve bench`: our engine against transformers' `generate` on the same weights."""

from model.bench.config import METHODS, BenchConfig
from model.bench.report import print_table
from model.bench.run import run_bench

__all__ = ["METHODS", "BenchConfig", "print_table", "run_bench"]
