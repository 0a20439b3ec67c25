//! Checks that any trace is equal after a round trip through its stored form, its parts, and its text.
#![no_main]

use cwm_trace::{
    Event, Line, Outcome, Part, Piece, TokenParser, Trace, from_bytes, parse_text, push_code_point, to_bytes,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Text in UTF-16, so that lone surrogates occur.
type Units = Vec<u16>;

#[derive(Arbitrary, Debug)]
struct Recording {
    context: String,
    lines: Vec<String>,
    frames: Vec<Frame>,
    result: Option<Units>,
    truncated: bool,
    output: Option<String>,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Locals {
        is_call: bool,
        line: u8,
        variables: Vec<(Units, Option<Units>)>,
    },
    Value {
        is_return: bool,
        line: u8,
        value: Units,
    },
}

/// Converts to UTF-8 that may contain lone surrogates. Drops `<`, so that no text looks like a special token.
fn text(units: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    for unit in char::decode_utf16(units.iter().copied().filter(|&unit| unit != b'<' as u16)) {
        push_code_point(
            unit.map_or_else(|lone| lone.unpaired_surrogate().into(), u32::from),
            &mut out,
        );
    }
    out
}

fn build(recording: &Recording) -> Trace {
    let mut trace = Trace::new(recording.context.replace('<', ""));
    trace.outcome = recording.result.as_deref().map(|units| Outcome::Returned(text(units)));
    trace.truncated = recording.truncated.then(|| "max_frames".to_owned());
    trace.output = recording.output.clone();
    // Parsed traces have no line numbers.
    let lines = recording
        .lines
        .iter()
        .map(|line| line.replace('<', ""))
        .chain([String::new()]);
    let lines: Vec<u32> = lines.map(|text| trace.add_line(Line { number: 0, text })).collect();
    let line_id = |line: u8| lines[line as usize % lines.len()];
    for frame in &recording.frames {
        match frame {
            Frame::Locals {
                is_call,
                line,
                variables,
            } => {
                let mut shape = Vec::new();
                for (name, value) in variables {
                    let name = trace.intern_name(&text(name));
                    if shape.contains(&name) {
                        continue;
                    }
                    // In the text form, a value whose text is `..` is indistinguishable from an unchanged value.
                    if let Some(value) = value.as_deref().map(text).filter(|value| value != b"..") {
                        trace.open_value().extend_from_slice(&value);
                        trace.keep_change(shape.len() as u32);
                    }
                    shape.push(name);
                }
                let shape = trace.intern_shape(&shape);
                trace.push_locals_frame(if *is_call { Event::Call } else { Event::Line }, line_id(*line), shape);
            }
            Frame::Value { is_return, line, value } => {
                trace.open_value().extend_from_slice(&text(value));
                trace.push_value_frame(
                    if *is_return { Event::Return } else { Event::Exception },
                    line_id(*line),
                );
            }
        }
    }
    trace
}

fuzz_target!(|recording: Recording| {
    let trace = build(&recording);
    let stored = to_bytes(&trace).expect("a trace can be stored");
    assert!(from_bytes(&stored).as_ref() == Ok(&trace));

    let mut parser = TokenParser::default();
    let mut offset = 0;
    trace.for_each_part(|part| {
        let piece = match part {
            Part::Special(special) => Piece::Special(special),
            Part::Text(text) | Part::Line(_, text) => Piece::Bytes(text.as_bytes()),
        };
        assert!(parser.feed(offset, piece));
        offset += 1;
    });
    for parsed in [parser.finish(), parse_text(&trace.to_text())] {
        assert_eq!(parsed.error, None);
        assert_eq!(parsed.complete, trace.is_complete());
        assert_eq!(parsed.trace.context, trace.context);
        assert!(parsed.trace.frames().eq(trace.frames()));
    }
});
