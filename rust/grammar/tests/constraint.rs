//! Constraints over small vocabularies, compared with the strict parser, which defines well-formed traces.

use std::sync::{Arc, LazyLock};

use cwm_grammar::{Constraint, Grammar, Lines};
use cwm_tokenizer::{LLAMA3_PATTERN, MergeOrder, Splitter, Tokenizer, Vocabulary, cwm_special_tokens};
use cwm_trace::{Event, Special, resolve};
use proptest::prelude::*;

/// Tokens that cross one or more boundaries of JSON, and parts of characters and escapes.
const CROSSING: [&[u8]; 39] = [
    b"{\"",
    b"\": \"",
    b"\":\"",
    b"\", \"",
    b"\",\"",
    b"\"}",
    b"{}",
    b"\"\"",
    b"\":",
    b" \"",
    b": \"",
    b"..",
    b"..\"",
    b".\"}",
    b"..\", \"",
    b"\"..\"",
    b"a\"",
    b"b\": \"",
    b"\": \"..\", \"",
    b"\": \"..\"",
    b"{\"a\": \"..\"}",
    b"{\"..\": \"..\"",
    b"\"a\":\"\",\"a\":\"\"",
    b"\"b\":\"\",\"a\":\"..\"",
    b"{\"a\":\"1\"}",
    b"\"\\ud83d\\ude00\":\"",
    b"\xf0\x9f\x98\x80\"",
    b"\\u",
    b"\\u00",
    b"002e",
    b"2e\"",
    b"\\ud83d",
    b"\\ude00\"",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xed\xa0",
    b"\\\"",
    b"return 1\n",
    b"  ",
];

const ORDINARY: u32 = 256 + CROSSING.len() as u32;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut texts: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    texts.extend(CROSSING.map(<[u8]>::to_vec));
    let vocabulary = Vocabulary::new(texts.into_iter().zip(0..), MergeOrder::Listed(vec![]), false).unwrap();
    Tokenizer::with_special_names(vocabulary, Splitter::new(LLAMA3_PATTERN).unwrap(), cwm_special_tokens()).unwrap()
});
static GRAMMAR: LazyLock<Arc<Grammar>> = LazyLock::new(|| Arc::new(Grammar::new(&TOKENIZER).unwrap()));

const SOURCE: [&str; 5] = ["\n", "def f():\n", "    return 1\n", "    return 12\n", "é\n"];

fn special(special: Special) -> u32 {
    TOKENIZER.special_tokens().id(special.name()).unwrap()
}

fn ids(pieces: &[Result<Special, &[u8]>]) -> Vec<u32> {
    pieces
        .iter()
        .flat_map(|piece| match piece {
            Ok(token) => vec![special(*token)],
            Err(text) => text.iter().map(|&byte| byte.into()).collect(),
        })
        .collect()
}

/// Returns whether the parser accepts the tokens as a complete trace, and every `..` has a value.
fn is_well_formed(ids: &[u32]) -> bool {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let parsed = TOKENIZER.parse_trace(&ids);
    let shown = |(state, event): (&Option<_>, Event)| state.is_some() || !event.has_locals();
    parsed.complete
        && parsed.error.is_none()
        && resolve(&parsed.trace)
            .iter()
            .zip(parsed.trace.frames().map(|frame| frame.event()))
            .all(shown)
}

/// Texts, one of which completes any prefix of a part: a partial character, then an escape, then the JSON around it.
fn part_endings() -> Vec<Vec<u8>> {
    let mut within: Vec<Vec<u8>> = vec![vec![]];
    for first in [0x80, 0x90, 0xa0] {
        within.extend((0..3).map(|tail| [vec![first], vec![0x80; tail]].concat()));
    }
    within.extend([b"n".to_vec()]);
    within.extend((1..=4).map(|digits| vec![b'1'; digits]));
    let around = [
        &b""[..],
        b"{}",
        b"}",
        b"Zq\":\"\"}",
        b":\"\"}",
        b"\"\"}",
        b"Zq\"}",
        b"\"Zq\":\"\"}",
        b"\"\"",
        b"Zq\"",
    ];
    let all = within.iter().flat_map(|w| around.iter().map(|a| [w, *a].concat()));
    all.collect()
}

