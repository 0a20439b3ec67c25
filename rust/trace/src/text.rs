//! The text form, and the sequence of parts that it and the token form are made of.

use crate::json::write_string;
use crate::special::Special;
use crate::trace::{Event, FrameRef, Shown, Trace};

/// A piece of a trace: a special token, or ordinary text that is encoded by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Special(Special),
    /// CONTEXT, LOCALS or VALUE.
    Text(&'a str),
    /// LINE, by its index into [`Trace::lines`].
    Line(u32, &'a str),
}

impl Trace {
    /// Hands every part of the prefix before the first frame to `sink`.
    pub fn for_each_context_part(&self, mut sink: impl FnMut(Part<'_>)) {
        sink(Part::Special(Special::BeginOfText));
        sink(Part::Special(Special::ContextStart));
        sink(Part::Text(&self.context));
        sink(Part::Special(Special::FrameSep));
    }

    /// Hands every part of the whole document to `sink`, in order. Empty LOCALS of RETURN and EXCEPTION frames are no
    /// part; an empty LINE is.
    pub fn for_each_part(&self, mut sink: impl FnMut(Part<'_>)) {
        self.for_each_context_part(&mut sink);
        let mut scratch = String::new();
        for frame in self.frames() {
            frame.for_each_part(self, &mut scratch, &mut sink);
        }
        if self.is_complete() {
            sink(Part::Special(Special::EndOfText));
        }
    }

    /// Whether the text form ends with the end token: the recording did not stop at a limit.
    pub fn is_complete(&self) -> bool {
        self.truncated.is_none()
    }
}

impl FrameRef<'_> {
    /// Hands the parts of this frame to `sink`. `scratch` is room for rendering, overwritten.
    pub fn for_each_part(self, trace: &Trace, scratch: &mut String, mut sink: impl FnMut(Part<'_>)) {
        let event: Event = self.event();
        sink(Part::Special(event.special()));
        if event.has_locals() {
            scratch.clear();
            write_locals(self, scratch);
            sink(Part::Text(scratch));
        }
        sink(Part::Special(Special::ActionSep));
        sink(Part::Line(self.line_id(), &trace.lines()[self.line_id() as usize].text));
        if let Some(value) = self.arg() {
            scratch.clear();
            write_string(value, scratch);
            sink(Part::Special(Special::ArgSep));
            sink(Part::Text(scratch));
        }
        sink(Part::Special(Special::FrameSep));
    }
}

/// Appends the JSON object of a CALL or LINE frame's variables.
pub fn write_locals(frame: FrameRef<'_>, out: &mut String) {
    out.push('{');
    for (i, (name, shown)) in frame.locals().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        write_string(name, out);
        out.push_str(": ");
        match shown {
            Shown::Unchanged => out.push_str("\"..\""),
            Shown::Text(text) => write_string(text, out),
        }
    }
    out.push('}');
}

/// Appends the whole text form. It escapes nothing: a program whose source contains a special token's text cannot be
/// told apart here (the token form and the stored form are lossless).
pub fn write_text(trace: &Trace, out: &mut String) {
    trace.for_each_part(|part| match part {
        Part::Special(special) => out.push_str(special.name()),
        Part::Text(text) | Part::Line(_, text) => out.push_str(text),
    });
}
