//! Tests that written shards are read back, that damage is an error, and that nothing panics.

use std::fs;
use std::path::{Path, PathBuf};

use cwm_packing::format::{Header, Layout, PAGE};
use cwm_packing::{Error, NewDocument, Shard, ShardWriter, Shards, Span};
use proptest::prelude::*;

/// Ids, loss mask, source, and labeled spans by their starts.
type Document = (Vec<u32>, Option<Vec<bool>>, String, Vec<(u32, u32, String)>);

fn document(vocab_size: u32) -> impl Strategy<Value = Document> {
    prop::collection::vec(0..vocab_size, 1..300).prop_flat_map(|ids| {
        let len = ids.len() as u32;
        let mask = prop::option::of(prop::collection::vec(any::<bool>(), ids.len()));
        let span =
            (0..len, 1..=len, "[xy]").prop_map(move |(start, size, label)| (start, (start + size).min(len), label));
        let spans = prop::collection::vec(span, 0..20).prop_map(|mut spans| {
            spans.sort();
            spans
        });
        (Just(ids), mask, "[a-cé]{0,2}", spans)
    })
}

fn corpus() -> impl Strategy<Value = (u32, Vec<Document>)> {
    prop::sample::select(vec![1, 7, 65_536, 65_537, 128_256, 1 << 31])
        .prop_flat_map(|vocab_size| (Just(vocab_size), prop::collection::vec(document(vocab_size), 1..40)))
}

fn write(folder: &Path, vocab_size: u32, documents: &[Document], shard_tokens: u64) {
    let mut writer = ShardWriter::create(folder, vocab_size.into(), shard_tokens, false).unwrap();
    add_all(&mut writer, documents);
    writer.finish().unwrap();
}

fn add_all(writer: &mut ShardWriter, documents: &[Document]) {
    let once = |start: u32, end: u32| std::iter::once(start..end).collect();
    for (ids, loss_mask, source, spans) in documents {
        let named = spans
            .iter()
            .map(|(start, end, label)| (label.clone(), once(*start, *end)));
        writer
            .add(&NewDocument {
                ids,
                loss_mask: loss_mask.as_deref(),
                spans: &named.collect::<Vec<_>>(),
                source,
            })
            .unwrap();
    }
}

fn read(shards: &Shards, number: u64) -> Result<Document, Error> {
    let (part, at) = shards.locate(number);
    let shard = &shards.parts()[part];
    let mut tokens = vec![0; shard.document_len(at) as usize];
    let mut targets = vec![0; tokens.len() - 1];
    shard.read(at, 0, &mut tokens, &mut targets)?;
    assert_eq!(tokens[1..], targets);
    let (mut mask, mut runs, mut spans) = (vec![true; tokens.len()], Vec::new(), Vec::new());
    shard.masked_runs(at, &mut runs)?;
    for [start, end] in runs {
        mask[start as usize..end as usize].fill(false);
    }
    shard.spans(at, &mut spans)?;
    let label = |span: &Span| shard.labels()[span.label as usize].clone();
    let mut spans: Vec<_> = spans.iter().map(|span| (span.start, span.end, label(span))).collect();
    spans.sort();
    Ok((
        tokens.into_iter().map(|id| id as u32).collect(),
        Some(mask),
        shard.sources()[shard.source_index(at)].clone(),
        spans,
    ))
}

fn plain(len: usize) -> Document {
    (vec![1; len], None, String::new(), Vec::new())
}

fn read_all(folder: &Path) -> Result<Vec<Document>, Error> {
    let shards = Shards::open(folder)?;
    (0..shards.documents()).map(|number| read(&shards, number)).collect()
}

fn explicit(documents: &[Document]) -> Vec<Document> {
    let explicit = |(ids, mask, source, spans): &Document| {
        let mask = mask.clone().unwrap_or(vec![true; ids.len()]);
        (ids.clone(), Some(mask), source.clone(), spans.clone())
    };
    documents.iter().map(explicit).collect()
}

