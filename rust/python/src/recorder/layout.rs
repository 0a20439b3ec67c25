//! CPython's layout of a frame's slots. No other module depends on the interpreter's private layout.
//!
//! The public function, `PyFrame_GetLocals`, costs more than the rest of the recorder, and on 3.11 and 3.12 it leaves a
//! dict on the frame that keeps values alive. The recorder therefore reads the slots in place. The offsets hold for one
//! minor version, or are those that the interpreter publishes (`_Py_DebugOffsets`, since 3.14), and [`prepare`] checks
//! them on real frames at import. If they do not match, or if nothing is known of this minor version, the recorder
//! reads frames through the public API.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::exceptions::PyRuntimeWarning;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyString, PyTuple};

/// Offset of the pointer to the interpreter frame in a frame object: after the object header and `f_back`.
const FRAME_OBJECT_TO_FRAME: usize = 24;
/// Offset of `f_lineno` in a frame object: the current line while a trace function runs, or 0.
const FRAME_OBJECT_TO_LINE: usize = 40;
/// Offset in an int of its sign and digit count, and of its 30-bit digits, least significant first.
const INT_TO_SIZE: usize = 16;
const INT_TO_DIGITS: usize = 24;
#[cfg(not(Py_3_12))]
const FRAME_TO_NAMESPACE: usize = 24;
#[cfg(Py_3_12)]
const FRAME_TO_NAMESPACE: usize = 40;

/// Offsets that the interpreter publishes since 3.14.
struct Offsets {
    /// Offsets in an interpreter frame of its code object and its slots.
    frame_to_code: AtomicUsize,
    frame_to_slots: AtomicUsize,
    /// Offsets in a code object of the names and kinds of its slots, and of the fields that follow, `co_filename` and
    /// `co_name`.
    code_to_slot_names: AtomicUsize,
    code_to_slot_kinds: AtomicUsize,
    code_to_filename: AtomicUsize,
    code_to_name: AtomicUsize,
}

static OFFSETS: Offsets = Offsets {
    frame_to_code: AtomicUsize::new(if cfg!(Py_3_12) { 0 } else { 32 }),
    frame_to_slots: AtomicUsize::new(72),
    code_to_slot_names: AtomicUsize::new(96),
    code_to_slot_kinds: AtomicUsize::new(104),
    code_to_filename: AtomicUsize::new(112),
    code_to_name: AtomicUsize::new(120),
};

/// Bits of a slot's kind that the recorder uses. Since 3.14, others tell the kinds of arguments.
const KINDS: u8 = 0xf0;

/// Whether the offsets are those of this interpreter. Set once, at import.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// Returns whether frames are read in place rather than through the public API.
#[inline]
pub fn is_known() -> bool {
    KNOWN.load(Ordering::Relaxed)
}

#[inline]
fn get(offset: &AtomicUsize) -> usize {
    offset.load(Ordering::Relaxed)
}

/// Returns the object of a slot, or of the field for the code object; null if there is none. Since 3.14, both hold
/// tagged references: the lowest bit is set in a reference that is not counted, and in null.
#[inline]
fn untagged(reference: *mut ffi::PyObject) -> *mut ffi::PyObject {
    match cfg!(Py_3_14) {
        true => reference.map_addr(|address| address & !1),
        false => reference,
    }
}

/// A running activation: the interpreter's own frame, or the frame object if the layout is not known. Its address
/// distinguishes activations that are alive at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InterpreterFrame(NonNull<u8>);

impl InterpreterFrame {
    /// # Safety
    /// `frame` must be a live frame object of this interpreter whose activation is running, and the GIL must be held.
    #[inline]
    pub unsafe fn of(frame: *mut ffi::PyFrameObject) -> InterpreterFrame {
        // SAFETY: by the layout that `prepare` checks at import, a running frame object holds a non-null pointer there.
        unsafe {
            InterpreterFrame(NonNull::new_unchecked(match is_known() {
                true => *frame.byte_add(FRAME_OBJECT_TO_FRAME).cast::<*mut u8>(),
                false => frame.cast(),
            }))
        }
    }

