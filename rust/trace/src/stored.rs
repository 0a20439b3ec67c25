//! Stored form of a trace: lossless, compact, and validated when it is read.
//!
//! The header consists of `CWMTRACE`, the version (u32), the length of the payload (u64), and the CRC-32 of the rest of
//! the data (u32), all little-endian. The payload follows, compressed by zstd. Its integers are LEB128.
//!
//! The payload contains the parts of a [`Trace`] in order. Frames and changes are stored as columns, each preceded by
//! its length in bytes, because similar numbers next to each other compress best. A reader walks all columns at once,
//! and checks that every length and index is in range.

use std::fmt;

use crate::trace::{Change, Event, FrameRow, Line, Outcome, Trace};

const MAGIC: &[u8; 8] = b"CWMTRACE";
/// Version of the payload, here and in a trace store.
pub(crate) const VERSION: u32 = 2;
const HEADER: usize = 8 + 4 + 8 + 4;
const LEVEL: i32 = 3;
/// Maximum size of a decompressed trace in bytes, as a guard against decompression bombs.
pub(crate) const MAX_PAYLOAD: u64 = 1 << 34;

/// Reason why bytes are not a stored trace, or why a trace cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredError(pub String);

impl fmt::Display for StoredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoredError {}

fn wrong<T>(reason: impl Into<String>) -> Result<T, StoredError> {
    Err(StoredError(format!("not a valid stored trace: {}", reason.into())))
}

/// Returns the stored form of a trace.
pub fn to_bytes(trace: &Trace) -> Result<Vec<u8>, StoredError> {
    let payload = write_payload(trace)?;
    let packed = zstd::bulk::compress(&payload, LEVEL).map_err(|e| StoredError(format!("zstd: {e}")))?;
    let mut out = Vec::with_capacity(HEADER + packed.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
    out.extend_from_slice(&packed);
    Ok(out)
}

/// Reads a trace from its stored form. Returns an error that states the reason if the input is damaged or malicious.
pub fn from_bytes(bytes: &[u8]) -> Result<Trace, StoredError> {
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return wrong("the header is missing");
    }
    let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if version != VERSION {
        return wrong(format!("version {version}; this build reads version {VERSION}"));
    }
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[12..20]);
    let length = u64::from_le_bytes(word);
    let checksum = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
    if crc32fast::hash(&bytes[HEADER..]) != checksum {
        return wrong("checksum mismatch: the data is damaged or truncated");
    }
    if length > MAX_PAYLOAD {
        return wrong(format!("its size of {length} bytes exceeds the limit of {MAX_PAYLOAD}"));
    }
    let payload = unpack(&bytes[HEADER..], length)?;
    read_payload(&payload)
}

/// Decompresses without allocating `length` bytes up front, because `length` is untrusted.
pub(crate) fn unpack(packed: &[u8], length: u64) -> Result<Vec<u8>, StoredError> {
    use std::io::Read;
    let failed = |e: std::io::Error| StoredError(format!("zstd: {e}"));
    let mut payload = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(failed)?;
    decoder.take(length + 1).read_to_end(&mut payload).map_err(failed)?;
    if payload.len() as u64 != length {
        return wrong(format!(
            "the decompressed data does not have the expected {length} bytes"
        ));
    }
    Ok(payload)
}

