//! Bindings of traces and of the parser. `Frame` objects are created on access.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errors;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PySlice, PyString};

use cwm_trace::{FrameRef, Level, LoopBudget, Outcome, ParseErrorKind, Renderer, Shown, State};

/// A recorded or parsed execution: source context and frames. Immutable.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct Trace {
    pub inner: Arc<cwm_trace::Trace>,
}

impl From<cwm_trace::Trace> for Trace {
    fn from(trace: cwm_trace::Trace) -> Trace {
        Trace { inner: Arc::new(trace) }
    }
}

/// Returns the matching subclass of `OSError`, with the path in its message.
fn io_error(path: &Path, error: io::Error) -> PyErr {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

/// Decodes UTF-8 that may contain lone surrogates into a Python string.
pub fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the pointer and length come from one slice, and the error handler is a constant C string.
    unsafe {
        let length = bytes.len() as isize;
        let string = ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), length, c"surrogatepass".as_ptr());
        Bound::from_owned_ptr_or_err(py, string)
    }
}

/// Creates a string of `length` ASCII characters that `write` fills in place, which avoids copying a long string.
fn ascii_string<'py>(
    py: Python<'py>,
    length: usize,
    write: impl FnOnce(&mut [u8]) -> io::Result<()>,
) -> PyResult<Bound<'py, PyString>> {
    // SAFETY: the string is new and has one byte per character, so no other code sees these bytes before they are set.
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
            "{what} index {index} is out of range for a trace of {length} frames"
        ))),
    }
}

#[pymethods]
impl Trace {
    /// Frames in order. `Frame` objects are created on access.
    #[getter]
    fn frames(&self) -> Frames {
        Frames {
            trace: self.inner.clone(),
        }
    }

    /// Source text shown before the frames, with the `# << START_OF_TRACE` mark.
    #[getter]
    fn context(&self) -> &str {
        &self.inner.context
    }

