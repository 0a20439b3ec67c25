//! Names of the variables of the current frame.

use cwm_trace::push_code_point;

/// Decoded names of a frame in order. The last one may be incomplete. Reading can be undone.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// End of each complete name.
    ends: Vec<usize>,
    /// High surrogate that may become half of a pair.
    high: Option<u16>,
    /// Whether the value of the first name is `..`.
    first_unchanged: bool,
}

/// State that [`Names::rewind`] restores.
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

    /// Undoes all reading since the mark.
    pub(crate) fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.ends.truncate(mark.ends);
        self.high = mark.high;
        self.first_unchanged = mark.first_unchanged;
    }

    /// Iterates over the complete names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    /// Returns the last complete name.
    pub(crate) fn last(&self) -> Option<&[u8]> {
        let (&end, before) = self.ends.split_last()?;
        Some(&self.bytes[before.last().copied().unwrap_or(0)..end])
    }

    /// Returns whether exactly one name is complete.
    pub(crate) fn at_first(&self) -> bool {
        self.ends.len() == 1
    }

    pub(crate) fn push_byte(&mut self, byte: u8) {
        self.push_high();
        self.bytes.push(byte);
    }

    /// Appends a UTF-16 unit. A surrogate pair becomes one character. Lone surrogates are kept.
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

    /// Completes the current name. Returns false if the frame already has this name.
    pub(crate) fn end_name(&mut self) -> bool {
        self.push_high();
        let name = &self.bytes[self.ends.last().copied().unwrap_or(0)..];
        let is_new = self.iter().all(|other| other != name);
        self.ends.push(self.bytes.len());
        is_new
    }

    /// Records the value of the last name.
    pub(crate) fn end_value(&mut self, unchanged: bool) {
        if self.at_first() {
            self.first_unchanged = unchanged;
        }
    }

    /// Returns whether the frame begins with the pair `"..": ".."`.
    pub(crate) fn begin_with_rest(&self) -> bool {
        self.first_unchanged && self.iter().next() == Some(REST)
    }
}

/// Name of the pair that represents the variables that a frame omits.
pub(crate) const REST: &[u8] = b"..";