    /// Returns the code object, borrowed from the frame.
    ///
    /// # Safety
    /// The activation must still be running, and the GIL must be held.
    #[inline]
    pub unsafe fn code(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `prepare` checks at import. If it is not known, this is a frame object, which holds
        // its code object.
        unsafe {
            if is_known() {
                return untagged(*self.0.as_ptr().add(get(&OFFSETS.frame_to_code)).cast());
            }
            let code = ffi::PyFrame_GetCode(self.0.as_ptr().cast()).cast();
            ffi::Py_DECREF(code);
            code
        }
    }

    /// Returns the variables that are not read from slots: the namespace of a module or class body, or, if the layout
    /// is not known, the mapping that `frame.f_locals` gives.
    ///
    /// # Safety
    /// The activation must still be running, and the GIL must be held.
    pub unsafe fn locals<'py>(self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        // SAFETY: by the layout that `prepare` checks at import. If it is not known, this is a frame object, and the
        // mapping is a new reference.
        unsafe {
            if is_known() {
                return Ok(Bound::from_borrowed_ptr_or_opt(py, self.namespace()));
            }
            let locals = ffi::PyFrame_GetLocals(self.0.as_ptr().cast());
            Bound::from_owned_ptr_or_err(py, locals).map(Some)
        }
    }

    /// Returns the namespace of a module or class body, borrowed; null in a function.
    unsafe fn namespace(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `prepare` checks at import.
        unsafe { *self.0.as_ptr().add(FRAME_TO_NAMESPACE).cast() }
    }

    /// Returns the content of slot `index`, borrowed: a value, a cell, or null.
    ///
    /// # Safety
    /// The layout must be known, the activation must still be running, `index` must be less than its code's number of
    /// slots, and the GIL must be held.
    #[inline]
    pub unsafe fn slot(self, index: usize) -> *mut ffi::PyObject {
        // SAFETY: by the layout that `prepare` checks at import. The caller keeps the index in bounds.
        untagged(unsafe {
            let slots = self.0.as_ptr().add(get(&OFFSETS.frame_to_slots));
            *slots.cast::<*mut ffi::PyObject>().add(index)
        })
    }
}

/// Returns the names and kinds of a code object's slots. `co_varnames` and similar attributes give the same names, but
/// since 3.12 they make the code object cache the tuples, which a program can count. If the layout is not known, the
/// names come from there, and the kinds are 0.
///
/// # Safety
/// `code` must be a code object.
pub unsafe fn slot_names<'py>(code: &Bound<'py, PyAny>) -> PyResult<Vec<(Bound<'py, PyString>, u8)>> {
    if !is_known() {
        return public_slot_names(code);
    }
    // SAFETY: by the layout that `prepare` checks at import.
    Ok(unsafe { slot_names_in_place(code) })
}

unsafe fn slot_names_in_place<'py>(code: &Bound<'py, PyAny>) -> Vec<(Bound<'py, PyString>, u8)> {
    // SAFETY: a tuple of strings and a bytes object lie there, both held by the code object.
    unsafe {
        let field = |offset| Bound::from_borrowed_ptr(code.py(), *code.as_ptr().byte_add(get(offset)).cast());
        let names = field(&OFFSETS.code_to_slot_names).cast_into_unchecked::<PyTuple>();
        let kinds = field(&OFFSETS.code_to_slot_kinds).cast_into_unchecked::<PyBytes>();
        let names = names.iter().map(|name| name.cast_into_unchecked::<PyString>());
        names.zip(kinds.as_bytes().iter().copied()).collect()
    }
}

