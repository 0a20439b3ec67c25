//! Lets Ctrl-C interrupt long native calls.

use std::cell::RefCell;
use std::rc::Rc;

use cwm_interrupt::asking;
use pyo3::prelude::*;

/// Runs `work` without the GIL while Python handles signals. Raises the exception of a signal handler, or the work's
/// own error, converted by `to_py`.
pub fn detached<R: Send, E>(
    py: Python<'_>,
    to_py: impl Fn(E) -> PyErr + Send,
    work: impl FnOnce() -> Result<R, E> + Send,
) -> PyResult<R> {
    py.detach(|| interruptible(to_py, work))
}

/// Does the same where the GIL is already released. Python handles signals only in the main thread, so other threads
/// are never interrupted.
pub fn interruptible<R, E>(to_py: impl Fn(E) -> PyErr, work: impl FnOnce() -> Result<R, E>) -> PyResult<R> {
    let raised = Rc::new(RefCell::new(None));
    let seen = raised.clone();
    let may_continue = move || match Python::attach(|py| py.check_signals()) {
        Ok(()) => true,
        Err(error) => {
            seen.replace(Some(error));
            false
        }
    };
    let result = asking(may_continue, work);
    match raised.take() {
        Some(error) => Err(error),
        None => result.map_err(to_py),
    }
}
