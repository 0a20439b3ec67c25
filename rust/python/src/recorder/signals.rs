//! Python's signal handlers run wherever the interpreter is, also in a `__repr__` that the recorder runs.

use pyo3::intern;
use pyo3::prelude::*;

/// Whether an exception comes from a signal handler: a handler's code is on its traceback. What a `__repr__` raises says
/// how its object is shown; what a handler raises (a timeout) is for the program.
pub fn raised_by_handler(py: Python<'_>, error: &PyErr) -> PyResult<bool> {
    let mut codes = Vec::new();
    let mut next = error.traceback(py).map(Bound::into_any);
    while let Some(entry) = next.filter(|entry| !entry.is_none()) {
        codes.push(entry.getattr(intern!(py, "tb_frame"))?.getattr(intern!(py, "f_code"))?);
        next = Some(entry.getattr(intern!(py, "tb_next"))?);
    }
    // The `__repr__` alone is by far the most frequent.
    if let [only] = codes.as_slice()
        && only.getattr(intern!(py, "co_name"))?.eq(intern!(py, "__repr__"))?
    {
        return Ok(false);
    }
    if codes.is_empty() {
        return Ok(false);
    }
    let signal = py.import("signal")?;
    for number in signal.call_method0("valid_signals")?.try_iter()? {
        if let Some(code) = code_of(&signal.call_method1("getsignal", (number?,))?)
            && codes.iter().any(|other| other.is(&code))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The code that a handler runs: that of a function, a method, a partial, or an object's `__call__`.
fn code_of<'py>(handler: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    let py = handler.py();
    let code = |object: &Bound<'py, PyAny>| object.getattr(intern!(py, "__code__")).ok();
    let called = || handler.get_type().getattr(intern!(py, "__call__")).ok();
    code(handler)
        .or_else(|| code(&handler.getattr(intern!(py, "func")).ok()?))
        .or_else(|| code(&called()?))
}
