//! Values as text: the bounded walk of the trace format, native for built-in values and through `__repr__` for all
//! others.
//!
//! A container that was rendered before is first walked along its tape, element by element. Nothing is written until
//! the first difference.

use pyo3::ffi;
use pyo3::prelude::*;

use super::cursor::{Cursor, Variables};
use super::leaf;
use super::scalar::Scalar;
use super::tape::{Entry, Kind, Known, Tape};

/// Containers nested deeper than this are written as `...`.
const MAX_DEPTH: usize = 200;
/// Largest capacity in bytes of a leaf's text buffer that is kept for reuse.
const MAX_SCRATCH: usize = 1 << 20;

/// Options for showing values.
#[derive(Clone, Copy)]
pub struct Style {
    /// Maximum number of code points of a text. Longer texts are cut.
    pub max_chars: usize,
    /// Whether to show the attributes of instances without their own `__repr__`.
    pub attributes: bool,
}

impl Style {
    /// Returns whether `value` is walked rather than written in one piece.
    ///
    /// # Safety
    /// `value` must be alive, and the GIL must be held.
    pub unsafe fn walks(self, value: *mut ffi::PyObject) -> bool {
        // SAFETY: upheld by the caller.
        unsafe { Cursor::kind(value, self.attributes).is_some() }
    }
}

/// Buffers that all walks reuse.
#[derive(Default)]
pub struct Scratch {
    /// Text of a leaf.
    text: Vec<u8>,
    open: Vec<Cursor>,
    /// Tape of a value that is shown once.
    tape: Tape,
}

impl Scratch {
    fn take_text(&mut self) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        text
    }

    fn give_text(&mut self, text: Vec<u8>) {
        if text.capacity() <= MAX_SCRATCH {
            self.text = text;
        }
    }
}

/// Reason why a walk ends early.
enum Stop {
    /// The text exceeds the limit.
    Full,
    /// A `__repr__` raised an exception that is not an `Exception`.
    Raised(PyErr),
}

/// Appends a scalar, cut if it is too long, and returns what to remember of it.
#[inline]
pub fn write_scalar(scalar: Scalar<'_>, style: Style, out: &mut Vec<u8>) -> Known {
    let start = out.len();
    let plain = scalar.write(style.max_chars + 1, out);
    if out.len() - start <= style.max_chars {
        return Known::of(scalar, 0, plain);
    }
    out.truncate(start + style.max_chars);
    out.extend_from_slice(b"...");
    prefix(scalar, 0, plain, style.max_chars)
}

/// Returns what to remember of a scalar if only `room` characters of its text, which starts at byte `begin`, are shown.
fn prefix(scalar: Scalar<'_>, begin: usize, plain: bool, room: usize) -> Known {
    match scalar {
        Scalar::Ascii(_) if plain && room > 0 => Known::Prefix {
            begin: begin as u32 + 1,
            length: room as u32 - 1,
        },
        Scalar::Ascii(_) | Scalar::Bytes(_) => Known::Text,
        _ => Known::of(scalar, begin, plain),
    }
}

