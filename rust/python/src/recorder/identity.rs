//! Which code object lies at an address. None is held, so another can take the address of one that died.
//!
//! A code object that is met gets a number, never given again, in a slot that CPython keeps for extensions. It dies with
//! the code object: what is remembered of an address holds while the number is there.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

// Read and written with the GIL held.
/// The slot: there are few, and this one serves all recordings.
static SLOT: AtomicIsize = AtomicIsize::new(-1);
static GIVEN: AtomicUsize = AtomicUsize::new(0);
static DEATHS: AtomicUsize = AtomicUsize::new(0);

/// CPython calls it when a code object dies: on any thread, at any moment, and also for one that has no number.
unsafe extern "C" fn on_death(number: *mut c_void) {
    if !number.is_null() {
        DEATHS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks the interpreter for the slot, once per process.
pub fn prepare() -> PyResult<()> {
    // SAFETY: the function is valid for any number, for as long as the process lives.
    let slot = unsafe { ffi::PyUnstable_Eval_RequestCodeExtraIndex(on_death) };
    if slot < 0 {
        return Err(PyImportError::new_err(
            "cwm_core's recorder needs an extra slot of code objects, and other extensions use them all",
        ));
    }
    SLOT.store(slot, Ordering::Relaxed);
    Ok(())
}

/// How many numbered code objects died. While it does not grow, each of their addresses stays that of the same one.
#[inline]
pub fn deaths() -> usize {
    DEATHS.load(Ordering::Relaxed)
}

/// The number of a code object; 0 if it has none.
///
/// # Safety
/// `code` is a live code object and the GIL is held.
#[inline]
pub unsafe fn number(code: *mut ffi::PyObject) -> usize {
    let mut number = null_mut();
    // SAFETY: the caller's promise; a slot that was never set gives null.
    unsafe { ffi::PyUnstable_Code_GetExtra(code, SLOT.load(Ordering::Relaxed), &mut number) };
    number as usize
}

/// The number of a code object, which gets one if it has none.
///
/// # Safety
/// As for [`number`].
pub unsafe fn numbered(py: Python<'_>, code: *mut ffi::PyObject) -> PyResult<usize> {
    // SAFETY: the caller's promise.
    unsafe {
        let known = number(code);
        if known != 0 {
            return Ok(known);
        }
        let new = GIVEN.fetch_add(1, Ordering::Relaxed) + 1;
        match ffi::PyUnstable_Code_SetExtra(code, SLOT.load(Ordering::Relaxed), new as *mut c_void) {
            0 => Ok(new),
            _ => Err(PyErr::fetch(py)),
        }
    }
}