fn public_slot_names<'py>(code: &Bound<'py, PyAny>) -> PyResult<Vec<(Bound<'py, PyString>, u8)>> {
    let mut names: Vec<(Bound<'py, PyString>, u8)> = Vec::new();
    for attribute in ["co_varnames", "co_cellvars", "co_freevars"] {
        for name in code.getattr(attribute)?.cast_into::<PyTuple>()?.iter() {
            let name = name.cast_into::<PyString>()?;
            // Arguments in cells are among both `co_varnames` and `co_cellvars`.
            if names.iter().all(|(other, _)| !other.is(&name)) {
                names.push((name, 0));
            }
        }
    }
    Ok(names)
}

/// Returns the current line of a frame.
///
/// # Safety
/// `frame` must be a live frame object of this interpreter whose activation is running, and the GIL must be held.
#[inline]
pub unsafe fn line_number(frame: *mut ffi::PyFrameObject) -> u32 {
    if is_known() {
        // SAFETY: by the layout that `prepare` checks at import.
        let line = unsafe { *frame.byte_add(FRAME_OBJECT_TO_LINE).cast::<i32>() };
        if line > 0 {
            return line as u32;
        }
    }
    // SAFETY: upheld by the caller.
    unsafe { ffi::PyFrame_GetLineNumber(frame).max(0) as u32 }
}

/// Returns whether an int is negative, and its 30-bit digits, least significant first.
///
/// # Safety
/// The layout must be known, `value` must be an int that lives for `'a`, and the GIL must be held.
#[inline]
pub unsafe fn int_digits<'a>(value: *mut ffi::PyObject) -> (bool, &'a [u32]) {
    // SAFETY: by the layout that `prepare` checks at import. Only as many digits are read as the int reports.
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

/// Returns the value of an int of at most two digits; `None` also if the layout is not known.
///
/// # Safety
/// `value` must be a live int, and the GIL must be held.
#[inline]
pub unsafe fn compact_int(value: *mut ffi::PyObject) -> Option<i64> {
    // SAFETY: upheld by the caller.
    is_known().then(|| unsafe { compact_int_in_place(value) })?
}

#[inline]
unsafe fn compact_int_in_place(value: *mut ffi::PyObject) -> Option<i64> {
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
        unsafe { compact_int_in_place(object.as_ptr()) }
    };
    numbers.into_iter().all(|number| read(number) == Some(number)) && large.into_iter().all(|n| read(n).is_none())
}

/// Returns whether the slot names of `probe` are where [`slot_names`] expects them.
fn slot_names_are_known(code: &Bound<'_, PyAny>) -> PyResult<bool> {
    let [file, name] = [code.getattr("co_filename")?, code.getattr("co_name")?];
    // SAFETY: a code object is larger than this on any CPython. Pointers are only compared until those after the slots
    // match.
    let slots = unsafe {
        let lies_at =
            |offset, object: &Bound<'_, PyAny>| object.as_ptr() == *code.as_ptr().byte_add(get(offset)).cast();
        if !lies_at(&OFFSETS.code_to_filename, &file) || !lies_at(&OFFSETS.code_to_name, &name) {
            return Ok(false);
        }
        slot_names_in_place(code)
    };
    let expected = [("a", 0x20), ("b", 0x20), ("c", 0x20), ("e", 0x20), ("d", 0x40)];
    Ok(slots.len() == expected.len()
        && slots
            .iter()
            .zip(expected)
            .all(|((name, kind), known)| (name == known.0) && kind & KINDS == known.1))
}

/// The beginning of `_Py_DebugOffsets`, with which `_PyRuntime` begins.
#[cfg(Py_3_14)]
#[repr(C)]
struct Published {
    cookie: [u8; 8],
    version: u64,
    free_threaded: u64,
    /// Offsets in the states of the runtime, interpreter, and thread.
    states: [u64; if cfg!(Py_3_15) { 36 } else { 28 }],
    frame_size: u64,
    frame_previous: u64,
    frame_to_code: u64,
    frame_to_instruction: u64,
    frame_to_slots: u64,
    frame_rest: [u64; 3],
    code_size: u64,
    code_to_filename: u64,
    code_to_name: u64,
    code_rest: [u64; 4],
    code_to_slot_names: u64,
    code_to_slot_kinds: u64,
}

#[cfg(Py_3_14)]
unsafe extern "C" {
    static _PyRuntime: Published;
}

/// Takes over the offsets that the interpreter publishes. Returns whether they are those of this minor version.
#[cfg(Py_3_14)]
fn take_published_offsets(py: Python<'_>) -> bool {
    // SAFETY: the interpreter exports this constant for debuggers and profilers.
    let published = unsafe { &_PyRuntime };
    let version = py.version_info();
    let minor = u64::from(version.major) << 8 | u64::from(version.minor);
    if published.cookie != *b"xdebugpy" || published.version >> 16 != minor || published.free_threaded != 0 {
        return false;
    }
    let offsets = [
        (&OFFSETS.frame_to_code, published.frame_to_code),
        (&OFFSETS.frame_to_slots, published.frame_to_slots),
        (&OFFSETS.code_to_slot_names, published.code_to_slot_names),
        (&OFFSETS.code_to_slot_kinds, published.code_to_slot_kinds),
        (&OFFSETS.code_to_filename, published.code_to_filename),
        (&OFFSETS.code_to_name, published.code_to_name),
    ];
    for (offset, value) in offsets {
        offset.store(value as usize, Ordering::Relaxed);
    }
    true
}

