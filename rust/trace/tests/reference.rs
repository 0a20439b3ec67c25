//! Checks that the parser returns the same frames as a simple parser, and the same error at the same offset.

use cwm_trace::ParseErrorKind::{self, *};
use cwm_trace::{Event, Shown, Special, Trace, parse_text};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Event, variables of a CALL or LINE frame, source line, and value of a RETURN or EXCEPTION frame.
type Frame = (Event, Pairs, String, Option<Vec<u8>>);

type Failure = (ParseErrorKind, String);

/// Frames, whether the end token follows them, and the offset and reason of the error, if any.
type Reading = (Vec<Frame>, bool, Option<(usize, Failure)>);

fn failure(kind: ParseErrorKind, reason: impl Into<String>) -> Failure {
    (kind, reason.into())
}

fn reference(text: &str) -> Reading {
    let mut frames = Vec::new();
    let mut at = 0;
    let begin = Special::BeginOfText.name().to_owned() + Special::ContextStart.name();
    if text.starts_with(&begin) {
        match text.find(Special::FrameSep.name()) {
            Some(end) => at = end + Special::FrameSep.name().len(),
            None => {
                let error = failure(UnclosedContext, "the input ends inside the context");
                return (frames, false, Some((0, error)));
            }
        }
    }
    while at < text.len() {
        let rest = &text[at..];
        if rest == Special::EndOfText.name() {
            return (frames, true, None);
        }
        if rest.starts_with(Special::EndOfText.name()) {
            let error = failure(TrailingInput, "the end token is not the last one");
            return (frames, false, Some((at, error)));
        }
        let Some((body, _)) = rest.split_once(Special::FrameSep.name()) else {
            let error = failure(UnclosedFrame, "the input ends inside a frame");
            return (frames, false, Some((at, error)));
        };
        match frame(body) {
            Ok(frame) => frames.push(frame),
            Err(error) => return (frames, false, Some((at, error))),
        }
        at += body.len() + Special::FrameSep.name().len();
    }
    (frames, false, None)
}

fn frame(body: &str) -> Result<Frame, Failure> {
    let is_event = |e: &Event| body.starts_with(e.special().name());
    let event = Event::ALL.into_iter().find(is_event);
    let event = event.ok_or_else(|| failure(InvalidStructure, "a frame must start with an event token"))?;
    let body = &body[event.special().name().len()..];
    let (state, action) = body
        .split_once(Special::ActionSep.name())
        .ok_or_else(|| failure(InvalidStructure, "missing <|action_sep|> after the locals"))?;
    let (line, value) = match action.split_once(Special::ArgSep.name()) {
        Some((line, value)) => (line, Some(value)),
        None => (action, None),
    };
    let malformed = |kind, reason: &str| Err((kind, format!("malformed {} frame: {reason}", event.name())));
    match (event.has_locals(), value) {
        (true, Some(_)) => malformed(InvalidStructure, "unexpected value"),
        (true, None) => match object(&state.chars().collect::<Vec<_>>()) {
            Ok(pairs) => Ok((event, pairs, line.to_owned(), None)),
            Err(reason) => {
                let reason = format!("the locals are not a JSON object of strings: {reason}");
                malformed(InvalidLocals, &reason)
            }
        },
        (false, _) if !state.is_empty() => malformed(InvalidStructure, "unexpected locals"),
        (false, None) => malformed(InvalidStructure, "missing value"),
        (false, Some(value)) => match whole_string(&value.chars().collect::<Vec<_>>()) {
            Ok(value) => Ok((event, Vec::new(), line.to_owned(), Some(value))),
            Err(reason) => malformed(InvalidValue, &format!("the value is not a JSON string: {reason}")),
        },
    }
}

