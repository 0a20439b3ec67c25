//! `tokenizer.json`, the format of Hugging Face's `tokenizers`, for byte-level BPE. Loading rejects any other feature
//! by name, so every file that loads yields the ids of the library.

use std::fmt;
use std::sync::LazyLock;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::Tokenizer;
use crate::error::{Error, Result, invalid};
use crate::special::SpecialTokens;
use crate::split::{GPT2_PATTERN, Splitter};
use crate::vocab::{MergeOrder, Vocabulary};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Serialize, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Entries,
    merges: Vec<Pair>,
}

/// A JSON object from token to id. Keeps repeated names so that they can be rejected.
struct Entries(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object from token to id")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, id)| (token, id)))
    }
}

/// A merge in either notation: `"a b"`, or `["a", "b"]` since version 0.20 of `tokenizers`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Joined(String),
    Separate(String, String),
}

impl Pair {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Pair::Joined(text) => text.split_once(' '),
            Pair::Separate(left, right) => Some((left, right)),
        }
    }
}

/// Parses a `tokenizer.json`. Returns the tokenizer and a warning for each added token whose id in the file differs
/// from the id that the library assigns.
///
/// # Errors
///
/// `Damaged` if the file is not a valid vocabulary, `Vocabulary` if it uses an unsupported feature.
pub fn parse_json(file: &[u8]) -> Result<(Tokenizer, Vec<String>)> {
    let file: File =
        serde_json::from_slice(file).map_err(|why| Error::Damaged(format!("not a tokenizer.json: {why}")))?;
    if !file.normalizer.is_null() {
        return invalid(format!("normalizer {} is not supported", shown(&file.normalizer)));
    }
    refuse_other_models(&file.model)?;
    let splitter = Splitter::new(pattern(&file.pre_tokenizer)?)?;
    refuse_other_tokens(&file.added_tokens)?;
    let (special, renumbered) = number(&file.added_tokens, &file.model.vocab.0).map_err(Error::in_file)?;
    let names: FxHashSet<&str> = special.iter().map(|(name, _)| name.as_str()).collect();
    if file.model.ignore_merges {
        let in_vocabulary = file.model.vocab.0.iter().map(|(token, _)| token.as_str());
        refuse_pieces(in_vocabulary.filter(|token| names.contains(token)), &splitter)?;
    }
    let tokenizer = vocabulary(&file.model, &names)
        .and_then(|vocabulary| Tokenizer::new(vocabulary, splitter, SpecialTokens::new(special)?))
        .map_err(Error::in_file)?;
    Ok((tokenizer, renumbered))
}

/// Names and ids of added tokens, and the warnings about different ids in the file.
type Numbered = (Vec<(String, u32)>, Vec<String>);

/// Numbers added tokens as the library does, independent of the `id` in the file: a token in the vocabulary keeps its
/// id there, and the others get the ids from the size of the vocabulary on, in the order of the file.
fn number(added: &[AddedToken], vocab: &[(String, u32)]) -> Result<Numbered> {
    let ids: FxHashMap<&str, u32> = vocab.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    let names: FxHashMap<u32, &str> = vocab.iter().map(|(token, id)| (*id, token.as_str())).collect();
    let (mut next, mut renumbered) = (ids.len() as u32, Vec::new());
    let mut special = Vec::with_capacity(added.len());
    for AddedToken {
        content, id: stated, ..
    } in added
    {
        if names.get(stated).is_some_and(|name| name != content) {
            return invalid(format!(
                "added token {content:?} has the id {stated} of an ordinary token"
            ));
        }
        let id = ids.get(content.as_str()).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if id != *stated {
            renumbered.push(format!(
                "added token {content:?} has the id {stated} in the file; it gets the id {id}, as in the library tokenizers"
            ));
        }
        special.push((content.clone(), id));
    }
    Ok((special, renumbered))
}

/// Rejects special tokens in the vocabulary that a whole piece of ordinary text would produce.
fn refuse_pieces<'t>(names: impl Iterator<Item = &'t str>, splitter: &Splitter) -> Result<()> {
    for name in names {
        let Some(text) = to_bytes(name).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else {
            continue;
        };
        let mut pieces = 0;
        splitter.for_each(&text, |_| pieces += 1)?;
        if pieces == 1 {
            return invalid(format!(
                "ordinary text {text:?} would give the special token {name:?}: it is one piece, and in the vocabulary, \
                 with ignore_merges"
            ));
        }
    }
    Ok(())
}

