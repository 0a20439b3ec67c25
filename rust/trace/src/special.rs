//! Special tokens of a trace.

/// Special token of the trace format, never produced from ordinary text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    BeginOfText,
    EndOfText,
    ContextStart,
    FrameSep,
    ActionSep,
    ReturnSep,
    CallSep,
    LineSep,
    ExceptionSep,
    ArgSep,
}

impl Special {
    pub const ALL: [Special; 10] = [
        Special::BeginOfText,
        Special::EndOfText,
        Special::ContextStart,
        Special::FrameSep,
        Special::ActionSep,
        Special::ReturnSep,
        Special::CallSep,
        Special::LineSep,
        Special::ExceptionSep,
        Special::ArgSep,
    ];

    /// Returns the token as text, for example `<|frame_sep|>`.
    pub const fn name(self) -> &'static str {
        match self {
            Special::BeginOfText => "<|begin_of_text|>",
            Special::EndOfText => "<|end_of_text|>",
            Special::ContextStart => "<|trace_context_start|>",
            Special::FrameSep => "<|frame_sep|>",
            Special::ActionSep => "<|action_sep|>",
            Special::ReturnSep => "<|return_sep|>",
            Special::CallSep => "<|call_sep|>",
            Special::LineSep => "<|line_sep|>",
            Special::ExceptionSep => "<|exception_sep|>",
            Special::ArgSep => "<|arg_sep|>",
        }
    }
}
