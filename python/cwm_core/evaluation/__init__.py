"""Scoring what models predict against what really happened."""

from cwm_core.evaluation.traces import TraceScores, mean_scores, next_line_baseline, score_trace

__all__ = ["TraceScores", "mean_scores", "next_line_baseline", "score_trace"]
