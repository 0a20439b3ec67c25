//! Checks that random traces survive a round trip through every form, and that readers handle random bytes.

use cwm_trace::{
    Event, Line, Outcome, Parsed, Part, Piece, Renderer, Special, TokenParser, Trace, from_bytes, parse_text,
    push_code_point, resolve, state_at, to_bytes,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Frame to build: event, line number, variables as (name, value or unchanged), and value of a RETURN or EXCEPTION
/// frame.
type Spec = (u8, u32, Vec<(u8, Option<Vec<u8>>)>, Vec<u8>);

/// Generates text without special tokens, because the text form does not escape them.
fn plain_text() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace("<|", "<"))
}

/// Generates rendered values, which may contain lone surrogates because a `__repr__` can return them.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let surrogates = vec(0xd7f0u32..0xe010, 0..4).prop_map(|codes| {
        let mut out = Vec::new();
        for unit in char::decode_utf16(codes.into_iter().map(|code| code as u16)) {
            push_code_point(
                unit.map_or_else(|lone| lone.unpaired_surrogate().into(), u32::from),
                &mut out,
            );
        }
        out
    });
    prop_oneof![4 => plain_text().prop_map(String::into_bytes), 1 => surrogates]
}

fn spec() -> impl Strategy<Value = Spec> {
    let variables = vec((0u8..8, proptest::option::of(value())), 0..6);
    (0u8..4, 0u32..5, variables, value())
}

fn build(context: &str, specs: &[Spec]) -> Trace {
    let mut trace = Trace::new(context.to_owned());
    let lines: Vec<u32> = (0..5)
        .map(|n| {
            trace.add_line(Line {
                number: n,
                text: format!("line {n}\n"),
            })
        })
        .collect();
    for (event, line, variables, value) in specs {
        let event = Event::ALL[*event as usize];
        let line = lines[*line as usize];
        if event.has_locals() {
            let mut shape: Vec<u32> = Vec::new();
            for (name, value) in variables {
                let name = trace.intern_name(format!("v{name}").as_bytes());
                if shape.contains(&name) {
                    continue;
                }
                shape.push(name);
                if let Some(value) = value.as_ref().filter(|value| *value != b"..") {
                    trace.open_value().extend_from_slice(value);
                    trace.keep_change(shape.len() as u32 - 1);
                }
            }
            let shape = trace.intern_shape(&shape);
            trace.push_locals_frame(event, line, shape);
        } else {
            trace.open_value().extend_from_slice(value);
            trace.push_value_frame(event, line);
        }
    }
    trace
}

fn parse_parts(trace: &Trace) -> Parsed {
    let mut parser = TokenParser::default();
    let mut offset = 0;
    trace.for_each_part(|part| {
        let fed = match part {
            Part::Special(special) => parser.feed(offset, Piece::Special(special)),
            Part::Text(text) | Part::Line(_, text) => parser.feed(offset, Piece::Bytes(text.as_bytes())),
        };
        assert!(fed);
        offset += 1;
    });
    parser.finish()
}

/// Parses pieces. Kinds below 10 are special tokens, 10 is an unknown token, and other kinds are the bytes.
fn parse_pieces(pieces: &[(usize, Vec<u8>)]) -> Parsed {
    let mut parser = TokenParser::default();
    for (offset, (kind, bytes)) in pieces.iter().enumerate() {
        let piece = match kind {
            0..10 => Piece::Special(Special::ALL[*kind]),
            10 => Piece::Foreign(7),
            _ => Piece::Bytes(bytes),
        };
        parser.feed(offset, piece);
    }
    parser.finish()
}

/// Returns the content of the frames, without line numbers, which parsed traces do not have.
fn contents(trace: &Trace) -> Vec<String> {
    let show = |frame: cwm_trace::FrameRef<'_>| {
        format!(
            "{:?} {:?} {:?} {:?}",
            frame.event(),
            frame.line().text,
            frame.locals().collect::<Vec<_>>(),
            frame.arg()
        )
    };
    trace.frames().map(show).collect()
}

