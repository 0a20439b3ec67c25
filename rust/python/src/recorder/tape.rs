//! What is remembered of a rendered value, so that an unchanged one costs a check and not a rendering.
//!
//! Addresses tell nothing: a freed object's address is reused at once, and a container changes in place. So scalars are
//! remembered by value, strings by where they stand in the text, and containers by a tape: their elements in the order in
//! which they were rendered.

use std::slice;

use pyo3::ffi;

use super::layout::{compact_int, int_digits};
use super::scalar::{Scalar, quote};

/// What was rendered at one place of a text.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Known {
    /// Only its text tells whether a value is as it was.
    Text,
    /// An immutable object of this kind, whose content was copied.
    Copy(Content),
    Int(i64),
    /// By its bits.
    Float(u64),
    None,
    True,
    False,
    /// An ASCII string that stands in the text as it is.
    String {
        begin: u32,
        length: u32,
    },
    /// An ASCII string that goes on after the text was cut; what is shown stands there as it is.
    Prefix {
        begin: u32,
        length: u32,
    },
    Open(Kind),
    Close,
    /// `[...]` and the like, in the place of a container within itself, or one nested too deep.
    Within(Kind),
    TooDeep,
}

/// What opens and closes a container's text.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    List,
    Tuple,
    Dict,
    EmptySet,
    Set,
    EmptyFrozenset,
    Frozenset,
    /// An instance shown with its attributes.
    Attributes,
}

impl Known {
    /// What stands for a value that has a tape of its own.
    pub const TAPE: Known = Known::Open(Kind::List);

    /// What to remember of a scalar whose text was written from byte `begin` of its text on. `plain`: it is a string
    /// whose characters all stand for themselves.
    #[inline]
    pub fn of(scalar: Scalar<'_>, begin: usize, plain: bool) -> Known {
        match scalar {
            Scalar::Int(number) => Known::Int(number),
            Scalar::Float(number) => Known::Float(number.to_bits()),
            Scalar::None => Known::None,
            Scalar::True => Known::True,
            Scalar::False => Known::False,
            Scalar::Ascii(text) if plain => Known::String {
                begin: begin as u32 + 1,
                length: text.len() as u32,
            },
            Scalar::Ascii(_) | Scalar::Bytes(_) => Known::Text,
        }
    }

    /// Whether `value` is a scalar that gives the same text again. `text` gives the text that this was remembered of.
    ///
    /// # Safety
    /// `value` is alive and the GIL is held.
    #[inline]
    pub unsafe fn is<'a>(self, value: *mut ffi::PyObject, text: impl FnOnce() -> &'a [u8]) -> bool {
        // SAFETY: upheld by the caller; the type is checked before a value is read as one of it.
        unsafe {
            match self {
                Known::Int(number) => {
                    ffi::Py_TYPE(value) == &raw mut ffi::PyLong_Type
                        && match compact_int(value) {
                            Some(other) => other == number,
                            None => matches!(Scalar::of(value), Some(Scalar::Int(other)) if other == number),
                        }
                }
                Known::Float(bits) => {
                    ffi::Py_TYPE(value) == &raw mut ffi::PyFloat_Type && ffi::PyFloat_AS_DOUBLE(value).to_bits() == bits
                }
                Known::None => value == ffi::Py_None(),
                Known::True => value == ffi::Py_True(),
                Known::False => value == ffi::Py_False(),
                Known::String { begin, length } => match Scalar::of(value) {
                    Some(Scalar::Ascii(string)) => string == shown(text(), begin, length),
                    _ => false,
                },
                Known::Prefix { begin, length } => match Scalar::of(value) {
                    Some(Scalar::Ascii(string)) => {
                        let text = text();
                        string.starts_with(shown(text, begin, length)) && quote(string) == text[begin as usize - 1]
                    }
                    _ => false,
                },
                _ => false,
            }
        }
    }
}

fn shown(text: &[u8], begin: u32, length: u32) -> &[u8] {
    &text[begin as usize..(begin + length) as usize]
}

/// What the content of an immutable object is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Content {
    Digits {
        negative: bool,
    },
    /// A string by the width of its characters.
    String(u32),
    Bytes,
    Complex,
}

impl Content {
    /// No more is copied: what is longer is rendered again, of which as much is bounded.
    const MAX: usize = 1 << 14;
    /// The text of longer ints depends on `sys.set_int_max_str_digits`, which is 640 at least: 71 digits of 30 bits.
    const MAX_DIGITS: usize = 70;

    /// The content of a value from which alone its text follows.
    ///
    /// # Safety
    /// `value` is alive for `'a` and the GIL is held.
    pub unsafe fn of<'a>(value: *mut ffi::PyObject) -> Option<(Content, &'a [u8])> {
        // SAFETY: upheld by the caller; the type is checked before a value is read as one of it, and the content is as
        // long as the object says.
        unsafe {
            let kind = ffi::Py_TYPE(value);
            let (content, data, length) = if kind == &raw mut ffi::PyUnicode_Type {
                let width = ffi::PyUnicode_KIND(value);
                let length = ffi::PyUnicode_GET_LENGTH(value) as usize * width as usize;
                (
                    Content::String(width),
                    ffi::PyUnicode_DATA(value).cast::<u8>().cast_const(),
                    length,
                )
            } else if kind == &raw mut ffi::PyLong_Type {
                let (negative, digits) = int_digits(value);
                if digits.len() > Content::MAX_DIGITS {
                    return None;
                }
                (
                    Content::Digits { negative },
                    digits.as_ptr().cast(),
                    size_of_val(digits),
                )
            } else if kind == &raw mut ffi::PyBytes_Type {
                let data = ffi::PyBytes_AsString(value).cast::<u8>();
                (Content::Bytes, data.cast_const(), ffi::PyBytes_Size(value) as usize)
            } else if kind == &raw mut ffi::PyComplex_Type {
                let number = &raw const (*value.cast::<ffi::PyComplexObject>()).cval;
                (Content::Complex, number.cast(), size_of::<ffi::Py_complex>())
            } else {
                return None;
            };
            (length <= Content::MAX).then(|| (content, slice::from_raw_parts(data, length)))
        }
    }
}

/// One element of a tape.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub known: Known,
    /// Where in the text it begins, with the separator before it.
    pub offset: u32,
}

/// A container's text in pieces.
#[derive(Default, Debug)]
pub struct Tape {
    pub entries: Vec<Entry>,
    /// Where the pieces end: the text's length, or where a separator or bracket began that did not fit.
    pub end: u32,
    /// Whether the last piece did not fit as a whole.
    pub cut_inside: bool,
    /// Whether some character of the text takes more than a byte.
    pub wide: bool,
    /// Instead of pieces, the content of a [`Known::Copy`].
    pub copy: Vec<u8>,
}

/// Tapes that are free, for the next container. Boxed as the snapshots hold them, which stay small so.
pub type FreeTapes = Vec<Box<Tape>>;

impl Tape {
    pub fn clear(&mut self) {
        self.entries.clear();
        self.end = 0;
        self.cut_inside = false;
        self.wide = false;
    }

    /// Where piece `at` begins.
    pub fn offset(&self, at: usize) -> usize {
        self.entries.get(at).map_or(self.end, |entry| entry.offset) as usize
    }
}
