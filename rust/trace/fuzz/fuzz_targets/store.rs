//! Checks that any file, and any block with a valid head, is either rejected or read as usable traces.
#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cwm_trace::store::{Reader, Writer};
use libfuzzer_sys::fuzz_target;

/// Returns a store with one block that contains these bytes and has valid checksums.
fn with_head(header: &[u8], traces: u64, directory: &[u8], payloads: &[u8]) -> Vec<u8> {
    let id = &header[16..24];
    let crc = |parts: &[&[u8]]| crc32fast::hash(&parts.concat());
    let pack = |raw: &[u8]| zstd::bulk::compress(raw, 1).expect("bytes can be compressed");
    let (packed_directory, packed_payloads) = (pack(directory), pack(payloads));
    let crcs = u64::from(crc(&[id, &packed_directory])) | u64::from(crc(&[id, &packed_payloads])) << 32;
    let lengths = [directory, &packed_directory, payloads, &packed_payloads].map(|part| part.len() as u64);
    let words = [&[0, traces], &lengths[..], &[crcs]].concat();
    let words: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    let head = [b"DATA", &crc(&[id, b"DATA", &words]).to_le_bytes()[..], &words].concat();
    [header, &head, &packed_directory, &packed_payloads].concat()
}

fn use_it(path: &Path) {
    let Ok(reader) = Reader::open(path) else { return };
    for index in 0..reader.len().min(100) {
        let _ = reader.trace(index);
    }
    let _ = (reader.find("a").is_ok(), reader.verify().is_ok());
    if let Ok(mut writer) = Writer::open(path, true) {
        let _ = writer.close();
    }
}

fuzz_target!(|input: (u64, &[u8], &[u8])| {
    let (traces, directory, payloads) = input;
    let path: PathBuf = std::env::temp_dir().join(format!("fuzz-{}.cwmtraces", std::process::id()));
    static HONEST: OnceLock<Vec<u8>> = OnceLock::new();
    let honest = HONEST.get_or_init(|| {
        let _ = fs::remove_file(&path);
        drop(Writer::open(&path, false).expect("a store can be made"));
        fs::read(&path).expect("it can be read")
    });
    for file in [
        &[&honest, directory].concat(),
        &with_head(&honest[..32], traces, directory, payloads),
    ] {
        fs::write(&path, file).expect("it can be written");
        use_it(&path);
    }
});