/// Returns the uncompressed payload that `read_payload` reads.
pub(crate) fn write_payload(trace: &Trace) -> Result<Vec<u8>, StoredError> {
    let mut out = Writer(Vec::new());
    out.bytes(trace.context.as_bytes());
    let (tag, text): (u64, &[u8]) = match &trace.outcome {
        None => (0, b""),
        Some(Outcome::Returned(text)) => (1, text),
        Some(Outcome::Raised(text)) => (2, text),
    };
    out.int(tag);
    out.bytes(text);
    out.bytes(trace.truncated.as_deref().unwrap_or("").as_bytes());
    out.int(trace.output.is_some() as u64);
    out.bytes(trace.output.as_deref().unwrap_or("").as_bytes());
    out.int(trace.lines.len() as u64);
    for line in &trace.lines {
        out.int(line.number as u64);
        out.bytes(line.text.as_bytes());
    }
    out.int(trace.names.len() as u64);
    for name in &trace.names {
        out.bytes(name);
    }
    out.int(trace.shapes.len() as u64);
    for shape in &trace.shapes {
        out.int(shape.len() as u64);
        shape.iter().for_each(|&id| out.int(id as u64));
    }
    let (frames, changes) = (&trace.frames, &trace.changes[..trace.closed_changes()]);
    out.int(frames.len() as u64);
    out.int(changes.len() as u64);
    out.column(frames.iter().map(|f| f.event() as u64));
    out.column(frames.iter().map(|f| f.line() as u64));
    out.column(frames.iter().map(|f| f.shape as u64));
    out.column(deltas(frames.iter().map(|f| f.changes_end as u64)));
    out.column(changes.iter().map(|c| c.slot as u64));
    out.column(deltas(changes.iter().map(|c| c.end)));
    let values_end = changes.last().map_or(0, |change| change.end as usize);
    out.0.extend_from_slice(&trace.values[..values_end]);
    match out.0.len() as u64 {
        0..=MAX_PAYLOAD => Ok(out.0),
        length => Err(StoredError(format!(
            "the trace has {length} bytes; the limit of the stored form is {MAX_PAYLOAD}"
        ))),
    }
}

fn deltas(ends: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let mut start = 0;
    ends.map(move |end| end - std::mem::replace(&mut start, end))
}

pub(crate) fn read_payload(payload: &[u8]) -> Result<Trace, StoredError> {
    let mut input = Reader(payload);
    let mut trace = Trace::new(input.text("context")?);
    let tag = input.int("outcome")?;
    let text = input.bytes("outcome")?.to_vec();
    trace.outcome = match tag {
        0 => None,
        1 => Some(Outcome::Returned(text)),
        2 => Some(Outcome::Raised(text)),
        _ => return wrong(format!("unknown outcome {tag}")),
    };
    trace.truncated = Some(input.text("limit")?).filter(|limit| !limit.is_empty());
    let captured = input.below(2, "output")? == 1;
    trace.output = Some(input.text("output")?).filter(|_| captured);
    let lines = input.count("lines")?;
    if lines > Trace::MAX_LINES {
        return wrong(format!("{lines} source lines exceed the limit of {}", Trace::MAX_LINES));
    }
    for _ in 0..lines {
        let number = input.below(u32::MAX as u64 + 1, "line number")? as u32;
        trace.add_line(Line {
            number,
            text: input.text("line")?,
        });
    }
    read_names(&mut input, &mut trace)?;
    read_frames(&mut input, &mut trace)?;
    Ok(trace)
}

fn read_names(input: &mut Reader<'_>, trace: &mut Trace) -> Result<(), StoredError> {
    for expected in 0..input.count("names")? {
        if trace.intern_name(input.bytes("name")?) as usize != expected {
            return wrong("duplicate name");
        }
    }
    for expected in 0..input.count("shapes")? {
        let names = trace.names.len() as u64;
        let shape: Vec<u32> = (0..input.count("shape")?)
            .map(|_| Ok(input.below(names, "shape")? as u32))
            .collect::<Result<_, _>>()?;
        let mut sorted = shape.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("duplicate name in a shape");
        }
        if trace.intern_shape(&shape) as usize != expected {
            return wrong("duplicate shape");
        }
    }
    Ok(())
}

