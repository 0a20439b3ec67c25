//! The interpreter's trace function and the session to which it writes.

use std::cell::Cell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use rustc_hash::{FxHashMap, FxHashSet};

use cwm_trace::Event;

use super::choice::Choice;
use super::code::{Code, unwinds};
use super::identity;
use super::layout::{InterpreterFrame, line_number, running_frames};
use super::leaf::unicode;
use super::log::Log;
use super::scope::{FileName, Scope};

pyo3::create_exception!(
    cwm_core,
    RecordingLimit,
    PyBaseException,
    "Stops a program whose recording reached a limit. Not an `Exception`, so that programs rarely catch it."
);

thread_local! {
    /// Session of the recording on this thread; null if there is none.
    static ACTIVE: Cell<*mut Session> = const { Cell::new(std::ptr::null_mut()) };
}

/// Returns whether a recording runs on this thread.
pub fn is_recording() -> bool {
    !ACTIVE.get().is_null()
}

/// Maximum number of files outside the scope to report when a recording is empty.
const MAX_OUTSIDE: usize = 20;

/// State of a recording while its hook is installed.
pub struct Session {
    pub scope: Scope,
    pub log: Log,
    /// Chooses the calls to record; `None` to record everything in scope.
    pub choice: Option<Choice>,
    /// Names of the files in scope that were met, and their contents at that time.
    pub files: Vec<Vec<u8>>,
    pub sources: Vec<Option<Vec<u8>>>,
    /// First few names of files outside the scope whose code was called.
    pub outside: Vec<Vec<u8>>,
    outside_names: FxHashSet<Vec<u8>>,
    file_ids: FxHashMap<Vec<u8>, u32>,
    /// Codes by address. A different number means that another code object now has the address.
    codes: FxHashMap<*mut ffi::PyObject, Box<Code>>,
    /// Code of the last event, which is usually also the code of the next one.
    last: (*mut ffi::PyObject, *mut Code),
    /// Count of code object deaths at the last event.
    deaths: usize,
    /// Whether an event is being recorded. A `__repr__` may run at that time.
    pub busy: bool,
}

impl Session {
    pub fn new(scope: Scope, log: Log, choice: Option<Choice>) -> Session {
        Session {
            scope,
            log,
            choice,
            files: Vec::new(),
            sources: Vec::new(),
            outside: Vec::new(),
            outside_names: FxHashSet::default(),
            file_ids: FxHashMap::default(),
            codes: FxHashMap::default(),
            last: (std::ptr::null_mut(), std::ptr::null_mut()),
            deaths: 0,
            busy: false,
        }
    }

