//! `Trace`, its frames, and `ParsedTrace` for Python: objects for frames are made only when looked at.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errors;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PySlice, PyString};

use cwm_trace::{FrameRef, Level, LoopBudget, Outcome, Renderer, Shown, State};

/// A recorded or parsed execution.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct Trace {
    pub inner: Arc<cwm_trace::Trace>,
}

impl From<cwm_trace::Trace> for Trace {
    fn from(trace: cwm_trace::Trace) -> Trace {
        Trace { inner: Arc::new(trace) }
    }
}

/// The subclass of OSError that fits, with the path in its message.
fn io_error(path: &Path, error: io::Error) -> PyErr {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

/// A string from UTF-8 that may hold lone surrogates.
pub fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the bytes are as long as given; the error handler is a constant C string.
    unsafe {
        let length = bytes.len() as isize;
        let string = ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), length, c"surrogatepass".as_ptr());
        Bound::from_owned_ptr_or_err(py, string)
    }
}

/// A string of `length` ASCII characters that `write` fills in place: a long one costs no second copy.
fn ascii_string<'py>(
    py: Python<'py>,
    length: usize,
    write: impl FnOnce(&mut [u8]) -> io::Result<()>,
) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: the string is new and of one byte a character: nobody else sees these bytes, which are set before use.
    unsafe {
        let string = Bound::from_owned_ptr_or_err(py, ffi::PyUnicode_New(length as isize, 127))?;
        let characters = ffi::PyUnicode_DATA(string.as_ptr()).cast::<u8>();
        characters.write_bytes(0, length);
        write(std::slice::from_raw_parts_mut(characters, length))?;
        Ok(string.cast_into_unchecked())
    }
}

fn state_dict<'py>(py: Python<'py>, state: State<'_>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in state {
        dict.set_item(text(py, name)?, text(py, value)?)?;
    }
    Ok(dict)
}

fn at_least_one(number: isize) -> Option<NonZeroUsize> {
    usize::try_from(number).ok().and_then(NonZeroUsize::new)
}

fn position(index: isize, length: usize, what: &str) -> PyResult<usize> {
    let wrapped = if index < 0 { index + length as isize } else { index };
    match usize::try_from(wrapped) {
        Ok(position) if position < length => Ok(position),
        _ => Err(PyIndexError::new_err(format!(
            "{what} {index} of a trace of {length} frames"
        ))),
    }
}

#[pymethods]
impl Trace {
    #[getter]
    fn frames(&self) -> Frames {
        Frames {
            trace: self.inner.clone(),
        }
    }

    #[getter]
    fn context(&self) -> &str {
        &self.inner.context
    }

