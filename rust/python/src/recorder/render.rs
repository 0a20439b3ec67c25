//! Values as text: the bounded walk of the trace format, native for built-in values, `__repr__` for all others.

use std::ffi::{CStr, c_int};

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;

/// A container nested deeper than this is written `...`.
const MAX_DEPTH: usize = 200;

/// Appends `value` to `out`, at most `limit` code points and then `...`.
///
/// An error is what a `__repr__` raised outside `Exception`; what was appended is then to be dropped.
///
/// # Safety
/// `value` is a live object and stays so during the call, and the GIL is held.
pub unsafe fn render(py: Python<'_>, value: *mut ffi::PyObject, limit: usize, out: &mut Vec<u8>) -> Result<(), PyErr> {
    let start = out.len();
    let mut walk = Walk {
        py,
        out,
        start,
        chars: 0,
        limit,
        outer: Vec::new(),
    };
    // SAFETY: the caller's promise; a value that may run Python code is held meanwhile, since that code may drop it.
    let written = unsafe {
        let held = runs_code(value).then(|| walk.own(value));
        walk.value(held.as_ref().map_or(value, |held| held.as_ptr()))
    };
    match written {
        Ok(()) => Ok(()),
        Err(Stop::Full) => {
            walk.cut();
            Ok(())
        }
        Err(Stop::Raised(error)) => Err(error),
    }
}

/// Whether rendering `value` may run Python code: it is none of the values that [`Walk::plain`] writes.
///
/// # Safety
/// `value` is a live object and the GIL is held.
pub unsafe fn runs_code(value: *mut ffi::PyObject) -> bool {
    // SAFETY: the caller's promise.
    let kind = unsafe { ffi::Py_TYPE(value) };
    kind != &raw mut ffi::PyLong_Type
        && kind != &raw mut ffi::PyUnicode_Type
        && kind != &raw mut ffi::PyFloat_Type
        && kind != &raw mut ffi::PyBool_Type
        && kind != &raw mut ffi::PyBytes_Type
        // SAFETY: reads the address of a constant.
        && value != unsafe { ffi::Py_None() }
}

/// Why a walk ends early.
enum Stop {
    /// The text is longer than the limit.
    Full,
    /// A `__repr__` raised what is not an `Exception`.
    Raised(PyErr),
}

struct Walk<'py, 'o> {
    py: Python<'py>,
    out: &'o mut Vec<u8>,
    start: usize,
    /// Code points written since `start`.
    chars: usize,
    limit: usize,
    /// The containers around the current value, outermost first.
    outer: Vec<*mut ffi::PyObject>,
}

/// What is written around the elements of a container, and where it occurs within itself.
struct Marks {
    open: &'static str,
    close: &'static str,
    recursion: &'static str,
}

impl Walk<'_, '_> {
    fn ascii(&mut self, text: &[u8]) -> Result<(), Stop> {
        self.out.extend_from_slice(text);
        self.count(text.len())
    }

    fn count(&mut self, chars: usize) -> Result<(), Stop> {
        self.chars += chars;
        if self.chars > self.limit {
            Err(Stop::Full)
        } else {
            Ok(())
        }
    }

