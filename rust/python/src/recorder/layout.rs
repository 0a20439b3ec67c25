//! CPython's layout of a frame's slots. No other module depends on the interpreter's private layout.
//!
//! The public function, `PyFrame_GetLocals`, costs more than the rest of the recorder, and on 3.11 and 3.12 it leaves a
//! dict on the frame that keeps values alive. The recorder therefore reads the slots in place. Each set of offsets
//! holds for one minor version, and [`verify`] checks the offsets on a real frame before the first recording.

use std::ptr::NonNull;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

/// Offset of the pointer to the interpreter frame in a frame object: after the object header and `f_back`.
const FRAME_OBJECT_TO_FRAME: usize = 24;
/// Offset of `f_lineno` in a frame object: the current line while a trace function runs, or 0.
const FRAME_OBJECT_TO_LINE: usize = 40;
/// Offset in an int of its sign and digit count, and of its 30-bit digits, least significant first.
const INT_TO_SIZE: usize = 16;
const INT_TO_DIGITS: usize = 24;
const FRAME_TO_SLOTS: usize = 72;
#[cfg(not(Py_3_12))]
const FRAME_TO_CODE: usize = 32;
#[cfg(Py_3_12)]
const FRAME_TO_CODE: usize = 0;
#[cfg(not(Py_3_12))]
const FRAME_TO_NAMESPACE: usize = 24;
#[cfg(Py_3_12)]
const FRAME_TO_NAMESPACE: usize = 40;

/// Offsets in a code object of the names and kinds of its slots, and of the fields that follow, `co_filename` and
/// `co_name`.
const CODE_TO_SLOT_NAMES: usize = 96;
const CODE_TO_SLOT_KINDS: usize = 104;
const CODE_TO_FILENAME: usize = 112;
const CODE_TO_NAME: usize = 120;

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the recorder supports only 64-bit platforms");

/// The interpreter's own frame of a running activation. Its address distinguishes activations that are alive at the
/// same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InterpreterFrame(NonNull<u8>);

impl InterpreterFrame {
    /// # Safety
    /// `frame` must be a live frame object of this interpreter whose activation is running, and the GIL must be held.
    pub unsafe fn of(frame: *mut ffi::PyFrameObject) -> InterpreterFrame {
        // SAFETY: by the layout that `verify` checks at import, a running frame object holds a non-null pointer there.
        unsafe {
            InterpreterFrame(NonNull::new_unchecked(
                *frame.byte_add(FRAME_OBJECT_TO_FRAME).cast::<*mut u8>(),
            ))
        }
    }

    /// Returns the code object, borrowed from the frame.
    ///
    /// # Safety
    /// The activation must still be running, and the GIL must be held.
    pub unsafe fn code(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `verify` checks at import.
        unsafe { *self.0.as_ptr().add(FRAME_TO_CODE).cast() }
    }

    /// Returns the namespace of a module or class body, borrowed; null in a function.
    ///
    /// # Safety
    /// The activation must still be running, and the GIL must be held.
    pub unsafe fn namespace(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `verify` checks at import.
        unsafe { *self.0.as_ptr().add(FRAME_TO_NAMESPACE).cast() }
    }

    /// Returns the content of slot `index`, borrowed: a value, a cell, or null.
    ///
    /// # Safety
    /// The activation must still be running, `index` must be less than its code's number of slots, and the GIL must be
    /// held.
    pub unsafe fn slot(self, index: usize) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `verify` checks at import. The caller keeps the index in bounds.
        unsafe {
            *self
                .0
                .as_ptr()
                .add(FRAME_TO_SLOTS)
                .cast::<*mut ffi::PyObject>()
                .add(index)
        }
    }
}

/// Returns the names and kinds of a code object's slots. `co_varnames` and similar attributes give the same names, but
/// on 3.12 and 3.13 they make the code object cache the tuples, which a program can count.
///
/// # Safety
/// `code` must be a code object.
pub unsafe fn slot_names<'py>(code: &Bound<'py, PyAny>) -> Vec<(Bound<'py, PyString>, u8)> {
    // SAFETY: by the layout that `verify` checks at import, a tuple of strings and a bytes object lie there, both held
    // by the code object.
    unsafe {
        let field = |offset| Bound::from_borrowed_ptr(code.py(), *code.as_ptr().byte_add(offset).cast());
        let names = field(CODE_TO_SLOT_NAMES).cast_into_unchecked::<PyTuple>();
        let kinds = field(CODE_TO_SLOT_KINDS).cast_into_unchecked::<PyBytes>();
        let names = names.iter().map(|name| name.cast_into_unchecked::<PyString>());
        names.zip(kinds.as_bytes().iter().copied()).collect()
    }
}

/// Returns the current line of a frame.
///
/// # Safety
/// `frame` must be a live frame object of this interpreter whose activation is running, and the GIL must be held.
#[inline]
pub unsafe fn line_number(frame: *mut ffi::PyFrameObject) -> u32 {
    // SAFETY: by the layout that `verify` checks at import.
    let line = unsafe { *frame.byte_add(FRAME_OBJECT_TO_LINE).cast::<i32>() };
    if line > 0 {
        return line as u32;
    }
    // SAFETY: upheld by the caller.
    unsafe { ffi::PyFrame_GetLineNumber(frame).max(0) as u32 }
}