fn read_frames(input: &mut Reader<'_>, trace: &mut Trace) -> Result<(), StoredError> {
    let (frames, changes) = (input.count("frames")?, input.count("changes")?);
    if frames > Trace::MAX_FRAMES || changes > u32::MAX as usize {
        return wrong(format!("{frames} frames or {changes} changes exceed the limit"));
    }
    let mut events = Reader(input.bytes("events")?);
    let mut lines = Reader(input.bytes("frame lines")?);
    let mut shapes = Reader(input.bytes("frame shapes")?);
    let mut counts = Reader(input.bytes("change counts")?);
    let mut slots = Reader(input.bytes("change slots")?);
    let mut lengths = Reader(input.bytes("value lengths")?);
    let values = input.0;
    trace.frames.reserve_exact(frames);
    trace.changes.reserve_exact(changes);
    let mut end = 0;
    for index in 0..frames {
        let event = Event::ALL[events.below(4, "events")? as usize];
        let line = lines.below(trace.lines.len() as u64, "frame lines")? as u32;
        let shape = shapes.below(trace.shapes.len().max(1) as u64, "frame shapes")? as u32;
        let room = changes - trace.changes.len();
        let count = counts.below(room as u64 + 1, "change counts")?;
        let variables = match (event.has_locals(), trace.shapes.get(shape as usize)) {
            (false, _) => 1,
            (true, Some(names)) => names.len() as u64,
            (true, None) => return wrong(format!("frame {index} has no shape")),
        };
        if !event.has_locals() && count != 1 {
            return wrong(format!("frame {index} has {count} values"));
        }
        let mut above = 0;
        for _ in 0..count {
            let slot = slots.below(variables, "change slots")? as u32;
            if slot < above {
                return wrong(format!("the changes of frame {index} are out of order"));
            }
            above = slot + 1;
            end += lengths.below(values.len() as u64 - end + 1, "value lengths")?;
            trace.changes.push(Change { end, slot });
        }
        let changes_end = trace.changes.len() as u32;
        trace.frames.push(FrameRow::new(event, line, shape, changes_end));
    }
    let rest = [events, lines, shapes, counts, slots, lengths];
    if trace.changes.len() != changes || end != values.len() as u64 || rest.iter().any(|column| !column.0.is_empty()) {
        return wrong("the lengths of the columns do not match the data");
    }
    trace.values = values.to_vec();
    Ok(())
}

/// Writes LEB128 integers, and byte strings preceded by their length.
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn int(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn column(&mut self, values: impl Iterator<Item = u64>) {
        let mut column = Writer(Vec::new());
        values.for_each(|value| column.int(value));
        self.bytes(&column.0);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.int(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

/// Reads the output of a [`Writer`]. Callers pass the name of each item (`what`) for error messages.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn int(&mut self, what: &str) -> Result<u64, StoredError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.0.split_first() else {
                return wrong(format!("the data ends within the {what}"));
            };
            self.0 = rest;
            let part = (byte & 0x7f) as u64;
            if part << shift >> shift != part {
                break;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        wrong(format!("a number in the {what} exceeds 64 bits"))
    }

    #[inline]
    pub(crate) fn below(&mut self, bound: u64, what: &str) -> Result<u64, StoredError> {
        // Nearly all numbers take one byte.
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
            && (byte as u64) < bound
        {
            self.0 = rest;
            return Ok(byte as u64);
        }
        self.long_below(bound, what)
    }

    #[inline(never)]
    fn long_below(&mut self, bound: u64, what: &str) -> Result<u64, StoredError> {
        match self.int(what)? {
            value if value < bound => Ok(value),
            value => wrong(format!("{value} in the {what} is out of range")),
        }
    }

    /// Reads a number of items. Each item takes at least one byte, so a count above the number of remaining bytes is an
    /// error.
    fn count(&mut self, what: &str) -> Result<usize, StoredError> {
        let count = self.int(what)?;
        if count > self.0.len() as u64 {
            return wrong(format!("the data ends before the {count} items of the {what}"));
        }
        Ok(count as usize)
    }

    pub(crate) fn bytes(&mut self, what: &str) -> Result<&'a [u8], StoredError> {
        let length = self.count(what)?;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self, what: &str) -> Result<String, StoredError> {
        String::from_utf8(self.bytes(what)?.to_vec()).or_else(|_| wrong(format!("the {what} is not UTF-8")))
    }
}