proptest! {
    #[test]
    fn stored_form_comes_back(
        context in any::<String>(),
        specs in vec(spec(), 0..20),
        value in any::<Vec<u8>>(),
        output in any::<Option<String>>(),
    ) {
        let mut trace = build(&context, &specs);
        trace.outcome = Some(Outcome::Raised(value));
        trace.truncated = (specs.len() > 10).then(|| "max_frames".to_owned());
        trace.output = output;
        prop_assert_eq!(from_bytes(&to_bytes(&trace).unwrap()).unwrap(), trace);
    }

    #[test]
    fn text_form_comes_back(context in plain_text(), specs in vec(spec(), 0..20)) {
        let trace = build(&context, &specs);
        let text = trace.to_text();
        let mut parts = String::new();
        trace.for_each_part(|part| parts.push_str(match part {
            Part::Special(special) => special.name(),
            Part::Text(text) | Part::Line(_, text) => text,
        }));
        prop_assert_eq!(&parts, &text);
        prop_assert_eq!(Renderer::new(&trace).text_len(), text.len());
        for parsed in [parse_text(&text), parse_parts(&trace)] {
            prop_assert_eq!(&parsed.error, &None);
            prop_assert!(parsed.complete);
            prop_assert_eq!(&parsed.trace.context, &context);
            prop_assert_eq!(contents(&parsed.trace), contents(&trace));
        }
    }

    #[test]
    fn a_cut_text_gives_whole_frames(specs in vec(spec(), 1..8), cut in 0.0f64..1.0) {
        let trace = build("c", &specs);
        let text = trace.to_text();
        let at = text.floor_char_boundary((text.len() as f64 * cut) as usize);
        let parsed = parse_text(&text[..at]);
        let whole = contents(&parsed.trace);
        prop_assert_eq!(&contents(&trace)[..whole.len()], &whole[..]);
        if let Some(error) = parsed.error {
            prop_assert!(error.offset <= at);
        }
    }

    #[test]
    fn any_text_is_total(pieces in vec(prop_oneof![
        any::<String>(), Just("{}".to_owned()), Just("\"\"".to_owned()),
        (0usize..10).prop_map(|i| Special::ALL[i].name().to_owned()),
    ], 0..12)) {
        let text = pieces.concat();
        let parsed = parse_text(&text);
        if let Some(error) = parsed.error {
            let before = parse_text(&text[..error.offset]);
            prop_assert_eq!(before.error, None);
            prop_assert_eq!(before.trace, parsed.trace);
        }
    }

    #[test]
    fn any_pieces_are_total(pieces in vec((0usize..12, any::<Vec<u8>>()), 0..12)) {
        let parsed = parse_pieces(&pieces);
        if let Some(error) = parsed.error {
            let before = parse_pieces(&pieces[..error.offset]);
            prop_assert_eq!(before.error, None);
            prop_assert_eq!(before.trace, parsed.trace);
        }
    }

    #[test]
    fn damaged_stored_forms_are_errors(specs in vec(spec(), 0..8), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = to_bytes(&build("context", &specs)).unwrap();
        prop_assert!(from_bytes(&bytes[..at.index(bytes.len())]).is_err());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(from_bytes(&bytes).is_err());
    }

    #[test]
    fn any_payload_is_total(
        specs in vec(spec(), 0..6),
        edits in vec((any::<prop::sample::Index>(), 0usize..3, vec(prop_oneof![0u8..8, any::<u8>()], 0..3)), 0..4),
    ) {
        let bytes = to_bytes(&build("c", &specs)).unwrap();
        let mut payload = payload_of(&bytes);
        for (at, removed, inserted) in edits {
            let at = at.index(payload.len() + 1);
            payload.splice(at..(at + removed).min(payload.len()), inserted);
        }
        use_if_read(&with_payload(&bytes, &payload));
    }

    #[test]
    fn a_state_alone_equals_all_states(specs in vec(spec(), 0..30)) {
        let trace = build("", &specs);
        for (index, state) in resolve(&trace).into_iter().enumerate() {
            let enclosed = trace.frames().take(index + 1).map(|f| f.event()).fold(0i32, |depth, event| match event {
                Event::Call => depth + 1,
                Event::Return => (depth - 1).max(0),
                _ => depth,
            });
            if enclosed > 0 {
                prop_assert_eq!(state_at(&trace, index), state);
            }
        }
    }
}

/// Checks the most common case in a data set: two integers, one of which changes in every second frame.
#[test]
fn a_loop_takes_less_than_three_bytes_a_frame() {
    let mut trace = Trace::new("def f():\n".into());
    let line = trace.add_line(Line {
        number: 1,
        text: "total += i\n".into(),
    });
    let names = [trace.intern_name(b"i"), trace.intern_name(b"total")];
    let shape = trace.intern_shape(&names);
    for i in 0..100_000u64 {
        if i % 2 == 0 {
            trace.open_value().extend_from_slice((i * i / 8).to_string().as_bytes());
            trace.keep_change(i as u32 / 2 % 2);
        }
        trace.push_locals_frame(Event::Line, line, shape);
    }
    let bytes = to_bytes(&trace).unwrap().len();
    assert!(bytes < 3 * trace.len(), "{bytes} bytes of {} frames", trace.len());
}

#[test]
fn a_context_that_is_not_closed_is_none() {
    let pieces = [(0, Vec::new()), (2, Vec::new()), (11, b"def f".to_vec())];
    let tokens = parse_pieces(&pieces);
    let text = parse_text("<|begin_of_text|><|trace_context_start|>def f");
    assert_eq!((tokens.trace, tokens.error), (Trace::default(), text.error));
    assert_eq!(text.trace, Trace::default());
}

/// Returns a stored trace with another payload and a valid checksum.
fn with_payload(file: &[u8], payload: &[u8]) -> Vec<u8> {
    let packed = zstd::bulk::compress(payload, 1).unwrap();
    let mut out = file[..12].to_vec();
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
    out.extend_from_slice(&packed);
    out
}

fn payload_of(file: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(&file[24..], 1 << 20).unwrap()
}

/// Checks that a trace read from a malicious file is usable, and can be written again.
fn use_if_read(file: &[u8]) {
    if let Ok(trace) = from_bytes(file) {
        trace.to_text();
        resolve(&trace);
        assert_eq!(from_bytes(&to_bytes(&trace).unwrap()), Ok(trace));
    }
}

/// Checks that every index and length is validated, and that nothing panics.
#[test]
fn hostile_payloads_are_errors() {
    let variables = vec![(0, Some(b"1".to_vec()))];
    let honest = build(
        "c",
        &[(0, 0, variables, Vec::new()), (2, 1, Vec::new(), b"None".to_vec())],
    );
    let bytes = to_bytes(&honest).unwrap();
    let payload = payload_of(&bytes);
    assert_eq!(from_bytes(&with_payload(&bytes, &payload)), Ok(honest));
    for at in 0..payload.len() {
        for value in [0u8, 1, 5, 0x7f, 0x80, 0xff] {
            let mut hostile = payload.clone();
            hostile[at] = value;
            use_if_read(&with_payload(&bytes, &hostile));
        }
    }
}
