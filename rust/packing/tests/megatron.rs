//! Tests of Megatron's indexed datasets: files that follow the format are read; all others are errors, never panics.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use cwm_packing::{Error, NewDocument, Part, ShardWriter, Shards};
use proptest::prelude::*;

/// The codes of the types of ids, and the largest id below 2^31 that each can hold.
const TYPES: [(u8, usize, i64); 6] = [
    (1, 1, 0xff),
    (2, 1, 0x7f),
    (3, 2, 0x7fff),
    (4, 4, 0x7fff_ffff),
    (5, 8, 0x7fff_ffff),
    (8, 2, 0xffff),
];

/// Documents, which are lists of sequences of ids.
type Documents = Vec<Vec<Vec<i64>>>;

fn documents() -> impl Strategy<Value = (usize, Documents)> {
    (0..TYPES.len()).prop_flat_map(|kind| {
        let sequence = prop::collection::vec(0..=TYPES[kind].2, 0..40);
        let document = prop::collection::vec(sequence, 0..4);
        (Just(kind), prop::collection::vec(document, 1..12))
    })
}

/// Returns the two files, written by the description of the format.
fn encode(kind: usize, documents: &Documents) -> (Vec<u8>, Vec<u8>) {
    let (code, width, _) = TYPES[kind];
    let (mut lengths, mut pointers, mut data) = (Vec::new(), Vec::new(), Vec::new());
    let mut bounds = vec![0i64];
    for document in documents {
        for sequence in document {
            lengths.push(sequence.len() as i32);
            pointers.push(data.len() as i64);
            data.extend(sequence.iter().flat_map(|id| id.to_le_bytes()[..width].to_vec()));
        }
        bounds.push(lengths.len() as i64);
    }
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(code);
    index.extend((lengths.len() as u64).to_le_bytes());
    index.extend((bounds.len() as u64).to_le_bytes());
    index.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    index.extend(pointers.iter().chain(&bounds).flat_map(|number| number.to_le_bytes()));
    (index, data)
}

fn write(folder: &Path, (index, data): &(Vec<u8>, Vec<u8>)) -> PathBuf {
    fs::write(folder.join("corpus.idx"), index).unwrap();
    fs::write(folder.join("corpus.bin"), data).unwrap();
    folder.join("corpus")
}

fn read(part: &Part, document: u64, range: Range<usize>) -> Result<Vec<i64>, Error> {
    let more = usize::from(range.end < part.document_len(document) as usize);
    let (mut tokens, mut targets) = (vec![0; range.len()], vec![0; range.len() - 1 + more]);
    part.read(document, range.start, &mut tokens, &mut targets)?;
    assert_eq!(tokens[1..], targets[..tokens.len() - 1]);
    Ok(tokens.into_iter().map(i64::from).collect())
}

/// Reads everything in a dataset.
fn read_all(path: &Path) -> Result<Vec<Vec<i64>>, Error> {
    let shards = Shards::open(path)?;
    shards.verify()?;
    let part = &shards.parts()[0];
    let all = |document| read(part, document, 0..part.document_len(document) as usize);
    (0..part.documents()).map(all).collect()
}

fn message(path: &Path) -> String {
    read_all(path).unwrap_err().to_string()
}

fn sample() -> Documents {
    vec![vec![vec![1, 2, 3], vec![4]], vec![], vec![vec![]], vec![vec![5, 6]]]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_format_describes_is_read((kind, documents) in documents(), cut in any::<prop::sample::Index>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &encode(kind, &documents));
        let full = documents.iter().map(|document| document.concat()).filter(|document| !document.is_empty());
        let full: Vec<Vec<i64>> = full.collect();
        if full.is_empty() {
            prop_assert!(message(&path).contains("no document has tokens"));
            return Ok(());
        }
        prop_assert_eq!(&read_all(&path).unwrap(), &full);
        let shards = Shards::open(&path).unwrap();
        prop_assert_eq!(shards.tokens(), full.iter().map(|document| document.len() as u64).sum::<u64>());
        prop_assert!(shards.lengths().eq(full.iter().map(|document| document.len() as u32)));
        for (number, document) in full.iter().enumerate() {
            let start = cut.index(document.len());
            let part = &shards.parts()[0];
            prop_assert_eq!(&read(part, number as u64, start..document.len()).unwrap(), &document[start..]);
            prop_assert_eq!(&read(part, number as u64, 0..start + 1).unwrap(), &document[..=start]);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        (kind, documents) in documents(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        vocab_size in prop::option::of(1u64..300),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = encode(kind, &documents);
        for (at, byte) in edits {
            let at = at.index(files.0.len());
            files.0[at] = byte;
        }
        if let Some(cut) = cut {
            let file = if cut.index(2) == 0 { &mut files.0 } else { &mut files.1 };
            file.truncate(cut.index(file.len() + 1));
        }
        let path = write(folder.path(), &files);
        if let Ok(mut shards) = Shards::open(&path) {
            if let Some(size) = vocab_size {
                shards.set_vocab_size(size).unwrap();
            }
            let _ = shards.verify();
            prop_assert_eq!(shards.lengths().map(u64::from).sum::<u64>(), shards.tokens());
        }
    }
}

#[test]
fn the_error_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let intact = encode(3, &sample());
    // Four sequences and five bounds.
    let (lengths, pointers, bounds) = (34, 34 + 4 * 4, 34 + 4 * 12);
    let put = |at: usize, bytes: &[u8]| {
        let mut index = intact.0.clone();
        index[at..at + bytes.len()].copy_from_slice(bytes);
        index
    };
    let overlong = [&intact.0[..], &[0; 5]].concat();
    let image = [&intact.0[..], &[0, 0, 1, 0]].concat();
    for (index, what) in [
        (Vec::new(), "shorter than its header"),
        (put(0, b"X"), "wrong magic"),
        (put(9, &[2]), "indexed dataset version 2; this build reads version 1"),
        (put(17, &[7]), "expected integer ids, got floats"),
        (put(17, &[9]), "unknown type of ids: 9"),
        (put(18, &[0xff; 8]), "invalid counts"),
        (put(26, &[6]), "truncated"),
        (put(26, &[0; 8]), "overlong"),
        (overlong, "overlong"),
        (image, "sequence 2 has mode 1; only text (0) is supported"),
        (put(lengths, &[0xff; 4]), "document 0: sequence 0 has -1 tokens"),
        (
            put(lengths, &[2]),
            "document 0: sequence 1 does not follow the previous one in the .bin",
        ),
        (
            put(pointers + 24, &[17]),
            "document 3: sequence 3, 2 tokens at byte 17, is outside the 24 bytes of the .bin",
        ),
        (
            put(pointers, &[0xff; 8]),
            "document 0: sequence 0, 3 tokens at byte -1, is outside",
        ),
        (put(bounds, &[1]), "do not cover the sequences"),
        (put(bounds + 32, &[3]), "do not cover the sequences"),
        (put(bounds + 8, &[4]), "document 1 ends before it begins"),
        (put(bounds + 8, &[0xff; 8]), "document 0 ends before it begins, or past"),
    ] {
        let path = write(folder.path(), &(index, intact.1.clone()));
        let message = message(&path);
        assert!(
            message.contains("corpus.idx: ") && message.contains(what),
            "{message}\n{what}"
        );
    }
    let text = [&intact.0[..], &[0; 4]].concat();
    assert_eq!(read_all(&write(folder.path(), &(text, intact.1))).unwrap().len(), 2);
}

