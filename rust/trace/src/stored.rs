//! The stored form: lossless, compact, checked before it is believed.
//!
//! `CWMTRACE`, version (u32), length of the payload (u64), CRC-32 of what follows (u32), then the payload compressed by
//! zstd. All integers of the header are little-endian; those of the payload are LEB128. The payload holds the columns of
//! a [`Trace`] one after the other; reading checks every length and index against what it refers to.

use std::fmt;

use crate::trace::{Change, Event, FrameRow, Line, Outcome, Trace};

const MAGIC: &[u8; 8] = b"CWMTRACE";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 4;
const LEVEL: i32 = 3;
/// A stored trace may not claim to unpack to more than this: a guard against decompression bombs.
const MAX_PAYLOAD: u64 = 1 << 34;

/// Why bytes are not a stored trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredError(pub String);

impl fmt::Display for StoredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a stored trace: {}", self.0)
    }
}

impl std::error::Error for StoredError {}

fn wrong<T>(reason: impl Into<String>) -> Result<T, StoredError> {
    Err(StoredError(reason.into()))
}

/// The stored form of a trace.
pub fn to_bytes(trace: &Trace) -> Result<Vec<u8>, StoredError> {
    let payload = write_payload(trace);
    let packed = zstd::bulk::compress(&payload, LEVEL).map_err(|e| StoredError(format!("zstd: {e}")))?;
    let mut out = Vec::with_capacity(HEADER + packed.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
    out.extend_from_slice(&packed);
    Ok(out)
}

/// Reads a stored form back. Damaged or hostile input is an error that says what is wrong.
pub fn from_bytes(bytes: &[u8]) -> Result<Trace, StoredError> {
    if bytes.len() < HEADER || &bytes[..8] != MAGIC {
        return wrong("it does not begin with the header of one");
    }
    let version = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if version != VERSION {
        return wrong(format!("version {version}, this library reads version {VERSION}"));
    }
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[12..20]);
    let length = u64::from_le_bytes(word);
    let checksum = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
    if crc32fast::hash(&bytes[HEADER..]) != checksum {
        return wrong("the checksum does not match; the data is damaged or cut");
    }
    if length > MAX_PAYLOAD {
        return wrong(format!("it claims to hold {length} bytes"));
    }
    let payload = unpack(&bytes[HEADER..], length)?;
    read_payload(&payload)
}

/// Unpacks without trusting `length` for the allocation.
fn unpack(packed: &[u8], length: u64) -> Result<Vec<u8>, StoredError> {
    use std::io::Read;
    let failed = |e: std::io::Error| StoredError(format!("zstd: {e}"));
    let mut payload = Vec::new();
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(failed)?;
    decoder.take(length + 1).read_to_end(&mut payload).map_err(failed)?;
    if payload.len() as u64 != length {
        return wrong(format!("{length} bytes were announced, {} are there", payload.len()));
    }
    Ok(payload)
}

fn write_payload(trace: &Trace) -> Vec<u8> {
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
        out.ints(shape.iter().map(|&id| id as u64), shape.len());
    }
    let (frames, changes) = (&trace.frames, &trace.changes[..trace.closed_changes()]);
    out.ints(frames.iter().map(|f| f.event() as u64), frames.len());
    out.ints(frames.iter().map(|f| f.line() as u64), frames.len());
    out.ints(frames.iter().map(|f| f.shape as u64), frames.len());
    out.ints(deltas(frames.iter().map(|f| f.changes_end as u64)), frames.len());
    out.ints(changes.iter().map(|c| c.slot as u64), changes.len());
    out.ints(deltas(changes.iter().map(|c| c.end)), changes.len());
    let values_end = changes.last().map_or(0, |change| change.end as usize);
    out.0.extend_from_slice(&trace.values[..values_end]);
    out.0
}

fn deltas(ends: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let mut start = 0;
    ends.map(move |end| end - std::mem::replace(&mut start, end))
}

fn read_payload(payload: &[u8]) -> Result<Trace, StoredError> {
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
    let lines = input.count("lines")?;
    if lines > Trace::MAX_LINES {
        return wrong(format!("it has {lines} source lines"));
    }
    for _ in 0..lines {
        let number = input.below(u32::MAX as u64 + 1, "line number")?;
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
            return wrong("a name occurs twice");
        }
    }
    for expected in 0..input.count("shapes")? {
        let names = trace.names.len() as u64;
        let shape = input.column(names, "shape")?;
        let mut sorted = shape.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("a shape holds a name twice");
        }
        if trace.intern_shape(&shape) as usize != expected {
            return wrong("a shape occurs twice");
        }
    }
    Ok(())
}

