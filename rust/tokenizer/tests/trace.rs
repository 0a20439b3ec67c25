//! Encoding and parsing of traces.

use std::sync::LazyLock;

use cwm_tokenizer::{LLAMA3_PATTERN, PieceCounts, Splitter, Tokenizer, cwm_special_tokens};
use cwm_trace::{Part, Special, Trace, parse_text};
use proptest::prelude::*;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut pieces = PieceCounts::new(Splitter::new(LLAMA3_PATTERN).unwrap());
    pieces
        .add("{\"n\": \"..\"} {\"n\": \"1\", \"s\": \"'a'\"} return s * 2\n \"'aa'\" def f(n):\n")
        .unwrap();
    let (vocab, splitter) = pieces.train(300, |_| true).unwrap();
    Tokenizer::with_special_names(vocab, splitter, cwm_special_tokens()).unwrap()
});

fn ids(tokens: &[u32]) -> Vec<i32> {
    tokens.iter().map(|&id| id as i32).collect()
}

fn decode(tokens: &[u32]) -> String {
    String::from_utf8(TOKENIZER.decode_bytes(&ids(tokens)).unwrap()).unwrap()
}

/// Generates traces in the text form, without special tokens in their parts.
fn documents() -> impl Strategy<Value = String> {
    let text = r"[a-c \\n='é\n]{0,6}";
    let json = r"[a-c .'é]{0,4}";
    let locals = (prop::collection::btree_map("[a-d1_}]{1,2}", json, 0..4)).prop_map(|pairs| {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("\"{name}\": \"{value}\""))
            .collect();
        format!("{{{}}}", pairs.join(", "))
    });
    let frame = (0usize..4, locals, text, json).prop_map(|(event, locals, line, value)| match event {
        0 => format!("<|call_sep|>{locals}<|action_sep|>{line}\n<|frame_sep|>"),
        1 => format!("<|line_sep|>{locals}<|action_sep|>{line}\n<|frame_sep|>"),
        2 => format!("<|return_sep|><|action_sep|>{line}\n<|arg_sep|>\"{value}\"<|frame_sep|>"),
        _ => format!("<|exception_sep|><|action_sep|><|arg_sep|>\"{value}\"<|frame_sep|>"),
    });
    (text, prop::collection::vec(frame, 0..8)).prop_map(|(context, frames)| {
        let frames = frames.concat();
        format!("<|begin_of_text|><|trace_context_start|>{context}<|frame_sep|>{frames}<|end_of_text|>")
    })
}

fn parsed(document: &str) -> Trace {
    let parsed = parse_text(document);
    assert_eq!(parsed.error, None, "{document}");
    parsed.trace
}

proptest! {
    #[test]
    fn ids_are_those_of_the_parts(document in documents()) {
        let trace = parsed(&document);
        let mut expected = Vec::new();
        trace.for_each_part(|part| match part {
            Part::Special(special) => expected.push(TOKENIZER.special_tokens().id(special.name()).unwrap()),
            Part::Text(text) | Part::Line(_, text) => expected.extend(TOKENIZER.encode(text, None).unwrap()),
        });
        prop_assert_eq!(TOKENIZER.encode_trace(&trace).unwrap(), expected);
    }

    #[test]
    fn traces_survive_and_spans_are_the_parts(document in documents()) {
        let trace = parsed(&document);
        let tokens = TOKENIZER.trace_tokens(&trace).unwrap();
        prop_assert_eq!(decode(&tokens.ids), trace.to_text());

        let again = TOKENIZER.parse_trace(&ids(&tokens.ids));
        prop_assert_eq!(again.error, None);
        prop_assert!(again.complete);
        prop_assert_eq!(&again.trace, &trace);

        // Each part is encoded separately, and its span is its position.
        prop_assert_eq!(decode(&tokens.ids[2..tokens.context - 1]), trace.context.clone());
        prop_assert_eq!(tokens.frames.len(), trace.len());
        for (frame, spans) in trace.frames().zip(&tokens.frames) {
            let action = &tokens.ids[spans.action.clone()];
            prop_assert_eq!(action, TOKENIZER.encode(&frame.line().text, None).unwrap());
            prop_assert_eq!(spans.state.is_some(), frame.event().has_locals());
            prop_assert_eq!(spans.value.is_some(), !frame.event().has_locals());
            let part = spans.state.clone().or(spans.value.clone()).unwrap();
            let json = decode(&tokens.ids[part.clone()]);
            prop_assert_eq!(&tokens.ids[part], TOKENIZER.encode(&json, None).unwrap());
            prop_assert_eq!(json.starts_with('{'), frame.event().has_locals());
        }
    }

    /// Ids that are truncated and changed anywhere still yield the frames before the damage.
    #[test]
    fn any_ids_give_the_longest_well_formed_prefix(
        document in documents(), at in any::<prop::sample::Index>(), id in -2i32..700, cut in any::<bool>()
    ) {
        let trace = parsed(&document);
        let mut ids = ids(&TOKENIZER.encode_trace(&trace).unwrap());
        let at = at.index(ids.len());
        let separator = TOKENIZER.special_tokens().id("<|frame_sep|>").unwrap() as i32;
        let whole = ids[..at].iter().filter(|&&id| id == separator).count().saturating_sub(1);
        if cut { ids.truncate(at) } else { ids[at] = id }
        let parsed = TOKENIZER.parse_trace(&ids);
        prop_assert!(parsed.trace.len() >= whole);
        prop_assert!(parsed.trace.frames().zip(trace.frames()).take(whole).all(|(a, b)| a == b));
        if let Some(error) = parsed.error {
            prop_assert!(error.offset <= ids.len());
        }
    }

    #[test]
    fn noise_is_parsed_too(ids in prop::collection::vec(prop_oneof![-1i32..700, 290i32..420], 0..200)) {
        let parsed = TOKENIZER.parse_trace(&ids);
        prop_assert!(parsed.error.is_none_or(|error| error.offset <= ids.len()));
    }
}

#[test]
fn special_text_in_a_program_is_ordinary() {
    let trace = Trace::new("print('<|frame_sep|>')  # << START_OF_TRACE\n".into());
    let tokens = TOKENIZER.trace_tokens(&trace).unwrap();
    let separator = TOKENIZER.special_tokens().id(Special::FrameSep.name()).unwrap();
    assert_eq!(tokens.ids.iter().filter(|&&id| id == separator).count(), 1);
    let again = TOKENIZER.parse_trace(&ids(&tokens.ids));
    assert_eq!(again.trace.context, trace.context);
}

#[test]
fn a_vocabulary_without_the_tokens_of_traces_says_so() {
    let tokenizer = Tokenizer::with_special_names(
        TOKENIZER.vocabulary().clone(),
        Splitter::new(LLAMA3_PATTERN).unwrap(),
        vec!["<|begin_of_text|>".into()],
    )
    .unwrap();
    let error = tokenizer.encode_trace(&Trace::default()).unwrap_err();
    assert!(error.to_string().contains("<|end_of_text|>"), "{error}");
    assert!(tokenizer.parse_trace(&[1, 2, 3]).error.is_some());
}
