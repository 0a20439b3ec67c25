//! `cwm_core._native.Tokenizer`. `cwm_core.tokenizer` documents it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytemuck::{allocation::cast_vec, cast_slice};
use cwm_tokenizer::{
    CL100K_PATTERN, Error, GPT2_PATTERN, LLAMA3_PATTERN, O200K_PATTERN, PieceCounts, QWEN2_PATTERN, SpecialTokens,
    Splitter, Tokenizer as Inner, Vocabulary, cwm_special_tokens,
};
use numpy::ndarray::Array3;
use numpy::{IntoPyArray, PyArray1, PyArray3, PyReadonlyArray1};
use pyo3::call::PyCallArgs;
use pyo3::exceptions::{PyKeyboardInterrupt, PyOSError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyString};

use crate::arrays;
use crate::errors::damaged;
use crate::interrupt::{detached, interruptible};
use crate::trace::{ParsedTrace, Trace};

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("LLAMA3_PATTERN", LLAMA3_PATTERN)?;
    m.add("GPT2_PATTERN", GPT2_PATTERN)?;
    m.add("CL100K_PATTERN", CL100K_PATTERN)?;
    m.add("O200K_PATTERN", O200K_PATTERN)?;
    m.add("QWEN2_PATTERN", QWEN2_PATTERN)?;
    m.add(
        "CWM_SPECIAL_TOKENS",
        pyo3::types::PyTuple::new(m.py(), cwm_special_tokens())?,
    )?;
    m.add_class::<Tokenizer>()
}

fn error(error: Error) -> PyErr {
    match error {
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
        Error::Damaged(_) => damaged(error.to_string()),
        other => PyValueError::new_err(other.to_string()),
    }
}

/// Returns the UTF-8 of a string. Surrogate pairs become one character, lone surrogates U+FFFD, as in tiktoken.
fn utf8(text: &Bound<'_, PyString>) -> PyResult<PyBackedStr> {
    match PyBackedStr::try_from(text.clone()) {
        Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => text
            .call_method1("encode", ("utf-16", "surrogatepass"))?
            .call_method1("decode", ("utf-16", "replace"))?
            .extract(),
        result => result,
    }
}

fn array(py: Python<'_>, ids: Vec<u32>) -> Bound<'_, PyArray1<i32>> {
    // Ids are below 2^22, so none becomes negative.
    PyArray1::from_vec(py, cast_vec(ids))
}

#[derive(FromPyObject)]
enum SpecialArgument {
    Names(Vec<String>),
    Ids(Vec<(String, u32)>),
}

fn build(vocab: Vocabulary, splitter: Splitter, special: SpecialArgument) -> Result<Inner, Error> {
    match special {
        SpecialArgument::Names(names) => Inner::with_special_names(vocab, splitter, names),
        SpecialArgument::Ids(tokens) => Inner::new(vocab, splitter, SpecialTokens::new(tokens)?),
    }
}

/// Implementation of `cwm_core.Tokenizer`.
#[pyclass(frozen, module = "cwm_core._native")]
pub struct Tokenizer(pub Inner);

/// ids, spans, context
type TraceTokens<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray3<i32>>, usize);

#[pymethods]
impl Tokenizer {
    #[staticmethod]
    fn from_ranks(py: Python<'_>, file: &[u8], pattern: &str, special_tokens: SpecialArgument) -> PyResult<Self> {
        let build = || {
            build(
                Inner::vocabulary_from_ranks(file)?,
                Splitter::for_ranks(pattern)?,
                special_tokens,
            )
        };
        arrays::load(py)?;
        detached(py, error, build).map(Self)
    }

    #[staticmethod]
    fn from_json(py: Python<'_>, file: &[u8]) -> PyResult<(Self, Vec<String>)> {
        arrays::load(py)?;
        let (tokenizer, warnings) = detached(py, error, || Inner::from_json_with_warnings(file))?;
        Ok((Self(tokenizer), warnings))
    }

