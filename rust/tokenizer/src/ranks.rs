//! Rank files of tiktoken: one line per token, with its bytes in base64, a space, and its id.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::{Error, Result};
use crate::vocab::{MergeOrder, Vocabulary};

/// The empty token in a file. An empty column could not be parsed, and tiktoken decodes padding to no bytes.
const EMPTY: &[u8] = b"=";

/// Parses a rank file.
///
/// # Errors
///
/// `Damaged` if the file is not a valid vocabulary.
pub fn parse_ranks(file: &[u8]) -> Result<Vocabulary> {
    let mut entries = Vec::new();
    for (line, number) in file.split(|&byte| byte == b'\n').zip(1..) {
        let line = line.trim_ascii();
        if !line.is_empty() {
            let entry = parse_line(line).map_err(|why| Error::Damaged(format!("line {number}: {why}")))?;
            entries.push(entry);
        }
    }
    Vocabulary::new(entries, MergeOrder::ById, true).map_err(Error::in_file)
}

fn parse_line(line: &[u8]) -> std::result::Result<(Vec<u8>, u32), String> {
    let space = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .ok_or("expected a space between the token and its rank")?;
    let (token, rank) = line.split_at(space);
    let token = match token {
        EMPTY => Vec::new(),
        token => STANDARD.decode(token).map_err(|why| format!("invalid base64: {why}"))?,
    };
    let rank = std::str::from_utf8(rank.trim_ascii())
        .ok()
        .and_then(|rank| rank.parse().ok());
    Ok((token, rank.ok_or("expected a rank below 2^32")?))
}

/// Returns the rank file of `vocab`, which contains neither special tokens nor a split pattern.
pub fn write_ranks(vocab: &Vocabulary) -> Result<Vec<u8>> {
    vocab.check_order_by_id()?;
    let mut file = String::new();
    for (token, id) in vocab.iter() {
        match token {
            [] => file.push('='),
            token => STANDARD.encode_string(token, &mut file),
        }
        file.push_str(&format!(" {id}\n"));
    }
    Ok(file.into_bytes())
}