/// Returns whether some continuation of the tokens is well formed. Slow: uses only the parser.
fn can_be_completed(tokens: &[u32]) -> bool {
    use Special::*;
    let as_special = |&token: &u32| Special::ALL.into_iter().find(|&s| special(s) == token);
    let last = tokens.iter().rev().find_map(as_special);
    let after: Vec<Vec<u32>> = match last {
        None | Some(FrameSep) => vec![ids(&[Ok(EndOfText)])],
        Some(BeginOfText) => vec![ids(&[Ok(ContextStart), Ok(FrameSep), Ok(EndOfText)])],
        Some(ContextStart | ArgSep) => vec![ids(&[Ok(FrameSep), Ok(EndOfText)])],
        Some(CallSep | LineSep) => vec![ids(&[Ok(ActionSep), Ok(FrameSep), Ok(EndOfText)])],
        Some(ReturnSep | ExceptionSep) => vec![ids(&[
            Ok(ActionSep),
            Ok(ArgSep),
            Err(b"\"\""),
            Ok(FrameSep),
            Ok(EndOfText),
        ])],
        Some(ActionSep) => vec![
            ids(&[Ok(FrameSep), Ok(EndOfText)]),
            ids(&[Ok(ArgSep), Err(b"\"\""), Ok(FrameSep), Ok(EndOfText)]),
        ],
        Some(EndOfText) => vec![vec![]],
    };
    part_endings().iter().any(|text| {
        let text = ids(&[Err(text)]);
        after
            .iter()
            .any(|after| is_well_formed(&[tokens, &text, after].concat()))
    })
}

fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let mut mask = vec![u64::MAX; GRAMMAR.mask_words()];
    constraint.allowed(&mut mask);
    let is_set = |id: &u32| mask[*id as usize / 64] >> (id % 64) & 1 == 1;
    let all: Vec<u32> = (0..mask.len() as u32 * 64).filter(is_set).collect();
    let one_by_one = (0..mask.len() as u32 * 64).filter(|&id| constraint.allows(id));
    assert!(one_by_one.eq(all.iter().copied()));
    all
}

/// Generates tokens: each number chooses among the allowed tokens, where favored tokens count several times.
fn generate(lines: Option<&Arc<Lines>>, choices: &[(u16, u8)]) -> (Constraint, Vec<u32>) {
    let mut constraint = Constraint::new(GRAMMAR.clone(), lines.cloned());
    let mut tokens = Vec::new();
    for &(choice, kind) in choices {
        let all = allowed(&mut constraint);
        let likely: Vec<u32> = all.iter().copied().filter(|&id| is_likely(id, kind)).collect();
        let from = if likely.is_empty() { &all } else { &likely };
        if from.is_empty() {
            break;
        }
        let token = from[usize::from(choice) % from.len()];
        constraint.advance(token).unwrap();
        tokens.push(token);
    }
    (constraint, tokens)
}

/// Three kinds of choices: any token, tokens with a meaning in JSON, and tokens that lead to the next part.
fn is_likely(id: u32, kind: u8) -> bool {
    let is_special = id >= ORDINARY && id != special(Special::EndOfText);
    match kind % 4 {
        0 => true,
        1 => is_special || u8::try_from(id).is_ok_and(|byte| b"{}\":,.\\au2ed83".contains(&byte)),
        2 => is_special || (256..ORDINARY).contains(&id),
        _ => is_special,
    }
}

