//! The recorder: a native trace hook on the interpreter, and the session that it writes into.

mod code;
mod layout;
mod log;
mod render;

use std::cell::Cell;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pyo3::exceptions::{PyBaseException, PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustc_hash::FxHashMap;

use cwm_trace::{Event, Outcome};

use crate::trace::Trace;
use code::Code;
use layout::InterpreterFrame;
use log::{Limits, Log, Recorded};

pyo3::create_exception!(
    cwm_core,
    RecordingLimit,
    PyBaseException,
    "Stops a program whose recording reached a limit. Outside Exception, so that programs rarely swallow it."
);

thread_local! {
    /// The session of the recording on this thread, null while there is none.
    static ACTIVE: Cell<*mut Session> = const { Cell::new(std::ptr::null_mut()) };
}

/// Which code is recorded, by the file it says it comes from.
struct Scope {
    files: Vec<String>,
    /// Folders, each ending in a separator.
    folders: Vec<String>,
}

impl Scope {
    fn contains(&self, file: &str) -> bool {
        self.files.iter().any(|f| f == file) || self.folders.iter().any(|folder| file.starts_with(folder.as_str()))
    }
}

/// Everything a recording holds while the hook is installed.
struct Session {
    scope: Scope,
    log: Log,
    files: Vec<String>,
    codes: FxHashMap<*mut ffi::PyObject, Box<Code>>,
    /// The code of the last event, which is mostly that of the next one.
    last: Option<(*mut ffi::PyObject, *mut Code)>,
}

impl Session {
    fn code(&mut self, py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<*mut Code> {
        if let Some((last, code)) = self.last
            && last == pointer
        {
            return Ok(code);
        }
        let code = match self.codes.get_mut(&pointer) {
            Some(code) => &raw mut **code,
            None => self.add_code(py, pointer)?,
        };
        self.last = Some((pointer, code));
        Ok(code)
    }

    fn add_code(&mut self, py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<*mut Code> {
        // SAFETY: the running frame holds its code object.
        let object = unsafe { Bound::from_borrowed_ptr(py, pointer) };
        let file: String = object.getattr("co_filename")?.extract()?;
        let code = if self.scope.contains(&file) {
            let known = self.files.iter().position(|f| *f == file);
            let id = known.unwrap_or_else(|| {
                self.files.push(file);
                self.files.len() - 1
            });
            Code::read(&object, id as u32)?
        } else {
            Code::outside(object.unbind())
        };
        let entry = self.codes.entry(pointer).or_insert(Box::new(code));
        Ok(&raw mut **entry)
    }

    /// Records one event.
    ///
    /// # Safety
    /// `frame` is the running frame object, `arg` is what the interpreter gives a trace function, the GIL is held.
    unsafe fn event(
        &mut self,
        py: Python<'_>,
        frame: *mut ffi::PyFrameObject,
        what: c_int,
        arg: *mut ffi::PyObject,
    ) -> PyResult<()> {
        // SAFETY: the caller's promise, here and below.
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
            if self.log.is_full() {
                let limit = self.log.truncated.unwrap_or_default();
                return Err(RecordingLimit::new_err(format!("the recording reached {limit}")));
            }
            let number = ffi::PyFrame_GetLineNumber(frame).max(0) as u32;
            match event {
                Event::Call | Event::Line => self.log.locals_event(py, event, inner, code, number),
                Event::Return => {
                    // The interpreter gives null when an exception unwinds the frame.
                    let value = if arg.is_null() { ffi::Py_None() } else { arg };
                    self.log.value_event(py, event, inner, code, number, value)
                }
                Event::Exception => {
                    let value = ffi::PyTuple_GET_ITEM(arg, 1);
                    self.log.value_event(py, event, inner, code, number, value)
                }
            }
        }
    }
}

/// The trace function. Never lets a panic or a missing session reach the interpreter.
unsafe extern "C" fn hook(
    _object: *mut ffi::PyObject,
    frame: *mut ffi::PyFrameObject,
    what: c_int,
    arg: *mut ffi::PyObject,
) -> c_int {
    let session = ACTIVE.get();
    if session.is_null() {
        return 0;
    }
    // SAFETY: the interpreter calls trace functions with the GIL held.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: the session lives until the hook is removed, and is used by this thread only. The interpreter does not
    // call a trace function while one runs, so this is the only reference.
    let recorded = catch_unwind(AssertUnwindSafe(|| unsafe { (*session).event(py, frame, what, arg) }));
    let error = match recorded {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => PyRuntimeError::new_err("cwm_core's recorder failed; this is a bug of cwm_core"),
    };
    error.restore(py);
    -1
}

/// Does nothing: what any native recorder costs at least.
unsafe extern "C" fn empty_hook(
    _object: *mut ffi::PyObject,
    _frame: *mut ffi::PyFrameObject,
    _what: c_int,
    _arg: *mut ffi::PyObject,
) -> c_int {
    0
}

/// Calls `function()` under a trace function that does nothing: the floor that recordings are measured against.
#[pyfunction]
fn call_with_empty_hook<'py>(py: Python<'py>, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let none = py.None();
    // SAFETY: the hook is valid for any event.
    unsafe { ffi::PyEval_SetTrace(Some(empty_hook), none.as_ptr()) };
    let result = function.call0();
    // SAFETY: null takes the trace function away.
    unsafe { ffi::PyEval_SetTrace(None, std::ptr::null_mut()) };
    result
}

/// What `sys.gettrace()` gives while a recording runs. A program that puts its own trace function in place and then
/// this one back calls it as a Python trace function: it installs the native hook again.
#[pyclass(frozen, name = "RecordingHook", module = "cwm_core._native")]
struct Hook;

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
            // A program may call this itself, with anything.
            "exception" if arg.cast::<PyTuple>().is_ok_and(|triple| triple.len() > 1) => ffi::PyTrace_EXCEPTION,
            _ => return Ok(slf.clone()),
        };
        let session = ACTIVE.get();
        if session.is_null() {
            return Ok(slf.clone());
        }
        // SAFETY: the interpreter calls this as a trace function, so `frame` is the running frame and `arg` what the
        // native hook would get; the session is as in `hook`.
        unsafe {
            if ffi::PyFrame_Check(frame.as_ptr()) == 0 {
                return Err(PyValueError::new_err(
                    "a recording hook is called by the interpreter only",
                ));
            }
            ffi::PyEval_SetTrace(Some(hook), slf.as_ptr());
            (*session).event(slf.py(), frame.as_ptr().cast(), what, arg.as_ptr())?;
        }
        Ok(slf.clone())
    }
}

