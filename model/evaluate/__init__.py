"""`twigserve evaluate`: how much of a checkpoint's accuracy each way of pruning keeps, and on what."""

from model.evaluate.items import Item, own_items, scenes_bench
from model.evaluate.run import Loader, ask, evaluate_methods
from model.evaluate.tables import print_table

__all__ = ["Item", "Loader", "ask", "evaluate_methods", "own_items", "print_table", "scenes_bench"]
