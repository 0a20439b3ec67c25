"""Score predictions against real executions, and evaluate models on files of programs."""

from cwm_core.evaluation.calls import evaluate_input, evaluate_output
from cwm_core.evaluation.custom import EvaluationTask, Scores, evaluate_task
from cwm_core.evaluation.executions import evaluate_termination, evaluate_traces
from cwm_core.evaluation.problems import Problem, read_problems
from cwm_core.evaluation.report import IntervalKind, Measure, Report, Result
from cwm_core.evaluation.swe import SwePrediction, evaluate_swe, read_predictions, write_predictions
from cwm_core.evaluation.traces import TraceScores, mean_scores, next_line_baseline, score_trace
from cwm_core.machines.programs import DEFAULT_LIMITS

__all__ = [
    "DEFAULT_LIMITS",
    "EvaluationTask",
    "IntervalKind",
    "Measure",
    "Problem",
    "Report",
    "Result",
    "Scores",
    "SwePrediction",
    "TraceScores",
    "evaluate_input",
    "evaluate_output",
    "evaluate_swe",
    "evaluate_task",
    "evaluate_termination",
    "evaluate_traces",
    "mean_scores",
    "next_line_baseline",
    "read_predictions",
    "read_problems",
    "score_trace",
    "write_predictions",
]
