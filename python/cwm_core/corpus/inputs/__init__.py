"""Sources of inputs for functions. Each yields calls as text and runs nothing."""
