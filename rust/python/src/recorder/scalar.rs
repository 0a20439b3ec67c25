//! Values that are recognized, compared, and written without running Python code: `None`, bools, 64-bit ints, floats,
//! ASCII strings, and bytes.

use std::slice;

use pyo3::ffi;

use super::layout::compact_int;
use super::leaf::is_ascii;

/// A scalar read from its object. Strings are borrowed from the object.
#[derive(Clone, Copy)]
pub enum Scalar<'a> {
    Int(i64),
    Float(f64),
    None,
    True,
    False,
    Ascii(&'a [u8]),
    Bytes(&'a [u8]),
}

impl<'a> Scalar<'a> {
    /// # Safety
    /// `value` must be alive for `'a`, and the GIL must be held.
    #[inline]
    pub unsafe fn of(value: *mut ffi::PyObject) -> Option<Scalar<'a>> {
        // SAFETY: the type of `value` is checked before it is read as that type, and a string's data has the length
        // that the string reports.
        unsafe {
            let kind = ffi::Py_TYPE(value);
            if kind == &raw mut ffi::PyLong_Type {
                int(value).map(Scalar::Int)
            } else if kind == &raw mut ffi::PyUnicode_Type {
                if !is_ascii(value) {
                    return None;
                }
                let length = ffi::PyUnicode_GET_LENGTH(value) as usize;
                let data = ffi::PyUnicode_DATA(value).cast::<u8>();
                Some(Scalar::Ascii(slice::from_raw_parts(data, length)))
            } else if kind == &raw mut ffi::PyFloat_Type {
                Some(Scalar::Float(ffi::PyFloat_AS_DOUBLE(value)))
            } else if value == ffi::Py_None() {
                Some(Scalar::None)
            } else if value == ffi::Py_True() {
                Some(Scalar::True)
            } else if value == ffi::Py_False() {
                Some(Scalar::False)
            } else if kind == &raw mut ffi::PyBytes_Type {
                let data = ffi::PyBytes_AsString(value).cast::<u8>();
                Some(Scalar::Bytes(slice::from_raw_parts(
                    data,
                    ffi::PyBytes_Size(value) as usize,
                )))
            } else {
                None
            }
        }
    }

    /// Appends the scalar as `repr` writes it; for a string, only as much as needed to have `room` characters. Returns
    /// `true` for a string without escapes.
    #[inline]
    pub fn write(self, room: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Scalar::Int(number) => write_int(number, out),
            Scalar::Float(number) => write_float(number, out),
            Scalar::None => out.extend_from_slice(b"None"),
            Scalar::True => out.extend_from_slice(b"True"),
            Scalar::False => out.extend_from_slice(b"False"),
            Scalar::Ascii(text) => return write_quoted(text, room, out),
            Scalar::Bytes(text) => {
                out.push(b'b');
                write_quoted(text, room, out);
            }
        }
        false
    }
}

/// Reads an exact int if it fits 64 bits.
#[inline]
unsafe fn int(value: *mut ffi::PyObject) -> Option<i64> {
    // SAFETY: `value` is an exact int, and its conversion runs no code.
    unsafe {
        compact_int(value).or_else(|| {
            let mut overflow = 0;
            let number = ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow);
            (overflow == 0).then_some(number)
        })
    }
}

#[inline]
pub fn write_int(number: i64, out: &mut Vec<u8>) {
    let mut rest = number.unsigned_abs();
    if number < 0 {
        out.push(b'-');
    }
    if rest < 10 {
        out.push(b'0' + rest as u8);
        return;
    }
    let digits = rest.ilog10() as usize + 1;
    out.reserve(digits);
    let (begin, end) = (out.len(), out.len() + digits);
    // SAFETY: there is space for the digits, and all of them are written, from last to first. Copying the digits from a
    // buffer would cost more than computing them.
    unsafe {
        let mut place = out.as_mut_ptr().add(end);
        while rest > 0 {
            place = place.sub(1);
            place.write(b'0' + (rest % 10) as u8);
            rest /= 10;
        }
        debug_assert_eq!(place, out.as_mut_ptr().add(begin));
        out.set_len(end);
    }
}

