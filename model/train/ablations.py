"""The paper's Table 4 on the embedded base: what the twig's depth, place, start and lessons are worth.

One thing is changed at a time from the shipped recipe. Twigs are trained in short runs, all alike, so the
figures are good for comparing rows, not for telling what the shipped twig reaches. Everything is kept in the
runs folder: a run that was cut off goes on. `python -m model.train.ablations`; the accuracy page shows it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.checkpoint import EMBEDDED_BASE, EMBEDDED_TWIG, WEIGHTS_FILE, file_sha256
from model.evaluate.answers import Answers, fingerprint
from model.evaluate.items import ITEMS_A_SCENE, Item, scenes_bench
from model.evaluate.run import Asker, Entry, Loader
from model.evaluate.tables import with_rel_acc
from model.evaluate.ways import NONE, Way
from model.request import RequestError
from model.train.batches import Stage
from model.train.lessons import Lessons
from model.train.recipe import DROP_LAYER, FORK_LAYER, TWIG_LAYERS, Paths, open_base, write_twig
from model.train.twig import STAGES, TwigRun
from model.train.twig_module import Start

BUDGETS = (128, 64)
DRAFTS, THRESHOLD = 5, 0.6
# Where speed is compared: answers long enough to draft in, asked one at a time.
TIMED_BUDGET, TIMED_ANSWERS = 128, 8


@dataclass(frozen=True)
class Variant:
    """scorer: who ranks the visual tokens, see `model.scorers`."""

    name: str
    fork_layer: int = FORK_LAYER
    twig_layers: int = TWIG_LAYERS
    drop_layer: int = DROP_LAYER
    start: Start = "base"
    lessons: Lessons = Lessons()  # noqa: RUF009  frozen
    scorer: str = "ttp"

    @property
    def twig(self) -> str:
        """What the twig itself depends on: F and who ranks are the engine's business."""
        lessons = f"{self.lessons.draft}-{self.lessons.foresight_weight:g}"
        return f"K{self.fork_layer}-T{self.twig_layers}-{self.start}-{lessons}"


VARIANTS = (
    Variant(f"K={FORK_LAYER}, T={TWIG_LAYERS}, F={DROP_LAYER}"),
    Variant("T=1", twig_layers=1),
    Variant("T=3", twig_layers=3),
    Variant("K=0", fork_layer=0),
    Variant("K=2", fork_layer=2),
    Variant("F=8", drop_layer=8),
    Variant("F=14", drop_layer=14),
    Variant("random start", start="random"),
    Variant("ranked by base layer K", scorer="fastv"),
    Variant("ranked by base layer K+T", scorer="fastv_deep"),
    Variant("no foresight", lessons=Lessons(foresight_weight=0.0)),
    Variant("drafts learn the base's own words", lessons=Lessons(draft="base")),
)


def scaled(stages: Sequence[Stage], steps: int) -> tuple[Stage, ...]:
    """The same stages in so many steps, each with one at least."""
    whole = sum(stage.steps for stage in stages)
    return tuple(replace(stage, steps=max(1, round(stage.steps * steps / whole))) for stage in stages)