#[test]
fn ids_are_checked_when_they_are_read() {
    for (kind, id, shown) in [
        (1, -1, "-1"),
        (2, -5, "-5"),
        (3, -1, "-1"),
        (4, 1 << 31, "2147483648"),
        (4, i64::MIN, "-9223372036854775808"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = write(
            folder.path(),
            &encode(kind, &vec![vec![vec![1]], vec![vec![3, 4], vec![5, id]]]),
        );
        let shards = Shards::open(&path).unwrap();
        let expected = format!("corpus.bin: token 3 of document 1 has id {shown}, outside any vocabulary");
        let error = read(&shards.parts()[0], 1, 2..4).unwrap_err().to_string();
        assert!(error.ends_with(&expected), "{error}");
        assert!(read(&shards.parts()[0], 1, 0..2).is_ok());
    }
    let folder = tempfile::tempdir().unwrap();
    let mut shards = Shards::open(&write(folder.path(), &encode(5, &sample()))).unwrap();
    assert_eq!(shards.vocab_size(), None);
    shards.set_vocab_size(6).unwrap();
    assert_eq!(shards.vocab_size(), Some(6));
    let error = shards.verify().unwrap_err().to_string();
    assert!(
        error.ends_with("token 1 of document 1 has id 6, outside the vocabulary of 6"),
        "{error}"
    );
}

#[test]
fn a_path_names_the_prefix_or_one_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), &encode(3, &sample()));
    for name in ["corpus", "corpus.idx", "corpus.bin"] {
        assert_eq!(Shards::open(&folder.path().join(name)).unwrap().documents(), 2);
    }
    // A folder of shards with the same name takes precedence.
    let mut writer = ShardWriter::create(&path, 10, 100, false).unwrap();
    let ids = &[9];
    writer
        .add(&NewDocument {
            ids,
            ..NewDocument::default()
        })
        .unwrap();
    writer.finish().unwrap();
    assert_eq!(Shards::open(&path).unwrap().vocab_size(), Some(10));
    assert_eq!(
        Shards::open(&folder.path().join("corpus.idx")).unwrap().vocab_size(),
        None
    );
    fs::remove_file(folder.path().join("corpus.bin")).unwrap();
    let error = Shards::open(&folder.path().join("corpus.idx")).err().unwrap();
    assert!(
        matches!(&error, Error::Io { path, .. } if path.ends_with("corpus.bin")),
        "{error}"
    );
}

#[test]
fn the_checksum_changes_with_the_index_the_length_and_the_sampled_pages() {
    let folder = tempfile::tempdir().unwrap();
    let checksum = |files: &(Vec<u8>, Vec<u8>)| {
        let path = write(folder.path(), files);
        Shards::open(&path).unwrap().parts()[0].checksum()
    };
    let files = encode(3, &vec![vec![vec![7; 1_000_000]]]);
    let before = checksum(&files);
    for change in [0, files.1.len() - 1] {
        let mut data = files.1.clone();
        data[change] ^= 1;
        assert_ne!(checksum(&(files.0.clone(), data)), before);
    }
    let longer = [&files.1[..], &[0]].concat();
    assert_ne!(checksum(&(files.0.clone(), longer)), before);
    assert_ne!(
        checksum(&encode(3, &vec![vec![vec![7; 500_000], vec![7; 500_000]]])),
        before
    );
    assert_eq!(checksum(&files), before);
}

#[test]
fn files_cut_short_while_they_are_open_are_errors() {
    for name in ["corpus.idx", "corpus.bin"] {
        let folder = tempfile::tempdir().unwrap();
        let shards = Shards::open(&write(folder.path(), &encode(3, &sample()))).unwrap();
        shards.check_present().unwrap();
        fs::OpenOptions::new()
            .write(true)
            .open(folder.path().join(name))
            .unwrap()
            .set_len(10)
            .unwrap();
        let error = shards.check_present().unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("{name}: truncated to 10 bytes while open")),
            "{error}"
        );
    }
}
