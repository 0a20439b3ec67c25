//! Where CPython keeps a frame's slots: the one place that knows the interpreter's private layout.
//!
//! The public way, `PyFrame_GetLocals`, costs more than everything else the recorder does, and on 3.11 and 3.12 leaves a
//! dict on the frame that keeps values alive. So the slots are read where they lie. The offsets hold for one minor
//! version each, and [`verify`] checks them on a real frame before the first recording.

use std::ptr::NonNull;

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// From a frame object to the pointer to its interpreter frame: after the object header and `f_back`.
const FRAME_OBJECT_TO_FRAME: usize = 24;
const FRAME_TO_SLOTS: usize = 72;
#[cfg(not(Py_3_12))]
const FRAME_TO_CODE: usize = 32;
#[cfg(Py_3_12)]
const FRAME_TO_CODE: usize = 0;
#[cfg(not(Py_3_12))]
const FRAME_TO_NAMESPACE: usize = 24;
#[cfg(Py_3_12)]
const FRAME_TO_NAMESPACE: usize = 40;

#[cfg(any(not(Py_3_11), Py_3_14))]
compile_error!("the recorder knows the frame layout of CPython 3.11, 3.12 and 3.13 only");
#[cfg(Py_GIL_DISABLED)]
compile_error!("the recorder needs the GIL: free-threaded builds are not supported");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("the recorder knows the 64-bit frame layout only");

/// The interpreter's own frame of a running activation. Its address tells activations that are alive at once apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InterpreterFrame(NonNull<u8>);

impl InterpreterFrame {
    /// # Safety
    /// `frame` is a live frame object of this interpreter whose activation is running, and the GIL is held.
    pub unsafe fn of(frame: *mut ffi::PyFrameObject) -> InterpreterFrame {
        // SAFETY: by the layout verified at import, a running frame object holds a non-null pointer there.
        unsafe {
            InterpreterFrame(NonNull::new_unchecked(
                *frame.byte_add(FRAME_OBJECT_TO_FRAME).cast::<*mut u8>(),
            ))
        }
    }

    /// The code object, borrowed from the frame.
    ///
    /// # Safety
    /// The activation is still running, and the GIL is held.
    pub unsafe fn code(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout verified at import.
        unsafe { *self.0.as_ptr().add(FRAME_TO_CODE).cast() }
    }

    /// The namespace of a module or class body, borrowed; null in a function.
    ///
    /// # Safety
    /// The activation is still running, and the GIL is held.
    pub unsafe fn namespace(self) -> *mut ffi::PyObject {
        // SAFETY: by the layout verified at import.
        unsafe { *self.0.as_ptr().add(FRAME_TO_NAMESPACE).cast() }
    }

    /// What slot `index` holds, borrowed: a value, a cell, or null.
    ///
    /// # Safety
    /// The activation is still running, `index` is below its code's number of slots, and the GIL is held.
    pub unsafe fn slot(self, index: usize) -> *mut ffi::PyObject {
        // SAFETY: by the layout verified at import; the caller keeps the index in bounds.
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

/// Checks the offsets on a frame whose contents are known, or refuses to load.
pub fn verify(py: Python<'_>) -> PyResult<()> {
    let source =
        c"def probe(a, b):\n    c = [a, b]\n    return inspect(c)\ndef enclosing(inspect, marker):\n    return probe";
    let globals = pyo3::types::PyDict::new(py);
    let inspect = pyo3::types::PyCFunction::new_closure(py, None, None, |args, _| -> PyResult<bool> {
        let py = args.py();
        let list = args.get_item(0)?;
        // SAFETY: called from `probe`, so the current frame object is the running frame of `probe`, and the GIL is held.
        // If the layout is another, the reads below still stay within the objects that any CPython keeps there: the
        // pointers are only compared, never followed.
        unsafe {
            let frame = ffi::PyEval_GetFrame();
            let inner = InterpreterFrame::of(frame);
            let code = Bound::from_owned_ptr(py, ffi::PyFrame_GetCode(frame).cast());
            Ok(inner.code() == code.as_ptr()
                && inner.namespace().is_null()
                && inner.slot(0) == list.get_item(0)?.as_ptr()
                && inner.slot(1) == list.get_item(1)?.as_ptr()
                && inner.slot(2) == list.as_ptr())
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
        "cwm_core's recorder does not know the frame layout of this interpreter ({version}); it supports CPython 3.11 to 3.13"
    )))
}
