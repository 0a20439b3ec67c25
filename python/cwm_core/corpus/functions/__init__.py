"""Finding functions, exploring what they do with which inputs, and choosing the calls worth recording."""