#[cfg(not(Py_3_14))]
fn take_published_offsets(_: Python<'_>) -> bool {
    true
}

/// Returns whether the layout of this frame of `probe`, and of its code and variables, is the expected one.
///
/// # Safety
/// `frame` must be the running frame of `probe`, called with the first two elements of `list`, and the GIL must be held.
unsafe fn probe_is_known(frame: *mut ffi::PyFrameObject, list: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = list.py();
    // SAFETY: upheld by the caller. Even if the layout differs, the reads stay within the objects that any CPython keeps
    // there, because the pointers that they return are only compared, never dereferenced.
    unsafe {
        let inner = InterpreterFrame::of(frame);
        let code = Bound::from_owned_ptr(py, ffi::PyFrame_GetCode(frame).cast());
        Ok(ints_are_known(py)
            && line_number(frame) == 3
            && inner.code() == code.as_ptr()
            && inner.namespace().is_null()
            && inner.slot(0) == list.get_item(0)?.as_ptr()
            && inner.slot(1) == list.get_item(1)?.as_ptr()
            && inner.slot(2) == list.as_ptr()
            && inner.slot(3).is_null()
            && slot_names_are_known(&code)?)
    }
}

/// Checks the offsets on two frames with known contents, of a function and of a module.
fn offsets_hold(py: Python<'_>) -> PyResult<bool> {
    let source =
        c"def probe(a, b):\n    c = [a, b]\n    return inspect(c)\n    d = None\n    e = lambda: d\nmine = look()";
    let globals = PyDict::new(py);
    let inspect = PyCFunction::new_closure(py, None, None, |args, _| -> PyResult<bool> {
        // SAFETY: `probe` calls this, so the current frame object is its running frame.
        unsafe { probe_is_known(ffi::PyEval_GetFrame(), &args.get_item(0)?) }
    })?;
    let namespace = globals.as_ptr() as usize;
    let look = PyCFunction::new_closure(py, None, None, move |_, _| -> PyResult<bool> {
        // SAFETY: the module calls this, so the current frame object is its running frame.
        Ok(unsafe { InterpreterFrame::of(ffi::PyEval_GetFrame()).namespace() } as usize == namespace)
    })?;
    globals.set_item("inspect", inspect)?;
    globals.set_item("look", look)?;
    py.run(source, Some(&globals), None)?;
    let marker = || pyo3::types::PyList::empty(py);
    let get = |name| globals.as_any().get_item(name);
    Ok(get("mine")?.extract::<bool>()? && get("probe")?.call1((marker(), marker()))?.extract::<bool>()?)
}

/// Finds out, once and at import, whether frames can be read in place. `CWM_RECORDER_API=public` decides against it.
pub fn prepare(py: Python<'_>) -> PyResult<()> {
    let is_public = std::env::var_os("CWM_RECORDER_API").is_some_and(|choice| choice == "public");
    if cfg!(known_layout) && !is_public && !is_known() && take_published_offsets(py) {
        // The checks read as the recorder does.
        KNOWN.store(true, Ordering::Relaxed);
        let hold = offsets_hold(py);
        KNOWN.store(matches!(hold, Ok(true)), Ordering::Relaxed);
        hold?;
    }
    Ok(())
}

/// Warns, once in this process, if recordings read frames through the public API.
pub fn warn_if_not_known(py: Python<'_>) -> PyResult<()> {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if is_known() || WARNED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let version = Python::version_str();
    let message = format!(
        "cwm_core does not know the frame layout of this interpreter ({version}) and records through CPython's public \
         API: the traces are the same, but recording takes several times longer. CWM_RECORDER_API=public has the same \
         effect"
    );
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &CString::new(message)?, 1)
}
