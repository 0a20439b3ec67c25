"""What an episode may use and how strict it is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Bounds of an episode. The figures are those of the Code World Model report's software engineering environment."""

    max_turns: int = 128
    seconds: float = 2400.0
    """Of an episode, wall clock."""
    command_seconds: float = 120.0
    """Of a command of the agent, and of each of a reward's."""
    output_bytes: int = 480 << 10
    """Of a command's output: more is cut in the middle, or ends the shell; see `keep_shell`."""
    observation_tokens: int = 32_768
    """An observation that is longer loses its middle. Where nothing counts tokens, so many bytes: a token of a
    byte-level vocabulary has at least one."""
    context_tokens: int = 131_072
    """Of a prompt, the actions and the observations together; the episode ends with them where tokens are counted."""
    keep_shell: bool = True
    """Interrupt what runs too long, and keep working directory and variables. False: end the shell, as
    after more than `output_bytes`; the next command finds a fresh one."""
    malformed_ends: bool = False
    """Whether a malformed action ends the episode, or costs a turn and is explained."""


DEFAULT = Profile()
CWM = Profile(keep_shell=False)
"""As the Code World Model was evaluated."""
CWM_TRAINING = Profile(keep_shell=False, malformed_ends=True)
"""As the Code World Model was trained."""
PROFILES = {"default": DEFAULT, "cwm": CWM, "cwm-training": CWM_TRAINING}
"""Profiles by name."""
