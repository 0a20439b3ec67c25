"""Run programs in bulk, keep the traces worth training on, and keep evaluation data apart from them."""