    /// Cuts the text to `limit` code points and marks the cut.
    fn cut(&mut self) {
        let text = &self.out[self.start..];
        // Continuation bytes do not begin a code point.
        let mut begins = text
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte & 0xc0 != 0x80)
            .map(|(i, _)| i);
        let end = begins.nth(self.limit).unwrap_or(text.len());
        self.out.truncate(self.start + end);
        self.out.extend_from_slice(b"...");
    }

    /// How many elements can at most be looked at before the text is full: each takes two characters or more.
    fn reach(&self) -> usize {
        self.limit.saturating_sub(self.chars) / 2 + 2
    }

    unsafe fn value(&mut self, value: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: `value` is alive and the GIL is held, by the promise of `render`, here and below.
        unsafe {
            if self.plain(value)? {
                return Ok(());
            }
            let kind = ffi::Py_TYPE(value);
            if kind == &raw mut ffi::PyList_Type {
                let marks = Marks {
                    open: "[",
                    close: "]",
                    recursion: "[...]",
                };
                self.container(value, marks, |walk| walk.list(value))
            } else if kind == &raw mut ffi::PyTuple_Type {
                let close = if ffi::PyTuple_GET_SIZE(value) == 1 { ",)" } else { ")" };
                let marks = Marks {
                    open: "(",
                    close,
                    recursion: "(...)",
                };
                self.container(value, marks, |walk| walk.tuple(value))
            } else if kind == &raw mut ffi::PyDict_Type {
                let marks = Marks {
                    open: "{",
                    close: "}",
                    recursion: "{...}",
                };
                self.container(value, marks, |walk| walk.dict(value))
            } else if kind == &raw mut ffi::PySet_Type {
                let empty = ffi::PySet_Size(value) == 0;
                let (open, close) = if empty { ("set(", ")") } else { ("{", "}") };
                self.container(
                    value,
                    Marks {
                        open,
                        close,
                        recursion: "set(...)",
                    },
                    |walk| walk.set(value),
                )
            } else if kind == &raw mut ffi::PyFrozenSet_Type {
                let empty = ffi::PySet_Size(value) == 0;
                let (open, close) = if empty {
                    ("frozenset(", ")")
                } else {
                    ("frozenset({", "})")
                };
                self.container(
                    value,
                    Marks {
                        open,
                        close,
                        recursion: "frozenset(...)",
                    },
                    |walk| walk.set(value),
                )
            } else {
                self.leaf(value)
            }
        }
    }

    /// Writes `None`, bools, ints, floats, ASCII strings and bytes; `false` for everything else. Runs no Python code.
    unsafe fn plain(&mut self, value: *mut ffi::PyObject) -> Result<bool, Stop> {
        // SAFETY: the type of `value` is checked before it is read as that type.
        unsafe {
            let kind = ffi::Py_TYPE(value);
            if kind == &raw mut ffi::PyLong_Type {
                let mut overflow: c_int = 0;
                let number = ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow);
                if overflow != 0 {
                    return Ok(false);
                }
                self.ascii(itoa::Buffer::new().format(number).as_bytes())?;
            } else if kind == &raw mut ffi::PyUnicode_Type {
                if ffi::PyUnicode_IS_ASCII(value) == 0 {
                    return Ok(false);
                }
                let data = ffi::PyUnicode_DATA(value).cast::<u8>();
                self.quoted(std::slice::from_raw_parts(
                    data,
                    ffi::PyUnicode_GET_LENGTH(value) as usize,
                ))?;
            } else if value == ffi::Py_None() {
                self.ascii(b"None")?;
            } else if value == ffi::Py_True() {
                self.ascii(b"True")?;
            } else if value == ffi::Py_False() {
                self.ascii(b"False")?;
            } else if kind == &raw mut ffi::PyFloat_Type {
                self.float(ffi::PyFloat_AS_DOUBLE(value))?;
            } else if kind == &raw mut ffi::PyBytes_Type {
                self.out.push(b'b');
                self.chars += 1;
                let data = ffi::PyBytes_AsString(value).cast::<u8>();
                self.quoted(std::slice::from_raw_parts(data, ffi::PyBytes_Size(value) as usize))?;
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn float(&mut self, number: f64) -> Result<(), Stop> {
        // SAFETY: the result is a NUL-terminated string of our own until freed, or null without memory.
        unsafe {
            let format = b'r' as std::ffi::c_char;
            let text = ffi::PyOS_double_to_string(number, format, 0, ffi::Py_DTSF_ADD_DOT_0, std::ptr::null_mut());
            if text.is_null() {
                return Err(Stop::Raised(PyErr::fetch(self.py)));
            }
            let written = self.ascii(CStr::from_ptr(text).to_bytes());
            ffi::PyMem_Free(text.cast());
            written
        }
    }

    /// Writes the quoted form that `repr` gives ASCII text and bytes.
    fn quoted(&mut self, text: &[u8]) -> Result<(), Stop> {
        let quote = if memchr::memchr(b'\'', text).is_some() && memchr::memchr(b'"', text).is_none() {
            b'"'
        } else {
            b'\''
        };
        self.ascii(&[quote])?;
        // No byte is written in less than one character, so the rest cannot be shown.
        let mut rest = &text[..text.len().min(self.limit.saturating_sub(self.chars) + 1)];
        while !rest.is_empty() {
            let special = |&b: &u8| !(0x20..0x7f).contains(&b) || b == b'\\' || b == quote;
            let plain = rest.iter().position(special).unwrap_or(rest.len());
            self.ascii(&rest[..plain])?;
            rest = &rest[plain..];
            if let Some((&byte, after)) = rest.split_first() {
                self.escape(byte)?;
                rest = after;
            }
        }
        self.ascii(&[quote])
    }

    fn escape(&mut self, byte: u8) -> Result<(), Stop> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        match byte {
            b'\n' => self.ascii(b"\\n"),
            b'\r' => self.ascii(b"\\r"),
            b'\t' => self.ascii(b"\\t"),
            b'\\' | b'\'' | b'"' => self.ascii(&[b'\\', byte]),
            _ => self.ascii(&[b'\\', b'x', HEX[(byte >> 4) as usize], HEX[(byte & 15) as usize]]),
        }
    }

    unsafe fn container(
        &mut self,
        value: *mut ffi::PyObject,
        marks: Marks,
        elements: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if self.outer.contains(&value) {
            return self.ascii(marks.recursion.as_bytes());
        }
        if self.outer.len() >= MAX_DEPTH {
            return self.ascii(b"...");
        }
        self.ascii(marks.open.as_bytes())?;
        self.outer.push(value);
        let written = elements(self);
        self.outer.pop();
        written?;
        self.ascii(marks.close.as_bytes())
    }

    unsafe fn list(&mut self, list: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: no Python code runs before the first element that is not plain, so until then the list stays as it is.
        unsafe {
            let length = ffi::PyList_GET_SIZE(list);
            for i in 0..length {
                if i > 0 {
                    self.ascii(b", ")?;
                }
                if !self.plain(ffi::PyList_GET_ITEM(list, i))? {
                    let end = length.min(i + self.reach() as isize);
                    let rest: Vec<_> = (i..end).map(|j| self.own(ffi::PyList_GET_ITEM(list, j))).collect();
                    return self.sequence(&rest);
                }
            }
        }
        Ok(())
    }

    unsafe fn tuple(&mut self, tuple: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: a tuple never changes, and `value` keeps it and so its elements alive.
        unsafe {
            for i in 0..ffi::PyTuple_GET_SIZE(tuple) {
                if i > 0 {
                    self.ascii(b", ")?;
                }
                self.value(ffi::PyTuple_GET_ITEM(tuple, i))?;
            }
        }
        Ok(())
    }

    unsafe fn dict(&mut self, dict: *mut ffi::PyObject) -> Result<(), Stop> {
        let mut items = Vec::new();
        // SAFETY: nothing runs between the steps of `PyDict_Next`; the pairs are owned before they are rendered.
        unsafe {
            let (mut at, mut key, mut item) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            let reach = self.reach();
            while items.len() < reach && ffi::PyDict_Next(dict, &mut at, &mut key, &mut item) != 0 {
                items.push((self.own(key), self.own(item)));
            }
            for (i, (key, item)) in items.iter().enumerate() {
                if i > 0 {
                    self.ascii(b", ")?;
                }
                self.value(key.as_ptr())?;
                self.ascii(b": ")?;
                self.value(item.as_ptr())?;
            }
        }
        Ok(())
    }

    unsafe fn set(&mut self, set: *mut ffi::PyObject) -> Result<(), Stop> {
        let mut items = Vec::new();
        // SAFETY: `set` is alive; its iterator runs no Python code and gives owned references.
        unsafe {
            let iterator = self.owned(ffi::PyObject_GetIter(set))?;
            let reach = self.reach();
            while items.len() < reach {
                let item = ffi::PyIter_Next(iterator.as_ptr());
                if item.is_null() {
                    break;
                }
                items.push(self.owned(item)?);
            }
        }
        self.sequence(&items)
    }

    /// Writes elements that are owned, so that a `__repr__` may change the container they came from.
    fn sequence(&mut self, items: &[Bound<'_, PyAny>]) -> Result<(), Stop> {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.ascii(b", ")?;
            }
            // SAFETY: `items` keeps the element alive.
            unsafe { self.value(item.as_ptr())? };
        }
        Ok(())
    }

    unsafe fn leaf(&mut self, value: *mut ffi::PyObject) -> Result<(), Stop> {
        // SAFETY: `value` is alive; a reference is held while its `__repr__` runs.
        let text = unsafe {
            let held = self.own(value);
            let shown = self.shortened(&held)?;
            self.owned(ffi::PyObject_Repr(shown.as_ptr()))
        };
        match text {
            Ok(text) => {
                // SAFETY: `value` is alive, held by the caller.
                let exact = unsafe { ffi::Py_TYPE(value) == &raw mut ffi::PyUnicode_Type };
                let first = self.out.len();
                // SAFETY: `repr` gives a string.
                unsafe { push_unicode(text.as_ptr(), self.out) };
                if !exact {
                    remove_addresses(self.out, first);
                }
                let chars = self.out[first..].iter().filter(|byte| **byte & 0xc0 != 0x80).count();
                self.count(chars)
            }
            Err(Stop::Raised(error)) if error.is_instance_of::<PyException>(self.py) => {
                // SAFETY: `value` is alive, and so is its type.
                let name = unsafe { self.owned(ffi::PyType_GetName(ffi::Py_TYPE(value)).cast())? };
                let name = name.to_string();
                self.out.extend_from_slice(format!("<{name} object>").as_bytes());
                self.count(name.chars().count() + "< object>".len())
            }
            Err(stop) => Err(stop),
        }
    }

    /// A long string cut so that its `repr` begins as that of the whole; any other value as it is.
    unsafe fn shortened<'a>(&self, value: &Bound<'a, PyAny>) -> Result<Bound<'a, PyAny>, Stop> {
        // SAFETY: read as a string only after the type is checked.
        unsafe {
            let length = match ffi::Py_TYPE(value.as_ptr()) == &raw mut ffi::PyUnicode_Type {
                true => ffi::PyUnicode_GET_LENGTH(value.as_ptr()),
                false => return Ok(value.clone()),
            };
            let shown = self.limit.saturating_sub(self.chars) + 1;
            // Which quote is used depends on all of the string, so one that holds a quote is kept whole.
            if length as usize <= shown || has_quote(value.as_ptr()) {
                return Ok(value.clone());
            }
            let cut = ffi::PyUnicode_Substring(value.as_ptr(), 0, shown as isize);
            Bound::from_owned_ptr_or_err(value.py(), cut).map_err(Stop::Raised)
        }
    }
}