    /// Returns the cached facts about a code object. The pointer stays valid until another code object takes the
    /// address.
    ///
    /// # Safety
    /// `pointer` must be a live code object, and the GIL must be held.
    #[inline]
    unsafe fn code(&mut self, py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<*mut Code> {
        let deaths = identity::deaths();
        if self.last.0 == pointer && self.deaths == deaths {
            return Ok(self.last.1);
        }
        let code = match self.codes.get_mut(&pointer) {
            Some(code) if code.deaths == deaths || code.number == identity::number(pointer) => {
                code.deaths = deaths;
                &raw mut **code
            }
            // SAFETY: upheld by the caller.
            _ => unsafe { self.add_code(py, pointer)? },
        };
        self.last = (pointer, code);
        self.deaths = deaths;
        Ok(code)
    }

    #[cold]
    unsafe fn add_code(&mut self, py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<*mut Code> {
        let number = identity::number(pointer);
        // SAFETY: the caller upholds the contract of `code`.
        let object = unsafe { Bound::from_borrowed_ptr(py, pointer) };
        let file = object.getattr("co_filename")?.cast_into::<PyString>()?;
        let code = if let Some(id) = self.file_in_scope(&file) {
            // SAFETY: the caller upholds the contract of `code`.
            let mut code = unsafe { Code::read(&object, number, id)? };
            if self.choice.is_some() {
                code.find_start(&object)?;
            }
            code
        } else {
            Code::outside(number)
        };
        let entry = self.codes.entry(pointer).insert_entry(Box::new(code));
        Ok(&raw mut **entry.into_mut())
    }

    /// Returns the number of a file in scope. Reads its source on first use, because the file may later change or
    /// disappear.
    fn file_in_scope(&mut self, name: &Bound<'_, PyString>) -> Option<u32> {
        let text = unicode(name);
        if let Some(&id) = self.file_ids.get(&text) {
            return Some(id);
        }
        if self.outside_names.contains(&text) {
            return None;
        }
        let file = FileName::new(name);
        if !self.scope.contains(&file) {
            if self.outside.len() < MAX_OUTSIDE {
                self.outside.push(text.clone());
            }
            self.outside_names.insert(text);
            return None;
        }
        let id = self.files.len() as u32;
        self.sources.push(file.read());
        self.files.push(text.clone());
        self.file_ids.insert(text, id);
        Some(id)
    }

    /// Ends the activations whose end another trace function saw. `running` pairs each running frame with its code's
    /// number.
    fn end_unseen(&mut self, running: &[(InterpreterFrame, usize)]) {
        if let Some(choice) = &mut self.choice {
            choice.end_unseen(running, &mut self.log);
        }
        self.log.end_unseen(running);
    }

    /// Records one event.
    ///
    /// # Safety
    /// `frame` must be the running frame object, `arg` the argument that the interpreter passes to a trace function,
    /// and the GIL must be held.
    #[inline]
    unsafe fn event(
        &mut self,
        py: Python<'_>,
        frame: *mut ffi::PyFrameObject,
        what: c_int,
        arg: *mut ffi::PyObject,
    ) -> PyResult<()> {
        // SAFETY: upheld by the caller, here and below.
        unsafe {
            let inner = InterpreterFrame::of(frame);
            let code = &mut *self.code(py, inner.code())?;
            if !code.in_scope {
                return Ok(());
            }
            let event = match what {
                ffi::PyTrace_CALL => Event::Call,
                ffi::PyTrace_LINE => Event::Line,
                ffi::PyTrace_RETURN => Event::Return,
                ffi::PyTrace_EXCEPTION => Event::Exception,
                _ => return Ok(()),
            };
            if let Some(choice) = &mut self.choice {
                self.busy = true;
                let taken = choice.takes(py, event, frame, code, &mut self.log);
                self.busy = false;
                if !taken? {
                    return Ok(());
                }
            } else if self.log.is_full() {
                // Ignore events of the code around a `with` block: that code continues, and it ends the recording.
                return match event != Event::Call && self.log.is_enclosing(inner) {
                    true => Ok(()),
                    false => Err(self.log.limit_error()),
                };
            }
            let number = line_number(frame);
            let ends_part = event == Event::Return && self.log.is_outermost(inner);
            self.busy = true;
            let recorded = match event {
                Event::Call | Event::Line => self.log.locals_event(py, event, inner, code, number),
                // The interpreter passes null if an exception unwinds the frame.
                Event::Return if arg.is_null() => self.log.value_event(py, event, inner, code, number, ffi::Py_None()),
                Event::Return => self.log.value_event(py, event, inner, code, number, arg),
                Event::Exception => {
                    let value = ffi::PyTuple_GET_ITEM(arg, 1);
                    self.log.value_event(py, event, inner, code, number, value)
                }
            };
            self.busy = false;
            let ends_trace = match &mut self.choice {
                Some(choice) => choice.note_end(event == Event::Return || recorded.is_err(), inner) && !code.suspends(),
                None => ends_part,
            };
            if ends_trace && recorded.is_ok() {
                self.log.keep_outcome(unwinds(py, frame, arg)?);
            }
            recorded
        }
    }
}

/// The trace function. Never lets a panic or a missing session reach the interpreter.
unsafe extern "C" fn hook(
    object: *mut ffi::PyObject,
    frame: *mut ffi::PyFrameObject,
    what: c_int,
    arg: *mut ffi::PyObject,
) -> c_int {
    // SAFETY: the interpreter calls trace functions with the GIL held, and passes this one the hook with which it was
    // set.
    let (py, session) = unsafe {
        let py = Python::assume_attached();
        let hook = Bound::ref_from_ptr(py, &object).cast_unchecked::<Hook>();
        (py, hook.get().session.load(Ordering::Relaxed))
    };
    if session.is_null() {
        return 0;
    }
    // SAFETY: the session lives until the hook lets go of it, and only this thread uses it. The interpreter does not
    // call a trace function while one runs, so this is the only reference.
    let recorded = catch_unwind(AssertUnwindSafe(|| unsafe { (*session).event(py, frame, what, arg) }));
    match recorded {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            error.restore(py);
            -1
        }
        Err(_) => {
            PyRuntimeError::new_err("the recorder of cwm_core failed; this is a bug in cwm_core").restore(py);
            -1
        }
    }
}

/// The value of `sys.gettrace()` during a recording. A program that sets its own trace function and later restores this
/// object calls it as a Python trace function, which reinstalls the native hook.
#[pyclass(frozen, name = "RecordingHook", module = "cwm_core._native")]
pub struct Hook {
    session: AtomicPtr<Session>,
}

impl Hook {
    /// Installs the trace function on this thread.
    ///
    /// # Safety
    /// The session must stay at its address until [`Hook::let_go`].
    pub unsafe fn install(py: Python<'_>, session: *mut Session) -> PyResult<Py<Hook>> {
        let session_pointer = AtomicPtr::new(session);
        let object = Py::new(
            py,
            Hook {
                session: session_pointer,
            },
        )?;
        ACTIVE.set(session);
        // SAFETY: the function accepts any event, and CPython holds the object while it is set.
        unsafe { ffi::PyEval_SetTrace(Some(hook), object.as_ptr()) };
        Ok(object)
    }

