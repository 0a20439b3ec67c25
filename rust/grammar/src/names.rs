//! The names of the variables of the frame that is being written.

use cwm_trace::push_code_point;

/// The decoded names of a frame in order, the last one perhaps still open. Reading can be undone.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// Where each closed name ends.
    ends: Vec<usize>,
    /// A high surrogate that may yet become half of a pair.
    high: Option<u16>,
    /// Whether the value of the first one is `..`.
    first_unchanged: bool,
}

/// Where [`Names::rewind`] goes back to.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    bytes: usize,
    ends: usize,
    high: Option<u16>,
    first_unchanged: bool,
}

impl Names {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.high = None;
        self.first_unchanged = false;
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            ends: self.ends.len(),
            high: self.high,
            first_unchanged: self.first_unchanged,
        }
    }

    /// Undoes what was read since the mark was taken.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.ends.truncate(mark.ends);
        self.high = mark.high;
        self.first_unchanged = mark.first_unchanged;
    }

    /// The closed ones.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    /// The last closed one.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        let (&end, before) = self.ends.split_last()?;
        Some(&self.bytes[before.last().copied().unwrap_or(0)..end])
    }

    /// Whether just one is closed.
    pub(crate) fn at_first(&self) -> bool {
        self.ends.len() == 1
    }

    pub(crate) fn push_byte(&mut self, byte: u8) {
        self.push_high();
        self.bytes.push(byte);
    }

    /// Two units that are a surrogate pair are one character; others are kept as they are, lone surrogates too.
    pub(crate) fn push_unit(&mut self, unit: u16) {
        match (self.high, unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                self.high = None;
                let code = 0x10000 + ((u32::from(high) - 0xd800) << 10) + (u32::from(unit) - 0xdc00);
                push_code_point(code, &mut self.bytes);
            }
            (_, 0xd800..=0xdbff) => {
                self.push_high();
                self.high = Some(unit);
            }
            _ => {
                self.push_high();
                push_code_point(u32::from(unit), &mut self.bytes);
            }
        }
    }

    fn push_high(&mut self) {
        if let Some(high) = self.high.take() {
            push_code_point(u32::from(high), &mut self.bytes);
        }
    }

    /// Closes the open name. Gives whether it is a new one.
    pub(crate) fn end_name(&mut self) -> bool {
        self.push_high();
        let name = &self.bytes[self.ends.last().copied().unwrap_or(0)..];
        let is_new = self.iter().all(|other| other != name);
        self.ends.push(self.bytes.len());
        is_new
    }

    /// Takes in the value of the last name.
    pub(crate) fn end_value(&mut self, unchanged: bool) {
        if self.at_first() {
            self.first_unchanged = unchanged;
        }
    }

    /// Whether the frame begins with the pair `"..": ".."`.
    pub(crate) fn begin_with_rest(&self) -> bool {
        self.first_unchanged && self.iter().next() == Some(REST)
    }
}

/// The name of the pair that stands for the variables that a frame leaves out.
pub(crate) const REST: &[u8] = b"..";