impl<'py> Walk<'py, '_> {
    /// # Safety
    /// `object` is a live object.
    unsafe fn own(&self, object: *mut ffi::PyObject) -> Bound<'py, PyAny> {
        // SAFETY: the caller's promise.
        unsafe { Bound::from_borrowed_ptr(self.py, object) }
    }

    /// # Safety
    /// `object` is a new reference, or null with an exception set.
    unsafe fn owned(&self, object: *mut ffi::PyObject) -> Result<Bound<'py, PyAny>, Stop> {
        // SAFETY: the caller's promise.
        unsafe { Bound::from_owned_ptr_or_err(self.py, object).map_err(Stop::Raised) }
    }
}

unsafe fn has_quote(text: *mut ffi::PyObject) -> bool {
    // SAFETY: the caller checked that `text` is a string; its data is as long as its length and kind say.
    unsafe {
        let length = ffi::PyUnicode_GET_LENGTH(text) as usize;
        let data = ffi::PyUnicode_DATA(text);
        match ffi::PyUnicode_KIND(text) {
            ffi::PyUnicode_1BYTE_KIND => {
                memchr::memchr(b'\'', std::slice::from_raw_parts(data.cast(), length)).is_some()
            }
            ffi::PyUnicode_2BYTE_KIND => std::slice::from_raw_parts(data.cast::<u16>(), length).contains(&0x27),
            _ => std::slice::from_raw_parts(data.cast::<u32>(), length).contains(&0x27),
        }
    }
}