    #[staticmethod]
    fn train(
        texts: &Bound<'_, PyIterator>,
        vocab_size: usize,
        pattern: &str,
        special_tokens: SpecialArgument,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let py = texts.py();
        arrays::load(py)?;
        let splitter = Splitter::new(pattern).map_err(error)?;
        let counts = count_pieces(texts, splitter, threads_or_all(threads), progress.as_ref())?;
        let mut failed: PyResult<()> = Ok(());
        let mut reported = Instant::now();
        let trained = detached(py, error, || {
            let (vocab, splitter) = counts.train(vocab_size, |merges| {
                if merges == vocab_size - 256 || reported.elapsed() >= BETWEEN_REPORTS {
                    failed = Python::attach(|py| report(py, progress.as_ref(), ("merge", merges, vocab_size - 256)));
                    reported = Instant::now();
                }
                failed.is_ok()
            })?;
            build(vocab, splitter, special_tokens)
        });
        failed?;
        trained.map(Self)
    }

    fn to_json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        py.detach(|| self.0.to_json())
            .map(|file| PyBytes::new(py, &file))
            .map_err(error)
    }

    fn to_ranks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        py.detach(|| self.0.to_ranks())
            .map(|file| PyBytes::new(py, &file))
            .map_err(error)
    }

    #[getter]
    fn is_ranked(&self) -> bool {
        self.0.is_ranked()
    }

    #[getter]
    fn pattern(&self) -> &str {
        self.0.pattern()
    }

    /// See [`Inner::fingerprint`].
    fn fingerprint(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.0.fingerprint())
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tokens = PyDict::new(py);
        for (name, id) in self.0.special_tokens().iter() {
            tokens.set_item(name, id)?;
        }
        Ok(tokens)
    }

    fn encode<'py>(&self, text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let py = text.py();
        let text = utf8(text)?;
        if text.len() <= SHORT_TEXT {
            let copied = self
                .0
                .with_tokens(&text, |ids| PyArray1::from_slice(py, cast_slice(ids)));
            return copied.map_err(error);
        }
        let ids = detached(py, error, || self.0.encode(&text, None))?;
        Ok(array(py, ids))
    }

    /// Encodes a text in which the names in `allowed` are special tokens. `None` allows all.
    fn encode_with_special<'py>(
        &self,
        text: &Bound<'py, PyString>,
        allowed: Option<Vec<PyBackedStr>>,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let py = text.py();
        let text = utf8(text)?;
        let special = self.0.special_tokens();
        let ids = detached(py, error, || match &allowed {
            None => self.0.encode(&text, Some(special.all())),
            Some(names) => self
                .0
                .encode(&text, Some(&special.matcher(names.iter().map(|name| &**name))?)),
        })?;
        Ok(array(py, ids))
    }

    fn encode_bytes<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyArray1<i32>>> {
        detached(py, error, || self.0.encode_bytes(data)).map(|ids| array(py, ids))
    }

    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Bound<'py, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyArray1<i32>>>> {
        let string = |(number, text): (usize, &Bound<'py, PyAny>)| {
            utf8(text.cast::<PyString>().map_err(|_| not_a_string(number, text))?)
        };
        let texts: Vec<PyBackedStr> = texts.iter().enumerate().map(string).collect::<PyResult<_>>()?;
        let batch = detached(py, error, || self.0.encode_batch(&texts, threads_or_all(threads)))?;
        Ok(batch.into_iter().map(|ids| array(py, ids)).collect())
    }

    /// Encodes files. Reads a few at a time, and checks for Ctrl-C in between.
    fn encode_files<'py>(
        &self,
        py: Python<'py>,
        paths: Vec<PathBuf>,
        threads: Option<usize>,
    ) -> PyResult<Vec<Bound<'py, PyArray1<i32>>>> {
        let threads = threads_or_all(threads);
        let mut arrays = Vec::with_capacity(paths.len());
        while arrays.len() < paths.len() {
            let rest = &paths[arrays.len()..];
            let batch = py.detach(|| {
                let texts = read_some(rest)?;
                interruptible(error, || self.0.encode_batch(&texts, threads))
            })?;
            arrays.extend(batch.into_iter().map(|ids| array(py, ids)));
            py.check_signals()?;
        }
        Ok(arrays)
    }

    fn count(&self, text: &Bound<'_, PyString>) -> PyResult<usize> {
        let py = text.py();
        let text = utf8(text)?;
        detached(py, error, || self.0.count(&text))
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: PyReadonlyArray1<'py, i32>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = ids.as_slice()?;
        // Keeps the GIL, because another thread could write to the array otherwise.
        self.0
            .decode_bytes(ids)
            .map(|bytes| PyBytes::new(py, &bytes))
            .map_err(error)
    }

    fn token_to_bytes<'py>(&self, py: Python<'py>, id: i64) -> PyResult<Bound<'py, PyBytes>> {
        self.0
            .token_bytes(id)
            .map(|bytes| PyBytes::new(py, bytes))
            .map_err(error)
    }

    fn encode_trace<'py>(&self, py: Python<'py>, trace: &Trace) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let ids = detached(py, error, || self.0.encode_trace(&trace.inner))?;
        Ok(array(py, ids))
    }

    fn trace_tokens<'py>(&self, py: Python<'py>, trace: &Trace) -> PyResult<TraceTokens<'py>> {
        let tokens = detached(py, error, || self.0.trace_tokens(&trace.inner))?;
        if i32::try_from(tokens.ids.len()).is_err() {
            return Err(PyValueError::new_err(format!(
                "the trace has {} tokens, too many for 32-bit positions",
                tokens.ids.len()
            )));
        }
        let mut spans = Array3::from_elem((tokens.frames.len(), 3, 2), -1);
        for (mut row, frame) in spans.outer_iter_mut().zip(&tokens.frames) {
            for (part, span) in [&frame.state, &Some(frame.action.clone()), &frame.value]
                .into_iter()
                .enumerate()
            {
                if let Some(span) = span {
                    row[[part, 0]] = span.start as i32;
                    row[[part, 1]] = span.end as i32;
                }
            }
        }
        Ok((array(py, tokens.ids), spans.into_pyarray(py), tokens.context))
    }

    fn parse_trace(&self, ids: PyReadonlyArray1<'_, i32>) -> PyResult<ParsedTrace> {
        Ok(ParsedTrace::from(self.0.parse_trace(ids.as_slice()?)))
    }
}

