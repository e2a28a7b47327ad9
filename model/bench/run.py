"""The benchmark: which methods, in which order, on which answers, and what is divided by what.

What is fair here:
- Both sides get the same token ids and pixel values, the same weights and threads, in one process;
  transformers runs as it comes (sdpa attention, dynamic cache), in the dtype in which it is fastest on this
  machine (`model.bench.peer`): where a CPU emulates bf16 that is float32, and each row says its dtype.
- tokens_per_s is the decode rate of the whole batch: tokens that came after the moment at which the last
  row had its first token, divided by the time from that moment to the last token of all. Vision tower and
  prefill are outside it on both sides (they are in ttft_ms, the mean over the rows), and so are drafts
  accepted in the prefill's own round. The tail, when few rows are left, is inside it on both sides.
- `generate` answers one picture at a time and exists for batch 1; `generate_batched` is one left-padded
  `generate` over the batch. A row that has ended gives no tokens on either side.
- Answers are natural: each ends at its EOS or at max_tokens, for what a model says after its EOS is no
  language and a twig guesses it differently. Rates, not totals, are compared, so that an answer which
  pruning shortens by a word changes nothing. Where natural answers are shorter than MIN_NATURAL_TOKENS
  on average (a model that was never trained), all are forced to max_tokens, and `machine.answers` says so.
- The methods take turns within every repeat, after one unmeasured turn; figures are medians over repeats.
- roofline is the share of what the memory gives (`model.bench.roofline`), from a run of its own in which a
  round and a reading of as many bytes take turns; plain decoding alone has one, since pruning changes nothing
  of the weights that are read and drafts change how often they are.
- ratio divides by `generate` at batch 1 of the same run; it is null where that was not asked for.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.bench.config import PRUNING, SPECULATING, BenchConfig
from model.bench.generate import GenerateSide
from model.bench.measure import Arrivals, Figures, Limits
from model.bench.mid import write_mid
from model.bench.ours import EngineSide, Mode
from model.bench.peer import Work, fastest_dtype
from model.bench.prompts import Prompt, build_prompts
from model.bench.report import machine
from model.bench.roofline import Reading, decode_bytes, share
from model.checkpoint import resolve
from model.dtypes import DTYPES
from model.engine import Engine, EngineConfig

MIN_NATURAL_TOKENS = 40
# What is done now, and which share of all is behind it.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Case:
    method: str
    batch: int


def find_model(config: BenchConfig, cache: Path, progress: Progress) -> tuple[Path, Path | None]:
    if config.model != "mid":
        return resolve(config.model, config.twig)
    progress("writing the mid model", 0.0)
    return write_mid(cache)


class Bench:
    """Both sides loaded, and the prompts."""

    def __init__(self, config: BenchConfig, progress: Progress, cache: Path) -> None:
        self.config = config
        base, twig = find_model(config, cache, progress)
        if twig is None and (PRUNING | SPECULATING) & set(config.methods):
            raise ValueError("ttp, ssd and ttp_ssd need a twig: name its directory, or choose other methods")
        progress(f"loading {base}", 0.0)
        self.prompts = build_prompts(base, max(*config.batch, config.pictures))
        self.engine = Engine.from_pretrained(
            base,
            twig,
            device=config.device,
            dtype=config.dtype,
            # What is remembered of a picture would make the time to the first token of every repeat a lie.
            config=EngineConfig(max_batch=max(config.batch), threads=config.threads, image_cache_bytes=0),
            fork_layer=config.fork_layer,
            drop_layer=config.drop_layer,
        )
        self.dtype = self.engine.dtype
        self.theirs, self.peer_dtype = self._other_side(base)
        self.ours = EngineSide(self.engine)
        torch.set_num_threads(config.threads)
        self.limits = self._settle_answers()
        shape, layers = self.engine.decoder
        self.weight_bytes = decode_bytes(shape, layers, DTYPES[self.dtype])

    def _other_side(self, base: Path) -> tuple[GenerateSide | None, str]:
        config, dtype = self.config, self.config.generate_dtype
        if not any(method.startswith("generate") for method in config.methods):
            return None, self.dtype
        if dtype == "fastest":
            dtype = fastest_dtype(Work.of(self.engine.decoder[0]), self.dtype, config.device)
        return GenerateSide(base, dtype, config.device), dtype

    def retained(self, method: str) -> int:
        card = self.engine.card
        if method not in PRUNING:
            return card.image_tokens
        if self.config.retained_tokens is not None:
            return self.config.retained_tokens
        return card.quality.get("fast", card.default_retained)

    def cases(self) -> list[Case]:
        """`generate` is batch 1 by nature, and the unit of all ratios whatever batch sizes were asked for."""
        methods = self.config.methods
        ours = [method for method in methods if not method.startswith("generate")]
        cases = [Case("generate", 1)] if "generate" in methods else []
        for batch in self.config.batch:
            if batch > 1 and "generate_batched" in methods:
                cases.append(Case("generate_batched", batch))
            cases += [Case(method, batch) for method in ours]
        return list(dict.fromkeys(cases))

    def batches(self, size: int) -> Iterator[list[Prompt]]:
        """Batch 1 describes several pictures one by one; a larger batch takes one picture a row, once."""
        if size > 1:
            yield self.prompts[:size]
        else:
            yield from ([prompt] for prompt in self.prompts[: self.config.pictures])

    def measure(self, case: Case) -> list[Arrivals]:
        if case.method.startswith("generate"):
            assert self.theirs is not None  # noqa: S101  loaded where such a method is asked for
            return [self.theirs.run(prompts, self.limits) for prompts in self.batches(case.batch)]
        return [self._run(case, prompts) for prompts in self.batches(case.batch)]

    def _run(self, case: Case, prompts: list[Prompt], reading: Reading | None = None) -> Arrivals:
        mode = Mode.of(self.engine.card, self.retained(case.method), case.method in SPECULATING)
        return self.ours.run(prompts, self.limits, mode, reading)

    def figures(self, case: Case) -> Figures:
        figures = Figures.of(self.measure(case))
        if case.method != "plain":
            return figures
        # Once more, since a model that fits into a cache is slower with another reading beside it.
        reading = Reading(self.weight_bytes, self.config.threads)
        beside = Figures.of([self._run(case, prompts, reading) for prompts in self.batches(case.batch)])
        reached = share(beside.tokens_per_s, case.batch, self.weight_bytes, reading.bandwidth)
        return replace(figures, bandwidth=reading.bandwidth, roofline=reached)

    def _settle_answers(self) -> Limits:
        """Natural answers where they are long enough; looks at one unpruned answer to each picture."""
        natural = Limits(self.config.max_tokens, natural=True)
        mode = Mode.of(self.engine.card, self.engine.card.image_tokens, speculation=False)
        lengths = [self.ours.run(prompts, natural, mode).tokens for prompts in self.batches(1)]
        long_enough = statistics.mean(lengths) >= min(MIN_NATURAL_TOKENS, self.config.max_tokens)
        return Limits(self.config.max_tokens, natural=long_enough)


def run_bench(config: BenchConfig, progress: Progress = lambda _line, _share: None) -> dict[str, Any]:
    """Measures every method at every batch size; returns the report of design section 3."""
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(config, progress, Path(config.cache or scratch))
    return _measure_all(config, bench, progress)


def _measure_all(config: BenchConfig, bench: Bench, progress: Progress) -> dict[str, Any]:
    cases = bench.cases()
    measured: dict[Case, list[Figures]] = {case: [] for case in cases}
    turns = [(repeat, case) for repeat in range(config.repeats + 1) for case in cases]
    for number, (repeat, case) in enumerate(turns):
        when = f"repeat {repeat}" if repeat else "warm-up"
        progress(f"{when}: {case.method}, batch {case.batch}", number / len(turns))
        figures = bench.figures(case)
        if repeat:
            measured[case].append(figures)
    medians = {case: Figures.median(repeats) for case, repeats in measured.items()}
    unit = medians.get(Case("generate", 1))
    read = [figures.bandwidth for figures in medians.values() if figures.bandwidth is not None]
    answers = "natural" if bench.limits.natural else "forced"
    return {
        "machine": machine(config.threads)
        | {
            "answers": answers,
            "repeats": config.repeats,
            "kernels": bench.engine.kernels,
            "read_gb_per_s": round(statistics.median(read) / 1e9, 2) if read else None,
            "weight_mb": round(bench.weight_bytes / 1e6, 1),
        },
        "results": [_row(config, bench, case, figures, unit) for case, figures in medians.items()],
    }


def _row(
    config: BenchConfig, bench: Bench, case: Case, figures: Figures, unit: Figures | None
) -> dict[str, Any]:
    return {
        "model": config.model,
        "dtype": bench.peer_dtype if case.method.startswith("generate") else bench.dtype,
        "threads": config.threads,
        "batch": case.batch,
        "method": case.method,
        "retained_tokens": bench.retained(case.method),
        "tokens_per_s": round(figures.tokens_per_s, 2),
        "ttft_ms": round(figures.ttft_ms, 2),
        "acceptance": None if figures.acceptance is None else round(figures.acceptance, 4),
        "ratio": None if unit is None else round(figures.tokens_per_s / unit.tokens_per_s, 3),
        "roofline": None if figures.roofline is None else round(figures.roofline, 4),
    }
