"""Programs to execute, and what keeps those for training apart from those for evaluation."""
