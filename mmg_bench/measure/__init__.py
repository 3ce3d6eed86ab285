"""What pruning costs and saves: latency, FLOPs and memory."""