/// Bytes of the longest text that is encoded with the GIL held, because releasing it would take longer.
const SHORT_TEXT: usize = 4096;

/// Bytes of files in memory at a time, in addition to one file.
const FILES_BYTES: usize = 64 << 20;

/// Reads the first files, at least one.
fn read_some(paths: &[PathBuf]) -> PyResult<Vec<String>> {
    let mut texts = Vec::new();
    let mut bytes = 0;
    for path in paths {
        let data =
            fs::read(path).map_err(|why| PyOSError::new_err((why.raw_os_error(), why.to_string(), path.clone())))?;
        let text = String::from_utf8(data).map_err(|why| {
            let at = why.utf8_error().valid_up_to();
            PyValueError::new_err(format!("{}: not UTF-8 at byte {at}", path.display()))
        })?;
        bytes += text.len();
        texts.push(text);
        if bytes > FILES_BYTES {
            break;
        }
    }
    Ok(texts)
}

fn threads_or_all(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Interval at which training checks for Ctrl-C and reports progress.
const BETWEEN_REPORTS: Duration = Duration::from_millis(50);

fn report<'py>(py: Python<'py>, progress: Option<&Py<PyAny>>, state: impl PyCallArgs<'py>) -> PyResult<()> {
    progress.map_or(Ok(()), |progress| progress.call1(py, state).map(drop))
}

/// Bytes of text, plus one per text, taken from the iterator before the GIL is released to count their pieces.
const BATCH_BYTES: usize = 8 << 20;

/// Returns the error for an item of `texts` that is not a string.
fn not_a_string(number: usize, item: &Bound<'_, PyAny>) -> PyErr {
    let name = item.get_type().name();
    let name = name.map_or_else(|_| "another type".into(), |name| name.to_string());
    PyTypeError::new_err(format!("texts: item {number}: expected a string, got {name}"))
}

fn count_pieces(
    texts: &Bound<'_, PyIterator>,
    splitter: Splitter,
    threads: usize,
    progress: Option<&Py<PyAny>>,
) -> PyResult<PieceCounts> {
    let py = texts.py();
    let mut counts = PieceCounts::new(splitter);
    let mut batch: Vec<PyBackedStr> = Vec::new();
    let mut texts = texts.clone();
    let (mut total, mut number) = (0, 0);
    loop {
        let mut bytes = 0;
        while bytes + batch.len() < BATCH_BYTES
            && let Some(text) = texts.next()
        {
            let text = text?;
            let text = utf8(text.cast::<PyString>().map_err(|_| not_a_string(number, &text))?)?;
            number += 1;
            bytes += text.len();
            batch.push(text);
        }
        if batch.is_empty() {
            return Ok(counts);
        }
        detached(py, error, || counts.add_batch(&batch, threads))?;
        batch.clear();
        total += bytes;
        py.check_signals()?;
        report(py, progress, ("count", total, py.None()))?;
    }
}
