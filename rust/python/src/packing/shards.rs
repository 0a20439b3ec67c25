//! Writing and reading token shards.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cwm_packing as packing;
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArray};
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::to_py;

/// The ids of any integer array, each checked to fit u32.
fn ids_of(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<u32>> {
    fn convert<T: Element + Copy + TryInto<u32> + ToString>(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<u32>> {
        let ids: PyReadonlyArray1<'_, T> = array.extract()?;
        let ids = ids.as_array();
        // Looked at twice, without a way out in the midst, which is much faster than once with one.
        let id = |id: T| id.try_into().unwrap_or(u32::MAX);
        let is_outside = |&at: &T| TryInto::<u32>::try_into(at).is_err();
        if ids.iter().fold(false, |found, at| found | is_outside(at))
            && let Some((at, id)) = ids.iter().enumerate().find(|(_, at)| is_outside(at))
        {
            return Err(PyValueError::new_err(format!(
                "token {at} has id {}, outside any vocabulary",
                id.to_string()
            )));
        }
        Ok(match ids.as_slice() {
            Some(ids) => ids.iter().map(|&at| id(at)).collect(),
            None => ids.iter().map(|&at| id(at)).collect(),
        })
    }
    if array.ndim() != 1 {
        return Err(PyValueError::new_err(format!(
            "ids must have one dimension, not {}",
            array.ndim()
        )));
    }
    if array.is_empty() {
        return Ok(Vec::new()); // whatever its type: an empty list arrives as float64
    }
    let dtype = array.dtype();
    match (dtype.kind(), dtype.itemsize()) {
        (b'i', 4) => convert::<i32>(array),
        (b'u', 2) => convert::<u16>(array),
        (b'u', 4) => convert::<u32>(array),
        (b'i', 8) => convert::<i64>(array),
        _ => Err(PyTypeError::new_err(format!(
            "ids must be int32, uint16, uint32 or int64, not {dtype}"
        ))),
    }
}

/// The rows of an array of shape [n, 2] as ranges of tokens.
fn ranges_of(label: &str, array: &PyReadonlyArray2<'_, i64>) -> PyResult<Vec<Range<u32>>> {
    let array = array.as_array();
    if array.ncols() != 2 {
        return Err(PyValueError::new_err(format!(
            "spans labelled {label:?} must have 2 columns, not {}",
            array.ncols()
        )));
    }
    let range = |row: numpy::ndarray::ArrayView1<'_, i64>| {
        let bounds = u32::try_from(row[0]).ok().zip(u32::try_from(row[1]).ok());
        bounds.map(|(start, end)| start..end).ok_or_else(|| {
            PyValueError::new_err(format!(
                "span {}..{} labelled {label:?} is outside any document",
                row[0], row[1]
            ))
        })
    };
    array.rows().into_iter().map(range).collect()
}

/// Behind a mutex that is only waited for with the GIL released.
#[pyclass(module = "cwm_core._native", frozen)]
pub struct ShardWriter(Mutex<packing::ShardWriter>);

impl ShardWriter {
    fn detached<R: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut packing::ShardWriter) -> packing::Result<R> + Send,
    ) -> PyResult<R> {
        py.detach(|| {
            let writer = self.0.lock();
            let mut writer = writer.map_err(|_: PoisonError<_>| PyRuntimeError::new_err("an earlier call panicked"))?;
            f(&mut writer).map_err(to_py)
        })
    }
}

#[pymethods]
impl ShardWriter {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf, vocab_size: u64, shard_tokens: u64, append: bool) -> PyResult<Self> {
        let writer = py
            .detach(|| packing::ShardWriter::create(&folder, vocab_size, shard_tokens, append))
            .map_err(to_py)?;
        Ok(ShardWriter(Mutex::new(writer)))
    }

    fn add(
        &self,
        ids: &Bound<'_, PyUntypedArray>,
        loss_mask: Option<PyReadonlyArray1<'_, bool>>,
        source: &str,
        spans: Vec<(String, PyReadonlyArray2<'_, i64>)>,
    ) -> PyResult<()> {
        let tokens = ids_of(ids)?;
        let mask = loss_mask.map(|mask| mask.as_array().to_vec());
        let ranges = |(label, array): (String, PyReadonlyArray2<'_, i64>)| {
            let ranges = ranges_of(&label, &array)?;
            Ok((label, ranges))
        };
        let spans = spans.into_iter().map(ranges).collect::<PyResult<Vec<_>>>()?;
        self.detached(ids.py(), |writer| {
            writer.add(&packing::NewDocument {
                ids: &tokens,
                loss_mask: mask.as_deref(),
                spans: &spans,
                source,
            })
        })
    }

    #[getter]
    fn documents(&self, py: Python<'_>) -> PyResult<u64> {
        self.detached(py, |writer| Ok(writer.documents()))
    }

    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<u64> {
        self.detached(py, |writer| Ok(writer.tokens()))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, packing::ShardWriter::finish)
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        self.detached(py, |writer| {
            writer.discard();
            Ok(())
        })
    }
}

