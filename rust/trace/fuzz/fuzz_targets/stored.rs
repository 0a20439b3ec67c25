//! Checks that any bytes, and any payload with a valid header, are either rejected or read as a usable trace.
#![no_main]

use cwm_trace::{Trace, from_bytes, resolve, state_at, to_bytes};
use libfuzzer_sys::fuzz_target;

/// Returns a stored trace with this payload and a valid checksum.
fn with_header(payload: &[u8]) -> Vec<u8> {
    let honest = to_bytes(&Trace::default()).expect("an empty trace can be stored");
    let packed = zstd::bulk::compress(payload, 1).expect("a payload can be compressed");
    let mut file = honest[..12].to_vec(); // the magic bytes and the version
    file.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    file.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
    file.extend_from_slice(&packed);
    file
}

fuzz_target!(|data: &[u8]| {
    for file in [data, &with_header(data)] {
        if let Ok(trace) = from_bytes(file) {
            trace.to_text();
            resolve(&trace);
            if !trace.is_empty() {
                state_at(&trace, trace.len() - 1);
            }
            let again = to_bytes(&trace).expect("a trace that was read can be stored");
            assert!(from_bytes(&again) == Ok(trace));
        }
    }
});
