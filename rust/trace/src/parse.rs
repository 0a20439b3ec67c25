//! A strict and total parser: for any input, it returns the longest well-formed prefix of frames and why it stopped.

use std::fmt;

use memchr::memmem::Finder;
use rustc_hash::FxHashMap;

use crate::json::{ObjectReader, read_string};
use crate::special::Special;
use crate::trace::{Event, Line, Trace};

/// Kind of a parse error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseErrorKind {
    /// The input ends inside the context.
    UnclosedContext,
    /// The input ends inside a frame, as generated text does at a token limit.
    UnclosedFrame,
    /// A part of the document is missing, unexpected, or out of order.
    InvalidStructure,
    /// LOCALS is not a JSON object of strings with distinct names.
    InvalidLocals,
    /// VALUE is not a JSON string.
    InvalidValue,
    /// Bytes are not UTF-8, or a string contains a lone surrogate.
    InvalidEncoding,
    /// The end token is not the last one.
    TrailingInput,
    /// The input has more frames than a trace can hold.
    TooManyFrames,
}

impl ParseErrorKind {
    pub const ALL: [ParseErrorKind; 8] = [
        ParseErrorKind::UnclosedContext,
        ParseErrorKind::UnclosedFrame,
        ParseErrorKind::InvalidStructure,
        ParseErrorKind::InvalidLocals,
        ParseErrorKind::InvalidValue,
        ParseErrorKind::InvalidEncoding,
        ParseErrorKind::TrailingInput,
        ParseErrorKind::TooManyFrames,
    ];

    /// Returns the kind in words joined by underscores, such as `"unclosed_frame"`.
    pub const fn name(self) -> &'static str {
        match self {
            ParseErrorKind::UnclosedContext => "unclosed_context",
            ParseErrorKind::UnclosedFrame => "unclosed_frame",
            ParseErrorKind::InvalidStructure => "invalid_structure",
            ParseErrorKind::InvalidLocals => "invalid_locals",
            ParseErrorKind::InvalidValue => "invalid_value",
            ParseErrorKind::InvalidEncoding => "invalid_encoding",
            ParseErrorKind::TrailingInput => "trailing_input",
            ParseErrorKind::TooManyFrames => "too_many_frames",
        }
    }
}

/// Where and why the input stops being well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    pub kind: ParseErrorKind,
    /// Start of the first frame that is not well formed: a byte of the text, or an index into the token IDs.
    pub offset: usize,
    /// Explanation for people.
    pub reason: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}: {}", self.offset, self.reason)
    }
}

impl std::error::Error for ParseError {}

/// The longest well-formed prefix of a text or token sequence.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub trace: Trace,
    /// Whether the input ends with the end token, right after the last frame.
    pub complete: bool,
    /// `None` if the whole input is well formed, which includes input that stops between two frames.
    pub error: Option<ParseError>,
}

/// A reason to stop, before its place in the input is known.
struct Failure {
    kind: ParseErrorKind,
    reason: String,
}

impl Failure {
    fn new(kind: ParseErrorKind, reason: impl Into<String>) -> Failure {
        Failure {
            kind,
            reason: reason.into(),
        }
    }

    fn structure(reason: &str) -> Failure {
        Failure::new(ParseErrorKind::InvalidStructure, reason)
    }

    fn unclosed_context() -> Failure {
        Failure::new(ParseErrorKind::UnclosedContext, "the input ends inside the context")
    }

    fn unclosed_frame() -> Failure {
        Failure::new(ParseErrorKind::UnclosedFrame, "the input ends inside a frame")
    }

    fn trailing_input() -> Failure {
        Failure::new(ParseErrorKind::TrailingInput, "the end token is not the last one")
    }

    /// Names the event of the frame in the reason.
    fn of_frame(self, event: Event) -> Failure {
        let reason = format!("malformed {} frame: {}", event.name(), self.reason);
        Failure::new(self.kind, reason)
    }

    fn at(self, offset: usize) -> ParseError {
        ParseError {
            kind: self.kind,
            offset,
            reason: self.reason,
        }
    }
}

/// The parts of one frame: the texts between its special tokens.
#[derive(Clone, Copy, Debug)]
struct FrameParts<'a> {
    event: Event,
    state: &'a str,
    line: &'a str,
    value: Option<&'a str>,
}

