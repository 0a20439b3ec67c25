"""Reinforcement learning on tasks whose rewards execution verifies."""
