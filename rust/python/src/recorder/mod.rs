//! The recorder: a native trace function on the interpreter, and the traces that it writes.

mod activation;
mod attributes;
mod choice;
mod code;
mod cursor;
mod exits;
mod hook;
mod identity;
mod layout;
mod leaf;
mod log;
mod namespace;
mod render;
mod scalar;
mod scope;
mod signals;
mod step;
mod tape;
mod watchdog;

use std::thread::{self, ThreadId};
use std::time::Duration;

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};

use cwm_trace::Outcome;

use crate::trace::{Trace, text};
use choice::Choice;
use cursor::Variables;
use exits::before_exit;
use hook::{Hook, RecordingLimit, Session, call_with_empty_hook, ending, is_recorder_at_work, is_recording};
use log::{Levels, Limits, Log, Recorded};
use render::{Scratch, Style, render};
use scope::{Scope, real_path};
use watchdog::Watchdog;

/// Offsets in a text are 32-bit, and a character takes at most four bytes.
const MAX_VALUE_CHARS: usize = 1 << 28;

/// A session at a fixed address, where the hook finds it.
struct OwnedSession(Box<Session>);

// SAFETY: every method of `Recording` that changes its session first checks that it runs on the thread that created the
// session. `snapshot` and `sources` may run on other threads, but they only read the session: they get it with the GIL
// held while no event is being recorded, and none begins before the GIL is released. If another thread drops the
// recording while the session is in use, the session is leaked.
unsafe impl Send for OwnedSession {}
// SAFETY: as above.
unsafe impl Sync for OwnedSession {}

/// One recording: the implementation of `cwm_core.Recorder`.
///
/// Run it once, or start and stop it once, then finish it.
#[pyclass(module = "cwm_core._native")]
pub struct Recording {
    session: Option<OwnedSession>,
    /// Thread that created the recording, the only one that may start, stop, or finish it.
    thread: ThreadId,
    /// `max_seconds`.
    time: Option<Duration>,
    /// Trace function that was set before, while this recording runs.
    previous: Option<Py<PyAny>>,
    hook: Option<Py<Hook>>,
    outcome: Option<Outcome>,
    style: Style,
}