fn choices(length: usize) -> impl Strategy<Value = Vec<(u16, u8)>> {
    prop::collection::vec((any::<u16>(), any::<u8>()), 0..length)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn allowed_is_what_the_parser_lets_be_completed(choices in choices(60)) {
        let (mut constraint, tokens) = generate(None, &choices);
        let allowed = allowed(&mut constraint);
        for id in 0..GRAMMAR.vocab_size() as u32 {
            // One special token represents all those that no trace contains.
            if TOKENIZER.special_tokens().name(id).is_some_and(|name| name.contains("reserved") && !name.contains("_2|")) {
                prop_assert!(!allowed.contains(&id));
                continue;
            }
            let tokens = [tokens.as_slice(), &[id]].concat();
            prop_assert_eq!(allowed.contains(&id), can_be_completed(&tokens), "{} after {:?}", id, tokens);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_generation_can_be_finished_and_is_well_formed(choices in choices(400), held in any::<bool>()) {
        let lines = Arc::new(Lines::new(SOURCE).unwrap());
        let (mut constraint, mut tokens) = generate(held.then_some(&lines), &choices);
        let ending: Vec<u32> = ids(&[Ok(Special::EndOfText), Ok(Special::ContextStart), Ok(Special::FrameSep), Ok(Special::ActionSep), Ok(Special::ArgSep), Err(b"\"}:{nZ0")]);
        while tokens.last() != Some(&special(Special::EndOfText)) {
            let all = allowed(&mut constraint);
            let token = *ending.iter().find(|id| all.contains(id)).or(all.last()).expect("a dead end");
            constraint.advance(token).unwrap();
            tokens.push(token);
            prop_assert!(tokens.len() < choices.len() + 60);
        }
        prop_assert!(allowed(&mut constraint).is_empty());
        prop_assert!(is_well_formed(&tokens));
        if held {
            let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
            let trace = TOKENIZER.parse_trace(&ids).trace;
            prop_assert!(trace.lines().iter().all(|line| line.text.is_empty() || SOURCE.contains(&line.text.as_str())));
        }
    }

    #[test]
    fn what_is_refused_changes_nothing(choices in choices(60), refused in prop::collection::vec(any::<u16>(), 1..20)) {
        let (mut constraint, tokens) = generate(None, &choices);
        let before = allowed(&mut constraint);
        for id in refused {
            let id = u32::from(id) % (GRAMMAR.vocab_size() as u32 + 2);
            let (mut fresh, _) = generate(None, &choices);
            if fresh.advance(id).is_err() {
                prop_assert!(!before.contains(&id));
                prop_assert!(constraint.advance(id).is_err());
            }
        }
        prop_assert_eq!(allowed(&mut constraint), before, "after {:?}", tokens);
    }
}

#[test]
fn a_prompt_may_hold_what_only_the_parser_takes() {
    use Special::*;
    let prompt = ids(&[
        Ok(CallSep),
        Err(b"{\"a\": \"..\"}"),
        Ok(ActionSep),
        Err(b"elsewhere\n"),
        Ok(FrameSep),
        Ok(LineSep),
    ]);
    let mut constraint = Constraint::new(GRAMMAR.clone(), Lines::new(SOURCE).map(Arc::new));
    for token in prompt {
        constraint.advance(token).unwrap();
    }
    // The frame showed it, so the next frame can refer to it.
    for token in ids(&[Err(b"{\"a\": \"..\"}")]) {
        assert!(allowed(&mut constraint).contains(&token));
        constraint.advance(token).unwrap();
    }
}

#[test]
fn vocabularies_without_the_special_tokens_are_refused() {
    let bytes = (0..=255).map(|byte| (vec![byte], byte.into()));
    let vocabulary = Vocabulary::new(bytes, MergeOrder::ById, true).unwrap();
    let tokenizer = Tokenizer::with_special_names(vocabulary, Splitter::new(LLAMA3_PATTERN).unwrap(), vec![]);
    assert!(Grammar::new(&tokenizer.unwrap()).is_err());
}
