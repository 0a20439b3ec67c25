//! `max_seconds`: a thread that watches the clock, so that events do not have to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

/// How long a program that reached the limit may run without an event before it is interrupted.
const GRACE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct State {
    expired: AtomicBool,
    /// Whether an event noticed the expiration since the flag was last cleared.
    seen: AtomicBool,
    /// Whether an exception was raised in the program because no event came.
    raised: AtomicBool,
    done: AtomicBool,
}

/// Watches the time of one recording.
pub struct Watchdog {
    state: Arc<State>,
    /// Not joined, because the thread does not exist in the child of a fork.
    thread: Thread,
}

impl Watchdog {
    /// Starts to watch the calling thread. After `limit`, the next event stops the program. If no event comes, as in a
    /// loop on one line or a `__repr__` that does not end, the watchdog raises `error` in the thread repeatedly.
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

    /// Returns whether the time limit has expired.
    #[inline]
    pub fn is_expired(&self) -> bool {
        let expired = self.state.expired.load(Ordering::Relaxed);
        if expired {
            self.state.seen.store(true, Ordering::Relaxed);
        }
        expired
    }

    /// Ends the watch and discards a pending exception. Returns whether one was raised.
    pub fn stop(self, py: Python<'_>) -> bool {
        // The watching thread checks this flag under the GIL, which this thread holds now, before it raises anything.
        self.state.done.store(true, Ordering::Relaxed);
        let raised = self.state.raised.load(Ordering::Relaxed);
        if raised {
            // Let a pending exception arrive here. Withdrawing it with `PyThreadState_SetAsyncExc` would make CPython
            // 3.11 look for it forever.
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
                // SAFETY: the GIL is held, and the call ignores a thread that has ended.
                unsafe { ffi::PyThreadState_SetAsyncExc(recorded as _, error.as_ptr()) };
                state.raised.store(true, Ordering::Relaxed);
            }
        });
    }
}
