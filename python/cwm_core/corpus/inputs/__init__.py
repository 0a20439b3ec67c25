"""Inputs for functions, from several sources: each gives calls as text, and runs nothing."""