/// One recording: made, run or started and stopped once, then finished.
#[pyclass(unsendable, module = "cwm_core._native")]
pub struct Recording {
    session: Option<Box<Session>>,
    /// The trace function that was set before, while this recording runs.
    previous: Option<Py<PyAny>>,
    hook: Option<Py<Hook>>,
    outcome: Option<Outcome>,
    value_chars: usize,
}

#[pymethods]
impl Recording {
    #[new]
    #[pyo3(signature = (files, folders, *, max_frames=None, max_bytes=None, max_seconds=None, max_value_chars=1000, split=false))]
    fn new(
        files: Vec<String>,
        folders: Vec<String>,
        max_frames: Option<usize>,
        max_bytes: Option<usize>,
        max_seconds: Option<f64>,
        max_value_chars: usize,
        split: bool,
    ) -> PyResult<Recording> {
        let time = max_seconds.map(Duration::try_from_secs_f64).transpose();
        let time = time.map_err(|_| PyValueError::new_err("max_seconds must be a number of seconds, 0 or more"))?;
        let limits = Limits {
            frames: max_frames,
            bytes: max_bytes,
            time,
            value_chars: max_value_chars,
        };
        let session = Session {
            scope: Scope { files, folders },
            log: Log::new(limits, split),
            files: Vec::new(),
            codes: FxHashMap::default(),
            last: None,
        };
        let session = Some(Box::new(session));
        Ok(Recording {
            session,
            previous: None,
            hook: None,
            outcome: None,
            value_chars: max_value_chars,
        })
    }

    /// Installs the hook on this thread.
    fn start(&mut self, py: Python<'_>) -> PyResult<()> {
        let session = self
            .session
            .as_deref_mut()
            .ok_or_else(|| PyRuntimeError::new_err("the recording is finished"))?;
        if !ACTIVE.get().is_null() {
            return Err(PyRuntimeError::new_err("a recording is already running on this thread"));
        }
        let previous = py.import("sys")?.call_method0("gettrace")?;
        let hook_object = Py::new(py, Hook)?;
        self.previous = Some(previous.unbind());
        // SAFETY: the frames on this thread's stack are running.
        session.log.enclosing = unsafe { layout::running_frames(py) };
        ACTIVE.set(session);
        // SAFETY: the hook is valid for any event, and CPython holds the object while it is set.
        unsafe { ffi::PyEval_SetTrace(Some(hook), hook_object.as_ptr()) };
        self.hook = Some(hook_object);
        Ok(())
    }

