//! `max_seconds`: a thread that looks at the clock, so that no event has to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

/// How long a program that reached the limit may go on without an event before it is stopped where it is.
const GRACE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct State {
    expired: AtomicBool,
    /// Whether an event saw that the time is over since this was last looked at.
    seen: AtomicBool,
    /// Whether the program was stopped where no event came.
    raised: AtomicBool,
    done: AtomicBool,
}

/// Watches the time of one recording.
pub struct Watchdog {
    state: Arc<State>,
    /// Not joined: in the child of a fork it does not exist.
    thread: Thread,
}

impl Watchdog {
    /// Begins to watch the calling thread. After `limit` the next event stops the program; where none comes (a loop on
    /// one line, a `__repr__` that does not end) `error` is raised in it, again and again.
    pub fn start(py: Python<'_>, limit: Duration, error: Bound<'_, PyType>) -> PyResult<Watchdog> {
        let state = Arc::new(State::default());
        let recorded: u64 = py.import("threading")?.call_method0("get_ident")?.extract()?;
        let (shared, error) = (state.clone(), error.unbind());
        let handle = thread::Builder::new()
            .name("cwm-watchdog".into())
            .spawn(move || watch(&shared, limit, recorded, error))?;
        Ok(Watchdog {
            state,
            thread: handle.thread().clone(),
        })
    }

    /// Whether the time is over.
    #[inline]
    pub fn is_expired(&self) -> bool {
        let expired = self.state.expired.load(Ordering::Relaxed);
        if expired {
            self.state.seen.store(true, Ordering::Relaxed);
        }
        expired
    }

    /// Ends the watch, takes back an exception that was not raised yet, and says whether one was asked for.
    pub fn stop(self, py: Python<'_>) -> bool {
        // The watching thread looks at this before it raises anything, and holds the GIL as this one does now.
        self.state.done.store(true, Ordering::Relaxed);
        let raised = self.state.raised.load(Ordering::Relaxed);
        if raised {
            // An exception that is still to come comes here. Taking it back with `PyThreadState_SetAsyncExc` would leave
            // CPython 3.11 looking for it for ever.
            let _ = py.run(c"pass", Some(&PyDict::new(py)), None);
        }
        self.thread.unpark();
        raised
    }
}

fn watch(state: &State, limit: Duration, recorded: u64, error: Py<PyType>) {
    let deadline = Instant::now().checked_add(limit);
    let is_done = || state.done.load(Ordering::Relaxed);
    while !is_done() {
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => break,
            Some(left) => thread::park_timeout(left),
            None => thread::park(),
        }
    }
    state.expired.store(true, Ordering::Relaxed);
    while !is_done() {
        thread::park_timeout(GRACE);
        if state.seen.swap(false, Ordering::Relaxed) {
            continue;
        }
        Python::try_attach(|_py| {
            if !is_done() {
                // SAFETY: the GIL is held; a thread that has ended is not found.
                unsafe { ffi::PyThreadState_SetAsyncExc(recorded as _, error.as_ptr()) };
                state.raised.store(true, Ordering::Relaxed);
            }
        });
    }
}