fn refuse_other_models(model: &Model) -> Result<()> {
    let refused = match model {
        Model { kind: Some(kind), .. } if kind != "BPE" => format!("model type {kind:?}"),
        Model { dropout, .. } if !dropout.is_null() => "dropout".into(),
        Model { unk_token, .. } if !unk_token.is_null() => "unk_token".into(),
        Model {
            continuing_subword_prefix: Some(prefix),
            ..
        } if !prefix.is_empty() => "continuing_subword_prefix".into(),
        Model {
            end_of_word_suffix: Some(suffix),
            ..
        } if !suffix.is_empty() => "end_of_word_suffix".into(),
        Model {
            byte_fallback: true, ..
        } => "byte_fallback".into(),
        _ => return Ok(()),
    };
    invalid(format!("{refused} is not supported; the model must be byte-level BPE"))
}

/// Returns the split pattern of a pre-tokenizer that is `ByteLevel`, alone or after one `Split` by a regular
/// expression.
fn pattern(pre_tokenizer: &Value) -> Result<&str> {
    let kind = |value: &Value, kind: &str| value["type"] == *kind;
    // The library's defaults for missing keys.
    let is_plain_byte_level = |value: &Value, use_regex: bool| {
        kind(value, "ByteLevel")
            && !value["add_prefix_space"].as_bool().unwrap_or(true)
            && value["use_regex"].as_bool().unwrap_or(true) == use_regex
    };
    if is_plain_byte_level(pre_tokenizer, true) {
        return Ok(GPT2_PATTERN);
    }
    if kind(pre_tokenizer, "Sequence")
        && let Some([split, byte_level]) = pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice)
        && is_plain_byte_level(byte_level, false)
        && kind(split, "Split")
        && split["behavior"] == "Isolated"
        && split["invert"] == false
        && let Some(pattern) = split["pattern"]["Regex"].as_str()
    {
        return Ok(pattern);
    }
    invalid(format!("pre_tokenizer {} is not supported", shown(pre_tokenizer)))
}

fn refuse_other_tokens(added: &[AddedToken]) -> Result<()> {
    for token in added {
        let content = &token.content;
        if !token.special {
            return invalid(format!(
                "added token {content:?} is not special, so ordinary text would produce it: not supported"
            ));
        }
        if token.single_word || token.lstrip || token.rstrip {
            return invalid(format!(
                "added token {content:?} has single_word, lstrip or rstrip: not supported"
            ));
        }
    }
    Ok(())
}

fn vocabulary(model: &Model, special: &FxHashSet<&str>) -> Result<Vocabulary> {
    let ordinary = || {
        model
            .vocab
            .0
            .iter()
            .filter(|(token, _)| !special.contains(token.as_str()))
    };
    let entries: Result<Vec<_>> = ordinary().map(|(token, id)| Ok((to_bytes(token)?, *id))).collect();
    let ids: FxHashMap<&str, u32> = ordinary().map(|(token, id)| (token.as_str(), *id)).collect();
    let merges: Result<Vec<_>> = model
        .merges
        .iter()
        .enumerate()
        .map(|(rank, pair)| {
            let ids = pair
                .parts()
                .and_then(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?)));
            ids.ok_or_else(|| Error::Vocabulary(format!("merge {rank} is not a pair of tokens of the vocabulary")))
        })
        .collect();
    Vocabulary::new(entries?, MergeOrder::Listed(merges?), model.ignore_merges)
}

