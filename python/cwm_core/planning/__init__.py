"""Plan a training run on paper: FLOPs, memory, traffic, time, and cost."""
