//! Conversion of events to frames: activations, their variables, and the changes since the last step.

use pyo3::ffi;
use pyo3::prelude::*;
use rustc_hash::FxHashMap;

use cwm_trace::{Event, Line, Outcome, Trace};

use super::activation::Stack;
use super::code::Code;
use super::hook::RecordingLimit;
use super::layout::{self, InterpreterFrame};
use super::namespace::Keys;
use super::render::{Scratch, Style};
use super::step::Step;
use super::tape::FreeTapes;
use super::watchdog::Watchdog;

/// Limits at which a recording ends, other than the time limit.
#[derive(Clone, Copy)]
pub struct Limits {
    pub frames: usize,
    pub bytes: usize,
}

/// Detail to omit: the levels of a trace that reduce the recorder's work.
#[derive(Clone, Copy)]
pub struct Levels {
    /// Record only CALL and RETURN frames, and the EXCEPTION frame that unwinds an activation.
    pub calls_only: bool,
    /// Record only activations nested up to this depth.
    pub max_depth: usize,
}

/// The point where a trace enters the program, from its first frame. The context of the trace is made from it.
#[derive(Clone)]
pub struct Entry {
    pub file: u32,
    /// `co_name`.
    pub name: Vec<u8>,
    pub first_line: u32,
    /// For a module body, the line of the first LINE frame.
    pub line: u32,
}

/// A trace being built, and the files of its lines.
pub struct Recorded {
    pub trace: Trace,
    pub entry: Option<Entry>,
    /// Whether the entry is complete.
    has_entry: bool,
    /// File of each line of the trace.
    pub line_files: Vec<u32>,
}

impl Recorded {
    fn new() -> Recorded {
        Recorded {
            trace: Trace::new(String::new()),
            entry: None,
            has_entry: false,
            line_files: Vec::new(),
        }
    }

    /// Returns a copy that contains the complete frames.
    pub fn so_far(&self) -> Recorded {
        let mut trace = self.trace.clone();
        trace.drop_open_frame();
        Recorded {
            trace,
            entry: self.entry.clone(),
            has_entry: self.has_entry,
            line_files: self.line_files.clone(),
        }
    }
}

/// The state of one recording.
pub struct Log {
    limits: Limits,
    levels: Levels,
    style: Style,
    pub watchdog: Option<Watchdog>,
    /// Whether each outermost activation starts its own trace.
    split: bool,
    /// Whether the current trace belongs to a chosen call.
    begun: bool,
    pub finished: Vec<Recorded>,
    pub current: Recorded,
    generation: u64,
    line_ids: FxHashMap<(u32, u32), u32>,
    stack: Stack,
    /// Frames that already ran when the recording began. A native hook sees their events, but a Python tracer would
    /// not.
    pub enclosing: Vec<InterpreterFrame>,
    tapes: FreeTapes,
    keys: Keys,
    scratch: Scratch,
    pub truncated: Option<&'static str>,
}

impl Log {
    pub fn new(limits: Limits, levels: Levels, style: Style, split: bool) -> Log {
        Log {
            limits,
            levels,
            style,
            watchdog: None,
            split,
            begun: false,
            finished: Vec::new(),
            current: Recorded::new(),
            generation: 1,
            line_ids: FxHashMap::default(),
            stack: Stack::default(),
            enclosing: Vec::new(),
            tapes: Vec::new(),
            keys: Keys::default(),
            scratch: Scratch::default(),
            truncated: None,
        }
    }