/// Returns a `tokenizer.json` that loads in `tokenizers` with the same ids.
pub fn write_json(tokenizer: &Tokenizer) -> Result<Vec<u8>> {
    let vocab = tokenizer.vocabulary();
    let name = |id: u32| vocab.token(id).map(to_chars).unwrap_or_default();
    let mut entries: Vec<_> = vocab.iter().map(|(token, id)| (to_chars(token), id)).collect();
    for (token, id) in &entries {
        if tokenizer.special_tokens().id(token).is_ok() {
            return invalid(format!(
                "special token {token:?} has the name of the ordinary token {id}"
            ));
        }
    }
    let mut ignore_merges = vocab.whole_pieces();
    // The library numbers added tokens from the size of the vocabulary on, unless the vocabulary contains them.
    let special: Vec<_> = tokenizer
        .special_tokens()
        .iter()
        .map(|(name, id)| (name.to_owned(), id))
        .collect();
    if !special
        .iter()
        .map(|&(_, id)| id as usize)
        .eq(entries.len()..entries.len() + special.len())
    {
        // A text that is one piece would produce them, unless only merges make tokens.
        if vocab.is_reached() {
            ignore_merges = false;
        } else if ignore_merges {
            refuse_pieces(special.iter().map(|(name, _)| name.as_str()), tokenizer.splitter())?;
        }
        entries.extend(special.iter().cloned());
        entries.sort_unstable_by_key(|&(_, id)| id);
    }
    let added_tokens: Vec<_> = special
        .into_iter()
        .map(|(content, id)| AddedToken {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        })
        .collect();
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = json!({
        "type": "Split", "pattern": {"Regex": tokenizer.splitter().for_tokenizers()?}, "behavior": "Isolated", "invert": false
    });
    let merges: Vec<String> = vocab
        .merges()
        .iter()
        .map(|merge| format!("{} {}", name(merge.left), name(merge.right)))
        .collect();

    #[derive(Serialize)]
    struct Written<'a> {
        version: &'a str,
        truncation: Value,
        padding: Value,
        added_tokens: Vec<AddedToken>,
        normalizer: Value,
        pre_tokenizer: Value,
        post_processor: Value,
        decoder: Value,
        model: WrittenModel<'a>,
    }
    #[derive(Serialize)]
    struct WrittenModel<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        dropout: Value,
        unk_token: Value,
        continuing_subword_prefix: Value,
        end_of_word_suffix: Value,
        fuse_unk: bool,
        byte_fallback: bool,
        ignore_merges: bool,
        vocab: Entries,
        merges: Vec<String>,
    }
    let written = Written {
        version: "1.0",
        truncation: Value::Null,
        padding: Value::Null,
        added_tokens,
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]}),
        post_processor: Value::Null,
        decoder: byte_level(true),
        model: WrittenModel {
            kind: "BPE",
            dropout: Value::Null,
            unk_token: Value::Null,
            continuing_subword_prefix: Value::Null,
            end_of_word_suffix: Value::Null,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges,
            vocab: Entries(entries),
            merges,
        },
    };
    let mut file = serde_json::to_vec_pretty(&written).expect("strings and numbers in memory");
    file.push(b'\n');
    Ok(file)
}

/// Returns the bytes in the order of their ids in byte-level vocabularies: first the printable characters of Latin-1,
/// which represent themselves, then the other bytes, written as the characters from U+0100 on. The characters are in
/// ascending order too. Source: `bytes_to_unicode` of GPT-2's encoder.
pub fn byte_order() -> impl Iterator<Item = u8> {
    let printable = |&byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    (0..=255)
        .filter(printable)
        .chain((0..=255).filter(move |byte| !printable(byte)))
}

static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut chars = ['\0'; 256];
    for (byte, place) in byte_order().zip(0u32..) {
        let code_point = if place < 188 {
            u32::from(byte)
        } else {
            0x100 + place - 188
        };
        chars[usize::from(byte)] = char::from_u32(code_point).expect("below the surrogates");
    }
    chars
});

static BYTES: LazyLock<FxHashMap<char, u8>> = LazyLock::new(|| CHARS.iter().copied().zip(0..=255).collect());

fn to_chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARS[usize::from(byte)]).collect()
}

fn to_bytes(chars: &str) -> Result<Vec<u8>> {
    let bytes: Option<_> = chars.chars().map(|c| BYTES.get(&c).copied()).collect();
    bytes.ok_or_else(|| Error::Vocabulary(format!("token {chars:?} is not written in byte-level characters")))
}

/// Returns the start of a JSON value, for error messages.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}
