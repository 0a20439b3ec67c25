"""Planning: FLOPs, memory, traffic, time and cost of a training run on paper."""