fn object(text: &[char]) -> Result<Pairs, &'static str> {
    let mut pairs = Vec::new();
    let rest = text.strip_prefix(&['{']).ok_or("expected '{'")?;
    let mut rest = space(rest);
    while rest.first() != Some(&'}') {
        if !pairs.is_empty() {
            rest = space(rest.strip_prefix(&[',']).ok_or("expected ',' or '}' after a value")?);
        }
        let (name, after) = string(rest)?;
        let after = space(after)
            .strip_prefix(&[':'])
            .ok_or("expected ':' after a variable name")?;
        let (value, after) = string(space(after))?;
        pairs.push((name, value));
        rest = space(after);
    }
    end(&rest[1..])?;
    let twice = |(i, (name, _)): (usize, &(Vec<u8>, _))| pairs[..i].iter().any(|(other, _)| other == name);
    match pairs.iter().enumerate().any(twice) {
        true => Err("duplicate variable name"),
        false => Ok(pairs),
    }
}

fn whole_string(text: &[char]) -> Result<Vec<u8>, &'static str> {
    let (value, rest) = string(space(text))?;
    end(rest).map(|()| value)
}

fn end(rest: &[char]) -> Result<(), &'static str> {
    if space(rest).is_empty() {
        Ok(())
    } else {
        Err("unexpected text after the JSON value")
    }
}

fn space(text: &[char]) -> &[char] {
    let plain = text.iter().position(|c| !" \t\n\r".contains(*c)).unwrap_or(text.len());
    &text[plain..]
}

/// Returns a string and the rest: decodes to UTF-16, as JSON defines, then to UTF-8 that may contain lone surrogates.
fn string(text: &[char]) -> Result<(Vec<u8>, &[char]), &'static str> {
    let mut rest = text.strip_prefix(&['"']).ok_or("expected a JSON string")?;
    let mut units: Vec<u16> = Vec::new();
    loop {
        let (&first, after) = rest.split_first().ok_or("unterminated JSON string")?;
        rest = after;
        match first {
            '"' => break,
            '\\' => {
                let (&kind, after) = rest.split_first().ok_or("unterminated JSON string")?;
                rest = after;
                units.push(match kind {
                    '"' | '\\' | '/' => kind as u16,
                    'b' => 8,
                    'f' => 12,
                    'n' => 10,
                    'r' => 13,
                    't' => 9,
                    'u' => {
                        let digits: String = rest.iter().take(4).collect();
                        // An escape is incomplete if fewer than four bytes follow it, even if they are invalid.
                        if rest.iter().map(|c| c.len_utf8()).sum::<usize>() < 4 {
                            return Err("incomplete \\u escape in a JSON string");
                        }
                        if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                            return Err("invalid \\u escape in a JSON string");
                        }
                        rest = &rest[4..];
                        u16::from_str_radix(&digits, 16).unwrap()
                    }
                    _ => return Err("unknown escape in a JSON string"),
                });
            }
            '\0'..' ' => return Err("control character in a JSON string"),
            _ => units.extend_from_slice(first.encode_utf16(&mut [0; 2])),
        }
    }
    let mut out = Vec::new();
    for unit in char::decode_utf16(units) {
        cwm_trace::push_code_point(
            unit.map_or_else(|lone| lone.unpaired_surrogate().into(), u32::from),
            &mut out,
        );
    }
    Ok((out, rest))
}

fn frames_of(trace: &Trace) -> Vec<Frame> {
    let shown = |shown: Shown<'_>| match shown {
        Shown::Unchanged => b"..".to_vec(),
        Shown::Text(text) => text.to_vec(),
    };
    let locals = |frame: cwm_trace::FrameRef<'_>| {
        let pairs = frame.locals().map(|(name, value)| (name.to_vec(), shown(value)));
        (
            frame.event(),
            pairs.collect(),
            frame.line().text.clone(),
            frame.arg().map(<[u8]>::to_vec),
        )
    };
    trace.frames().map(locals).collect()
}

fn compare(text: &str) -> Result<(), TestCaseError> {
    let (frames, complete, error) = reference(text);
    let parsed = parse_text(text);
    prop_assert_eq!(frames_of(&parsed.trace), frames);
    prop_assert_eq!(parsed.complete, complete);
    prop_assert_eq!(parsed.error.map(|e| (e.offset, (e.kind, e.reason))), error);
    Ok(())
}

