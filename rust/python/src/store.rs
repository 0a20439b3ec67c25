//! Python bindings of the trace store. Threads share a reader without a lock. A mutex protects a writer, and threads
//! release the GIL while they wait for it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::errors;
use cwm_trace::store;
use pyo3::exceptions::{PyIndexError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::interrupt::{detached, interruptible};
use crate::trace::Trace;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<TraceWriter>()?;
    m.add_class::<TraceReader>()?;
    m.add_class::<TraceBlock>()
}

fn to_py(error: store::Error) -> PyErr {
    match error {
        store::Error::Io { path, error } => match error.raw_os_error() {
            // Python selects the subclass of OSError from the error number.
            Some(number) => {
                let text = error.to_string();
                let text = text.split(" (os error").next().unwrap_or_default().to_owned();
                PyOSError::new_err((number, text, path.into_os_string()))
            }
            None => io::Error::new(error.kind(), format!("{}: {error}", path.display())).into(),
        },
        store::Error::Damaged { .. } => errors::damaged(error.to_string()),
        error @ (store::Error::Invalid(_) | store::Error::Interrupted(_)) => PyValueError::new_err(error.to_string()),
    }
}

/// Implementation of `cwm_core.TraceWriter`; metadata is JSON text.
#[pyclass(module = "cwm_core._native", frozen)]
struct TraceWriter(Mutex<store::Writer>);

impl TraceWriter {
    fn detached<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut store::Writer) -> store::Result<R> + Send,
    ) -> PyResult<R> {
        py.detach(|| match self.0.lock() {
            Ok(mut writer) => interruptible(to_py, || f(&mut writer)),
            Err(_) => Err(PyRuntimeError::new_err("an earlier call panicked")),
        })
    }
}

#[pymethods]
impl TraceWriter {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, append: bool) -> PyResult<Self> {
        let writer = detached(py, to_py, || store::Writer::open(&path, append))?;
        Ok(TraceWriter(Mutex::new(writer)))
    }

    #[getter]
    fn cut_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.detached(py, |writer| Ok(writer.cut_bytes()))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.detached(py, |writer| Ok(writer.len() as usize))
    }

    fn add(&self, py: Python<'_>, trace: &Trace, key: Option<&str>, metadata: &str) -> PyResult<u64> {
        self.detached(py, |writer| writer.add(&trace.inner, key, metadata))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, store::Writer::flush)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, store::Writer::close)
    }
}

/// Implementation of `cwm_core.TraceReader`.
#[pyclass(module = "cwm_core._native", frozen)]
struct TraceReader(store::Reader);

impl TraceReader {
    fn check(&self, index: u64) -> PyResult<()> {
        match index < self.0.len() {
            true => Ok(()),
            false => Err(PyIndexError::new_err(format!(
                "trace index {index} is out of range for a store of {} traces",
                self.0.len()
            ))),
        }
    }
}

#[pymethods]
impl TraceReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = detached(py, to_py, || store::Reader::open(&path))?;
        Ok(TraceReader(reader))
    }

    fn __len__(&self) -> usize {
        self.0.len() as usize
    }

    #[getter]
    fn torn_bytes(&self) -> u64 {
        self.0.torn_bytes()
    }

    fn trace(&self, py: Python<'_>, index: u64) -> PyResult<Trace> {
        self.check(index)?;
        detached(py, to_py, || self.0.trace(index)).map(Trace::from)
    }

    fn find(&self, key: &Bound<'_, PyString>) -> PyResult<Option<u64>> {
        let Ok(text) = key.to_str() else {
            return Ok(None); // a string with a lone surrogate is not valid UTF-8, so it cannot be a key
        };
        detached(key.py(), to_py, || self.0.find(text))
    }

    fn block(&self, py: Python<'_>, index: u64) -> PyResult<TraceBlock> {
        self.check(index)?;
        detached(py, to_py, || self.0.block(index)).map(TraceBlock)
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, to_py, || self.0.verify())
    }
}

/// Consecutive traces of a store that are compressed together.
///
/// Keys and metadata are read together; the traces are read on first access.
#[pyclass(module = "cwm_core._native", frozen)]
struct TraceBlock(Arc<store::Block>);

impl TraceBlock {
    fn check(&self, place: usize) -> PyResult<()> {
        let length = self.0.len();
        match place < length {
            true => Ok(()),
            false => Err(PyIndexError::new_err(format!(
                "trace index {place} is out of range for a block of {length} traces"
            ))),
        }
    }
}

#[pymethods]
impl TraceBlock {
    /// Returns the index in the store of the block's first trace.
    #[getter]
    fn first(&self) -> u64 {
        self.0.first()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn key(&self, py: Python<'_>, place: usize) -> PyResult<Option<&str>> {
        self.check(place)?;
        detached(py, to_py, || self.0.key(place))
    }

    fn metadata(&self, py: Python<'_>, place: usize) -> PyResult<&str> {
        self.check(place)?;
        detached(py, to_py, || self.0.metadata(place))
    }

    fn trace(&self, py: Python<'_>, place: usize) -> PyResult<Trace> {
        self.check(place)?;
        detached(py, to_py, || self.0.trace(place)).map(Trace::from)
    }
}