#[pymethods]
impl Recording {
    #[new]
    #[pyo3(signature = (
        files, folders, *, max_frames=None, max_bytes=None, max_seconds=None, max_value_chars=1000, object_state=false,
        calls_only=false, max_depth=None, split=false, choose=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "the options of a recording, by keyword")]
    fn new(
        files: Vec<Bound<'_, PyString>>,
        folders: Vec<Bound<'_, PyString>>,
        max_frames: Option<usize>,
        max_bytes: Option<usize>,
        max_seconds: Option<f64>,
        max_value_chars: usize,
        object_state: bool,
        calls_only: bool,
        max_depth: Option<usize>,
        split: bool,
        choose: Option<Py<PyAny>>,
    ) -> PyResult<Recording> {
        if cfg!(Py_GIL_DISABLED) {
            return Err(PyRuntimeError::new_err(
                "recording needs a CPython with the GIL, because other threads could change values while they are \
                 shown; this is a free-threaded build",
            ));
        }
        if choose.is_some() && (max_seconds.is_some() || split) {
            return Err(PyValueError::new_err(
                "choose cannot be combined with split or max_seconds",
            ));
        }
        // A time beyond the range of the clock is no limit.
        let time = max_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        if max_value_chars > MAX_VALUE_CHARS {
            return Err(PyValueError::new_err(format!(
                "max_value_chars must be at most {MAX_VALUE_CHARS}"
            )));
        }
        if max_depth == Some(0) {
            return Err(PyValueError::new_err("max_depth must be at least 1"));
        }
        let limits = Limits {
            frames: max_frames.unwrap_or(usize::MAX),
            bytes: max_bytes.unwrap_or(usize::MAX),
        };
        let levels = Levels {
            calls_only,
            max_depth: max_depth.unwrap_or(usize::MAX),
        };
        let style = Style {
            max_chars: max_value_chars,
            attributes: object_state,
        };
        let scope = Scope::new(&files, &folders);
        let session = Session::new(scope, Log::new(limits, levels, style, split), choose.map(Choice::new));
        Ok(Recording {
            session: Some(OwnedSession(Box::new(session))),
            thread: thread::current().id(),
            time,
            previous: None,
            hook: None,
            outcome: None,
            style,
        })
    }

    /// Install the trace function on this thread.
    ///
    /// Raises:
    ///     RuntimeError: Another recording runs on this thread.
    fn start(&mut self, py: Python<'_>) -> PyResult<()> {
        self.check_use()?;
        layout::warn_if_not_known(py)?;
        let Some(OwnedSession(session)) = &mut self.session else {
            return Err(PyRuntimeError::new_err("the recording is finished"));
        };
        if is_recording() {
            return Err(PyRuntimeError::new_err("a recording is already running on this thread"));
        }
        let previous = py.import("sys")?.call_method0("gettrace")?;
        let limit = py.get_type::<RecordingLimit>();
        // SAFETY: the frames on this thread's stack are running.
        session.log.enclosing = unsafe { layout::running_frames(py) };
        let watchdog = self.time.map(|time| Watchdog::start(py, time, limit)).transpose()?;
        session.log.watchdog = watchdog;
        // SAFETY: the session is boxed, and the hook lets go of it before it is taken out or dropped.
        self.hook = Some(unsafe { Hook::install(py, &raw mut **session)? });
        self.previous = Some(previous.unbind());
        Ok(())
    }

    /// Remove the trace function and restore the previous one.
    fn stop(&mut self, py: Python<'_>) -> PyResult<()> {
        self.check_use()?;
        let (Some(previous), Some(own)) = (self.previous.take(), self.hook.take()) else {
            return Err(PyRuntimeError::new_err("the recording is not running"));
        };
        own.get().let_go();
        let sys = py.import("sys")?;
        let replaced = !sys.call_method0("gettrace")?.is(&own);
        // SAFETY: null removes the trace function.
        unsafe { ffi::PyEval_SetTrace(None, std::ptr::null_mut()) };
        if let Some(OwnedSession(session)) = &mut self.session {
            session.log.end_watch(py);
            let Session { log, choice, .. } = &mut **session;
            match choice {
                _ if !replaced => {}
                Some(choice) => choice.lose(log),
                None => drop(log.truncated.get_or_insert("settrace")),
            }
        }
        if !previous.is_none(py) {
            sys.call_method1("settrace", (previous,))?;
        }
        Ok(())
    }

    /// Record a call.
    #[pyo3(signature = (function, args, kwargs=None))]
    fn run(
        slf: &Bound<'_, Self>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let py = slf.py();
        // The recording is not borrowed while the program runs, because a snapshot may be taken when the process ends.
        slf.try_borrow_mut()?.start(py)?;
        let result = function.call(args, kwargs).and_then(|value| drive(py, value));
        slf.try_borrow_mut()?.stop(py)?;
        let (truncated, style) = {
            let recording = slf.try_borrow()?;
            let session = recording.session.as_ref();
            let truncated = session.is_some_and(|OwnedSession(session)| session.log.truncated.is_some());
            (truncated, recording.style)
        };
        let (value, raised) = match &result {
            Ok(value) => (value.clone(), false),
            Err(error) => (error.value(py).clone().into_any(), true),
        };
        if !truncated {
            let mut text = Vec::new();
            let (mut variables, mut scratch) = (Variables::Held, Scratch::default());
            let buffers = (&mut variables, &mut scratch);
            // SAFETY: `value` is held.
            ending(|| unsafe { render(py, value.as_ptr(), style, buffers, &mut text) })?;
            slf.try_borrow_mut()?.outcome = Some(if raised {
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

    /// Return the trace so far without ending the recording. Safe to call from any thread.
    ///
    /// Args:
    ///     lines: As for `finish`.
    ///     context: As for `finish`.
    ///     reason: Value of `Trace.truncated`.
    ///     output: Output captured so far.
    ///
    /// Raises:
    ///     RuntimeError: The recording is processing an event, or is finished.
    #[pyo3(signature = (lines, context, reason, output=None))]
    fn snapshot(
        &self,
        lines: &Bound<'_, PyAny>,
        context: &Bound<'_, PyAny>,
        reason: String,
        output: Option<String>,
    ) -> PyResult<Trace> {
        // Copied first: `lines` runs Python code, and the recording may continue meanwhile.
        let (files, mut recorded, truncated) = {
            let session = self.idle_session()?;
            (
                session.files.clone(),
                session.log.current.so_far(),
                session.log.truncated,
            )
        };
        let (files, texts) = lines_of_files(lines, &files)?;
        recorded.trace.output = output;
        recorded.trace.truncated = Some(truncated.map_or(reason, str::to_owned));
        finish_trace(recorded, &files, &texts, context)
    }

    /// Return the contents of files in scope as of the time the recording first entered them.
    ///
    /// Files that could not be read are missing. Call this, `scope`, and `outside` before `finish`.
    fn sources<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let session = self.idle_session()?;
        // Copied first: an allocation may run the garbage collector and, with it, code that is recorded.
        let read: Vec<_> = session
            .files
            .iter()
            .zip(&session.sources)
            .filter_map(|(file, source)| Some((file.clone(), source.clone()?)))
            .collect();
        let found = PyDict::new(py);
        for (file, source) in read {
            found.set_item(text(py, &file)?, PyBytes::new(py, &source))?;
        }
        Ok(found)
    }

    /// Return the files and folders in scope.
    fn scope<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let names = self.stopped_session()?.scope.names();
        names.map(|name| text(py, name)).collect()
    }

    /// Return the first few files outside the scope whose code ran.
    fn outside<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let files = &self.stopped_session()?.outside;
        files.iter().map(|file| text(py, file)).collect()
    }

    /// Return the recorded traces in order.
    ///
    /// Args:
    ///     lines: Returns the source lines of a file.
    ///     context: Returns the context of a trace from the file, name, first line, and current line of its entry.
    ///     output: Captured output, stored in the last trace.
    #[pyo3(signature = (lines, context, output=None))]
    fn finish(
        &mut self,
        lines: &Bound<'_, PyAny>,
        context: &Bound<'_, PyAny>,
        output: Option<String>,
    ) -> PyResult<Vec<Trace>> {
        self.stopped_session()?;
        let Some(OwnedSession(session)) = self.session.take() else {
            return Err(PyRuntimeError::new_err("the recording is finished"));
        };
        let Session { mut log, files, .. } = *session;
        log.current.trace.output = output;
        let (files, texts) = lines_of_files(lines, &files)?;
        if let Some(limit) = log.truncated {
            log.current.trace.truncated = Some(limit.to_owned());
            log.current.trace.outcome = None;
        }
        if let Some(outcome) = self.outcome.take() {
            log.current.trace.outcome = Some(outcome);
        }
        let mut recorded = log.finished;
        recorded.push(log.current);
        recorded
            .into_iter()
            .map(|one| finish_trace(one, &files, &texts, context))
            .collect()
    }
}

