"""Find functions, explore them with many inputs, and choose the calls worth recording."""