    /// Returns the limit that is currently exceeded.
    #[inline]
    fn limit(&self) -> Option<&'static str> {
        let trace = &self.current.trace;
        if trace.len() >= self.limits.frames || trace.is_full() {
            Some("max_frames")
        } else if trace.frame_bytes() >= self.limits.bytes {
            Some("max_bytes")
        } else if self.watchdog.as_ref().is_some_and(Watchdog::is_expired) {
            Some("max_seconds")
        } else {
            None
        }
    }

    /// Returns whether a limit has been reached, now or earlier. If so, no further events are recorded.
    #[inline]
    pub fn is_full(&mut self) -> bool {
        let limit = self.limit(); // always evaluated, so that the watchdog notices events
        self.truncated = self.truncated.or(limit);
        self.truncated.is_some()
    }

    /// Ends only the current trace if a limit is reached. Returns whether it did.
    #[inline]
    pub fn cut_at_limit(&mut self) -> bool {
        self.limit().map(|limit| self.cut(limit)).is_some()
    }

    /// Ends only the current trace. The running activations do not belong to the next trace.
    #[cold]
    pub fn cut(&mut self, reason: &str) {
        self.current.trace.truncated = Some(reason.to_owned());
        self.stack.end_others(&[], &mut self.tapes);
    }

    /// Returns whether `frame` is an outermost activation with a trace of its own.
    #[inline]
    pub fn is_outermost(&self, frame: InterpreterFrame) -> bool {
        self.split && matches!(self.stack.running(), [only] if only.frame == frame)
    }

    /// Stores the outcome of an outermost activation whose last frame was just written.
    pub fn keep_outcome(&mut self, raised: bool) {
        let trace = &mut self.current.trace;
        let Some(last) = trace.len().checked_sub(1) else {
            return;
        };
        if !raised {
            trace.outcome = trace.frame(last).arg().map(|text| Outcome::Returned(text.to_vec()));
            return;
        }
        // Find the last exception of the outermost activation, skipping the frames of its callees.
        let mut depth = 0;
        for index in (0..last).rev() {
            let frame = trace.frame(index);
            match frame.event() {
                Event::Return => depth += 1,
                Event::Call => depth -= 1,
                Event::Exception if depth == 0 => {
                    trace.outcome = frame.arg().map(|text| Outcome::Raised(text.to_vec()));
                    return;
                }
                _ => {}
            }
        }
    }

    /// Begins the trace of a chosen call.
    pub fn begin_trace(&mut self) {
        if self.begun {
            self.next_trace();
        }
        self.begun = true;
    }

    /// Returns the exception that stops a program whose recording is full.
    #[cold]
    pub fn limit_error(&self) -> PyErr {
        let limit = self.truncated.unwrap_or_default();
        RecordingLimit::new_err(format!("the recording reached {limit}"))
    }

    /// Stops the clock.
    pub fn end_watch(&mut self, py: Python<'_>) {
        if self.watchdog.take().is_some_and(|watchdog| watchdog.stop(py)) {
            self.truncated.get_or_insert("max_seconds");
        }
    }

    /// Records a CALL or LINE event of `frame`, whose code is `code`, at line `number`.
    ///
    /// # Safety
    /// `frame` must be running and belong to `code`, and the GIL must be held.
    pub unsafe fn locals_event(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: InterpreterFrame,
        code: &mut Code,
        number: u32,
    ) -> PyResult<()> {
        if event == Event::Call && self.split && self.stack.running().is_empty() && !self.current.trace.is_empty() {
            self.next_trace();
        }
        let index = match event {
            Event::Call => self.begin_activation(frame, code),
            _ => match self.find_activation(frame, code) {
                Some(index) => index,
                None => return Ok(()),
            },
        };
        let line = self.line(event, code, number);
        if index >= self.levels.max_depth {
            return Ok(());
        }
        if event == Event::Line && self.levels.calls_only {
            self.stack.at(index).exception = None;
            return Ok(());
        }
        let Log { stack, tapes, .. } = self;
        let activation = stack.at(index);
        let mut step = Step {
            py,
            trace: &mut self.current.trace,
            style: self.style,
            scratch: &mut self.scratch,
            tapes,
        };
        // SAFETY: upheld by the caller.
        let taken = unsafe {
            let in_slots = layout::is_known() && (code.optimized || code.in_comprehension(frame));
            if activation.in_slots != in_slots {
                step.change_place(activation, code);
            }
            if in_slots {
                step.slots(activation, frame, code)
            } else {
                step.mapping(activation, frame, code, &mut self.keys)
            }
        };
        match taken {
            Ok(shape) => {
                self.current.trace.push_locals_frame(event, line, shape);
                Ok(())
            }
            Err(error) => {
                // The exception from `__repr__` propagates to the program, and the last shown state is now unknown.
                self.current.trace.drop_open_frame();
                self.stack.at(index).clear(&mut self.tapes);
                Err(error)
            }
        }
    }

    /// Records a RETURN or EXCEPTION event with its value.
    ///
    /// # Safety
    /// `frame` must be running and belong to `code`, `value` must be alive, and the GIL must be held.
    pub unsafe fn value_event(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: InterpreterFrame,
        code: &mut Code,
        number: u32,
        value: *mut ffi::PyObject,
    ) -> PyResult<()> {
        let Some(index) = self.find_activation(frame, code) else {
            return Ok(());
        };
        let line = self.line(event, code, number);
        let exception = self.stack.at(index).exception.take();
        if event == Event::Return {
            self.end_activation(index);
        }
        if index >= self.levels.max_depth {
            return Ok(());
        }
        let mut step = Step {
            py,
            trace: &mut self.current.trace,
            style: self.style,
            scratch: &mut self.scratch,
            tapes: &mut self.tapes,
        };
        // SAFETY: upheld by the caller.
        if let Err(error) = unsafe { step.value(value) } {
            self.current.trace.drop_value();
            return Err(error);
        }
        if let Some((line, text)) = exception
            && event == Event::Return
            && self.current.trace.open_text() == b"None"
        {
            self.current.trace.drop_value();
            self.current.trace.open_value().extend_from_slice(&text);
            self.current.trace.push_value_frame(Event::Exception, line);
            self.current.trace.open_value().extend_from_slice(b"None");
        }
        if event == Event::Exception && self.levels.calls_only {
            // Shown only if it unwinds the activation.
            self.stack.at(index).exception = Some((line, self.current.trace.open_text().to_vec()));
            self.current.trace.drop_value();
            return Ok(());
        }
        self.current.trace.push_value_frame(event, line);
        Ok(())
    }

    #[cold]
    fn next_trace(&mut self) {
        self.finished
            .push(std::mem::replace(&mut self.current, Recorded::new()));
        self.generation += 1;
        self.line_ids.clear();
        self.keys.clear();
    }

    /// Returns the trace's ID for the line of an event.
    #[inline]
    fn line(&mut self, event: Event, code: &mut Code, number: u32) -> u32 {
        if code.generation != self.generation {
            code.enter(&mut self.current.trace, self.generation);
        }
        if !self.current.has_entry {
            self.note_entry(event, code, number);
        }
        code.line_id(number).unwrap_or_else(|| self.add_line(code, number))
    }

    #[cold]
    fn note_entry(&mut self, event: Event, code: &Code, number: u32) {
        match &mut self.current.entry {
            None => {
                let entry = Entry {
                    file: code.file,
                    name: code.name.clone(),
                    first_line: code.first_line,
                    line: 0,
                };
                self.current.entry = Some(entry);
            }
            Some(entry) if event == Event::Line => {
                entry.line = number;
                self.current.has_entry = true;
            }
            Some(_) => {}
        }
    }

    #[cold]
    fn add_line(&mut self, code: &mut Code, number: u32) -> u32 {
        let file = code.file;
        let recorded = &mut self.current;
        let id = *self.line_ids.entry((file, number)).or_insert_with(|| {
            recorded.line_files.push(file);
            recorded.trace.add_line(Line {
                number,
                text: String::new(),
            })
        });
        code.keep_line_id(number, id);
        id
    }

    fn begin_activation(&mut self, frame: InterpreterFrame, code: &Code) -> usize {
        self.stack.push(frame, code.number)
    }

    /// Returns the activation of `frame`. Begins one if there was no CALL event, as on 3.11 for a generator into which
    /// an exception was thrown. Returns `None` for a frame that began before the recording.
    #[inline]
    fn find_activation(&mut self, frame: InterpreterFrame, code: &Code) -> Option<usize> {
        match self.stack.running().last() {
            Some(top) if top.frame == frame => Some(self.stack.running().len() - 1),
            _ => self.find_below(frame, code),
        }
    }

    #[cold]
    fn find_below(&mut self, frame: InterpreterFrame, code: &Code) -> Option<usize> {
        match self.stack.position(frame) {
            Some(index) => Some(index),
            None if self.enclosing.contains(&frame) => None,
            None => Some(self.begin_activation(frame, code)),
        }
    }

    /// Returns whether `frame` ran before the recording began. The event must not be a CALL.
    pub fn is_enclosing(&self, frame: InterpreterFrame) -> bool {
        self.enclosing.contains(&frame) && self.stack.position(frame).is_none()
    }

    /// Ends the activations whose end another trace function saw. Other activations may now use their frames'
    /// addresses.
    pub fn end_unseen(&mut self, running: &[(InterpreterFrame, usize)]) {
        self.stack.end_others(running, &mut self.tapes);
    }

    fn end_activation(&mut self, index: usize) {
        self.stack.end(index, &mut self.tapes);
    }
}
