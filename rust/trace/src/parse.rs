//! The strict and total parser: any input gives its longest well-formed prefix of frames, and why the rest is none.

use memchr::memmem::Finder;
use rustc_hash::FxHashMap;

use crate::json::{ObjectReader, read_string};
use crate::special::Special;
use crate::trace::{Event, Line, Trace};

/// Where and why the input stopped being well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Where the first frame that is not well formed begins: a byte of the text, or an index into the token ids.
    pub offset: usize,
    pub reason: String,
}

/// The longest well-formed prefix of a text or token sequence.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub trace: Trace,
    /// Whether the end token followed the last frame and nothing followed it.
    pub complete: bool,
    /// `None` where the whole input is well formed, also when it stops between two frames.
    pub error: Option<ParseError>,
}

const OPEN_CONTEXT: &str = "the context is not closed";
const OPEN_FRAME: &str = "frame not closed";
const AFTER_END: &str = "text after the end of the trace";

/// The parts of one frame as they stand between its special tokens.
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
    /// By line, the shape that it was last shown with: nearly always the next one too.
    line_shapes: Vec<Option<u32>>,
    name: Vec<u8>,
    shape: Vec<u32>,
}

impl Builder {
    /// Adds a frame, or says why it is malformed and adds none.
    fn push(&mut self, parts: FrameParts<'_>) -> Result<(), String> {
        if self.trace.is_full() {
            return Err("more frames than a trace can hold".into());
        }
        let pushed = if parts.event.has_locals() {
            self.push_locals(parts)
        } else {
            self.push_value(parts)
        };
        pushed.map_err(|reason| {
            self.trace.drop_open_frame();
            format!("malformed {} frame: {reason}", parts.event.name())
        })
    }

    fn push_locals(&mut self, parts: FrameParts<'_>) -> Result<(), String> {
        if parts.value.is_some() {
            return Err("it has a value".into());
        }
        let known_line = self.line_ids.get(parts.line).copied();
        let likely = known_line.and_then(|line| self.line_shapes[line as usize]);
        let shape = self
            .read_locals(parts.state, likely)
            .map_err(|e| format!("its state is no JSON object of strings: {e}"))?;
        let line = known_line.unwrap_or_else(|| self.add_line(parts.line));
        self.line_shapes[line as usize] = Some(shape);
        self.trace.push_locals_frame(parts.event, line, shape);
        Ok(())
    }

    /// Keeps the values that are not `..` as changes and gives the shape, likely to be `likely`.
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
            _ if has_duplicate(&self.shape) => Err("a variable's name occurs twice"),
            _ => Ok(trace.intern_shape(&self.shape)),
        }
    }

    fn push_value(&mut self, parts: FrameParts<'_>) -> Result<(), String> {
        if !parts.state.is_empty() {
            return Err("it has a state".into());
        }
        let value = parts.value.ok_or("it has no value")?;
        read_string(value, self.trace.open_value()).map_err(|e| format!("its value is no JSON string: {e}"))?;
        let line = self.line_ids.get(parts.line).copied();
        let line = line.unwrap_or_else(|| self.add_line(parts.line));
        self.trace.push_value_frame(parts.event, line);
        Ok(())
    }

    /// The trace, whose end was reached, with the outcome that its frames show.
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

/// Searches for the special tokens within frames.
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

    fn frame_parts<'a>(&self, body: &'a str) -> Result<FrameParts<'a>, String> {
        let event = Event::ALL
            .into_iter()
            .find(|e| body.starts_with(e.special().name()))
            .ok_or("no event")?;
        let body = &body[event.special().name().len()..];
        let (state, action) = split(body, &self.action_sep).ok_or("no action")?;
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

/// What comes before and after the first occurrence.
fn split<'a>(text: &'a str, finder: &Finder<'_>) -> Option<(&'a str, &'a str)> {
    let at = finder.find(text.as_bytes())?;
    Some((&text[..at], &text[at + finder.needle().len()..]))
}

/// Parses a text form: a whole document, or the frames alone (what follows the context's `<|frame_sep|>`).
///
/// The offset of an error counts bytes from the beginning of `text`.
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
            None => return failed(builder.trace, 0, OPEN_CONTEXT.into()),
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
            return failed(builder.trace, offset, AFTER_END.into());
        }
        let Some((body, after)) = split(rest, &finders.frame_sep) else {
            return failed(builder.trace, offset, OPEN_FRAME.into());
        };
        if let Err(reason) = finders.frame_parts(body).and_then(|parts| builder.push(parts)) {
            return failed(builder.trace, offset, reason);
        }
        rest = after;
    }
    Parsed {
        trace: builder.trace,
        complete: false,
        error: None,
    }
}