/// Returns a shard with two pages of tokens, masked runs, and spans, and its bytes.
fn sample(folder: &Path) -> (PathBuf, Vec<u8>) {
    let documents: Vec<Document> = (0..30)
        .map(|i| {
            (
                (0..100 + i).map(|t| t % 128).collect(),
                Some((0..100 + i).map(|t| t % 7 != i % 7).collect()),
                format!("s{}", i % 3),
                (0..i).map(|t| (t, t + 2, format!("l{}", t % 2))).collect(),
            )
        })
        .collect();
    write(folder, 128, &documents, 1 << 20);
    let path = folder.join("00000.cwmtok");
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

/// Corrects the checksums of the header, as an attacker would.
fn sign(bytes: &mut [u8]) {
    let Ok(header) = Header::decode(bytes).or_else(|_| {
        let crc = crc32fast::hash(&bytes[..PAGE - 4]);
        bytes[PAGE - 4..PAGE].copy_from_slice(&crc.to_le_bytes());
        Header::decode(bytes)
    }) else {
        return;
    };
    let Some(index) = header.layout().and_then(|layout| bytes.get(layout.spans.end..)) else {
        return;
    };
    let page = Header {
        index_crc: crc32fast::hash(index),
        ..header
    }
    .encode();
    bytes[..PAGE].copy_from_slice(&page);
}

fn sign_page(bytes: &mut [u8], layout: &Layout, page: usize) {
    let crc = crc32fast::hash(&bytes[(page + 1) * PAGE..][..PAGE]);
    bytes[layout.page_crcs.start + page * 4..][..4].copy_from_slice(&crc.to_le_bytes());
}

/// Reads everything in a shard.
fn exhaust(path: &Path) -> Result<(), Error> {
    let shard = Shard::open(path)?;
    for document in 0..shard.documents() {
        let _ = &shard.sources()[shard.source_index(document)];
    }
    shard.verify()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trip((vocab_size, documents) in corpus(), shard_tokens in 1u64..3000) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), vocab_size, &documents, shard_tokens);
        prop_assert_eq!(read_all(folder.path()).unwrap(), explicit(&documents));
        let shards = Shards::open(folder.path()).unwrap();
        shards.verify().unwrap();
        prop_assert_eq!(shards.tokens(), documents.iter().map(|document| document.0.len() as u64).sum::<u64>());
        for shard in shards.parts() {
            prop_assert!(shard.tokens() <= shard_tokens || shard.documents() == 1);
        }
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..9000), magic: bool) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = bytes;
        if magic && bytes.len() >= PAGE {
            bytes[..12].copy_from_slice(b"cwmtok\r\n\x02\0\0\0");
            let crc = crc32fast::hash(&bytes[..PAGE - 4]);
            bytes[PAGE - 4..PAGE].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(file.path(), bytes).unwrap();
        prop_assert!(exhaust(file.path()).is_err());
    }

    /// Reading a shard with valid checksums and any content ends with an error or documents, never a panic.
    #[test]
    fn a_forged_index_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut bytes) = sample(folder.path());
        let layout = Header::decode(&bytes).unwrap().layout().unwrap();
        for (place, value) in edits {
            // The counts in the header, or the masked runs, spans, and index.
            let place = place.index(56 + bytes.len() - layout.runs.start);
            let at = if place < 56 { 16 + place } else { layout.runs.start + place - 56 };
            bytes[at] = value;
            if at >= layout.runs.start && at < layout.spans.end {
                sign_page(&mut bytes, &layout, at / PAGE - 1);
            }
        }
        sign(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let _ = exhaust(&path);
    }
}

