//! The strict and total parser: any input gives its longest well-formed prefix of frames, and why the rest is none.

use rustc_hash::FxHashMap;

use crate::json::{parse_locals, parse_string};
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

/// The parts of one frame as they stand between its special tokens.
#[derive(Clone, Copy, Debug)]
struct FrameParts<'a> {
    event: Event,
    state: &'a str,
    line: &'a str,
    value: Option<&'a str>,
}

/// Interns what parsed frames have in common: equal source lines.
#[derive(Default)]
struct LineIds(FxHashMap<String, u32>);

impl LineIds {
    fn id(&mut self, trace: &mut Trace, text: &str) -> u32 {
        if let Some(&id) = self.0.get(text) {
            return id;
        }
        let id = trace.add_line(Line {
            number: 0,
            text: text.to_owned(),
        });
        self.0.insert(text.to_owned(), id);
        id
    }
}

/// Adds a frame to `trace`, or says why it is malformed and adds nothing.
fn push_frame(trace: &mut Trace, lines: &mut LineIds, parts: FrameParts<'_>) -> Result<(), String> {
    if trace.is_full() {
        return Err("more frames than a trace can hold".into());
    }
    let malformed = |reason: &str| format!("malformed {} frame: {reason}", parts.event.name());
    if parts.event.has_locals() {
        if parts.value.is_some() {
            return Err(malformed("it has a value"));
        }
        let locals = parse_locals(parts.state)
            .map_err(|e| malformed(&format!("its state is no JSON object of strings: {e}")))?;
        let line = lines.id(trace, parts.line);
        push_locals(trace, parts.event, line, &locals);
    } else {
        if !parts.state.is_empty() {
            return Err(malformed("it has a state"));
        }
        let value = parts.value.ok_or_else(|| malformed("it has no value"))?;
        let value = parse_string(value).map_err(|e| malformed(&format!("its value is no JSON string: {e}")))?;
        let line = lines.id(trace, parts.line);
        trace.open_value().extend_from_slice(&value);
        trace.push_value_frame(parts.event, line);
    }
    Ok(())
}

fn push_locals(trace: &mut Trace, event: Event, line: u32, locals: &[(Vec<u8>, Vec<u8>)]) {
    let mut shape = Vec::with_capacity(locals.len());
    for (slot, (name, value)) in locals.iter().enumerate() {
        shape.push(trace.intern_name(name));
        if value != b".." {
            trace.open_value().extend_from_slice(value);
            trace.keep_change(slot as u32);
        }
    }
    let shape = trace.intern_shape(&shape);
    trace.push_locals_frame(event, line, shape);
}

/// Parses a text form: a whole document, or the frames alone (what follows the context's `<|frame_sep|>`).
///
/// The offset of an error counts bytes from the beginning of `text`.
pub fn parse_text(text: &str) -> Parsed {
    let mut trace = Trace::default();
    let mut rest = text;
    let prefix = [Special::BeginOfText.name(), Special::ContextStart.name()].concat();
    if let Some(document) = text.strip_prefix(&prefix) {
        match document.split_once(Special::FrameSep.name()) {
            Some((context, frames)) => {
                trace.context = context.to_owned();
                rest = frames;
            }
            None => return failed(trace, 0, "the context is not closed".into()),
        }
    }
    let mut lines = LineIds::default();
    while !rest.is_empty() {
        let offset = text.len() - rest.len();
        if let Some(after) = rest.strip_prefix(Special::EndOfText.name()) {
            if after.is_empty() {
                return Parsed {
                    trace,
                    complete: true,
                    error: None,
                };
            }
            return failed(trace, offset, "text after the end of the trace".into());
        }
        let Some((body, after)) = rest.split_once(Special::FrameSep.name()) else {
            return failed(trace, offset, "frame not closed".into());
        };
        if let Err(reason) = frame_parts(body).and_then(|parts| push_frame(&mut trace, &mut lines, parts)) {
            return failed(trace, offset, reason);
        }
        rest = after;
    }
    Parsed {
        trace,
        complete: false,
        error: None,
    }
}

fn failed(trace: Trace, offset: usize, reason: String) -> Parsed {
    Parsed {
        trace,
        complete: false,
        error: Some(ParseError { offset, reason }),
    }
}

fn frame_parts(body: &str) -> Result<FrameParts<'_>, String> {
    let event = Event::ALL
        .into_iter()
        .find(|e| body.starts_with(e.special().name()))
        .ok_or("no event")?;
    let body = &body[event.special().name().len()..];
    let (state, action) = body.split_once(Special::ActionSep.name()).ok_or("no action")?;
    let (line, value) = match action.split_once(Special::ArgSep.name()) {
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
    trace: Trace,
    lines: LineIds,
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
                self.trace.context.push_str(utf8(bytes)?);
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
            (At::Ended, _) => return Err("text after the end of the trace".into()),
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
        push_frame(&mut self.trace, &mut self.lines, parts)?;
        Ok(At::Between)
    }

    /// What was read. Input that stops within a frame ends with the error "frame not closed".
    pub fn finish(self) -> Parsed {
        let reason = match self.at {
            At::Begun | At::Context => Some("the context is not closed"),
            At::State(_) | At::Line(_) | At::Value(_) => Some("frame not closed"),
            At::Start | At::Between | At::Ended => None,
        };
        let open = reason.map(|reason| ParseError {
            offset: self.frame_start,
            reason: reason.into(),
        });
        let error = self.error.or(open);
        Parsed {
            trace: self.trace,
            complete: self.at == At::Ended && error.is_none(),
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