    #[getter]
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.inner.outcome {
            Some(Outcome::Returned(value)) => text(py, value).map(Some),
            _ => Ok(None),
        }
    }

    #[getter]
    fn exception<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.inner.outcome {
            Some(Outcome::Raised(value)) => text(py, value).map(Some),
            _ => Ok(None),
        }
    }

    #[getter]
    fn output(&self) -> Option<&str> {
        self.inner.output.as_deref()
    }

    #[getter]
    fn truncated(&self) -> Option<&str> {
        self.inner.truncated.as_deref()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.inner.frame_bytes()
    }

    fn state<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Option<Bound<'py, PyDict>>> {
        let index = position(index, self.inner.len(), "state")?;
        cwm_trace::state_at(&self.inner, index)
            .map(|state| state_dict(py, state))
            .transpose()
    }

    fn states<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyDict>>>> {
        let states = cwm_trace::resolve(&self.inner);
        states
            .into_iter()
            .map(|state| state.map(|state| state_dict(py, state)).transpose())
            .collect()
    }

    #[pyo3(signature = (*, calls_only=false, max_depth=None, loop_budget=None, changes_only=false))]
    fn coarsen(
        &self,
        py: Python<'_>,
        calls_only: bool,
        max_depth: Option<isize>,
        loop_budget: Option<(isize, isize)>,
        changes_only: bool,
    ) -> PyResult<Trace> {
        let max_depth = max_depth.map(|depth| {
            at_least_one(depth)
                .ok_or_else(|| PyValueError::new_err(format!("max_depth must be at least 1, not {depth}")))
        });
        let loop_budget = loop_budget.map(|(first, last)| {
            let budget = usize::try_from(first).ok().zip(at_least_one(last));
            budget.map(|(first, last)| LoopBudget { first, last }).ok_or_else(|| {
                let given = format!("({first}, {last})");
                PyValueError::new_err(format!("loop_budget must be at least (0, 1), not {given}"))
            })
        });
        let level = Level {
            calls_only,
            max_depth: max_depth.transpose()?,
            loop_budget: loop_budget.transpose()?,
            changes_only,
        };
        Ok(Trace::from(py.detach(|| cwm_trace::coarsen(&self.inner, &level))))
    }

    fn with_context(&self, py: Python<'_>, context: String) -> Trace {
        let mut trace = py.detach(|| (*self.inner).clone());
        trace.context = context;
        Trace::from(trace)
    }

    fn to_text<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let mut renderer = Renderer::new(&self.inner);
        if !renderer.is_ascii() {
            return Ok(PyString::new(py, &py.detach(|| self.inner.to_text())));
        }
        let length = py.detach(|| renderer.text_len());
        ascii_string(py, length, |mut text| py.detach(|| renderer.write_text(&mut text)))
    }

    #[staticmethod]
    fn parse(text: &Bound<'_, PyString>) -> PyResult<ParsedTrace> {
        let py = text.py();
        if let Ok(text) = text.to_str() {
            return Ok(py.detach(|| ParsedTrace::of_text(text)));
        }
        let bytes = text.call_method1("encode", ("utf-8", "surrogatepass"))?;
        let bytes = bytes.cast::<PyBytes>()?.as_bytes();
        Ok(py.detach(|| ParsedTrace::of_begin(bytes)))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| cwm_trace::to_bytes(&self.inner));
        bytes
            .map(|bytes| PyBytes::new(py, &bytes))
            .map_err(|e| PyValueError::new_err(e.to_string()))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Trace> {
        let trace = py.detach(|| cwm_trace::from_bytes(data));
        trace.map(Trace::from).map_err(|e| errors::damaged(e.to_string()))
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let files = py.import("cwm_core.support.files")?;
        files.call_method1("write_file", (path, self.to_bytes(py)?)).map(drop)
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Trace> {
        let trace = py.detach(|| {
            let data = std::fs::read(&path).map_err(|error| io_error(&path, error))?;
            cwm_trace::from_bytes(&data).map_err(|e| errors::damaged(format!("{}: {e}", path.display())))
        });
        trace.map(Trace::from)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let constructor = slf.get_type().getattr("from_bytes")?;
        Ok((constructor, (slf.get().to_bytes(slf.py())?,)))
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    fn __eq__(&self, other: &Trace) -> bool {
        *self.inner == *other.inner
    }

    /// What a notebook shows: the page of `cwm_core.view`, in a frame of its own.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let view = slf.py().import("cwm_core.view")?;
        view.call_method1("notebook", (slf,))
    }

    fn __repr__(&self) -> String {
        let cut = self
            .inner
            .truncated
            .as_ref()
            .map(|limit| format!(", truncated at {limit}"))
            .unwrap_or_default();
        format!("<Trace of {} frames{cut}>", self.inner.len())
    }
}

/// The frames of a trace, a sequence.
#[pyclass(frozen, sequence, module = "cwm_core._native")]
pub struct Frames {
    trace: Arc<cwm_trace::Trace>,
}

#[pymethods]
impl Frames {
    fn __len__(&self) -> usize {
        self.trace.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if let Ok(slice) = index.cast::<PySlice>() {
            let range = slice.indices(self.trace.len() as isize)?;
            let indices = (0..range.slicelength as isize).map(|i| (range.start + i * range.step) as usize);
            let frames: Vec<Frame> = indices.map(|index| self.frame(index)).collect();
            return Ok(frames.into_pyobject(py)?.into_any());
        }
        let index = position(index.extract()?, self.trace.len(), "frame")?;
        Ok(Bound::new(py, self.frame(index))?.into_any())
    }
}

