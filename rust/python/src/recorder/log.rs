//! From events to frames: activations, their variables, and what changed since the last step.

use std::time::{Duration, Instant};

use pyo3::ffi;
use pyo3::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use cwm_trace::{Event, Line, Trace};

use super::code::Code;
use super::layout::InterpreterFrame;
use super::render::{push_unicode, render, runs_code};

/// When a recording ends by itself.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    pub frames: Option<usize>,
    pub bytes: Option<usize>,
    pub time: Option<Duration>,
    pub value_chars: usize,
}

/// The clock is read once in so many events.
const EVENTS_A_CLOCK: u32 = 64;
/// Columns index frames and changes by 32 bits.
const MAX_FRAMES: usize = u32::MAX as usize >> 4;

/// A value that is told by itself, without its text.
#[derive(Clone, Copy, PartialEq)]
enum Plain {
    /// An exact int that fits.
    Int(i64),
    /// `None`, `True` or `False`: objects that are never freed, so that the address tells them.
    Constant(*mut ffi::PyObject),
}

impl Plain {
    /// # Safety
    /// `value` is alive and the GIL is held.
    unsafe fn of(value: *mut ffi::PyObject) -> Option<Plain> {
        // SAFETY: the caller's promise; an exact int converts without running anything.
        unsafe {
            if ffi::Py_TYPE(value) == &raw mut ffi::PyLong_Type {
                let mut overflow = 0;
                let number = ffi::PyLong_AsLongLongAndOverflow(value, &mut overflow);
                (overflow == 0).then_some(Plain::Int(number))
            } else if value == ffi::Py_None() || value == ffi::Py_True() || value == ffi::Py_False() {
                Some(Plain::Constant(value))
            } else {
                None
            }
        }
    }
}

/// A variable as the last CALL or LINE frame of its activation showed it. Its place in the frame's shape is where it
/// stands among its activation's variables.
struct Variable {
    name: u32,
    /// Index into the code's slots; for a namespace the name's id again.
    slot: u32,
    plain: Option<Plain>,
    /// The change that wrote the text shown last; `ABSENT` when none was.
    text: u32,
}

impl Variable {
    fn new(name: u32, slot: u32) -> Variable {
        Variable {
            name,
            slot,
            plain: None,
            text: ABSENT,
        }
    }
}

/// A running call, generator step, or body.
struct Activation {
    frame: InterpreterFrame,
    variables: Vec<Variable>,
    shape: u32,
    /// Where each slot stands in `variables`.
    position: Vec<u32>,
}

const ABSENT: u32 = u32::MAX;

/// Where the first frame of a trace entered: what its context is made from.
#[derive(Clone, Debug)]
pub struct Entry {
    pub file: u32,
    pub name: String,
    pub first_line: u32,
    /// The line of the first LINE frame, for the body of a module.
    pub line: u32,
}

/// A trace in the making, and how its lines come from files.
pub struct Recorded {
    pub trace: Trace,
    pub entry: Option<Entry>,
    /// The file of each line of the trace.
    pub line_files: Vec<u32>,
}

impl Recorded {
    fn new() -> Recorded {
        Recorded {
            trace: Trace::new(String::new()),
            entry: None,
            line_files: Vec::new(),
        }
    }
}

/// The state of one recording.
pub struct Log {
    limits: Limits,
    deadline: Option<Instant>,
    events: u32,
    /// Whether each activation that begins while none runs starts a trace of its own.
    split: bool,
    pub finished: Vec<Recorded>,
    pub current: Recorded,
    generation: u64,
    line_ids: FxHashMap<(u32, u32), u32>,
    stack: Vec<Activation>,
    /// Activations that ended: their allocations serve the next ones.
    spare: Vec<Activation>,
    pub truncated: Option<&'static str>,
    order: Vec<u32>,
}