/// Returns whether an int is negative, and its 30-bit digits, least significant first.
///
/// # Safety
/// `value` must be an int that lives for `'a`, and the GIL must be held.
#[inline]
pub unsafe fn int_digits<'a>(value: *mut ffi::PyObject) -> (bool, &'a [u32]) {
    // SAFETY: by the layout that `verify` checks at import. Only as many digits are read as the int reports.
    unsafe {
        let size = *value.byte_add(INT_TO_SIZE).cast::<isize>();
        #[cfg(not(Py_3_12))]
        let (digits, negative) = (size.unsigned_abs(), size < 0);
        // Since 3.12, the two lowest bits are the sign (0 positive, 1 zero, 2 negative), and the third bit is a flag.
        #[cfg(Py_3_12)]
        let (digits, negative) = ((size >> 3) as usize, size & 3 == 2);
        let first = value.byte_add(INT_TO_DIGITS).cast::<u32>();
        (negative, std::slice::from_raw_parts(first, digits))
    }
}

/// Returns the value of an int of at most two digits.
///
/// # Safety
/// `value` must be a live int, and the GIL must be held.
#[inline]
pub unsafe fn compact_int(value: *mut ffi::PyObject) -> Option<i64> {
    // SAFETY: upheld by the caller.
    let (negative, digits) = unsafe { int_digits(value) };
    let magnitude = match *digits {
        // Since 3.12, zero has one digit.
        [] => 0,
        [low] => i64::from(low),
        [low, high] => i64::from(low) | i64::from(high) << 30,
        _ => return None,
    };
    Some(if negative { -magnitude } else { magnitude })
}

/// Returns the frames on this thread's stack, innermost first.
///
/// # Safety
/// The GIL must be held.
pub unsafe fn running_frames(py: Python<'_>) -> Vec<InterpreterFrame> {
    let mut frames = Vec::new();
    // SAFETY: the current frame is borrowed from the thread. Each further frame is a new reference, held while it is
    // read.
    unsafe {
        let mut next = Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast());
        while let Some(frame) = next {
            frames.push(InterpreterFrame::of(frame.as_ptr().cast()));
            next = Bound::from_owned_ptr_or_opt(py, ffi::PyFrame_GetBack(frame.as_ptr().cast()).cast());
        }
    }
    frames
}

/// Returns whether ints have the layout that [`compact_int`] assumes.
fn ints_are_known(py: Python<'_>) -> bool {
    let numbers = [
        0,
        1,
        -1,
        255,
        -(1 << 30) + 1,
        1 << 30,
        -(1 << 30),
        (1 << 60) - 1,
        -(1 << 59),
    ];
    let large = [1 << 60, i64::MIN, i64::MAX];
    let read = |number: i64| {
        let object = pyo3::types::PyInt::new(py, number);
        // SAFETY: `object` is a live int. Even if its layout differs, the reads stay within the object.
        unsafe { compact_int(object.as_ptr()) }
    };
    numbers.into_iter().all(|number| read(number) == Some(number)) && large.into_iter().all(|n| read(n).is_none())
}

/// Returns whether the slot names of `probe` are where [`slot_names`] expects them.
fn slot_names_are_known(code: &Bound<'_, PyAny>) -> PyResult<bool> {
    let [file, name] = [code.getattr("co_filename")?, code.getattr("co_name")?];
    // SAFETY: a code object is larger than this on any CPython. Pointers are only compared until those after the slots
    // match.
    let slots = unsafe {
        let lies_at = |offset, object: &Bound<'_, PyAny>| object.as_ptr() == *code.as_ptr().byte_add(offset).cast();
        if !lies_at(CODE_TO_FILENAME, &file) || !lies_at(CODE_TO_NAME, &name) {
            return Ok(false);
        }
        slot_names(code)
    };
    let expected = [("a", 0x20), ("b", 0x20), ("c", 0x20), ("d", 0x40)];
    Ok(slots.len() == expected.len()
        && slots
            .iter()
            .zip(expected)
            .all(|((name, kind), known)| (name == known.0) && *kind == known.1))
}

/// Checks the offsets on a frame with known contents. Returns an error if they do not match, so that the import fails.
pub fn verify(py: Python<'_>) -> PyResult<()> {
    let source = c"def probe(a, b):\n    c = [a, b]\n    return inspect(c)\n    d = lambda: d";
    let globals = pyo3::types::PyDict::new(py);
    let inspect = pyo3::types::PyCFunction::new_closure(py, None, None, |args, _| -> PyResult<bool> {
        let py = args.py();
        let list = args.get_item(0)?;
        // SAFETY: `probe` calls this, so the current frame object is its running frame, and the GIL is held. Even if
        // the layout differs, the reads below stay within the objects that any CPython keeps there, because the
        // pointers that they return are only compared, never dereferenced.
        unsafe {
            let frame = ffi::PyEval_GetFrame();
            let inner = InterpreterFrame::of(frame);
            let code = Bound::from_owned_ptr(py, ffi::PyFrame_GetCode(frame).cast());
            Ok(ints_are_known(py)
                && line_number(frame) == 3
                && inner.code() == code.as_ptr()
                && inner.namespace().is_null()
                && inner.slot(0) == list.get_item(0)?.as_ptr()
                && inner.slot(1) == list.get_item(1)?.as_ptr()
                && inner.slot(2) == list.as_ptr()
                && slot_names_are_known(&code)?)
        }
    })?;
    globals.set_item("inspect", inspect)?;
    py.run(source, Some(&globals), None)?;
    let marker = || pyo3::types::PyList::empty(py);
    let right = globals
        .as_any()
        .get_item("probe")?
        .call1((marker(), marker()))?
        .extract::<bool>()?;
    if right {
        return Ok(());
    }
    let version = Python::version_str();
    Err(PyImportError::new_err(format!(
        "the recorder of cwm_core does not support this interpreter ({version}): unknown frame layout; use CPython 3.11 to 3.13"
    )))
}