/// Builds a trace from the parts of its frames.
#[derive(Default)]
struct Builder {
    trace: Trace,
    line_ids: FxHashMap<String, u32>,
    /// Last shape of each line, which is nearly always its next shape too.
    line_shapes: Vec<Option<u32>>,
    name: Vec<u8>,
    shape: Vec<u32>,
}

impl Builder {
    /// Adds a frame. Leaves the trace unchanged if the frame is malformed.
    fn push(&mut self, parts: FrameParts<'_>) -> Result<(), Failure> {
        if self.trace.is_full() {
            let reason = "the input has more frames than a trace can hold";
            return Err(Failure::new(ParseErrorKind::TooManyFrames, reason));
        }
        let pushed = if parts.event.has_locals() {
            self.push_locals(parts)
        } else {
            self.push_value(parts)
        };
        pushed.map_err(|failure| {
            self.trace.drop_open_frame();
            failure.of_frame(parts.event)
        })
    }

    fn push_locals(&mut self, parts: FrameParts<'_>) -> Result<(), Failure> {
        if parts.value.is_some() {
            return Err(Failure::structure("unexpected value"));
        }
        let known_line = self.line_ids.get(parts.line).copied();
        let likely = known_line.and_then(|line| self.line_shapes[line as usize]);
        let shape = self.read_locals(parts.state, likely).map_err(|error| {
            let reason = format!("the locals are not a JSON object of strings: {error}");
            Failure::new(ParseErrorKind::InvalidLocals, reason)
        })?;
        let line = known_line.unwrap_or_else(|| self.add_line(parts.line));
        self.line_shapes[line as usize] = Some(shape);
        self.trace.push_locals_frame(parts.event, line, shape);
        Ok(())
    }

    /// Keeps the values other than `..` as changes and returns the shape. `likely` is a guess of the shape.
    fn read_locals(&mut self, state: &str, likely: Option<u32>) -> Result<u32, &'static str> {
        let trace = &mut self.trace;
        let mut reader = ObjectReader::new(state);
        self.shape.clear();
        while let Some(name) = reader.name(&mut self.name)? {
            let slot = self.shape.len();
            let expected = likely.and_then(|shape| trace.shape(shape).get(slot).copied());
            let id = expected
                .filter(|&id| trace.name(id) == name)
                .unwrap_or_else(|| trace.intern_name(name));
            self.shape.push(id);
            reader.value(trace.open_value())?;
            if trace.open_text() == b".." {
                trace.drop_value();
            } else {
                trace.keep_change(slot as u32);
            }
        }
        match likely {
            Some(shape) if trace.shape(shape) == self.shape => Ok(shape),
            _ if has_duplicate(&self.shape) => Err("duplicate variable name"),
            _ => Ok(trace.intern_shape(&self.shape)),
        }
    }

    fn push_value(&mut self, parts: FrameParts<'_>) -> Result<(), Failure> {
        if !parts.state.is_empty() {
            return Err(Failure::structure("unexpected locals"));
        }
        let value = parts.value.ok_or_else(|| Failure::structure("missing value"))?;
        read_string(value, self.trace.open_value()).map_err(|error| {
            let reason = format!("the value is not a JSON string: {error}");
            Failure::new(ParseErrorKind::InvalidValue, reason)
        })?;
        let line = self.line_ids.get(parts.line).copied();
        let line = line.unwrap_or_else(|| self.add_line(parts.line));
        self.trace.push_value_frame(parts.event, line);
        Ok(())
    }

    /// Returns a trace that was read to its end, with the outcome that its frames show.
    fn ended(self) -> Trace {
        let mut trace = self.trace;
        trace.outcome = trace.shown_outcome();
        trace
    }

    fn add_line(&mut self, text: &str) -> u32 {
        let id = self.trace.add_line(Line {
            number: 0,
            text: text.to_owned(),
        });
        self.line_ids.insert(text.to_owned(), id);
        self.line_shapes.push(None);
        id
    }
}