fn read_frames(input: &mut Reader<'_>, trace: &mut Trace) -> Result<(), StoredError> {
    let events = input.column(4, "events")?;
    let lines = input.column(trace.lines.len() as u64, "frame lines")?;
    let shapes = input.column(trace.shapes.len().max(1) as u64, "frame shapes")?;
    let counts = input.column(u32::MAX as u64 + 1, "change counts")?;
    let slots = input.column(u32::MAX as u64 + 1, "change slots")?;
    let lengths = input.column(u32::MAX as u64 + 1, "value lengths")?;
    if [lines.len(), shapes.len(), counts.len()] != [events.len(); 3] {
        return wrong("its columns differ in length");
    }
    let rows = events.iter().zip(&lines).zip(shapes.iter().zip(&counts));
    let mut changes_end = 0u32;
    for ((&event, &line), (&shape, &count)) in rows {
        let Some(end) = changes_end.checked_add(count) else {
            return wrong("its change counts add up to too much");
        };
        changes_end = end;
        trace
            .frames
            .push(FrameRow::new(Event::ALL[event as usize], line, shape, end));
    }
    if changes_end as usize != slots.len() {
        return wrong("its changes do not add up");
    }
    if lengths.len() != slots.len() {
        return wrong("it has another number of values than of changes");
    }
    let mut end = 0;
    trace.changes.extend(slots.iter().zip(&lengths).map(|(&slot, &length)| {
        end += length as u64;
        Change { end, slot }
    }));
    if end != input.0.len() as u64 {
        return wrong("its values do not add up");
    }
    trace.values = input.0.to_vec();
    trace.frames().try_for_each(|frame| check_changes(trace, frame))
}

fn check_changes(trace: &Trace, frame: crate::FrameRef<'_>) -> Result<(), StoredError> {
    let changes = frame.changes();
    let changes = &trace.changes[changes.start as usize..changes.end as usize];
    let slots = || changes.iter().map(|change| change.slot);
    let fits = match frame.event().has_locals() {
        true => {
            let Some(shape) = trace.shapes.get(trace.frames[frame.index()].shape as usize) else {
                return wrong(format!("frame {} has no shape", frame.index()));
            };
            slots().is_sorted_by(|a, b| a < b) && slots().next_back().is_none_or(|slot| (slot as usize) < shape.len())
        }
        false => slots().eq([0]),
    };
    if fits {
        Ok(())
    } else {
        wrong(format!("the changes of frame {} do not fit it", frame.index()))
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn int(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn ints(&mut self, values: impl Iterator<Item = u64>, count: usize) {
        self.int(count as u64);
        values.for_each(|value| self.int(value));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.int(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn int(&mut self, what: &str) -> Result<u64, StoredError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.0.split_first() else {
                return wrong(format!("it ends within its {what}"));
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
        wrong(format!("a number in its {what} is too large"))
    }

    fn below(&mut self, bound: u64, what: &str) -> Result<u32, StoredError> {
        let value = self.int(what)?;
        match u32::try_from(value) {
            Ok(small) if value < bound => Ok(small),
            _ => wrong(format!("{value} in its {what} is out of range")),
        }
    }

    /// A number of things that take at least a byte each, so never more than there are bytes.
    fn count(&mut self, what: &str) -> Result<usize, StoredError> {
        let count = self.int(what)?;
        if count > self.0.len() as u64 {
            return wrong(format!("it announces {count} {what} and ends before"));
        }
        Ok(count as usize)
    }

    fn column(&mut self, bound: u64, what: &str) -> Result<Vec<u32>, StoredError> {
        (0..self.count(what)?).map(|_| self.below(bound, what)).collect()
    }

    fn bytes(&mut self, what: &str) -> Result<&'a [u8], StoredError> {
        let length = self.count(what)?;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self, what: &str) -> Result<String, StoredError> {
        String::from_utf8(self.bytes(what)?.to_vec()).or_else(|_| wrong(format!("its {what} is not UTF-8")))
    }
}