    /// Rendered return value of the recorded call; None if the call raised or the recording was truncated.
    ///
    /// In a complete parsed trace, the value of the last RETURN frame, if that frame ends the only outermost
    /// activation. The frames of a trace with several outermost activations, such as those of a resumed generator, do
    /// not determine a result.
    #[getter]
    fn result<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.inner.outcome {
            Some(Outcome::Returned(value)) => text(py, value).map(Some),
            _ => Ok(None),
        }
    }

    /// Rendered exception that the recorded call raised; None if it did not raise.
    #[getter]
    fn exception<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match &self.inner.outcome {
            Some(Outcome::Raised(value)) => text(py, value).map(Some),
            _ => Ok(None),
        }
    }

    /// Text that the program wrote to `sys.stdout`; None if the recorder did not capture it.
    #[getter]
    fn output(&self) -> Option<&str> {
        self.inner.output.as_deref()
    }

    /// Reason why the recording ended early; None for a complete recording.
    ///
    /// Either a value of `cwm_core.trace.Truncation`, or the reason given to `Recorder.snapshot`.
    #[getter]
    fn truncated(&self) -> Option<&str> {
        self.inner.truncated.as_deref()
    }

    /// Memory taken by the frames, in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.inner.frame_bytes()
    }

    /// Return all variables at a frame, with each `..` replaced by the value it stands for.
    ///
    /// Args:
    ///     index: Frame number; negative numbers count from the end.
    ///
    /// Returns:
    ///     Rendered values by variable name. None for RETURN and EXCEPTION frames, and if a `..` has no earlier value
    ///     to refer to.
    ///
    /// Raises:
    ///     IndexError: There is no such frame.
    fn state<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Option<Bound<'py, PyDict>>> {
        let index = position(index, self.inner.len(), "state")?;
        cwm_trace::state_at(&self.inner, index)
            .map(|state| state_dict(py, state))
            .transpose()
    }

    /// Return `state` of every frame.
    ///
    /// The result can be much larger than the trace if frames leave out unchanged variables.
    fn states<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyDict>>>> {
        let states = cwm_trace::resolve(&self.inner);
        states
            .into_iter()
            .map(|state| state.map(|state| state_dict(py, state)).transpose())
            .collect()
    }

    /// Return a trace that shows less of the same execution.
    ///
    /// The options combine; the trace format page defines each level of detail. Each CALL and LINE frame of the result
    /// has the same `state` as in this trace. The context, the outcome, and `truncated` do not change.
    ///
    /// Args:
    ///     calls_only: Keep only CALL and RETURN frames, and EXCEPTION frames that unwind an activation.
    ///     max_depth: Drop activations nested deeper than this, counted from 1.
    ///     loop_budget: Number of first (0 or more) and last (1 or more) iterations to keep of each run of a loop.
    ///     changes_only: Keep only changed variables in LINE frames; the pair `"..": ".."` stands for the others.
    ///
    /// Returns:
    ///     The coarser trace.
    ///
    /// Raises:
    ///     ValueError: `max_depth` or `loop_budget` is below its minimum.
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
                .ok_or_else(|| PyValueError::new_err(format!("max_depth must be at least 1, got {depth}")))
        });
        let loop_budget = loop_budget.map(|(first, last)| {
            let budget = usize::try_from(first).ok().zip(at_least_one(last));
            budget.map(|(first, last)| LoopBudget { first, last }).ok_or_else(|| {
                let given = format!("({first}, {last})");
                PyValueError::new_err(format!("loop_budget must be at least (0, 1), got {given}"))
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

    /// Return the same execution with another source context.
    ///
    /// To mark the entry, include the mark in `context`.
    fn with_context(&self, py: Python<'_>, context: String) -> Trace {
        let mut trace = py.detach(|| (*self.inner).clone());
        trace.context = context;
        Trace::from(trace)
    }

    /// Return the text form of the whole document.
    ///
    /// The text form escapes nothing. Use the stored form or the token form if the round trip must be lossless.
    fn to_text<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        let mut renderer = Renderer::new(&self.inner);
        if !renderer.is_ascii() {
            return Ok(PyString::new(py, &py.detach(|| self.inner.to_text())));
        }
        let length = py.detach(|| renderer.text_len());
        ascii_string(py, length, |mut text| py.detach(|| renderer.write_text(&mut text)))
    }

    /// Parse a text form, with or without its context.
    ///
    /// Accepts any text: it returns the longest well-formed prefix and never raises or repairs.
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

    /// Return the stored form, which is lossless, compressed, and protected by a checksum.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| cwm_trace::to_bytes(&self.inner));
        bytes
            .map(|bytes| PyBytes::new(py, &bytes))
            .map_err(|e| PyValueError::new_err(e.to_string()))
    }

    /// Read a stored form.
    ///
    /// Raises:
    ///     DamagedFileError: The data is damaged or is not a stored trace.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Trace> {
        let trace = py.detach(|| cwm_trace::from_bytes(data));
        trace.map(Trace::from).map_err(|e| errors::damaged(e.to_string()))
    }

    /// Write the stored form to a file, either completely or not at all.
    ///
    /// Follows symbolic links and writes through devices and FIFOs.
    ///
    /// Raises:
    ///     OSError: The file cannot be written.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let files = py.import("cwm_core.support.files")?;
        files.call_method1("write_file", (path, self.to_bytes(py)?)).map(drop)
    }

    /// Read a file written by `save`.
    ///
    /// Raises:
    ///     OSError: The file cannot be read.
    ///     DamagedFileError: The file is damaged or is not a stored trace.
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

    /// Return the interactive view of the trace that notebooks display: the page of `cwm_core.view.html`.
    fn _repr_html_<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let view = slf.py().import("cwm_core.view")?;
        view.call_method1("notebook", (slf,))
    }

    fn __repr__(&self) -> String {
        let frames = self.inner.len();
        let cut = self.inner.truncated.as_ref();
        let cut = cut.map(|reason| format!(", truncated by {reason}")).unwrap_or_default();
        format!("<Trace of {frames} frame{}{cut}>", if frames == 1 { "" } else { "s" })
    }
}

/// A sequence of the frames of a trace.
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

    fn __iter__(&self) -> FrameIterator {
        FrameIterator {
            trace: self.trace.clone(),
            next: 0,
        }
    }

    fn __repr__(&self) -> String {
        let end = |frame: FrameRef<'_>| format!("{} {:?}", frame.event().name(), frame.line().text.trim());
        match self.trace.len() {
            0 => "<Frames: none>".to_owned(),
            1 => format!("<Frames: 1, {}>", end(self.trace.frame(0))),
            count => {
                let (first, last) = (self.trace.frame(0), self.trace.frame(count - 1));
                format!("<Frames: {count}, from {} to {}>", end(first), end(last))
            }
        }
    }
}

/// An iterator over the frames of a trace.
#[pyclass(module = "cwm_core._native")]
pub struct FrameIterator {
    trace: Arc<cwm_trace::Trace>,
    next: usize,
}