    /// Removes the hook and sets the trace function that was set before.
    fn stop(&mut self, py: Python<'_>) -> PyResult<()> {
        let (Some(previous), Some(own)) = (self.previous.take(), self.hook.take()) else {
            return Err(PyRuntimeError::new_err("the recording is not running"));
        };
        ACTIVE.set(std::ptr::null_mut());
        let sys = py.import("sys")?;
        let replaced = !sys.call_method0("gettrace")?.is(&own);
        // SAFETY: null takes the trace function away.
        unsafe { ffi::PyEval_SetTrace(None, std::ptr::null_mut()) };
        if replaced && let Some(session) = &mut self.session {
            session.log.truncated.get_or_insert("settrace");
        }
        if !previous.is_none(py) {
            sys.call_method1("settrace", (previous,))?;
        }
        Ok(())
    }

    /// Records `function(*args, **kwargs)`. A generator is run to its end, a coroutine to its result. What the program
    /// raises is its outcome; only KeyboardInterrupt is raised here, after the hook is removed.
    #[pyo3(signature = (function, args, kwargs=None))]
    fn run(
        &mut self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        self.start(py)?;
        let result = function.call(args, kwargs).and_then(|value| drive(py, value));
        self.stop(py)?;
        let truncated = self
            .session
            .as_ref()
            .is_some_and(|session| session.log.truncated.is_some());
        let (value, raised) = match &result {
            Ok(value) => (value.clone(), false),
            Err(error) => (error.value(py).clone().into_any(), true),
        };
        if !truncated {
            let mut text = Vec::new();
            // SAFETY: `value` is held.
            unsafe { render::render(py, value.as_ptr(), self.value_chars, &mut text)? };
            self.outcome = Some(if raised {
                Outcome::Raised(text)
            } else {
                Outcome::Returned(text)
            });
        }
        match result {
            Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
            _ => Ok(()),
        }
    }

    /// The traces recorded. `lines(filename)` gives a file's lines; `context(filename, name, first_line, line)` the
    /// context of a trace that entered there. May be called once, when the recording does not run.
    fn finish(&mut self, lines: &Bound<'_, PyAny>, context: &Bound<'_, PyAny>) -> PyResult<Vec<Trace>> {
        if self.previous.is_some() {
            return Err(PyRuntimeError::new_err("the recording still runs"));
        }
        let session = self
            .session
            .take()
            .ok_or_else(|| PyRuntimeError::new_err("the recording is finished"))?;
        let Session { mut log, files, .. } = *session;
        let mut texts = Vec::new();
        for file in &files {
            texts.push(lines.call1((file,))?.extract::<Vec<String>>()?);
        }
        log.current.trace.truncated = log.truncated.map(str::to_owned);
        log.current.trace.outcome = self.outcome.take();
        let mut recorded = log.finished;
        recorded.push(log.current);
        recorded
            .into_iter()
            .map(|one| finish_trace(one, &files, &texts, context))
            .collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.previous.is_some() {
            // The session goes away: the hook must not find it. It stays installed but does nothing.
            ACTIVE.set(std::ptr::null_mut());
        }
    }
}

/// Runs what a call gave: a generator to its end, a coroutine to its result.
fn drive<'py>(py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: only looks at the type.
    let (generator, coroutine) = unsafe {
        (
            ffi::PyGen_CheckExact(value.as_ptr()) != 0,
            ffi::PyCoro_CheckExact(value.as_ptr()) != 0,
        )
    };
    if generator {
        for item in value.try_iter()? {
            item?;
        }
    } else if coroutine {
        return py.import("asyncio")?.call_method1("run", (value,));
    }
    Ok(value)
}

fn finish_trace(one: Recorded, files: &[String], texts: &[Vec<String>], context: &Bound<'_, PyAny>) -> PyResult<Trace> {
    let Recorded {
        mut trace,
        entry,
        line_files,
    } = one;
    trace.set_line_texts(|id, number| {
        let text = number
            .checked_sub(1)
            .and_then(|index| texts[line_files[id] as usize].get(index as usize));
        let mut text = text.cloned().unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    });
    if let Some(entry) = entry {
        let file = &files[entry.file as usize];
        trace.context = context
            .call1((file, entry.name, entry.first_line, entry.line))?
            .extract()?;
    }
    Ok(Trace::from(trace))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    layout::verify(m.py())?;
    m.add("RecordingLimit", m.py().get_type::<RecordingLimit>())?;
    m.add_function(wrap_pyfunction!(call_with_empty_hook, m)?)?;
    m.add_class::<Recording>()
}
