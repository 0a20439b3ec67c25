//! Tests of malicious files with valid checksums, and tests that would take too long from Python.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;

use super::block::{Pending, compressor};
use super::file::StoreFile;
use super::format::{DataHead, Footer, HEAD, HEADER, Head, IndexHead, Section, crc, header, key_hash};
use super::index::{Pair, Run, Segment, write_run};
use super::{Error, Reader, Writer};
use crate::stored;
use crate::trace::{Event, Line, Trace};

const ID: u64 = 7;

fn trace(number: u64) -> Trace {
    let mut trace = Trace::new(format!("context {number}"));
    let text = "return x\n".to_owned();
    let line = trace.add_line(Line { number: 1, text });
    trace.open_value().extend_from_slice(number.to_string().as_bytes());
    trace.push_value_frame(Event::Return, line);
    trace
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is room for a folder")
}

fn section(raw: u64, packed: &[u8]) -> Section {
    Section {
        raw,
        packed: packed.len() as u64,
        crc: crc(ID, packed),
    }
}

fn packed(raw: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(raw, 1).expect("it can be compressed")
}

/// Writes a file with a valid header and these blocks.
fn file(folder: &Path, blocks: &[&[u8]]) -> PathBuf {
    let path = folder.join("x.cwmtraces");
    fs::write(&path, [&header(ID)[..], &blocks.concat()].concat()).expect("it can be written");
    path
}

fn data_block(first: u64, traces: u64, directory: (u64, &[u8]), payloads: (u64, &[u8])) -> Vec<u8> {
    let head = Head::Data(DataHead {
        first,
        traces,
        directory: section(directory.0, directory.1),
        payloads: section(payloads.0, payloads.1),
    });
    [&head.encode(ID)[..], directory.1, payloads.1].concat()
}

/// Calls every operation on a file. Errors are acceptable, panics are not.
fn use_it(path: &Path) {
    if let Ok(reader) = Reader::open(path) {
        for index in (0..reader.len().min(20)).chain(reader.len().checked_sub(1)) {
            let _ = reader.trace(index);
            if let Ok(block) = reader.block(index) {
                let place = (index - block.first()) as usize;
                let _ = (block.key(place).is_ok(), block.metadata(place).is_ok());
            }
        }
        for key in ["", "a", "b"] {
            let _ = reader.find(key);
        }
        let _ = reader.verify();
        drop(reader);
        if let Ok(mut writer) = Writer::open(path, true) {
            let _ = writer.add(&trace(0), Some("a"), "{}");
            let _ = writer.close();
        }
    }
}

fn honest_block(first: u64, keys: &[Option<String>]) -> Vec<u8> {
    let mut pending = Pending::default();
    for (place, key) in keys.iter().enumerate() {
        let payload = stored::write_payload(&trace(first + place as u64)).expect("it is small");
        pending.push(&payload, key.as_deref(), "{}");
    }
    let mut zstd = compressor().expect("zstd is there");
    pending.pack(ID, first, &mut zstd).expect("it can be packed")
}