/// Generates JSON strings, and strings with errors.
fn json() -> impl Strategy<Value = String> {
    let pieces = [
        "\"",
        "\"",
        "\\",
        "\\u",
        "\\ud83d",
        "\\ude00",
        "\\u00e9",
        "00e9",
        "a",
        "é",
        "😀",
        "..",
        "\\n",
        "\\/",
        "\\x",
        "\n",
        "long enough for a word of eight bytes",
        " ",
        "<|",
        "<|arg_sep|>",
    ];
    let inner = vec(select(pieces.to_vec()), 0..5).prop_map(|pieces| pieces.concat());
    let plain = select(vec![
        "\"..\"",
        "\"1\"",
        "\"a\"",
        "\"b\"",
        "\"\\u0061\"",
        "\"\\u002e.\"",
        "\"\"",
    ]);
    prop_oneof![4 => plain.prop_map(str::to_owned), 1 => inner.prop_map(|inner| format!("\"{inner}\""))]
}

fn state() -> impl Strategy<Value = String> {
    let joint = || select(vec![", ", ", ", ", ", ",", " ,\n", "", ",,"]);
    let colon = || select(vec![": ", ": ", ": ", ":", " :\t", ""]);
    let pairs = vec((json(), colon(), json(), joint()), 0..4);
    let object = pairs.prop_map(|pairs| {
        let pairs: Vec<String> = pairs.into_iter().map(|(n, c, v, j)| n + c + &v + j).collect();
        let inner = pairs.concat();
        format!("{{{}}}", inner.strip_suffix(", ").unwrap_or(&inner))
    });
    prop_oneof![8 => object, 1 => json(), 1 => Just(String::new()), 1 => Just("{ } \n".to_owned()), 1 => Just("{}x".to_owned())]
}

fn frame_text() -> impl Strategy<Value = String> {
    let line = select(vec!["x = 1\n", "", "y", "é <| z\n"]);
    let locals = (select(vec!["<|call_sep|>", "<|line_sep|>"]), state(), line.clone())
        .prop_map(|(event, state, line)| format!("{event}{state}<|action_sep|>{line}<|frame_sep|>"));
    let value = (select(vec!["<|return_sep|>", "<|exception_sep|>"]), json(), line)
        .prop_map(|(event, value, line)| format!("{event}<|action_sep|>{line}<|arg_sep|>{value}<|frame_sep|>"));
    prop_oneof![4 => locals, 1 => value]
}

fn document() -> impl Strategy<Value = String> {
    let tokens = Special::ALL.map(|special| special.name().to_owned()).to_vec();
    let piece = prop_oneof![12 => frame_text(), 1 => select(tokens), 1 => any::<String>()];
    vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn frames_and_errors_equal_those_of_a_plain_parser(text in document()) {
        compare(&text)?;
    }

    /// Removes or replaces one character of a well-formed document, which reaches each error inside JSON.
    #[test]
    fn errors_in_damaged_frames_equal_those_of_a_plain_parser(
        frames in vec(frame_text().prop_filter("good", |text| frame(&text[..text.len() - 13]).is_ok()), 1..6),
        at in any::<prop::sample::Index>(),
        other in select(vec!["", "\"", "\\", "{", "}", ",", ":", "<", "|", "u", "\n", "é"]),
    ) {
        let text = frames.concat();
        let (at, old) = text.char_indices().nth(at.index(text.chars().count())).unwrap();
        compare(&[&text[..at], other, &text[at + old.len_utf8()..]].concat())?;
    }
}

/// Checks twenty names and a duplicate.
#[test]
fn a_duplicate_name_among_many_is_an_error() {
    let pairs: Vec<String> = (0..20).chain([7]).map(|i| format!("\"v{i}\": \"1\"")).collect();
    let text = format!("<|call_sep|>{{{}}}<|action_sep|>f\n<|frame_sep|>", pairs.join(", "));
    compare(&text).unwrap();
    assert!(
        parse_text(&text)
            .error
            .unwrap()
            .reason
            .ends_with("duplicate variable name")
    );
}
