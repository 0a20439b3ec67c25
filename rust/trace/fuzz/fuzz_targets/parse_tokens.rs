//! Checks that the parser accepts any pieces, and that the frames before an error are well formed.
#![no_main]

use cwm_trace::{Parsed, Piece, Special, TokenParser, resolve};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Token {
    Special(u8),
    Foreign,
    Bytes(Vec<u8>),
}

fn parse(tokens: &[Token]) -> Parsed {
    let mut parser = TokenParser::default();
    for (offset, token) in tokens.iter().enumerate() {
        let piece = match token {
            Token::Special(id) => Piece::Special(Special::ALL[*id as usize % Special::ALL.len()]),
            Token::Foreign => Piece::Foreign(7),
            Token::Bytes(bytes) => Piece::Bytes(bytes),
        };
        parser.feed(offset, piece);
    }
    parser.finish()
}

fuzz_target!(|tokens: Vec<Token>| {
    let parsed = parse(&tokens);
    resolve(&parsed.trace);
    if let Some(error) = parsed.error {
        let before = parse(&tokens[..error.offset]);
        assert_eq!(before.error, None);
        assert!(before.trace == parsed.trace);
    }
});
