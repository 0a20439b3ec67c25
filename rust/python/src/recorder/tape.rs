//! Memory of rendered values, so that an unchanged value costs a comparison instead of a rendering.
//!
//! An address identifies nothing: the address of a freed object is reused immediately, and containers change in place.
//! Scalars are therefore remembered by value, strings by their position in the text, and containers by a tape of their
//! elements in the order in which they were rendered.

use std::slice;

use pyo3::ffi;

use super::layout::{self, compact_int, int_digits};
use super::scalar::{Scalar, quote};

/// What was rendered at one place in a text.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Known {
    /// Only a comparison of texts shows whether a value is unchanged.
    Text,
    /// An immutable object of this kind whose content was copied.
    Copy(Content),
    Int(i64),
    /// The bits of a float.
    Float(u64),
    None,
    True,
    False,
    /// An ASCII string that appears in the text without escapes.
    String {
        begin: u32,
        length: u32,
    },
    /// An ASCII string that was cut. The part shown appears in the text without escapes.
    Prefix {
        begin: u32,
        length: u32,
    },
    Open(Kind),
    Close,
    /// Text such as `[...]` that replaces a container nested in itself.
    Within(Kind),
    TooDeep,
}

/// A kind of container, which determines its opening and closing text.
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
    /// Stands for a value that has its own tape.
    pub const TAPE: Known = Known::Open(Kind::List);

    /// Returns what to remember of a scalar whose text starts at byte `begin`. Set `plain` for a string without
    /// escapes.
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

    /// Returns whether `value` is a scalar that would render to the same text. `text` returns the text to which `self`
    /// belongs.
    ///
    /// # Safety
    /// `value` must be alive, and the GIL must be held.
    #[inline]
    pub unsafe fn is<'a>(self, value: *mut ffi::PyObject, text: impl FnOnce() -> &'a [u8]) -> bool {
        // SAFETY: upheld by the caller; the type is checked before a value is read as that type.
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

/// Kind of an immutable object's content.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Content {
    Digits {
        negative: bool,
    },
    /// A string, by the width of its characters in bytes.
    String(u32),
    Bytes,
    Complex,
}

impl Content {
    /// Maximum number of bytes to copy. Longer content is rendered again, and the length of that rendering is bounded.
    const MAX: usize = 1 << 14;
    /// Longer ints have texts that depend on `sys.set_int_max_str_digits`. Its minimum, 640, corresponds to 71 digits
    /// of 30 bits.
    const MAX_DIGITS: usize = 70;

    /// Returns the content of a value whose text follows from that content alone.
    ///
    /// # Safety
    /// `value` must be alive for `'a`, and the GIL must be held.
    pub unsafe fn of<'a>(value: *mut ffi::PyObject) -> Option<(Content, &'a [u8])> {
        // SAFETY: upheld by the caller; the type is checked before a value is read as that type, and the content has
        // the length that the object reports.
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
            } else if kind == &raw mut ffi::PyLong_Type && layout::is_known() {
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
    /// Offset of the element in the text, including the separator before it.
    pub offset: u32,
}

/// The text of a container, divided into pieces.
#[derive(Default, Debug)]
pub struct Tape {
    pub entries: Vec<Entry>,
    /// End of the pieces: the length of the text, or the start of the separator or bracket that did not fit.
    pub end: u32,
    /// Whether the last piece was cut.
    pub cut_inside: bool,
    /// Whether some character of the text takes more than one byte.
    pub wide: bool,
    /// Content of a [`Known::Copy`], which replaces the pieces.
    pub copy: Vec<u8>,
}

/// Unused tapes for later containers. Boxed because snapshots hold boxes, which keep a snapshot small.
pub type FreeTapes = Vec<Box<Tape>>;

impl Tape {
    pub fn clear(&mut self) {
        self.entries.clear();
        self.end = 0;
        self.cut_inside = false;
        self.wide = false;
    }

    /// Returns the offset of piece `at`.
    pub fn offset(&self, at: usize) -> usize {
        self.entries.get(at).map_or(self.end, |entry| entry.offset) as usize
    }
}