impl Log {
    pub fn new(limits: Limits, split: bool) -> Log {
        Log {
            limits,
            deadline: limits.time.map(|time| Instant::now() + time),
            events: 0,
            split,
            finished: Vec::new(),
            current: Recorded::new(),
            generation: 1,
            line_ids: FxHashMap::default(),
            stack: Vec::new(),
            spare: Vec::new(),
            truncated: None,
            order: Vec::new(),
        }
    }

    /// Whether a limit was reached, now or before: no event is recorded from then on.
    pub fn is_full(&mut self) -> bool {
        if self.truncated.is_some() {
            return true;
        }
        let frames = self.current.trace.len();
        if frames >= self.limits.frames.unwrap_or(MAX_FRAMES) {
            self.truncated = Some("max_frames");
        } else if self
            .limits
            .bytes
            .is_some_and(|bytes| self.current.trace.frame_bytes() >= bytes)
        {
            self.truncated = Some("max_bytes");
        } else if let Some(deadline) = self.deadline {
            if self.events.is_multiple_of(EVENTS_A_CLOCK) && Instant::now() >= deadline {
                self.truncated = Some("max_seconds");
            }
            self.events = self.events.wrapping_add(1);
        }
        self.truncated.is_some()
    }

    /// Records a CALL or LINE event of `frame`, whose code is `code`, at line `number`.
    ///
    /// # Safety
    /// `frame` is running and belongs to `code`, and the GIL is held.
    pub unsafe fn locals_event(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: InterpreterFrame,
        code: &mut Code,
        number: u32,
    ) -> PyResult<()> {
        if event == Event::Call && self.split && self.stack.is_empty() && !self.current.trace.is_empty() {
            self.next_trace();
        }
        self.enter_code(code);
        let index = match event {
            Event::Call => self.begin_activation(frame),
            _ => self.find_activation(frame),
        };
        let line = self.line(code, number);
        self.note_entry(event, code, number);
        // SAFETY: the caller's promise.
        let taken = unsafe {
            if code.optimized || (cfg!(Py_3_13) && (0..code.hidden).any(|slot| !frame.slot(slot).is_null())) {
                self.take_slots(py, index, frame, code)
            } else {
                self.take_namespace(py, index, frame.namespace())
            }
        };
        match taken {
            Ok(()) => {
                self.current
                    .trace
                    .push_locals_frame(event, line, self.stack[index].shape);
                Ok(())
            }
            Err(error) => {
                // The program sees what its `__repr__` raised; what the activation showed is unknown now.
                self.current.trace.drop_open_frame();
                self.stack[index].clear();
                Err(error)
            }
        }
    }

    /// Records a RETURN or EXCEPTION event with its value.
    ///
    /// # Safety
    /// `frame` is running and belongs to `code`, `value` is alive, and the GIL is held.
    pub unsafe fn value_event(
        &mut self,
        py: Python<'_>,
        event: Event,
        frame: InterpreterFrame,
        code: &mut Code,
        number: u32,
        value: *mut ffi::PyObject,
    ) -> PyResult<()> {
        self.enter_code(code);
        let line = self.line(code, number);
        self.note_entry(event, code, number);
        if event == Event::Return {
            self.end_activation(frame);
        }
        // SAFETY: the caller's promise.
        let rendered = unsafe { render(py, value, self.limits.value_chars, self.current.trace.open_value()) };
        if let Err(error) = rendered {
            self.current.trace.drop_value();
            return Err(error);
        }
        self.current.trace.push_value_frame(event, line);
        Ok(())
    }

    fn next_trace(&mut self) {
        self.finished
            .push(std::mem::replace(&mut self.current, Recorded::new()));
        self.generation += 1;
        self.line_ids.clear();
    }

    fn enter_code(&mut self, code: &mut Code) {
        if code.generation != self.generation {
            code.enter(&mut self.current.trace, self.generation);
        }
    }

    fn note_entry(&mut self, event: Event, code: &Code, number: u32) {
        match &mut self.current.entry {
            None => {
                let name = code.name.clone();
                let entry = Entry {
                    file: code.file,
                    name,
                    first_line: code.first_line,
                    line: 0,
                };
                self.current.entry = Some(entry);
            }
            Some(entry) if entry.line == 0 && event == Event::Line => entry.line = number,
            Some(_) => {}
        }
    }