/// Appends the text of any value.
///
/// Returns an error if a `__repr__` raises an exception outside `Exception`. The caller must then drop the appended
/// text.
///
/// # Safety
/// `value` must be a live object that the caller holds or that is one of `variables`, and the GIL must be held.
pub unsafe fn render(
    py: Python<'_>,
    value: *mut ffi::PyObject,
    style: Style,
    (variables, scratch): (&mut Variables<'_>, &mut Scratch),
    out: &mut Vec<u8>,
) -> PyResult<()> {
    // SAFETY: upheld by the caller, here and below.
    if unsafe { !style.walks(value) } {
        // SAFETY: same as above.
        return unsafe { render_leaf(py, value, style, (variables, scratch), out) };
    }
    let mut tape = std::mem::take(&mut scratch.tape);
    // SAFETY: upheld by the caller.
    let rendered = unsafe { Walk::new(py, style, (variables, scratch), (&mut tape, None), out).run(value) };
    scratch.tape = tape;
    rendered.map(drop)
}

unsafe fn render_leaf(
    py: Python<'_>,
    value: *mut ffi::PyObject,
    style: Style,
    (variables, scratch): (&mut Variables<'_>, &mut Scratch),
    out: &mut Vec<u8>,
) -> PyResult<()> {
    let start = out.len();
    // SAFETY: the caller upholds the contract of `render`. Objects that Python code could drop are held before it runs.
    unsafe {
        let room = style.max_chars + 1;
        if !leaf::write_at_once(py, value, room, out)? {
            variables.hold();
            let held = Bound::from_borrowed_ptr(py, value);
            let mut text = scratch.take_text();
            leaf::write(py, held.as_ptr(), room, &mut text)?;
            out.extend_from_slice(&text[..text.len().min(room.saturating_mul(4))]);
            scratch.give_text(text);
        }
    }
    if out.len() - start > style.max_chars && code_points(&out[start..]) > style.max_chars {
        cut(out, start, style.max_chars);
    }
    Ok(())
}

/// Appends the text of a container, unless it equals the text at `old` in `out`, along whose tape it walks. Returns
/// whether the text changed; if it did not, nothing is appended. After an error, the tape is unusable.
///
/// # Safety
/// Same as for [`render`]. The tape must belong to the text at `old`.
pub unsafe fn update(
    py: Python<'_>,
    value: *mut ffi::PyObject,
    style: Style,
    buffers: (&mut Variables<'_>, &mut Scratch),
    remembered: (&mut Tape, Option<usize>),
    out: &mut Vec<u8>,
) -> PyResult<bool> {
    // SAFETY: upheld by the caller.
    unsafe { Walk::new(py, style, buffers, remembered, out).run(value) }
}

struct Walk<'py, 'a, 'v> {
    py: Python<'py>,
    style: Style,
    /// Variables that the step has yet to show.
    variables: &'a mut Variables<'v>,
    tape: &'a mut Tape,
    /// Start of the old text in `out`; `None` once the walk has found a difference.
    old: Option<usize>,
    /// Index of the tape's next piece to compare while there is an old text.
    at: usize,
    out: &'a mut Vec<u8>,
    /// Start of the new text in `out`.
    start: usize,
    /// Code points written since `start`.
    chars: usize,
    /// Containers around the current value, outermost first.
    open: Vec<Cursor>,
    scratch: &'a mut Scratch,
}

impl<'py, 'a, 'v> Walk<'py, 'a, 'v> {
    fn new(
        py: Python<'py>,
        style: Style,
        (variables, scratch): (&'a mut Variables<'v>, &'a mut Scratch),
        (tape, old): (&'a mut Tape, Option<usize>),
        out: &'a mut Vec<u8>,
    ) -> Self {
        if old.is_none() {
            tape.clear();
        }
        Walk {
            py,
            style,
            variables,
            tape,
            old,
            at: 0,
            start: out.len(),
            out,
            chars: 0,
            open: std::mem::take(&mut scratch.open),
            scratch,
        }
    }

    unsafe fn run(mut self, value: *mut ffi::PyObject) -> PyResult<bool> {
        // SAFETY: the caller upholds the contract of `render` and `update`.
        let ended = unsafe { self.value(b"", value) };
        self.open.clear();
        self.scratch.open = std::mem::take(&mut self.open);
        match ended {
            Err(Stop::Raised(error)) => return Err(error),
            _ if self.old.is_some() => return Ok(false),
            Ok(()) => self.tape.end = (self.out.len() - self.start) as u32,
            Err(Stop::Full) => cut(self.out, self.start, self.style.max_chars),
        }
        Ok(true)
    }

    /// Switches from comparing to writing: copies the part of the old text that was found unchanged.
    fn part(&mut self) {
        let Some(old) = self.old.take() else { return };
        let length = self.tape.offset(self.at);
        self.out.extend_from_within(old..old + length);
        self.chars = match self.tape.wide {
            true => code_points(&self.out[self.start..]),
            false => length,
        };
        self.tape.entries.truncate(self.at);
        self.tape.cut_inside = false;
    }

    /// Skips a piece that was found unchanged.
    fn pass(&mut self) -> Result<(), Stop> {
        self.at += 1;
        if self.at == self.tape.entries.len() && self.tape.cut_inside {
            return Err(Stop::Full);
        }
        Ok(())
    }

    /// Returns the next piece and the whole old text, as long as there was no difference.
    fn expected(&self) -> Option<(Known, &[u8])> {
        let old = self.old?;
        let entry = self.tape.entries.get(self.at)?;
        Some((entry.known, &self.out[old..]))
    }

    /// Returns the old text of the next piece, without the preceding separator of `lead` bytes.
    fn expected_text(&self, lead: usize) -> Option<&[u8]> {
        let old = self.old?;
        let range = self.tape.offset(self.at) + lead..self.tape.offset(self.at + 1);
        self.out[old..].get(range)
    }

    /// Begins a piece by writing the separator before it.
    fn begin(&mut self, lead: &[u8], known: Known) -> Result<(), Stop> {
        let offset = (self.out.len() - self.start) as u32;
        self.tape.end = offset;
        match *lead {
            [] => {}
            // Append separators between elements inline, to avoid a call for two bytes.
            [first, second] => {
                self.out.extend_from_slice(&[first, second]);
                self.count(2)?;
            }
            _ => self.push(lead)?,
        }
        self.tape.entries.push(Entry { known, offset });
        Ok(())
    }

    fn push(&mut self, text: &[u8]) -> Result<(), Stop> {
        if let [byte] = *text {
            self.out.push(byte);
            return self.count(1);
        }
        self.out.extend_from_slice(text);
        let chars = code_points(text);
        self.tape.wide |= chars < text.len();
        self.count(chars)
    }

    /// Writes the text of a piece that was begun.
    fn put(&mut self, text: &[u8]) -> Result<(), Stop> {
        let pushed = self.push(text);
        self.tape.cut_inside = pushed.is_err();
        pushed
    }

    #[inline]
    fn count(&mut self, chars: usize) -> Result<(), Stop> {
        self.chars += chars;
        if self.chars > self.style.max_chars {
            Err(Stop::Full)
        } else {
            Ok(())
        }
    }

    /// Returns one more than the number of characters left.
    fn room(&self) -> usize {
        self.style.max_chars.saturating_sub(self.chars) + 1
    }

    unsafe fn value(&mut self, lead: &[u8], value: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: `value` is alive and the GIL is held, by the contract of `render`, here and below.
        unsafe {
            if let Some((known, text)) = self.expected()
                && known.is(value, || text)
                && self.leads(lead)
            {
                return self.pass();
            }
            if let Some(scalar) = Scalar::of(value) {
                return match self.expected() {
                    Some((Known::Text, _)) => self.scalar_by_text(lead, scalar),
                    _ => self.scalar(lead, scalar),
                };
            }
            match Cursor::kind(value, self.style.attributes) {
                Some(kind) => self.container(lead, value, kind),
                None => self.leaf(lead, value),
            }
        }
    }

    /// Returns whether the old text has this separator. Separators before attributes contain their names.
    fn leads(&self, lead: &[u8]) -> bool {
        !self.style.attributes
            || self.old.is_none_or(|old| {
                let offset = old + self.tape.offset(self.at);
                self.out[offset..].starts_with(lead)
            })
    }

    fn scalar(&mut self, lead: &[u8], scalar: Scalar<'_>) -> Result<(), Stop> {
        self.part();
        self.begin(lead, Known::Text)?;
        let begin = self.out.len();
        let (room, plain) = (self.style.max_chars - self.chars, scalar.write(self.room(), self.out));
        let written = self.out.len() - begin;
        let known = match written <= room {
            true => Known::of(scalar, begin - self.start, plain),
            false => prefix(scalar, begin - self.start, plain, room),
        };
        if let Some(entry) = self.tape.entries.last_mut() {
            entry.known = known;
        }
        let counted = self.count(written);
        self.tape.cut_inside = counted.is_err();
        counted
    }

    /// Compares or writes a scalar at a place where only the old text is remembered.
    fn scalar_by_text(&mut self, lead: &[u8], scalar: Scalar<'_>) -> Result<(), Stop> {
        let mut text = self.scratch.take_text();
        scalar.write(self.style.max_chars + 1, &mut text);
        let result = self.leaf_text(lead, &text);
        self.scratch.give_text(text);
        result
    }

    /// Compares or writes a piece whose text follows from `known`.
    fn mark(&mut self, lead: &[u8], known: Known, text: &[u8]) -> Result<(), Stop> {
        if self.expected().is_some_and(|(expected, _)| expected == known)
            && self.leads(lead)
            && (!self.style.attributes || self.expected_text(lead.len()).is_some_and(|old| old == text))
        {
            return self.pass();
        }
        self.part();
        self.begin(lead, known)?;
        self.put(text)
    }

    unsafe fn container(&mut self, lead: &[u8], value: *mut ffi::PyObject, kind: Kind) -> Result<(), Stop> {
        // SAFETY: `value` is alive and of kind `kind`. The cursor is on top of `open` until it is popped.
        unsafe {
            if self.open.iter().any(|cursor| cursor.is_over(value)) {
                let text = Cursor::recursion(value, kind);
                return self.mark(lead, Known::Within(kind), &text);
            }
            if self.open.len() >= MAX_DEPTH {
                return self.mark(lead, Known::TooDeep, b"...");
            }
            let (opening, closing) = Cursor::brackets(value, kind);
            self.mark(lead, Known::Open(kind), &opening)?;
            if kind == Kind::Attributes {
                // Creating the dict of an instance can start a garbage collection on 3.11 and so run finalizers.
                self.hold();
            }
            let cursor = Cursor::new(self.py, value, kind, self.reach()).map_err(Stop::Raised)?;
            self.open.push(cursor);
            let written = self.elements();
            self.open.pop();
            written?;
            self.mark(b"", Known::Close, closing)
        }
    }

    /// Returns the maximum number of elements to read before the text is full. Each takes at least two characters.
    fn reach(&self) -> usize {
        let chars = if self.old.is_some() { 0 } else { self.chars };
        self.style.max_chars.saturating_sub(chars) / 2 + 2
    }

    /// Walks the elements of the innermost container.
    unsafe fn elements(&mut self) -> Result<(), Stop> {
        let depth = self.open.len() - 1;
        let mut first = true;
        loop {
            // SAFETY: the cursor's container is alive. The elements that the cursor returns stay alive until code runs,
            // and they are held before that happens.
            unsafe {
                if let Some(old) = self.old
                    && self.open[depth].skip_unchanged(self.tape, &mut self.at, &self.out[old..])
                {
                    first = false;
                    if self.at == self.tape.entries.len() && self.tape.cut_inside {
                        return Err(Stop::Full);
                    }
                }
                let Some((key, value)) = self.open[depth].next() else {
                    return Ok(());
                };
                let comma: &[u8] = if first { b"" } else { b", " };
                first = false;
                if let Some(name) = self.open[depth].name() {
                    let lead = [comma, name, b"="].concat();
                    self.value(&lead, value)?;
                } else if key.is_null() {
                    self.value(comma, value)?;
                } else {
                    self.value(comma, key)?;
                    self.value(b": ", value)?;
                }
            }
        }
    }

    /// Holds everything that is still to be shown, so that it outlives the Python code that is about to run.
    unsafe fn hold(&mut self) {
        let reach = self.reach();
        for cursor in &mut self.open {
            // SAFETY: no code has run since the cursor read its container, or the cursor holds its elements.
            unsafe { cursor.hold(self.py, reach) };
        }
        // SAFETY: same as above, for the slots of the frame.
        unsafe { self.variables.hold() };
    }

    unsafe fn leaf(&mut self, lead: &[u8], value: *mut ffi::PyObject) -> Result<(), Stop> {
        let mut text = self.scratch.take_text();
        // SAFETY: `value` is alive, and it is held while its `__repr__` runs.
        let written = unsafe {
            let held = leaf::runs_code(value).then(|| {
                self.hold();
                Bound::from_borrowed_ptr(self.py, value)
            });
            let room = self.style.max_chars + 1;
            leaf::write(
                self.py,
                held.as_ref().map_or(value, |held| held.as_ptr()),
                room,
                &mut text,
            )
        };
        let result = match written {
            Ok(()) => self.leaf_text(lead, &text),
            Err(error) => Err(Stop::Raised(error)),
        };
        self.scratch.give_text(text);
        result
    }

    fn leaf_text(&mut self, lead: &[u8], text: &[u8]) -> Result<(), Stop> {
        let last_is_cut = self.tape.cut_inside && self.at + 1 == self.tape.entries.len();
        if !last_is_cut
            && self.expected().is_some_and(|(known, _)| known == Known::Text)
            && self.leads(lead)
            && self.expected_text(lead.len()) == Some(text)
        {
            return self.pass();
        }
        self.part();
        self.begin(lead, Known::Text)?;
        // Copy only what can be shown. A code point takes at most four bytes.
        let shown = text.len().min(self.room() * 4);
        self.put(&text[..shown])
    }
}

fn code_points(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xc0 != 0x80).count()
}

/// Cuts a text that begins at `start` and has more than `chars` code points to that many, and marks the cut.
fn cut(out: &mut Vec<u8>, start: usize, chars: usize) {
    let text = &out[start..];
    // Continuation bytes do not begin a code point.
    let begins = |(_, byte): &(usize, &u8)| **byte & 0xc0 != 0x80;
    let end = match text.is_ascii() {
        true => Some(start + chars),
        false => text
            .iter()
            .enumerate()
            .filter(begins)
            .nth(chars)
            .map(|(i, _)| start + i),
    };
    out.truncate(end.unwrap_or(out.len()));
    out.extend_from_slice(b"...");
}