/// Parses what stands before something that no text form can hold, named by `reason`.
pub fn parse_cut_text(text: &str, reason: &str) -> Parsed {
    let mut parsed = parse_text(text);
    if parsed.complete {
        return failed(
            parsed.trace,
            text.len() - Special::EndOfText.name().len(),
            AFTER_END.into(),
        );
    }
    let is_open = |error: &ParseError| [OPEN_CONTEXT, OPEN_FRAME].contains(&error.reason.as_str());
    let offset = parsed.error.as_ref().map_or(text.len(), |error| error.offset);
    if parsed.error.as_ref().is_none_or(is_open) {
        parsed.error = Some(ParseError {
            offset,
            reason: reason.into(),
        });
    }
    parsed
}

fn failed(trace: Trace, offset: usize, reason: String) -> Parsed {
    Parsed {
        trace,
        complete: false,
        error: Some(ParseError { offset, reason }),
    }
}

/// A piece of a token sequence: a special token of the trace format, or the bytes of a run of ordinary tokens.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    Special(Special),
    /// A special token that no trace contains, by its id.
    Foreign(u32),
    Bytes(&'a [u8]),
}

/// The parser over tokens. Feed it pieces in order, runs of ordinary tokens whole; stop when it says so.
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

/// What the parser has read of the current frame.
#[derive(Clone, Copy, Default, PartialEq)]
enum At {
    /// Nothing: before the first token, where a document may begin.
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
    /// Reads the piece that begins at token `offset`. Gives `false` once the rest cannot be well formed.
    pub fn feed(&mut self, offset: usize, piece: Piece<'_>) -> bool {
        if self.error.is_some() {
            return false;
        }
        if matches!(self.at, At::Start | At::Between | At::Ended) {
            self.frame_start = offset;
        }
        if let Err(reason) = self.step(piece) {
            self.error = Some(ParseError {
                offset: self.frame_start,
                reason,
            });
        }
        self.error.is_none()
    }

    fn step(&mut self, piece: Piece<'_>) -> Result<(), String> {
        use Special::*;
        self.at = match (self.at, piece) {
            (At::Start, Piece::Special(BeginOfText)) => At::Begun,
            (At::Begun, Piece::Special(ContextStart)) => At::Context,
            (At::Begun, _) => return Err("no context".into()),
            (At::Context, Piece::Bytes(bytes)) => {
                self.builder.trace.context.push_str(utf8(bytes)?);
                At::Context
            }
            (At::Context, Piece::Special(FrameSep)) => At::Between,
            (At::Context, _) => return Err("a special token in the context".into()),
            (At::Start | At::Between, Piece::Special(EndOfText)) => At::Ended,
            (At::Start | At::Between, Piece::Special(special)) => {
                self.clear();
                At::State(
                    Event::ALL
                        .into_iter()
                        .find(|e| e.special() == special)
                        .ok_or("no event")?,
                )
            }
            (At::Start | At::Between, _) => return Err("no event".into()),
            (At::State(event), Piece::Bytes(bytes)) => append(&mut self.state, bytes, At::State(event))?,
            (At::State(event), Piece::Special(ActionSep)) => At::Line(event),
            (At::State(_), _) => return Err("no action".into()),
            (At::Line(event), Piece::Bytes(bytes)) => append(&mut self.line, bytes, At::Line(event))?,
            (At::Line(event), Piece::Special(ArgSep)) => At::Value(event),
            (At::Value(event), Piece::Bytes(bytes)) => append(&mut self.value, bytes, At::Value(event))?,
            (At::Line(event), Piece::Special(FrameSep)) => self.close(event, false)?,
            (At::Value(event), Piece::Special(FrameSep)) => self.close(event, true)?,
            (At::Line(event) | At::Value(event), _) => {
                return Err(format!("malformed {} frame: a special token inside it", event.name()));
            }
            (At::Ended, _) => return Err(AFTER_END.into()),
        };
        Ok(())
    }

    fn clear(&mut self) {
        self.state.clear();
        self.line.clear();
        self.value.clear();
    }

    fn close(&mut self, event: Event, has_value: bool) -> Result<At, String> {
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

    /// What was read. Input that stops within a frame ends with the error "frame not closed".
    pub fn finish(mut self) -> Parsed {
        if matches!(self.at, At::Begun | At::Context) {
            self.builder.trace.context.clear(); // what may go on is no context
        }
        let reason = match self.at {
            At::Begun | At::Context => Some(OPEN_CONTEXT),
            At::State(_) | At::Line(_) | At::Value(_) => Some(OPEN_FRAME),
            At::Start | At::Between | At::Ended => None,
        };
        let open = reason.map(|reason| ParseError {
            offset: self.frame_start,
            reason: reason.into(),
        });
        let error = self.error.or(open);
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

fn append(text: &mut String, bytes: &[u8], at: At) -> Result<At, String> {
    text.push_str(utf8(bytes)?);
    Ok(at)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("bytes that are not UTF-8 at byte {} of a part", e.valid_up_to()))
}