fn has_duplicate(names: &[u32]) -> bool {
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

/// Searchers for the special tokens inside frames.
struct Finders {
    frame_sep: Finder<'static>,
    action_sep: Finder<'static>,
    arg_sep: Finder<'static>,
}

impl Finders {
    fn new() -> Finders {
        let finder = |special: Special| Finder::new(special.name());
        Finders {
            frame_sep: finder(Special::FrameSep),
            action_sep: finder(Special::ActionSep),
            arg_sep: finder(Special::ArgSep),
        }
    }

    fn frame_parts<'a>(&self, body: &'a str) -> Result<FrameParts<'a>, Failure> {
        let event = Event::ALL
            .into_iter()
            .find(|e| body.starts_with(e.special().name()))
            .ok_or_else(missing_event)?;
        let body = &body[event.special().name().len()..];
        let (state, action) = split(body, &self.action_sep).ok_or_else(missing_action)?;
        let (line, value) = match split(action, &self.arg_sep) {
            Some((line, value)) => (line, Some(value)),
            None => (action, None),
        };
        Ok(FrameParts {
            event,
            state,
            line,
            value,
        })
    }
}

fn missing_event() -> Failure {
    Failure::structure("a frame must start with an event token")
}

fn missing_action() -> Failure {
    Failure::structure("missing <|action_sep|> after the locals")
}

/// Splits the text at the first occurrence.
fn split<'a>(text: &'a str, finder: &Finder<'_>) -> Option<(&'a str, &'a str)> {
    let at = finder.find(text.as_bytes())?;
    Some((&text[..at], &text[at + finder.needle().len()..]))
}

/// Parses a text form: a whole document, or only the frames (the text after the `<|frame_sep|>` of the context).
///
/// The offset of an error is in bytes from the beginning of `text`.
pub fn parse_text(text: &str) -> Parsed {
    let finders = Finders::new();
    let mut builder = Builder::default();
    let mut rest = text;
    let prefix = [Special::BeginOfText.name(), Special::ContextStart.name()].concat();
    if let Some(document) = text.strip_prefix(&prefix) {
        match split(document, &finders.frame_sep) {
            Some((context, frames)) => {
                builder.trace.context = context.to_owned();
                rest = frames;
            }
            None => return failed(builder.trace, Failure::unclosed_context().at(0)),
        }
    }
    while !rest.is_empty() {
        let offset = text.len() - rest.len();
        if let Some(after) = rest.strip_prefix(Special::EndOfText.name()) {
            if after.is_empty() {
                return Parsed {
                    trace: builder.ended(),
                    complete: true,
                    error: None,
                };
            }
            return failed(builder.trace, Failure::trailing_input().at(offset));
        }
        let Some((body, after)) = split(rest, &finders.frame_sep) else {
            return failed(builder.trace, Failure::unclosed_frame().at(offset));
        };
        if let Err(failure) = finders.frame_parts(body).and_then(|parts| builder.push(parts)) {
            return failed(builder.trace, failure.at(offset));
        }
        rest = after;
    }
    Parsed {
        trace: builder.trace,
        complete: false,
        error: None,
    }
}

/// Parses the text before bytes that are not valid in a text form; `reason` describes those bytes.
pub fn parse_cut_text(text: &str, reason: &str) -> Parsed {
    let mut parsed = parse_text(text);
    if parsed.complete {
        let offset = text.len() - Special::EndOfText.name().len();
        return failed(parsed.trace, Failure::trailing_input().at(offset));
    }
    let is_unclosed = |error: &ParseError| {
        matches!(
            error.kind,
            ParseErrorKind::UnclosedContext | ParseErrorKind::UnclosedFrame
        )
    };
    if parsed.error.as_ref().is_none_or(is_unclosed) {
        let offset = parsed.error.map_or(text.len(), |error| error.offset);
        parsed.error = Some(Failure::new(ParseErrorKind::InvalidEncoding, reason).at(offset));
    }
    parsed
}

fn failed(trace: Trace, error: ParseError) -> Parsed {
    Parsed {
        trace,
        complete: false,
        error: Some(error),
    }
}

/// A piece of a token sequence: a special token of the trace format, or the bytes of a run of ordinary tokens.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    Special(Special),
    /// A special token that is not part of the trace format, by its ID.
    Foreign(u32),
    Bytes(&'a [u8]),
}

/// A parser of token sequences. Feed it the pieces in order, each run of ordinary tokens as one piece, until
/// [`TokenParser::feed`] returns `false`.
#[derive(Default)]
pub struct TokenParser {
    builder: Builder,
    at: At,
    frame_start: usize,
    state: String,
    line: String,
    value: String,
    error: Option<ParseError>,
}

