"""`twigserve evaluate`: how much of a checkpoint's accuracy each way of pruning keeps, and on what."""

from model.evaluate.answers import Answers
from model.evaluate.items import ITEMS_A_SCENE, Item, own_items, scenes_bench
from model.evaluate.run import Asker, Loader, evaluate_ways
from model.evaluate.tables import print_table

__all__ = [
    "ITEMS_A_SCENE", "Answers", "Asker", "Item", "Loader", "evaluate_ways", "own_items", "print_table",
    "scenes_bench",
]  # fmt: skip