#[pymethods]
impl FrameIterator {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&mut self) -> Option<Frame> {
        let index = self.next;
        self.next += 1;
        (index < self.trace.len()).then(|| Frame {
            trace: self.trace.clone(),
            index,
        })
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

/// One frame of a trace, with its variables as a difference from the previous frame.
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
    /// Event that the frame records: `"call"`, `"line"`, `"return"`, or `"exception"`.
    #[getter]
    fn event(&self) -> &'static str {
        self.get().event().name()
    }

    /// Rendered values by variable name, `".."` if unchanged; None for RETURN and EXCEPTION frames.
    ///
    /// A LINE frame that leaves out unchanged variables starts with the pair `"..": ".."`.
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

    /// Source line with its newline; empty if the source is unknown.
    #[getter]
    fn line(&self) -> &str {
        &self.get().line().text
    }

    /// Line number in the source file; None if unknown, as in parsed traces.
    #[getter]
    fn lineno(&self) -> Option<u32> {
        Some(self.get().line().number).filter(|&number| number > 0)
    }

    /// Rendered value of a RETURN or EXCEPTION frame; None for other events.
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

/// The longest well-formed prefix of a text or of token IDs, and the error that ends it, if any.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct ParsedTrace {
    trace: Arc<cwm_trace::Trace>,
    complete: bool,
    error: Option<cwm_trace::ParseError>,
}

impl From<cwm_trace::Parsed> for ParsedTrace {
    fn from(parsed: cwm_trace::Parsed) -> ParsedTrace {
        ParsedTrace {
            trace: Arc::new(parsed.trace),
            complete: parsed.complete,
            error: parsed.error,
        }
    }
}

impl ParsedTrace {
    /// Parses text. The offset of an error is in characters, as in Python.
    fn of_text(text: &str) -> ParsedTrace {
        ParsedTrace::of(cwm_trace::parse_text(text), text)
    }

    /// Parses text up to its first lone surrogate, which no frame can contain.
    fn of_begin(bytes: &[u8]) -> ParsedTrace {
        let whole = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        ParsedTrace::of(
            cwm_trace::parse_cut_text(whole, "the text contains a lone surrogate"),
            whole,
        )
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
    /// Trace of the well-formed frames.
    #[getter]
    fn trace(&self) -> Trace {
        Trace {
            inner: self.trace.clone(),
        }
    }

    /// Well-formed frames.
    #[getter]
    fn frames(&self) -> Frames {
        Frames {
            trace: self.trace.clone(),
        }
    }

    /// Whether the input ends with the end token, right after the last frame.
    #[getter]
    fn complete(&self) -> bool {
        self.complete
    }

    /// Message that explains why parsing stopped; None if the whole input is well formed.
    ///
    /// Input that stops between two frames is well formed but not `complete`.
    #[getter]
    fn error(&self) -> Option<&str> {
        self.error.as_ref().map(|error| &*error.reason)
    }

    /// Kind of the error; None if there is no error.
    #[getter]
    fn error_kind<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let kind = self.error.as_ref().map(|error| error.kind);
        kind.map(|kind| parse_error_kind(py)?.call1((kind.name(),))).transpose()
    }

    /// Start of the first malformed frame: a character of the text or an index into the token IDs.
    #[getter]
    fn error_offset(&self) -> Option<usize> {
        self.error.as_ref().map(|error| error.offset)
    }

    fn __repr__(&self) -> String {
        let end = match (&self.error, self.complete) {
            (Some(error), _) => format!("error {error}"),
            (None, true) => "complete".to_owned(),
            (None, false) => "no end token".to_owned(),
        };
        let frames = self.trace.len();
        format!(
            "<ParsedTrace of {frames} frame{}, {end}>",
            if frames == 1 { "" } else { "s" }
        )
    }
}

/// Returns the `StrEnum` of the kinds of parse errors.
fn parse_error_kind(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let members = ParseErrorKind::ALL.map(|kind| (kind.name().to_ascii_uppercase(), kind.name()));
        let module = [("module", "cwm_core")].into_py_dict(py)?;
        let base = py.import("enum")?.getattr("StrEnum")?;
        let class = base.call(("ParseErrorKind", members.to_vec()), Some(&module))?;
        class.setattr("__doc__", "Kind of a parse error.")?;
        PyResult::Ok(class.unbind())
    })?;
    Ok(class.bind(py).clone())
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("ParseErrorKind", parse_error_kind(m.py())?)?;
    m.add_class::<Trace>()?;
    m.add_class::<Frames>()?;
    m.add_class::<Frame>()?;
    m.add_class::<ParsedTrace>()
}