impl Recording {
    /// Returns the session of a recording that is not running and not yet finished.
    fn stopped_session(&self) -> PyResult<&Session> {
        self.check_use()?;
        if self.previous.is_some() {
            return Err(PyRuntimeError::new_err("the recording is still running"));
        }
        match &self.session {
            Some(OwnedSession(session)) => Ok(session),
            None => Err(PyRuntimeError::new_err("the recording is finished")),
        }
    }

    /// Returns the session of an unfinished recording that is not processing an event. While the GIL is held, no event
    /// begins.
    fn idle_session(&self) -> PyResult<&Session> {
        match &self.session {
            None => Err(PyRuntimeError::new_err("the recording is finished")),
            Some(OwnedSession(session)) if session.busy => {
                Err(PyRuntimeError::new_err("the recording is processing an event"))
            }
            Some(OwnedSession(session)) => Ok(session),
        }
    }

    /// Checks that the calling thread owns the recording, and that no `__repr__` run by the recorder ends its own
    /// recording.
    fn check_use(&self) -> PyResult<()> {
        if thread::current().id() != self.thread {
            return Err(PyRuntimeError::new_err(
                "a recording can only be used on the thread that created it",
            ));
        }
        match &self.session {
            Some(OwnedSession(session)) if session.busy => {
                Err(PyRuntimeError::new_err("the recording is processing an event"))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.previous.is_none() {
            return;
        }
        // Disconnect the hook from the session, which is about to be dropped. The hook stays installed but does
        // nothing.
        if let Some(hook) = self.hook.take() {
            hook.get().let_go();
        }
        if let Some(OwnedSession(mut session)) = self.session.take() {
            Python::try_attach(|py| session.log.end_watch(py));
            // An event that is being recorded still uses the session, and its own thread may use it at any time.
            if session.busy || thread::current().id() != self.thread {
                std::mem::forget(session);
            }
        }
    }
}

/// Runs the result of a call: exhausts a generator, or runs a coroutine to its result.
fn drive<'py>(py: Python<'py>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: only the type is inspected.
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

/// Names of files as Python strings.
type FileNames<'py> = Vec<Bound<'py, PyAny>>;

/// Returns the names of files as Python strings, and the lines of each file.
fn lines_of_files<'py>(lines: &Bound<'py, PyAny>, files: &[Vec<u8>]) -> PyResult<(FileNames<'py>, Vec<Vec<String>>)> {
    let files: Vec<_> = files
        .iter()
        .map(|file| text(lines.py(), file))
        .collect::<PyResult<_>>()?;
    let texts = files.iter().map(|file| lines.call1((file,))?.extract::<Vec<String>>());
    let texts = texts.collect::<PyResult<_>>()?;
    Ok((files, texts))
}

fn finish_trace(
    one: Recorded,
    files: &[Bound<'_, PyAny>],
    texts: &[Vec<String>],
    context: &Bound<'_, PyAny>,
) -> PyResult<Trace> {
    let Recorded {
        mut trace,
        entry,
        line_files,
        ..
    } = one;
    trace.shrink_to_fit();
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
        let name = text(context.py(), &entry.name)?;
        trace.context = context.call1((file, name, entry.first_line, entry.line))?.extract()?;
    }
    Ok(Trace::from(trace))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    if cfg!(not(Py_GIL_DISABLED)) {
        layout::prepare(m.py())?;
        code::prepare(m.py())?;
        leaf::prepare(m.py())?;
        identity::prepare();
    }
    m.add("RecordingLimit", m.py().get_type::<RecordingLimit>())?;
    m.add_function(wrap_pyfunction!(call_with_empty_hook, m)?)?;
    m.add_function(wrap_pyfunction!(is_recorder_at_work, m)?)?;
    m.add_function(wrap_pyfunction!(before_exit, m)?)?;
    m.add_function(wrap_pyfunction!(real_path, m)?)?;
    m.add_class::<Recording>()
}
