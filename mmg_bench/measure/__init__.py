"""Measurements of what pruning costs and saves: latency, FLOPs and memory."""
