//! Recording chosen calls: of the outermost activations in scope those that a function of the caller chooses. Each gives
//! a trace; at a limit only its trace ends, and the program goes on.

use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;

use cwm_trace::Event;

use super::code::Code;
use super::layout::InterpreterFrame;
use super::log::Log;
use super::signals::raised_by_handler;

/// An activation, by its frame and the number of its code object.
type Place = (InterpreterFrame, usize);

pub struct Choice {
    choose: Py<PyAny>,
    /// The outermost activation in scope that runs.
    root: Option<Place>,
    /// Whether it is recorded.
    taken: bool,
    /// That of the trace in the making: it may be a generator, which goes on later.
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

    /// Whether an event is recorded. An event that begins an outermost activation asks the function.
    ///
    /// # Safety
    /// `frame` is the running frame object, of this code, and the GIL is held.
    #[inline]
    pub unsafe fn takes(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: *mut ffi::PyFrameObject,
        code: &Code,
        log: &mut Log,
    ) -> PyResult<bool> {
        // SAFETY: the caller's promise.
        let (inner, begins) = unsafe {
            (
                InterpreterFrame::of(frame),
                event == Event::Call && !code.goes_on(frame),
            )
        };
        let place = (inner, code.number);
        // One whose end was not seen, and another one in its place.
        if begins && self.root.is_some_and(|(root, _)| root == inner) {
            self.root = None;
        }
        if self.root.is_none() {
            if event != Event::Call && log.is_enclosing(inner) {
                return Ok(false);
            }
            if begins {
                self.traced.take_if(|(traced, _)| *traced == inner);
                // SAFETY: the caller's promise.
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

    /// What is raised outside `Exception`, or by a signal handler, is for the program.
    unsafe fn asks(&self, py: Python<'_>, frame: *mut ffi::PyFrameObject) -> PyResult<bool> {
        // SAFETY: the caller's promise.
        let frame = unsafe { Bound::from_borrowed_ptr(py, frame.cast()) };
        match self.choose.bind(py).call1((frame,)).and_then(|said| said.is_truthy()) {
            Err(error) if error.is_instance_of::<PyException>(py) && !raised_by_handler(py, &error)? => Ok(false),
            said => said,
        }
    }

    /// Whether it is the outermost activation that ended or was suspended. One that did not end is found again.
    #[inline]
    pub fn note_end(&mut self, ended: bool, frame: InterpreterFrame) -> bool {
        let is_root = ended && self.root.is_some_and(|(root, _)| root == frame);
        if is_root {
            self.root = None;
        }
        is_root
    }

    /// Another trace function saw events instead; `running` are the frames that run now, with their codes' numbers.
    pub fn end_unseen(&mut self, running: &[Place], log: &mut Log) {
        if self.root.is_some_and(|root| !running.contains(&root)) {
            self.lose(log);
            self.root = None;
        }
    }

    /// Another trace function sees what is left of the outermost activation.
    pub fn lose(&mut self, log: &mut Log) {
        if self.root.is_some() && self.taken {
            log.cut("settrace");
            self.taken = false;
            self.traced = None;
        }
    }
}
