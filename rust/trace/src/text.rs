//! Text form of a trace, and the sequence of parts that the text form and the token form share.

use std::io::{self, Write};
use std::ops::Range;

use crate::json::write_string;
use crate::special::Special;
use crate::trace::{FrameRef, Trace};

/// Part of a trace: a special token, or ordinary text that is encoded separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Special(Special),
    /// CONTEXT, LOCALS or VALUE.
    Text(&'a str),
    /// LINE, with its index into [`Trace::lines`].
    Line(u32, &'a str),
}

impl Trace {
    /// Passes every part of the prefix before the first frame to `sink`.
    pub fn for_each_context_part(&self, mut sink: impl FnMut(Part<'_>)) {
        sink(Part::Special(Special::BeginOfText));
        sink(Part::Special(Special::ContextStart));
        sink(Part::Text(&self.context));
        sink(Part::Special(Special::FrameSep));
    }

    /// Passes every part of the document to `sink`, in order. An empty LINE is a part; the empty LOCALS of a RETURN or
    /// EXCEPTION frame are not.
    pub fn for_each_part(&self, mut sink: impl FnMut(Part<'_>)) {
        self.for_each_context_part(&mut sink);
        let mut renderer = Renderer::new(self);
        for frame in self.frames() {
            renderer.for_each_part(frame, &mut sink);
        }
        if self.is_complete() {
            sink(Part::Special(Special::EndOfText));
        }
    }

    /// Returns whether the text form ends with the end token, because the recording did not stop at a limit.
    pub fn is_complete(&self) -> bool {
        self.truncated.is_none()
    }

    /// Returns the text form.
    ///
    /// The text form does not escape source text, so it is ambiguous if the source contains the text of a special
    /// token. The token form and the stored form are lossless.
    pub fn to_text(&self) -> String {
        let mut renderer = Renderer::new(self);
        let mut text = Vec::with_capacity(renderer.text_len());
        renderer.write_text(&mut text).expect("a Vec takes every byte");
        String::from_utf8(text).expect("source text is UTF-8 and JSON is ASCII")
    }
}

/// Renders the frames of a trace, and caches the text that frames of the same shape share.
pub struct Renderer<'t> {
    trace: &'t Trace,
    /// Skeletons by shape ID, created on first use.
    skeletons: Vec<Option<Skeleton>>,
    part: Vec<u8>,
}

/// LOCALS of a shape with every variable unchanged. The LOCALS of a frame differ from it only by the frame's changes.
struct Skeleton {
    text: Vec<u8>,
    /// End of each variable's name, before the closing quote.
    names: Vec<usize>,
    /// Start of each variable's value, [`UNCHANGED`].
    values: Vec<usize>,
}

const UNCHANGED: &[u8] = b"\"..\"";

impl Skeleton {
    fn new(trace: &Trace, shape: u32) -> io::Result<Skeleton> {
        let mut text = b"{".to_vec();
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (slot, &name) in trace.shape(shape).iter().enumerate() {
            if slot > 0 {
                text.extend_from_slice(b", ");
            }
            write_string(trace.name(name), &mut text)?;
            names.push(text.len() - 1);
            text.extend_from_slice(b": ");
            values.push(text.len());
            text.extend_from_slice(UNCHANGED);
        }
        text.push(b'}');
        Ok(Skeleton { text, names, values })
    }

    /// Returns the range from the end of a variable's name to the end of the next name, or of the text.
    fn segment(&self, slot: usize) -> Range<usize> {
        self.names[slot]..self.names.get(slot + 1).copied().unwrap_or(self.text.len())
    }
}

impl<'t> Renderer<'t> {
    pub fn new(trace: &'t Trace) -> Renderer<'t> {
        Renderer {
            trace,
            skeletons: trace.shapes.iter().map(|_| None).collect(),
            part: Vec::new(),
        }
    }

    /// Passes the parts of `frame`, which must belong to the renderer's trace, to `sink`.
    pub fn for_each_part(&mut self, frame: FrameRef<'_>, mut sink: impl FnMut(Part<'_>)) {
        let mut part = std::mem::take(&mut self.part);
        sink(Part::Special(frame.event().special()));
        if frame.event().has_locals() {
            part.clear();
            self.write_locals(frame, &mut part).expect("a Vec takes every byte");
            sink(Part::Text(json(&part)));
        }
        sink(Part::Special(Special::ActionSep));
        sink(Part::Line(frame.line_id(), &frame.line().text));
        if let Some(value) = frame.arg() {
            part.clear();
            write_string(value, &mut part).expect("a Vec takes every byte");
            sink(Part::Special(Special::ArgSep));
            sink(Part::Text(json(&part)));
        }
        sink(Part::Special(Special::FrameSep));
        self.part = part;
    }

    fn skeleton(&mut self, shape: u32) -> io::Result<&Skeleton> {
        Ok(match &mut self.skeletons[shape as usize] {
            Some(skeleton) => skeleton,
            empty => empty.insert(Skeleton::new(self.trace, shape)?),
        })
    }

    /// Passes the LOCALS of a shape with every variable unchanged to `sink` in segments.
    ///
    /// The first segment ends at the end of the first variable's name. Then each variable has a segment from the end of
    /// its name to the end of the next name, or of the text.
    pub fn for_each_segment(&mut self, shape: u32, mut sink: impl FnMut(&str)) {
        let skeleton = self.skeleton(shape).expect("a Vec takes every byte");
        let first = 0..skeleton.names.first().copied().unwrap_or(skeleton.text.len());
        let others = (0..skeleton.names.len()).map(|slot| skeleton.segment(slot));
        for segment in std::iter::once(first).chain(others) {
            sink(json(&skeleton.text[segment]));
        }
    }

    /// Passes the segments of the changed variables to `sink`, each with the variable's position in the shape.
    pub fn for_each_changed_segment(&mut self, frame: FrameRef<'_>, mut sink: impl FnMut(usize, &str)) {
        let mut text = std::mem::take(&mut self.part);
        let trace = self.trace;
        let skeleton = self.skeleton(frame.shape_id()).expect("a Vec takes every byte");
        for change in frame.changes() {
            let slot = trace.change_slot(change) as usize;
            let segment = skeleton.segment(slot);
            let value = skeleton.values[slot];
            text.clear();
            text.extend_from_slice(&skeleton.text[segment.start..value]);
            write_string(trace.value(change), &mut text).expect("a Vec takes every byte");
            text.extend_from_slice(&skeleton.text[value + UNCHANGED.len()..segment.end]);
            sink(slot, json(&text));
        }
        self.part = text;
    }

    /// Writes the JSON object of a CALL or LINE frame's variables.
    fn write_locals(&mut self, frame: FrameRef<'_>, out: &mut impl Write) -> io::Result<()> {
        let trace = self.trace;
        let skeleton = self.skeleton(frame.shape_id())?;
        let mut written = 0;
        for change in frame.changes() {
            let value = skeleton.values[trace.change_slot(change) as usize];
            out.write_all(&skeleton.text[written..value])?;
            write_string(trace.value(change), out)?;
            written = value + UNCHANGED.len();
        }
        out.write_all(&skeleton.text[written..])
    }

    /// Writes the text form, equal to [`Trace::to_text`].
    pub fn write_text(&mut self, out: &mut impl Write) -> io::Result<()> {
        let trace = self.trace;
        let token = |special: Special| special.name().as_bytes();
        for part in [
            Special::BeginOfText.name(),
            Special::ContextStart.name(),
            &trace.context,
        ] {
            out.write_all(part.as_bytes())?;
        }
        out.write_all(token(Special::FrameSep))?;
        let actions: Vec<String> = trace.lines().iter().map(|line| action(&line.text)).collect();
        for frame in trace.frames() {
            let action = actions[frame.line_id() as usize].as_bytes();
            out.write_all(token(frame.event().special()))?;
            match frame.arg() {
                None => {
                    self.write_locals(frame, out)?;
                    out.write_all(action)?;
                }
                Some(value) => {
                    out.write_all(&action[..action.len() - token(Special::FrameSep).len()])?;
                    out.write_all(token(Special::ArgSep))?;
                    write_string(value, out)?;
                    out.write_all(token(Special::FrameSep))?;
                }
            }
        }
        if trace.is_complete() {
            out.write_all(token(Special::EndOfText))?;
        }
        Ok(())
    }

    /// Returns the length of the text form in bytes.
    pub fn text_len(&mut self) -> usize {
        let mut count = Count(0);
        self.write_text(&mut count).expect("counting cannot fail");
        count.0
    }

    /// Returns whether the text form is ASCII. Only source text can contain other characters.
    pub fn is_ascii(&self) -> bool {
        self.trace.context.is_ascii() && self.trace.lines().iter().all(|line| line.text.is_ascii())
    }
}

/// Returns the end of a CALL or LINE frame at a source line.
fn action(line: &str) -> String {
    [Special::ActionSep.name(), line, Special::FrameSep.name()].concat()
}

fn json(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("JSON is written in ASCII")
}

/// Counts the bytes written to it.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