    fn line(&mut self, code: &mut Code, number: u32) -> u32 {
        let file = code.file;
        let (recorded, line_ids) = (&mut self.current, &mut self.line_ids);
        code.line_id(number, || {
            *line_ids.entry((file, number)).or_insert_with(|| {
                recorded.line_files.push(file);
                recorded.trace.add_line(Line {
                    number,
                    text: String::new(),
                })
            })
        })
    }

    fn begin_activation(&mut self, frame: InterpreterFrame) -> usize {
        let mut activation = self.spare.pop().unwrap_or_else(|| Activation::new(frame));
        activation.frame = frame;
        self.stack.push(activation);
        self.stack.len() - 1
    }

    /// The activation of `frame`. One that had no CALL event (a generator that an exception was thrown into, on 3.11)
    /// begins here.
    fn find_activation(&mut self, frame: InterpreterFrame) -> usize {
        match self.stack.iter().rposition(|activation| activation.frame == frame) {
            Some(index) => index,
            None => self.begin_activation(frame),
        }
    }

    fn end_activation(&mut self, frame: InterpreterFrame) {
        if let Some(index) = self.stack.iter().rposition(|activation| activation.frame == frame) {
            let mut ended = self.stack.remove(index);
            ended.clear();
            self.spare.push(ended);
        }
    }

    /// Writes the variables of a function: one a slot.
    ///
    /// # Safety
    /// `frame` is running and belongs to `code`, and the GIL is held.
    unsafe fn take_slots(
        &mut self,
        py: Python<'_>,
        index: usize,
        frame: InterpreterFrame,
        code: &Code,
    ) -> PyResult<()> {
        let activation = &mut self.stack[index];
        activation.position.resize(code.slots.len(), ABSENT);
        let mut reshaped = false;
        for slot in 0..code.slots.len() {
            // SAFETY: `slot` is one of the code's slots.
            let bound = unsafe { !slot_value(frame, code, slot).is_null() };
            reshaped |= bound != (activation.position[slot] != ABSENT);
        }
        if reshaped {
            // SAFETY: as above.
            activation
                .variables
                .retain(|v| unsafe { !slot_value(frame, code, v.slot as usize).is_null() });
            activation.position.fill(ABSENT);
            for (place, variable) in activation.variables.iter().enumerate() {
                activation.position[variable.slot as usize] = place as u32;
            }
            for slot in 0..code.slots.len() {
                // SAFETY: as above.
                if activation.position[slot] == ABSENT && unsafe { !slot_value(frame, code, slot).is_null() } {
                    activation.position[slot] = activation.variables.len() as u32;
                    activation.variables.push(Variable::new(code.names[slot], slot as u32));
                }
            }
            self.reshape(index);
        } else if self.stack[index].variables.is_empty() {
            self.reshape(index);
        }
        let count = self.stack[index].variables.len();
        let value = |log: &Log, place: usize| {
            // SAFETY: as above.
            unsafe { slot_value(frame, code, log.stack[index].variables[place].slot as usize) }
        };
        for place in 0..count {
            let current = value(self, place);
            // SAFETY: as above; nothing ran since the slots were found bound.
            if unsafe { runs_code(current) } {
                // From here on a `__repr__` may rebind variables: the state shown is the one before it ran.
                let held: Vec<Bound<'_, PyAny>> =
                    // SAFETY: as above.
                    (place..count).map(|p| unsafe { Bound::from_borrowed_ptr(py, value(self, p)) }).collect();
                return self.take_held(py, index, place, &held);
            }
            // SAFETY: as above.
            unsafe { self.take(py, index, place, current)? };
        }
        Ok(())
    }