proptest! {
    #[test]
    fn any_directory_is_refused_or_read(
        traces in 1u64..6,
        directory in prop_oneof![vec(0u8..12, 0..40), vec(any::<u8>(), 0..40)],
        payloads in vec(0u8..30, 0..40),
        lies in any::<(bool, bool)>(),
    ) {
        let folder = folder();
        let raw = |bytes: &[u8], lie: bool| bytes.len() as u64 + u64::from(lie);
        let block = data_block(
            0,
            traces,
            (raw(&directory, lies.0), &packed(&directory)),
            (raw(&payloads, lies.1), &packed(&payloads)),
        );
        use_it(&file(folder.path(), &[&block]));
    }

    #[test]
    fn any_index_is_refused_or_read(
        words in vec(prop_oneof![0u64..300, Just(u64::MAX), any::<u64>()], 12),
        traces in prop_oneof![0u64..6, any::<u64>()],
        pairs in vec((prop_oneof![0u64..40, any::<u64>()], prop_oneof![0u64..300, any::<u64>()]), 0..5),
        index_at in prop_oneof![Just(None), (0u64..600).prop_map(Some)],
    ) {
        let folder = folder();
        let keys = [Some("a".to_owned()), None, Some("b".to_owned())];
        let block = honest_block(0, &keys);
        let at = (HEADER + block.len()) as u64;
        let path = file(folder.path(), &[&block]);
        let store = StoreFile { file: fs::File::open(&path).expect("it is there"), path: path.clone(), id: ID };
        let mut run = Vec::new();
        write_run(&mut run, &store, pairs.iter().map(|&pair| Ok(pair))).expect("memory can be written");
        // A segment that uses the pairs above for both runs, then optionally arbitrary words.
        let own = Run { at: at + HEAD as u64, pairs: pairs.len() as u64 };
        let mut list = Segment { first: 0, traces, blocks: own, keys: own }.encode().to_vec();
        if words[0] < 100 {
            list = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        }
        let index = Head::Index(IndexHead {
            traces,
            bytes: (run.len() + list.len()) as u64,
            segments: list.len() as u64 / 48,
            crc: crc(ID, &list),
        });
        let footer = Head::Footer(Footer { index_at: index_at.unwrap_or(at), traces });
        use_it(&file(folder.path(), &[&block, &index.encode(ID), &run, &list, &footer.encode(ID)]));
    }

    /// Compares sessions of random lengths, with frequent indexes and colliding hashes, with a map.
    #[test]
    fn sessions_add_up(sessions in vec(vec((proptest::option::of("[ab]{0,3}"), any::<bool>()), 0..20), 1..12)) {
        let folder = folder();
        let path = folder.path().join("x.cwmtraces");
        let (mut known, mut count) = (BTreeMap::new(), 0);
        for session in &sessions {
            let mut writer = Writer::open(&path, true).expect("it can be opened");
            writer.index_every = 4;
            for (key, flush) in session {
                let added = writer.add(&trace(count), key.as_deref(), "{}");
                match key.as_ref().filter(|key| known.contains_key(*key)) {
                    Some(key) => {
                        let reason = format!("trace {} already has the key {key:?}", known[key]);
                        prop_assert_eq!(added.expect_err("it is there").to_string(), reason);
                    }
                    None => {
                        prop_assert_eq!(added.expect("it is new"), count);
                        known.extend(key.clone().map(|key| (key, count)));
                        count += 1;
                    }
                }
                if *flush {
                    writer.flush().expect("there is room");
                }
            }
        }
        let reader = Reader::open(&path).expect("it can be opened");
        reader.verify().expect("it is whole");
        prop_assert_eq!(reader.len(), count);
        for index in 0..count {
            prop_assert!(reader.trace(index).expect("it is there") == trace(index));
        }
        for (key, index) in &known {
            prop_assert_eq!(reader.find(key).expect("it can be read"), Some(*index));
        }
        prop_assert_eq!(reader.find("c").expect("it can be read"), None);
        // Each segment is at least twice as large as the next one.
        let sizes: Vec<u64> = reader.segments.iter().map(|segment| segment.traces).collect();
        prop_assert!(sizes.windows(2).all(|pair| pair[0] >= 2 * pair[1]), "{:?}", sizes);
    }

    #[test]
    fn a_run_is_searched_as_a_list(mut pairs in vec((0u64..600, any::<u64>()), 0..1500), key in 0u64..700, bounds in prop_oneof![Just((0, 600)), any::<(u64, u64)>()]) {
        pairs.sort_unstable();
        let folder = folder();
        let path = file(folder.path(), &[]);
        let mut bytes = header(ID).to_vec();
        let store = StoreFile { file: fs::File::open(&path).expect("it is there"), path: path.clone(), id: ID };
        write_run(&mut bytes, &store, pairs.iter().map(|&pair| Ok(pair))).expect("memory can be written");
        fs::write(&path, &bytes).expect("it can be written");
        let run = Run { at: HEADER as u64, pairs: pairs.len() as u64 };
        prop_assert_eq!(Some((bytes.len() - HEADER) as u64), run.bytes());
        let rank = run.rank(&store, key, bounds).expect("it can be read");
        prop_assert_eq!(rank as usize, pairs.partition_point(|pair| pair.0 < key));
        let rest: Vec<Pair> = run.iter(&store, rank).collect::<Result<_, _>>().expect("it can be read");
        prop_assert_eq!(&rest[..], &pairs[rank as usize..]);
    }
}

/// Checks heads that claim petabytes, and a few bytes that decompress to far more than a block may contain.
#[test]
fn lengths_are_checked_before_they_are_believed() {
    let folder = folder();
    let small = packed(b"\0");
    for (traces, directory, payloads) in [
        (1, u64::MAX, 1),
        (u64::MAX, 1, 1),
        (1 << 40, 1 << 40, 1),
        (1, 1, 1 << 34),
        (1, 1 << 26, 1 << 26),
        (2, 1 << 26, 1 << 26),
    ] {
        let block = data_block(0, traces, (directory, &small), (payloads, &small));
        let path = file(folder.path(), &[&block]);
        if let Ok(reader) = Reader::open(&path) {
            assert!((0..reader.len()).all(|index| reader.trace(index).is_err()));
        }
        use_it(&path);
    }
    let bomb = packed(&vec![0; 1 << 26]);
    assert!(bomb.len() < 1 << 13);
    let block = data_block(0, 1 << 20, (1 << 26, &bomb), (1 << 26, &bomb));
    use_it(&file(folder.path(), &[&block]));
    let longer = data_block(0, 1, (100, &bomb), (100, &bomb));
    let reader = Reader::open(&file(folder.path(), &[&longer])).expect("its head is in order");
    let payloads_at = (HEADER + HEAD + bomb.len()) as u64;
    assert!(matches!(reader.trace(0), Err(Error::Damaged { at, .. }) if at == payloads_at));
    let block = reader.block(0).expect("its head is in order");
    assert!(matches!(block.metadata(0), Err(Error::Damaged { at: 96, .. })));
}

/// Checks that a program cannot forge a block by printing one, because it does not know the ID.
#[test]
fn a_block_within_a_trace_is_none() {
    let folder = folder();
    let path = folder.path().join("x.cwmtraces");
    let mut writer = Writer::open(&path, false).expect("it is new");
    writer.add(&trace(0), None, "{}").expect("there is room");
    writer.flush().expect("there is room");
    let end = fs::metadata(&path).expect("it is there").len();
    let mut bytes = fs::read(&path).expect("it can be read");
    writer.close().expect("there is room");
    bytes.extend(honest_block(1, &[None]));
    bytes.extend([0; 100]);
    fs::write(&path, &bytes).expect("it can be written");
    let reader = Reader::open(&path).expect("it can be opened");
    assert_eq!((reader.len(), reader.torn_bytes()), (1, bytes.len() as u64 - end));
}

#[test]
fn keys_share_hashes_here() {
    assert!((0..100).all(|n| key_hash(&n.to_string()) < 32));
}
