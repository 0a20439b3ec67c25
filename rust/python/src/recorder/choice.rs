//! Recording of chosen calls. A function supplied by the caller chooses among the outermost activations in scope. Each
//! chosen call becomes a trace. Reaching a limit ends only that call's trace; the program continues.

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;

use cwm_trace::Event;

use super::code::Code;
use super::layout::InterpreterFrame;
use super::log::Log;
use super::signals::raised_by_handler;

/// An activation, identified by its frame and the number of its code object.
type Place = (InterpreterFrame, usize);

pub struct Choice {
    choose: Py<PyAny>,
    /// Running outermost activation in scope.
    root: Option<Place>,
    /// Whether that activation is recorded.
    taken: bool,
    /// Activation of the trace being built. It may be a suspended generator that resumes later.
    traced: Option<Place>,
}

impl Choice {
    pub fn new(choose: Py<PyAny>) -> Choice {
        Choice {
            choose,
            root: None,
            taken: false,
            traced: None,
        }
    }

    /// Returns whether to record an event. Calls the caller's function if the event begins an outermost activation.
    ///
    /// # Safety
    /// `frame` must be the running frame object of this code, and the GIL must be held.
    #[inline]
    pub unsafe fn takes(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: *mut ffi::PyFrameObject,
        code: &Code,
        log: &mut Log,
    ) -> PyResult<bool> {
        // SAFETY: upheld by the caller.
        let (inner, begins) = unsafe {
            (
                InterpreterFrame::of(frame),
                event == Event::Call && !code.goes_on(frame),
            )
        };
        let place = (inner, code.number);
        // The end of the earlier activation was not seen, and this activation reuses its frame.
        if begins && self.root.is_some_and(|(root, _)| root == inner) {
            self.root = None;
        }
        if self.root.is_none() {
            if event != Event::Call && log.is_enclosing(inner) {
                return Ok(false);
            }
            if begins {
                self.traced.take_if(|(traced, _)| *traced == inner);
                // SAFETY: upheld by the caller.
                self.taken = unsafe { self.asks(py, frame)? };
                if self.taken {
                    log.begin_trace();
                    self.traced = Some(place);
                }
            } else {
                self.taken = self.traced == Some(place);
            }
            self.root = Some(place);
        }
        if self.taken && log.cut_at_limit() {
            self.taken = false;
            self.traced = None;
        }
        if !self.taken {
            self.note_end(event == Event::Return, inner);
        }
        Ok(self.taken)
    }

    /// Returns the caller's choice; an `Exception` that the function raises counts as false. All other exceptions, and
    /// those raised by signal handlers, propagate to the program.
    unsafe fn asks(&self, py: Python<'_>, frame: *mut ffi::PyFrameObject) -> PyResult<bool> {
        // SAFETY: upheld by the caller.
        let frame = unsafe { Bound::from_borrowed_ptr(py, frame.cast()) };
        match self.choose.bind(py).call1((frame,)).and_then(|said| said.is_truthy()) {
            Err(error) if error.is_instance_of::<PyException>(py) && !raised_by_handler(py, &error)? => Ok(false),
            said => said,
        }
    }

    /// Forgets the outermost activation if it is `frame` and has `ended` or was suspended. Returns whether it did. A
    /// suspended activation is found again when it resumes.
    #[inline]
    pub fn note_end(&mut self, ended: bool, frame: InterpreterFrame) -> bool {
        let is_root = ended && self.root.is_some_and(|(root, _)| root == frame);
        if is_root {
            self.root = None;
        }
        is_root
    }

    /// Handles events that another trace function saw instead. `running` pairs each running frame with its code's
    /// number.
    pub fn end_unseen(&mut self, running: &[Place], log: &mut Log) {
        if self.root.is_some_and(|root| !running.contains(&root)) {
            self.lose(log);
            self.root = None;
        }
    }

    /// Handles the loss of the rest of the outermost activation to another trace function.
    pub fn lose(&mut self, log: &mut Log) {
        if self.root.is_some() && self.taken {
            log.cut("settrace");
            self.taken = false;
            self.traced = None;
        }
    }
}