    /// Writes values that are held, from the variable at `first` on.
    fn take_held(&mut self, py: Python<'_>, index: usize, first: usize, held: &[Bound<'_, PyAny>]) -> PyResult<()> {
        for (place, value) in held.iter().enumerate() {
            // SAFETY: `held` keeps the value alive.
            unsafe { self.take(py, index, first + place, value.as_ptr())? };
        }
        Ok(())
    }

    /// Writes the variables of a module or class body: the names of its namespace without those that begin with `__`.
    ///
    /// # Safety
    /// `namespace` is alive or null, and the GIL is held.
    unsafe fn take_namespace(&mut self, py: Python<'_>, index: usize, namespace: *mut ffi::PyObject) -> PyResult<()> {
        let mut bound: Vec<(u32, Bound<'_, PyAny>)> = Vec::new();
        // SAFETY: the pairs are owned before anything else runs; the type is checked before it is read as a dict.
        unsafe {
            if namespace.is_null() || ffi::PyDict_Check(namespace) == 0 {
                return Ok(());
            }
            let (mut at, mut key, mut value) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            let mut name = Vec::new();
            while ffi::PyDict_Next(namespace, &mut at, &mut key, &mut value) != 0 {
                name.clear();
                if ffi::PyUnicode_Check(key) == 0 {
                    continue;
                }
                push_unicode(key, &mut name);
                if !name.starts_with(b"__") {
                    bound.push((
                        self.current.trace.intern_name(&name),
                        Bound::from_borrowed_ptr(py, value),
                    ));
                }
            }
        }
        let places: FxHashMap<u32, usize> = bound.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
        let activation = &mut self.stack[index];
        activation
            .variables
            .retain(|variable| places.contains_key(&variable.name));
        let known: FxHashSet<u32> = activation.variables.iter().map(|variable| variable.name).collect();
        for (name, _) in bound.iter().filter(|(name, _)| !known.contains(name)) {
            activation.variables.push(Variable::new(*name, *name));
        }
        self.reshape(index);
        let held = self.stack[index]
            .variables
            .iter()
            .map(|variable| bound[places[&variable.name]].1.clone());
        let held: Vec<_> = held.collect();
        self.take_held(py, index, 0, &held)
    }

    fn reshape(&mut self, index: usize) {
        self.order.clear();
        self.order
            .extend(self.stack[index].variables.iter().map(|variable| variable.name));
        self.stack[index].shape = self.current.trace.intern_shape(&self.order);
    }

    /// Writes the variable at `place` of the activation if it changed.
    ///
    /// # Safety
    /// `value` is alive and the GIL is held.
    unsafe fn take(&mut self, py: Python<'_>, index: usize, place: usize, value: *mut ffi::PyObject) -> PyResult<()> {
        // SAFETY: the caller's promise.
        let plain = unsafe { Plain::of(value) };
        let variable = &mut self.stack[index].variables[place];
        if plain.is_some() && plain == variable.plain {
            return Ok(());
        }
        variable.plain = plain;
        let before = variable.text;
        let trace = &mut self.current.trace;
        // SAFETY: the caller's promise.
        unsafe { render(py, value, self.limits.value_chars, trace.open_value())? };
        if before != ABSENT && trace.value(before) == trace.open_text() {
            trace.drop_value();
            return Ok(());
        }
        self.stack[index].variables[place].text = trace.keep_change(place as u32);
        Ok(())
    }
}

impl Activation {
    fn new(frame: InterpreterFrame) -> Activation {
        Activation {
            frame,
            variables: Vec::new(),
            shape: 0,
            position: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.variables.clear();
        self.position.clear();
    }
}

/// The value of a variable: what its slot holds, or what the cell in it holds. Borrowed; null when unbound.
///
/// # Safety
/// `frame` is running and belongs to `code`, `slot` is one of its slots, and the GIL is held.
unsafe fn slot_value(frame: InterpreterFrame, code: &Code, slot: usize) -> *mut ffi::PyObject {
    // SAFETY: the caller's promise; a cell is checked to be one before it is read as one.
    unsafe {
        let value = frame.slot(slot);
        if !value.is_null() && code.slots[slot].in_cell && ffi::PyCell_Check(value) != 0 {
            return (*value.cast::<ffi::PyCellObject>()).ob_ref;
        }
        value
    }
}