    /// Forgets the session. If the trace function is still set, it does nothing from then on.
    pub fn let_go(&self) {
        let session = self.session.swap(std::ptr::null_mut(), Ordering::Relaxed);
        if ACTIVE.get() == session {
            ACTIVE.set(std::ptr::null_mut());
        }
    }
}

#[pymethods]
impl Hook {
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        frame: &Bound<'py, PyAny>,
        event: &str,
        arg: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let what = match event {
            "call" => ffi::PyTrace_CALL,
            "line" => ffi::PyTrace_LINE,
            "return" => ffi::PyTrace_RETURN,
            // A program may call this hook itself, with any argument.
            "exception" if arg.cast::<PyTuple>().is_ok_and(|triple| triple.len() > 1) => ffi::PyTrace_EXCEPTION,
            _ => return Ok(slf.clone()),
        };
        // Runs before the session is looked up: creating objects can run finalizers, which may end the recording.
        // SAFETY: the frames are running and therefore hold their code objects.
        let running: Vec<_> = unsafe {
            let frames = running_frames(slf.py()).into_iter();
            frames.map(|frame| (frame, identity::number(frame.code()))).collect()
        };
        let session = ACTIVE.get();
        // SAFETY: a session is alive while it is this thread's active one, and only a flag is read through the pointer.
        if session.is_null() || session != slf.get().session.load(Ordering::Relaxed) || unsafe { (*session).busy } {
            return Ok(slf.clone());
        }
        // SAFETY: the interpreter calls this as a trace function, so `frame` is the running frame and `arg` is what the
        // native hook would receive. The session is alive for the same reason as in `hook`.
        unsafe {
            if ffi::PyFrame_Check(frame.as_ptr()) == 0 {
                return Err(PyValueError::new_err("only the interpreter may call a recording hook"));
            }
            ffi::PyEval_SetTrace(Some(hook), slf.as_ptr());
            (*session).end_unseen(&running);
            (*session).event(slf.py(), frame.as_ptr().cast(), what, arg.as_ptr())?;
        }
        Ok(slf.clone())
    }
}

/// Does nothing. Measures the minimum cost of a native recorder.
unsafe extern "C" fn empty_hook(
    _object: *mut ffi::PyObject,
    _frame: *mut ffi::PyFrameObject,
    _what: c_int,
    _arg: *mut ffi::PyObject,
) -> c_int {
    0
}

thread_local! {
    /// Whether a result is being rendered after the recording.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// Runs work that belongs to the recording after its hook is removed.
pub fn ending<T>(work: impl FnOnce() -> T) -> T {
    let before = ENDING.replace(true);
    let done = work();
    ENDING.set(before);
    done
}

/// Return whether the recorder is processing an event on this thread.
///
/// Python code that runs then, such as a `__repr__`, was not called by the recorded program.
#[pyfunction]
pub fn is_recorder_at_work() -> bool {
    let session = ACTIVE.get();
    // SAFETY: a session is alive while it is this thread's active one, and only a flag is read through the pointer.
    ENDING.get() || (!session.is_null() && unsafe { (*session).busy })
}

/// Call `function()` under a trace function that does nothing: the baseline for the cost of recording.
#[pyfunction]
pub fn call_with_empty_hook<'py>(py: Python<'py>, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let none = py.None();
    // SAFETY: the hook accepts any event.
    unsafe { ffi::PyEval_SetTrace(Some(empty_hook), none.as_ptr()) };
    let result = function.call0();
    // SAFETY: null removes the trace function.
    unsafe { ffi::PyEval_SetTrace(None, std::ptr::null_mut()) };
    result
}