@dataclass
class Ablations:
    """base, runs, sprites: as the recipe has them. scenes: of the validation split."""

    paths: Paths
    steps: int
    scenes: int
    threads: int | None

    @property
    def folder(self) -> Path:
        return self.paths.runs / f"ablations-{fingerprint(self.paths.base)}-{self.steps}"

    @property
    def weights(self) -> str:
        return file_sha256(self.paths.base / WEIGHTS_FILE)[:12]

    def train(self, variant: Variant) -> Path:
        """The directory of its twig."""
        out = self.folder / variant.twig
        if not (out / "twig_config.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            vlm, tokenizer, pool = open_base(self.paths)
            run = TwigRun(
                out, vlm, pool, tokenizer, variant.fork_layer, variant.twig_layers, variant.drop_layer,
                lessons=variant.lessons, start=variant.start, stages=scaled(STAGES, self.steps),
            )  # fmt: skip
            run.train()
            write_twig(run, self.paths.base, out, tokenizer)
        return out

    def measure(self, variant: Variant, items: Sequence[Item]) -> Entry:
        """RelAcc by budget, acceptance, and speed against this base unpruned without drafts."""
        twig = self.train(variant)
        loader = Loader(
            str(self.paths.base), str(twig), "cpu", "auto", self.threads, drop_layer=variant.drop_layer
        )
        asker = Asker(loader.engine(), Answers())
        whole = self._unpruned(asker, items)
        found: Entry = {"rel_acc": {}, "acceptance": {}, "tokens_per_round": {}}
        for budget in BUDGETS:
            way = Way(variant.scorer, budget, DRAFTS, THRESHOLD)
            try:
                asker.ask([way], items)
            except RequestError:  # K layers of all tokens are more than this average leaves
                continue
            (entry,) = with_rel_acc([asker.entry(way, items)], whole)
            for figure, by_budget in found.items():
                by_budget[str(budget)] = entry[figure]
        found["speed"] = self._speed(asker, variant, items)
        return found

    def _unpruned(self, asker: Asker, items: Sequence[Item]) -> Entry:
        """The same for every twig, since drafts change no answer: asked once."""
        known = Asker(asker.engine, Answers(self.folder / "unpruned.jsonl", fingerprint(self.paths.base)))
        way = Way(NONE, asker.engine.card.image_tokens, DRAFTS, THRESHOLD)
        known.ask([way], items)
        return known.entry(way, items)

    def _speed(self, asker: Asker, variant: Variant, items: Sequence[Item]) -> float:
        """Decoded tokens a second, as a multiple; the ways take turns, so that both meet the same noise."""
        described = [item for item in items if item.turn.task == "describe"][:TIMED_ANSWERS]
        plain = Way(NONE, asker.engine.card.image_tokens, 0, 0.0)
        fast = Way(variant.scorer, TIMED_BUDGET, DRAFTS, THRESHOLD)
        timed = Asker(asker.engine, Answers())
        for item in described:
            timed.ask([plain], [item])
            timed.ask([fast], [item])
        slow, quick = (timed.entry(way, described)["tokens_per_s"] for way in (plain, fast))
        return round(quick / slow, 3)


def run(ablations: Ablations, variants: Sequence[Variant], out: Path) -> dict[str, Any]:
    """Writes after every variant what the accuracy page shows."""
    items = scenes_bench(ablations.paths.sprites, ablations.scenes, "validation")
    store = ablations.folder / f"measured-{ablations.scenes}.json"
    measured: dict[str, Entry] = json.loads(store.read_text()) if store.exists() else {}
    for variant in tqdm(variants, unit="variant", disable=None):
        if variant.name not in measured:
            measured[variant.name] = ablations.measure(variant, items)
            store.write_text(json.dumps(measured, indent=1))
        report = _report(ablations, len(items), [v for v in variants if v.name in measured], measured)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _report(
    ablations: Ablations, items: int, variants: Sequence[Variant], measured: dict[str, Entry]
) -> dict[str, Any]:
    about = (
        f"Each row is the first but for what it names: {ablations.steps} steps of training, "
        f"{items} items of the validation split, θ={THRESHOLD:g}, γ={DRAFTS}. Speed is decoding one answer "
        f"at a time at R̄={TIMED_BUDGET} with drafts, as a multiple of the same base unpruned without drafts. "
        f"By `python -m model.train.ablations --steps {ablations.steps} --scenes {ablations.scenes}`, of the "
        f"base whose weights have a SHA-256 that begins with {ablations.weights}."
    )
    figures = (("RelAcc", "rel_acc", 3), ("acceptance", "acceptance", 3), ("length", "tokens_per_round", 2))
    columns = ["variant", *(f"{name}, R̄={budget}" for name, _, _ in figures for budget in BUDGETS), "speed"]
    rows = [
        [
            variant.name,
            *(
                _figure(measured[variant.name][figure].get(str(budget)), digits)
                for _, figure, digits in figures
                for budget in BUDGETS
            ),
            f"{measured[variant.name]['speed']:.2f}×",
        ]
        for variant in variants
    ]
    return {"about": about, "columns": columns, "rows": rows}


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The ablations of the twig, on the embedded base.")
    parser.add_argument("--sprites", type=Path, default=Path("data/sprites.npy"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=150, help="of training, each twig")
    parser.add_argument(
        "--scenes", type=int, default=20, help=f"validation scenes, {ITEMS_A_SCENE} items each"
    )
    parser.add_argument("--variant", action="append", help="only this one; repeatable")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="runs/ablations.json by default")
    said = parser.parse_args(arguments)
    known = [variant.name for variant in VARIANTS]
    if unknown := set(said.variant or ()) - set(known):
        parser.error(f"no variant {', '.join(unknown)}; known: {'; '.join(known)}")
    if said.threads is not None:
        import torch

        torch.set_num_threads(said.threads)
    paths = Paths(said.sprites, said.runs, EMBEDDED_BASE, EMBEDDED_TWIG)
    chosen = [variant for variant in VARIANTS if said.variant is None or variant.name in said.variant]
    out = said.out or said.runs / "ablations.json"
    report = run(Ablations(paths, said.steps, said.scenes, said.threads), chosen, out)
    from model.evaluate.tables import table

    print(table(report["columns"], report["rows"]))


if __name__ == "__main__":
    main()