#[test]
fn every_flipped_bit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = sample(folder.path());
    for at in (0..bytes.len()).step_by(13).chain(bytes.len() - 40..bytes.len()) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, damaged).unwrap();
        let error = exhaust(&path).expect_err(&format!("byte {at}")).to_string();
        assert!(error.contains("00000.cwmtok"), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = sample(folder.path());
    for len in (0..bytes.len()).step_by(97).chain(bytes.len() - 40..bytes.len()) {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(Shard::open(&path).is_err(), "{len} bytes");
    }
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    assert!(Shard::open(&path).err().unwrap().to_string().contains("overlong"));
}

#[test]
fn a_forged_token_outside_the_vocabulary_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = sample(folder.path());
    let layout = Header::decode(&bytes).unwrap().layout().unwrap();
    bytes[PAGE..PAGE + 2].copy_from_slice(&128u16.to_le_bytes());
    sign_page(&mut bytes, &layout, 0);
    sign(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let error = exhaust(&path).unwrap_err().to_string();
    assert!(error.contains("token id 128 outside the vocabulary of 128"), "{error}");
}

#[test]
fn another_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = sample(folder.path());
    bytes[8] = 1;
    fs::write(&path, bytes).unwrap();
    assert!(
        Shard::open(&path)
            .err()
            .unwrap()
            .to_string()
            .ends_with("version 1; this build reads version 2")
    );
}

#[test]
fn a_dropped_writer_publishes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(folder.path(), 10, 100, false).unwrap();
    add_all(&mut writer, &vec![plain(80); 2]);
    drop(writer);
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["00000.cwmtok"]);
}

#[test]
fn a_second_writer_is_refused_and_a_later_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = ShardWriter::create(folder.path(), 10, 100, false).unwrap();
    add_all(&mut first, &vec![plain(80); 2]);
    let refused = ShardWriter::create(folder.path(), 10, 100, true).err().unwrap();
    assert!(refused.to_string().contains("another shard writer"), "{refused}");
    drop(first);
    fs::write(folder.path().join(".unfinished-x"), b"what a killed writer left").unwrap();
    let mut second = ShardWriter::create(folder.path(), 10, 100, true).unwrap();
    assert_eq!((second.documents(), second.tokens()), (1, 80));
    add_all(&mut second, &[plain(30)]);
    second.finish().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let shards = Shards::open(folder.path()).unwrap();
    assert_eq!(shards.lengths().collect::<Vec<_>>(), [80, 30]);
    let other = ShardWriter::create(folder.path(), 11, 100, true).err().unwrap();
    assert!(other.to_string().contains("a vocabulary of 10 ids, not 11"), "{other}");
}

#[test]
fn a_file_cut_short_while_open_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (path, bytes) = sample(folder.path());
    let shard = Shard::open(&path).unwrap();
    shard.check_present().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(bytes.len() as u64 - 1).unwrap();
    let error = shard.check_present().unwrap_err().to_string();
    assert!(error.contains("while open"), "{error}");
}

#[test]
fn a_missing_shard_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 10, &vec![plain(10); 3], 10);
    fs::remove_file(folder.path().join("00001.cwmtok")).unwrap();
    let error = Shards::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("shard 00001.cwmtok is missing"), "{error}");
}

#[test]
fn an_interrupt_ends_long_work() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(folder.path(), 10, 1 << 20, false).unwrap();
    for _ in 0..4 {
        let ids = vec![1; 100_000];
        writer
            .add(&NewDocument {
                ids: &ids,
                ..NewDocument::default()
            })
            .unwrap();
    }
    writer.finish().unwrap();
    let shards = Shards::open(folder.path()).unwrap();
    let interrupted = |work: &dyn Fn() -> cwm_packing::Result<()>| {
        cwm_interrupt::asking(
            || false,
            || {
                std::thread::sleep(std::time::Duration::from_millis(60)); // it is not asked before
                matches!(work(), Err(Error::Interrupted(_)))
            },
        )
    };
    assert!(interrupted(&|| shards.verify()));
    assert!(interrupted(&|| Shards::open(folder.path()).map(drop)));
    shards.verify().unwrap();
}
