"""Limits and strictness of episodes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Limits of an episode. The defaults are those of the Code World Model (arXiv 2510.02387)."""

    max_turns: int = 128
    """Turns of an episode."""
    seconds: float = 2400.0
    """Wall-clock time of an episode, in seconds."""
    command_seconds: float = 120.0
    """Time limit of each command of the agent and of the reward, in seconds."""
    output_bytes: int = 480 << 10
    """Size of a command's output. Longer output loses its middle, or ends the shell; see `keep_shell`."""
    observation_tokens: int = 32_768
    """Length of an observation. A longer one loses its middle. Without a count of tokens, the length is in bytes, of
    which a token of a byte-level vocabulary has at least one."""
    context_tokens: int = 131_072
    """Tokens of prompt, actions, and observations together. Limits the episode only if tokens are counted."""
    keep_shell: bool = True
    """Whether a command that exceeds `command_seconds` is interrupted and the shell keeps its state. If false, a
    command that exceeds `command_seconds` or `output_bytes` ends the shell, and the next command gets a new one."""
    malformed_ends: bool = False
    """Whether a malformed action ends the episode, instead of costing a turn and being explained."""


DEFAULT = Profile()
CWM = Profile(keep_shell=False)
"""Profile for evaluating the Code World Model."""
CWM_TRAINING = Profile(keep_shell=False, malformed_ends=True)
"""Profile for training the Code World Model."""
PROFILES = {"default": DEFAULT, "cwm": CWM, "cwm-training": CWM_TRAINING}
"""Profiles by name."""
