"""The queue between gateways and workers: its two protocols (`base`) and Redis behind them (`redis`)."""