impl Frames {
    fn frame(&self, index: usize) -> Frame {
        Frame {
            trace: self.trace.clone(),
            index,
        }
    }
}

/// One frame, as written: locals as a diff.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct Frame {
    trace: Arc<cwm_trace::Trace>,
    index: usize,
}

impl Frame {
    fn get(&self) -> FrameRef<'_> {
        self.trace.frame(self.index)
    }
}

#[pymethods]
impl Frame {
    #[getter]
    fn event(&self) -> &'static str {
        self.get().event().name()
    }

    #[getter]
    fn locals<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        if !self.get().event().has_locals() {
            return Ok(None);
        }
        let shown = self.get().locals().map(|(name, shown)| match shown {
            Shown::Unchanged => (name, b"..".as_slice()),
            Shown::Text(text) => (name, text),
        });
        state_dict(py, shown.collect()).map(Some)
    }

    #[getter]
    fn line(&self) -> &str {
        &self.get().line().text
    }

    #[getter]
    fn lineno(&self) -> Option<u32> {
        Some(self.get().line().number).filter(|&number| number > 0)
    }

    #[getter]
    fn arg<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.get().arg().map(|value| text(py, value)).transpose()
    }

    fn __eq__(&self, other: &Frame) -> bool {
        self.get() == other.get()
    }

    fn __repr__<'py>(&self, py: Python<'py>) -> PyResult<String> {
        let line = PyString::new(py, self.line()).repr()?;
        let shown = match self.locals(py)? {
            Some(locals) => format!("locals={}", locals.repr()?),
            None => format!("arg={}", self.arg(py)?.into_pyobject(py)?.repr()?),
        };
        Ok(format!("Frame(event='{}', {shown}, line={line})", self.event()))
    }
}

/// The longest well-formed prefix of a text or of token ids, and why the rest is none.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct ParsedTrace {
    trace: Arc<cwm_trace::Trace>,
    #[pyo3(get)]
    complete: bool,
    /// Where the frame that is not well formed begins.
    #[pyo3(get)]
    error_offset: Option<usize>,
    #[pyo3(get)]
    error: Option<String>,
}

impl From<cwm_trace::Parsed> for ParsedTrace {
    fn from(parsed: cwm_trace::Parsed) -> ParsedTrace {
        let error_offset = parsed.error.as_ref().map(|error| error.offset);
        let error = parsed.error.map(|error| error.reason);
        ParsedTrace {
            trace: Arc::new(parsed.trace),
            complete: parsed.complete,
            error_offset,
            error,
        }
    }
}

impl ParsedTrace {
    /// Parses text; the offset of an error counts characters, as Python does.
    fn of_text(text: &str) -> ParsedTrace {
        ParsedTrace::of(cwm_trace::parse_text(text), text)
    }

    /// Parses text up to its first lone surrogate, which no frame can hold.
    fn of_begin(bytes: &[u8]) -> ParsedTrace {
        let whole = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        ParsedTrace::of(cwm_trace::parse_cut_text(whole, "a lone surrogate"), whole)
    }

    fn of(mut parsed: cwm_trace::Parsed, text: &str) -> ParsedTrace {
        if let Some(error) = &mut parsed.error {
            error.offset = text[..error.offset].chars().count();
        }
        ParsedTrace::from(parsed)
    }
}

#[pymethods]
impl ParsedTrace {
    #[getter]
    fn trace(&self) -> Trace {
        Trace {
            inner: self.trace.clone(),
        }
    }

    #[getter]
    fn frames(&self) -> Frames {
        Frames {
            trace: self.trace.clone(),
        }
    }

    fn __repr__(&self) -> String {
        let end = match (&self.error, self.complete) {
            (Some(error), _) => format!("stopped: {error}"),
            (None, true) => "complete".to_owned(),
            (None, false) => "open".to_owned(),
        };
        format!("<ParsedTrace of {} frames, {end}>", self.trace.len())
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Trace>()?;
    m.add_class::<Frames>()?;
    m.add_class::<Frame>()?;
    m.add_class::<ParsedTrace>()
}