/// Appends a float as Python's `repr` does: the shortest digits that round-trip, with an exponent below 1e-4 and from
/// 1e16 up.
fn write_float(number: f64, out: &mut Vec<u8>) {
    if !number.is_finite() {
        let text: &[u8] = match (number.is_nan(), number > 0.0) {
            (true, _) => b"nan",
            (false, true) => b"inf",
            (false, false) => b"-inf",
        };
        out.extend_from_slice(text);
        return;
    }
    let mut buffer = zmij::Buffer::new();
    let shortest = buffer.format_finite(number).as_bytes();
    let magnitude = number.abs();
    if (1e-4..1e16).contains(&magnitude) && memchr::memchr(b'.', shortest).is_some() && !shortest.contains(&b'e') {
        out.extend_from_slice(shortest);
        return;
    }
    let (digits, exponent) = decimal(shortest);
    let digits = digits.as_slice();
    if shortest[0] == b'-' {
        out.push(b'-');
    }
    // `exponent` belongs to the first digit.
    if (-4..16).contains(&exponent) {
        write_positional(digits, exponent, out);
    } else {
        out.push(digits[0]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        if exponent.abs() < 10 {
            out.push(b'0');
        }
        write_int(i64::from(exponent.abs()), out);
    }
}

fn write_positional(digits: &[u8], exponent: i32, out: &mut Vec<u8>) {
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', (-exponent - 1) as usize));
        out.extend_from_slice(digits);
        return;
    }
    let whole = exponent as usize + 1;
    out.extend_from_slice(&digits[..whole.min(digits.len())]);
    out.extend(std::iter::repeat_n(b'0', whole.saturating_sub(digits.len())));
    out.push(b'.');
    match digits.get(whole..) {
        Some(fraction) if !fraction.is_empty() => out.extend_from_slice(fraction),
        _ => out.push(b'0'),
    }
}

/// Significant digits of a decimal number.
struct Digits {
    bytes: [u8; 24],
    length: usize,
}

impl Digits {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Parses `[-]D*[.D*][e[-+]D+]`. Returns the significant digits and the exponent of the first one; `0` and 0 for zero.
fn decimal(text: &[u8]) -> (Digits, i32) {
    let mut digits = Digits {
        bytes: [b'0'; 24],
        length: 0,
    };
    // `exponent` is the `e` part less the number of zeros between the point and the first significant digit. `written`
    // is the number of digits from the first significant one up to the point.
    let (mut point, mut exponent, mut written) = (None, 0i32, 0i32);
    for (i, &byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                if digits.length > 0 || byte != b'0' {
                    digits.bytes[digits.length] = byte;
                    digits.length += 1;
                } else if point.is_some() {
                    exponent -= 1;
                }
                if digits.length > 0 && point.is_none() {
                    written += 1;
                }
            }
            b'.' => point = Some(i),
            b'e' => {
                let number = std::str::from_utf8(&text[i + 1..]).unwrap_or_default();
                exponent += number.trim_start_matches('+').parse::<i32>().unwrap_or_default();
                break;
            }
            _ => {}
        }
    }
    while digits.length > 1 && digits.bytes[digits.length - 1] == b'0' {
        digits.length -= 1;
    }
    if digits.length == 0 {
        digits.length = 1;
        return (digits, 0);
    }
    (digits, exponent + written - 1)
}

/// Returns the quote that `repr` uses for a string: single, unless the string contains single quotes but no double
/// quotes.
#[inline]
pub fn quote(text: &[u8]) -> u8 {
    match memchr::memchr(b'\'', text).is_some() && memchr::memchr(b'"', text).is_none() {
        true => b'"',
        false => b'\'',
    }
}

fn write_quoted(text: &[u8], room: usize, out: &mut Vec<u8>) -> bool {
    let quote = quote(text);
    out.push(quote);
    // Every byte takes at least one character, so the rest cannot be shown.
    let mut rest = &text[..text.len().min(room)];
    let plain = plain_length(rest, quote);
    out.extend_from_slice(&rest[..plain]);
    let stands_for_itself = plain == rest.len();
    rest = &rest[plain..];
    while let Some((&byte, after)) = rest.split_first() {
        if is_plain(byte, quote) {
            out.push(byte);
        } else {
            write_escape(byte, out);
        }
        rest = after;
    }
    out.push(quote);
    stands_for_itself
}

#[inline]
fn is_plain(byte: u8, quote: u8) -> bool {
    (0x20..0x7f).contains(&byte) & (byte != b'\\') & (byte != quote)
}

/// Returns the number of leading bytes that need no escape.
#[inline]
fn plain_length(text: &[u8], quote: u8) -> usize {
    const LANES: usize = 32;
    let mut at = 0;
    for chunk in text.chunks_exact(LANES) {
        // Branch-free per byte, so that the compiler vectorizes the loop.
        if !chunk.iter().fold(true, |all, &byte| all & is_plain(byte, quote)) {
            break;
        }
        at += LANES;
    }
    let rest = text[at..].iter().position(|&byte| !is_plain(byte, quote));
    rest.map_or(text.len(), |first| at + first)
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\\' | b'\'' | b'"' => out.extend_from_slice(&[b'\\', byte]),
        _ => out.extend_from_slice(&[b'\\', b'x', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]),
    }
}
