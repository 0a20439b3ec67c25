"""Score predictions against real executions, and evaluate models on files of programs."""

from cwm_core.evaluation.calls import evaluate_input, evaluate_output
from cwm_core.evaluation.custom import EvaluationTask, Scores, evaluate_task
from cwm_core.evaluation.divergence import Cause, Divergence, first_divergence
from cwm_core.evaluation.executions import evaluate_termination, evaluate_traces
from cwm_core.evaluation.failures import FailureReport, analyze_failures
from cwm_core.evaluation.problems import Problem, read_problems
from cwm_core.evaluation.recordings import Recording, evaluate_recordings, read_recordings
from cwm_core.evaluation.report import IntervalKind, Measure, Report, Result
from cwm_core.evaluation.swe import SwePrediction, evaluate_swe, read_predictions, write_predictions
from cwm_core.evaluation.traces import TraceScores, mean_scores, next_line_baseline, score_trace
from cwm_core.machines.programs import DEFAULT_LIMITS

__all__ = [
    "DEFAULT_LIMITS",
    "Cause",
    "Divergence",
    "EvaluationTask",
    "FailureReport",
    "IntervalKind",
    "Measure",
    "Problem",
    "Recording",
    "Report",
    "Result",
    "Scores",
    "SwePrediction",
    "TraceScores",
    "analyze_failures",
    "evaluate_input",
    "evaluate_output",
    "evaluate_recordings",
    "evaluate_swe",
    "evaluate_task",
    "evaluate_termination",
    "evaluate_traces",
    "first_divergence",
    "mean_scores",
    "next_line_baseline",
    "read_predictions",
    "read_problems",
    "read_recordings",
    "score_trace",
    "write_predictions",
]
