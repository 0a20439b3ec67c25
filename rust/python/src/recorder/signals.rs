//! Detection of exceptions from Python signal handlers, which can run at any point, including in a `__repr__` that the
//! recorder runs.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyInt};

/// Linux has 64 signals and other systems fewer. CPython accepts any number below its `NSIG`, which is 65 on Linux.
#[cfg(target_os = "linux")]
const LAST_SIGNAL: i32 = 64;
#[cfg(not(target_os = "linux"))]
const LAST_SIGNAL: i32 = 31;

/// Returns whether an exception comes from a signal handler, that is, whether its traceback contains a handler's code.
/// An exception from a `__repr__` determines how its object is shown. An exception from a handler, such as a timeout,
/// is for the program.
pub fn raised_by_handler(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    let mut codes = Vec::new();
    let mut next = error.traceback(py).map(Bound::into_any);
    while let Some(entry) = next.filter(|entry| !entry.is_none()) {
        codes.push(entry.getattr(intern!(py, "tb_frame"))?.getattr(intern!(py, "f_code"))?);
        next = Some(entry.getattr(intern!(py, "tb_next"))?);
    }
    // Fast path: by far the most frequent traceback contains only the `__repr__`.
    if let [only] = codes.as_slice()
        && only.getattr(intern!(py, "co_name"))?.eq(intern!(py, "__repr__"))?
    {
        return Ok(false);
    }
    if codes.is_empty() {
        return Ok(false);
    }
    // `_signal` underlies `signal` and does not convert its results to enums.
    let get = py.import(intern!(py, "_signal"))?.getattr(intern!(py, "getsignal"))?;
    for number in 1..=LAST_SIGNAL {
        let handler = get.call1((number,))?;
        // The default action, a handler that was not set from Python, or a handler without Python code.
        if handler.is_none() || handler.is_instance_of::<PyInt>() || handler.is_instance_of::<PyCFunction>() {
            continue;
        }
        if code_of(&handler).is_some_and(|code| codes.iter().any(|other| other.is(&code))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the code that a handler runs: that of a function, a method, a partial, or an object's `__call__`.
fn code_of<'py>(handler: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = handler.py();
    let code = |object: &Bound<'py, PyAny>| object.getattr(intern!(py, "__code__")).ok();
    let called = || handler.get_type().getattr(intern!(py, "__call__")).ok();
    code(handler)
        .or_else(|| code(&handler.getattr(intern!(py, "func")).ok()?))
        .or_else(|| code(&called()?))
}
