//! What is written is read back; what is damaged is an error; nothing panics.

use std::fs;
use std::path::{Path, PathBuf};

use cwm_packing::format::{Header, PAGE};
use cwm_packing::{Error, Shard, ShardWriter, Shards};
use proptest::prelude::*;

type Document = (Vec<u32>, Option<Vec<bool>>, String);

fn document(vocab_size: u32) -> impl Strategy<Value = Document> {
    prop::collection::vec(0..vocab_size, 1..300).prop_flat_map(|ids| {
        let mask = prop::option::of(prop::collection::vec(any::<bool>(), ids.len()));
        (Just(ids), mask, "[a-cé]{0,2}")
    })
}

fn corpus() -> impl Strategy<Value = (u32, Vec<Document>)> {
    prop::sample::select(vec![1, 7, 65_536, 65_537, 128_256, 1 << 31])
        .prop_flat_map(|vocab_size| (Just(vocab_size), prop::collection::vec(document(vocab_size), 1..40)))
}

fn write(folder: &Path, vocab_size: u32, documents: &[Document], shard_tokens: u64) {
    let mut writer = ShardWriter::create(folder, vocab_size.into(), shard_tokens).unwrap();
    for (ids, mask, source) in documents {
        writer.add(ids, mask.as_deref(), source).unwrap();
    }
    writer.finish().unwrap();
}

fn read(shards: &Shards, number: u64) -> Result<Document, Error> {
    let (shard, at) = shards.locate(number);
    let mut tokens = vec![0; shard.document_len(at) as usize];
    shard.read(at, 0, &mut tokens)?;
    let mut mask = vec![false; tokens.len()];
    for (start, end) in shard.spans(at, 0) {
        mask[start..end].fill(true);
    }
    Ok((
        tokens.into_iter().map(|id| id as u32).collect(),
        Some(mask),
        shard.source(at).to_owned(),
    ))
}

fn read_all(folder: &Path) -> Result<Vec<Document>, Error> {
    let shards = Shards::open(folder)?;
    (0..shards.documents()).map(|number| read(&shards, number)).collect()
}

fn explicit(documents: &[Document]) -> Vec<Document> {
    let mask = |(ids, mask, _): &Document| Some(mask.clone().unwrap_or(vec![true; ids.len()]));
    documents
        .iter()
        .map(|document| (document.0.clone(), mask(document), document.2.clone()))
        .collect()
}

/// A shard of two pages of tokens, and its bytes.
fn sample(folder: &Path) -> (PathBuf, Vec<u8>) {
    let documents: Vec<Document> = (0..30)
        .map(|i| {
            (
                (0..100 + i).map(|t| t % 128).collect(),
                Some((0..100 + i).map(|t| t % 7 != i % 7).collect()),
                format!("s{}", i % 3),
            )
        })
        .collect();
    write(folder, 128, &documents, 1 << 20);
    let path = folder.join("00000.cwmtok");
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

/// Makes the header's checksums right again, as someone would who means harm.
fn sign(bytes: &mut [u8]) {
    let Ok(header) = Header::decode(bytes).or_else(|_| {
        let crc = crc32fast::hash(&bytes[..PAGE - 4]);
        bytes[PAGE - 4..PAGE].copy_from_slice(&crc.to_le_bytes());
        Header::decode(bytes)
    }) else {
        return;
    };
    let Some(index) = header.layout().and_then(|layout| bytes.get(layout.tokens.end..)) else {
        return;
    };
    let page = Header {
        index_crc: crc32fast::hash(index),
        ..header
    }
    .encode();
    bytes[..PAGE].copy_from_slice(&page);
}

/// Reads all that a shard offers.
fn exhaust(path: &Path) -> Result<(), Error> {
    let shard = Shard::open(path)?;
    for document in 0..shard.documents() {
        shard.spans(document, 3).for_each(drop);
        shard.source(document);
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
        for shard in shards.shards() {
            prop_assert!(shard.tokens() <= shard_tokens || shard.documents() == 1);
        }
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..9000), magic: bool) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = bytes;
        if magic && bytes.len() >= PAGE {
            bytes[..12].copy_from_slice(b"cwmtok\r\n\x01\0\0\0");
            let crc = crc32fast::hash(&bytes[..PAGE - 4]);
            bytes[PAGE - 4..PAGE].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(file.path(), bytes).unwrap();
        prop_assert!(exhaust(file.path()).is_err());
    }

    /// Whatever a signed shard says, reading it ends in an error or in documents, never in a panic.
    #[test]
    fn a_forged_index_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut bytes) = sample(folder.path());
        let tokens_end = Header::decode(&bytes).unwrap().layout().unwrap().tokens.end;
        for (place, value) in edits {
            // The counts in the header, or the index.
            let place = place.index(40 + bytes.len() - tokens_end);
            let at = if place < 40 { 16 + place } else { tokens_end + place - 40 };
            bytes[at] = value;
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
    let crc = crc32fast::hash(&bytes[PAGE..2 * PAGE]);
    bytes[layout.page_crcs.start..][..4].copy_from_slice(&crc.to_le_bytes());
    sign(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let error = exhaust(&path).unwrap_err().to_string();
    assert!(error.contains("token id 128 outside the vocabulary of 128"), "{error}");
}

#[test]
fn another_version_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = sample(folder.path());
    bytes[8] = 2;
    fs::write(&path, bytes).unwrap();
    assert!(
        Shard::open(&path)
            .err()
            .unwrap()
            .to_string()
            .ends_with("version 2; this build reads version 1")
    );
}

#[test]
fn a_dropped_writer_publishes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(folder.path(), 10, 100).unwrap();
    writer.add(&[1; 80], None, "").unwrap();
    writer.add(&[2; 80], None, "").unwrap();
    drop(writer);
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["00000.cwmtok"]);
}

#[test]
fn a_missing_shard_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 10, &vec![(vec![1; 10], None, String::new()); 3], 10);
    fs::remove_file(folder.path().join("00001.cwmtok")).unwrap();
    let error = Shards::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("shard 00001.cwmtok is missing"), "{error}");
}