#[pyclass(module = "cwm_core._native", frozen)]
pub struct Shards {
    shards: packing::Shards,
    sources: Vec<String>,
    /// For each shard, where its sources are in `sources`.
    places: Vec<Vec<usize>>,
    labels: Vec<String>,
}

/// Label, first token, token after the last.
type Spans = Vec<(String, u32, u32)>;
/// tokens, loss_mask, source, spans
type Document<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<bool>>, String, Spans);

type Numbers<'py> = Bound<'py, PyArray1<u32>>;

#[pymethods]
impl Shards {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        let shards = py.detach(|| packing::Shards::open(&folder)).map_err(to_py)?;
        let (sources, places) = shards.union(packing::Shard::sources);
        let (labels, _) = shards.union(packing::Shard::labels);
        Ok(Shards {
            shards,
            sources,
            places,
            labels,
        })
    }

    fn __len__(&self) -> usize {
        self.shards.documents() as usize
    }

    #[getter]
    fn tokens(&self) -> u64 {
        self.shards.tokens()
    }

    #[getter]
    fn vocab_size(&self) -> u64 {
        self.shards.vocab_size()
    }

    #[getter]
    fn sources(&self) -> Vec<String> {
        self.sources.clone()
    }

    #[getter]
    fn labels(&self) -> Vec<String> {
        self.labels.clone()
    }

    fn document<'py>(&self, py: Python<'py>, at: u64) -> PyResult<Document<'py>> {
        if at >= self.shards.documents() {
            return Err(PyIndexError::new_err(format!(
                "document {at} of {}",
                self.shards.documents()
            )));
        }
        let (part, document) = self.shards.locate(at);
        let shard = &self.shards.parts()[part];
        let (tokens, mask, spans) = py.detach(|| read(shard, document)).map_err(to_py)?;
        let named = |span: packing::Span| (shard.labels()[span.label as usize].clone(), span.start, span.end);
        Ok((
            tokens.into_pyarray(py),
            mask.into_pyarray(py),
            shard.sources()[shard.source_index(document)].clone(),
            spans.into_iter().map(named).collect(),
        ))
    }

    /// Tokens of every document, and the place of its source in `sources`.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<(Numbers<'py>, Numbers<'py>)> {
        let read = || {
            self.shards.check_present()?;
            let shards = self.shards.parts().iter().zip(&self.places);
            let sources = shards.flat_map(|(shard, places)| {
                (0..shard.documents()).map(|document| places[shard.source_index(document)] as u32)
            });
            Ok((
                self.shards.lengths().collect::<Vec<u32>>(),
                sources.collect::<Vec<u32>>(),
            ))
        };
        let (lengths, sources) = py.detach(read).map_err(to_py)?;
        Ok((lengths.into_pyarray(py), sources.into_pyarray(py)))
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.shards.verify()).map_err(to_py)
    }
}

type Content = (Vec<i32>, Vec<bool>, Vec<packing::Span>);

fn read(shard: &packing::Shard, document: u64) -> packing::Result<Content> {
    shard.check_present()?;
    let (mut runs, mut spans) = (Vec::new(), Vec::new());
    let mut tokens = vec![0; shard.document_len(document) as usize];
    let mut targets = vec![0; tokens.len() - 1];
    shard.read(document, 0, &mut tokens, &mut targets)?;
    let mut mask = vec![true; tokens.len()];
    shard.masked_runs(document, &mut runs)?;
    for &[start, end] in &runs {
        mask[start as usize..end as usize].fill(false);
    }
    shard.spans(document, &mut spans)?;
    Ok((tokens, mask, spans))
}