/// Appends a string as UTF-8 in which lone surrogates are encoded like other code points.
///
/// # Safety
/// `text` is a live string and the GIL is held.
pub unsafe fn push_unicode(text: *mut ffi::PyObject, out: &mut Vec<u8>) {
    // SAFETY: the data is as long as its length and kind say.
    unsafe {
        let length = ffi::PyUnicode_GET_LENGTH(text) as usize;
        let data = ffi::PyUnicode_DATA(text);
        if ffi::PyUnicode_IS_ASCII(text) != 0 {
            out.extend_from_slice(std::slice::from_raw_parts(data.cast(), length));
            return;
        }
        match ffi::PyUnicode_KIND(text) {
            ffi::PyUnicode_1BYTE_KIND => push_all(std::slice::from_raw_parts(data.cast::<u8>(), length), out),
            ffi::PyUnicode_2BYTE_KIND => push_all(std::slice::from_raw_parts(data.cast::<u16>(), length), out),
            _ => push_all(std::slice::from_raw_parts(data.cast::<u32>(), length), out),
        }
    }
}

fn push_all<T: Copy + Into<u32>>(codes: &[T], out: &mut Vec<u8>) {
    for &code in codes {
        cwm_trace::push_code_point(code.into(), out);
    }
}

/// Removes every match of ` at 0x[0-9a-fA-F]+` from `text[first..]`.
fn remove_addresses(text: &mut Vec<u8>, first: usize) {
    const MARK: &[u8] = b" at 0x";
    let mut from = first;
    while let Some(found) = memchr::memmem::find(&text[from..], MARK) {
        let begin = from + found;
        let digits = text[begin + MARK.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        if digits == 0 {
            from = begin + MARK.len();
        } else {
            text.drain(begin..begin + MARK.len() + digits);
            from = begin;
        }
    }
}