/// The parser's position in the document.
#[derive(Clone, Copy, Default, PartialEq)]
enum At {
    /// Before the first token, where a document or a frame may begin.
    #[default]
    Start,
    Begun,
    Context,
    Between,
    State(Event),
    Line(Event),
    Value(Event),
    Ended,
}

impl TokenParser {
    /// Reads the piece that begins at token `offset`. Returns `false` after an error: the rest is not well formed.
    pub fn feed(&mut self, offset: usize, piece: Piece<'_>) -> bool {
        if self.error.is_some() {
            return false;
        }
        if matches!(self.at, At::Start | At::Between | At::Ended) {
            self.frame_start = offset;
        }
        if let Err(failure) = self.step(piece) {
            self.error = Some(failure.at(self.frame_start));
        }
        self.error.is_none()
    }

    fn step(&mut self, piece: Piece<'_>) -> Result<(), Failure> {
        use Special::*;
        self.at = match (self.at, piece) {
            (At::Start, Piece::Special(BeginOfText)) => At::Begun,
            (At::Begun, Piece::Special(ContextStart)) => At::Context,
            (At::Begun, _) => return Err(Failure::structure("missing <|trace_context_start|>")),
            (At::Context, Piece::Bytes(bytes)) => {
                self.builder.trace.context.push_str(utf8(bytes)?);
                At::Context
            }
            (At::Context, Piece::Special(FrameSep)) => At::Between,
            (At::Context, _) => return Err(Failure::structure("special token inside the context")),
            (At::Start | At::Between, Piece::Special(EndOfText)) => At::Ended,
            (At::Start | At::Between, Piece::Special(special)) => {
                self.clear();
                At::State(
                    Event::ALL
                        .into_iter()
                        .find(|e| e.special() == special)
                        .ok_or_else(missing_event)?,
                )
            }
            (At::Start | At::Between, _) => return Err(missing_event()),
            (At::State(event), Piece::Bytes(bytes)) => append(&mut self.state, bytes, At::State(event))?,
            (At::State(event), Piece::Special(ActionSep)) => At::Line(event),
            (At::State(_), _) => return Err(missing_action()),
            (At::Line(event), Piece::Bytes(bytes)) => append(&mut self.line, bytes, At::Line(event))?,
            (At::Line(event), Piece::Special(ArgSep)) => At::Value(event),
            (At::Value(event), Piece::Bytes(bytes)) => append(&mut self.value, bytes, At::Value(event))?,
            (At::Line(event), Piece::Special(FrameSep)) => self.close(event, false)?,
            (At::Value(event), Piece::Special(FrameSep)) => self.close(event, true)?,
            (At::Line(event) | At::Value(event), _) => {
                return Err(Failure::structure("unexpected special token").of_frame(event));
            }
            (At::Ended, _) => return Err(Failure::trailing_input()),
        };
        Ok(())
    }

    fn clear(&mut self) {
        self.state.clear();
        self.line.clear();
        self.value.clear();
    }

    fn close(&mut self, event: Event, has_value: bool) -> Result<At, Failure> {
        let value = has_value.then_some(self.value.as_str());
        let parts = FrameParts {
            event,
            state: &self.state,
            line: &self.line,
            value,
        };
        self.builder.push(parts)?;
        Ok(At::Between)
    }

    /// Returns the frames read. Input that stops inside a frame is a [`ParseErrorKind::UnclosedFrame`].
    pub fn finish(mut self) -> Parsed {
        if matches!(self.at, At::Begun | At::Context) {
            self.builder.trace.context.clear(); // incomplete
        }
        let unclosed = match self.at {
            At::Begun | At::Context => Some(Failure::unclosed_context()),
            At::State(_) | At::Line(_) | At::Value(_) => Some(Failure::unclosed_frame()),
            At::Start | At::Between | At::Ended => None,
        };
        let error = self.error.or(unclosed.map(|failure| failure.at(self.frame_start)));
        let complete = self.at == At::Ended && error.is_none();
        Parsed {
            trace: if complete {
                self.builder.ended()
            } else {
                self.builder.trace
            },
            complete,
            error,
        }
    }
}

fn append(text: &mut String, bytes: &[u8], at: At) -> Result<At, Failure> {
    text.push_str(utf8(bytes)?);
    Ok(at)
}

fn utf8(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|error| {
        let reason = format!("invalid UTF-8 at byte {} of a part", error.valid_up_to());
        Failure::new(ParseErrorKind::InvalidEncoding, reason)
    })
}
