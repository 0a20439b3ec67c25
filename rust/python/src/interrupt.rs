//! Long native calls that Ctrl-C ends.

use std::cell::RefCell;
use std::rc::Rc;

use cwm_interrupt::asking;
use pyo3::prelude::*;

/// Runs `work` without the GIL and lets Python handle signals meanwhile. Raises what a signal handler raises, and what
/// `to_py` makes of the work's own error.
pub fn detached<R: Send, E>(
    py: Python<'_>,
    to_py: impl Fn(E) -> PyErr + Send,
    work: impl FnOnce() -> Result<R, E> + Send,
) -> PyResult<R> {
    py.detach(|| interruptible(to_py, work))
}

/// The same where the GIL is released already. Signals are handled in the main thread only, so others never stop.
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
