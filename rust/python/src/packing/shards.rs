//! Writes and reads token shards.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cwm_interrupt::Pace;
use cwm_packing as packing;
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArray};
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::to_py;
use crate::arrays;
use crate::interrupt::{detached, interruptible};

/// Units of work to add a document, besides one for every token, for [`Pace`].
const DOCUMENT_WORK: u64 = 32;

/// Ids of a one-dimensional array of any integer type.
enum Ids {
    I32(Vec<i32>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    I64(Vec<i64>),
}

impl Ids {
    fn of(array: &Bound<'_, PyUntypedArray>) -> PyResult<Ids> {
        fn copied<T: Element + Copy>(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<T>> {
            let ids: PyReadonlyArray1<'_, T> = array.extract()?;
            // Copying a contiguous slice is much faster.
            Ok(match ids.as_slice() {
                Ok(ids) => ids.to_vec(),
                Err(_) => ids.as_array().to_vec(),
            })
        }
        if array.ndim() != 1 {
            return Err(PyValueError::new_err(format!(
                "ids must have one dimension, not {}",
                array.ndim()
            )));
        }
        if array.is_empty() {
            return Ok(Ids::U32(Vec::new())); // of any type: an empty list arrives as float64
        }
        let dtype = array.dtype();
        match (dtype.kind(), dtype.itemsize()) {
            (b'i', 4) => copied(array).map(Ids::I32),
            (b'u', 2) => copied(array).map(Ids::U16),
            (b'u', 4) => copied(array).map(Ids::U32),
            (b'i', 8) => copied(array).map(Ids::I64),
            _ => Err(PyTypeError::new_err(format!(
                "ids must be int32, uint16, uint32, or int64, not {dtype}"
            ))),
        }
    }

    fn len(&self) -> usize {
        match self {
            Ids::I32(ids) => ids.len(),
            Ids::U16(ids) => ids.len(),
            Ids::U32(ids) => ids.len(),
            Ids::I64(ids) => ids.len(),
        }
    }

    /// Copies the ids of a range to `out`. Fails if one does not fit u32. Panics if there are fewer.
    fn get(&self, range: Range<usize>, out: &mut Vec<u32>) -> packing::Result<()> {
        fn convert<T: Copy + TryInto<u32> + ToString>(ids: &[T], out: &mut Vec<u32>) -> packing::Result<()> {
            // Two passes, the first without an early exit, are much faster than one pass with an early exit.
            let is_outside = |&id: &T| TryInto::<u32>::try_into(id).is_err();
            if ids.iter().fold(false, |found, id| found | is_outside(id))
                && let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| is_outside(id))
            {
                return Err(packing::Error::Invalid(format!(
                    "token {at} has id {}, outside any vocabulary",
                    id.to_string()
                )));
            }
            out.clear();
            out.extend(ids.iter().map(|&id| id.try_into().unwrap_or(u32::MAX)));
            Ok(())
        }
        match self {
            Ids::I32(ids) => convert(&ids[range], out),
            Ids::U16(ids) => convert(&ids[range], out),
            Ids::U32(ids) => convert(&ids[range], out),
            Ids::I64(ids) => convert(&ids[range], out),
        }
    }
}

/// Converts the rows of an array of shape [n, 2] to ranges of tokens.
fn ranges_of(label: &str, array: &PyReadonlyArray2<'_, i64>) -> PyResult<Vec<Range<u32>>> {
    let array = array.as_array();
    if array.ncols() != 2 {
        return Err(PyValueError::new_err(format!(
            "spans labeled {label:?} must have 2 columns, not {}",
            array.ncols()
        )));
    }
    let range = |row: numpy::ndarray::ArrayView1<'_, i64>| {
        let bounds = u32::try_from(row[0]).ok().zip(u32::try_from(row[1]).ok());
        bounds.map(|(start, end)| start..end).ok_or_else(|| {
            PyValueError::new_err(format!(
                "span {}..{} labeled {label:?} is outside any document",
                row[0], row[1]
            ))
        })
    };
    array.rows().into_iter().map(range).collect()
}

/// Returns the ranges between ascending offsets, from 0 to `len`.
fn ranges_between(offsets: &PyReadonlyArray1<'_, i64>, len: usize) -> PyResult<Vec<Range<usize>>> {
    let offsets = offsets.as_array().to_vec();
    let covers = offsets.first() == Some(&0) && offsets.last().map(|&last| last as u64) == Some(len as u64);
    if !covers || !offsets.is_sorted() {
        return Err(PyValueError::new_err(format!(
            "offsets must ascend from 0 to the number of ids, {len}"
        )));
    }
    Ok(offsets
        .windows(2)
        .map(|pair| pair[0] as usize..pair[1] as usize)
        .collect())
}

/// Returns the index in `sources` of every document's tag.
fn tags_of(
    sources: &[String],
    source_ids: Option<PyReadonlyArray1<'_, i64>>,
    documents: usize,
) -> PyResult<Vec<usize>> {
    let tags = source_ids.map_or(vec![0; documents], |ids| ids.as_array().to_vec());
    if tags.len() != documents {
        return Err(PyValueError::new_err(format!(
            "{} source_ids for {documents} documents",
            tags.len()
        )));
    }
    let tag = |id: i64| {
        let known = usize::try_from(id).ok().filter(|&id| id < sources.len());
        known.ok_or_else(|| {
            PyValueError::new_err(format!("source id {id} is not an index into {} sources", sources.len()))
        })
    };
    tags.into_iter().map(tag).collect()
}

/// Implementation of `cwm_core.ShardWriter`: a writer behind a mutex. Threads wait for the mutex only with the GIL
/// released.
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
            interruptible(to_py, || f(&mut writer))
        })
    }
}

#[pymethods]
impl ShardWriter {
    #[new]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        vocab_size: u64,
        fingerprint: Option<u64>,
        shard_tokens: u64,
        append: bool,
    ) -> PyResult<Self> {
        arrays::load(py)?;
        let create = || {
            let mut writer = packing::ShardWriter::create(&folder, vocab_size, shard_tokens, append)?;
            fingerprint.map_or(Ok(()), |fingerprint| writer.set_fingerprint(fingerprint))?;
            Ok(writer)
        };
        let writer = detached(py, to_py, create)?;
        Ok(ShardWriter(Mutex::new(writer)))
    }

    fn add(
        &self,
        ids: &Bound<'_, PyUntypedArray>,
        loss_mask: Option<PyReadonlyArray1<'_, bool>>,
        source: &str,
        spans: Vec<(String, PyReadonlyArray2<'_, i64>)>,
    ) -> PyResult<()> {
        let (py, ids) = (ids.py(), Ids::of(ids)?);
        let mask = loss_mask.map(|mask| mask.as_array().to_vec());
        let ranges = |(label, array): (String, PyReadonlyArray2<'_, i64>)| {
            let ranges = ranges_of(&label, &array)?;
            Ok((label, ranges))
        };
        let spans = spans.into_iter().map(ranges).collect::<PyResult<Vec<_>>>()?;
        self.detached(py, |writer| {
            let mut tokens = Vec::new();
            ids.get(0..ids.len(), &mut tokens)?;
            writer.add(&packing::NewDocument {
                ids: &tokens,
                loss_mask: mask.as_deref(),
                spans: &spans,
                source,
            })
        })
    }

    /// Adds documents that are stored one after the other. Stops at the first invalid one.
    fn add_many(
        &self,
        ids: &Bound<'_, PyUntypedArray>,
        offsets: PyReadonlyArray1<'_, i64>,
        loss_mask: Option<PyReadonlyArray1<'_, bool>>,
        sources: Vec<String>,
        source_ids: Option<PyReadonlyArray1<'_, i64>>,
    ) -> PyResult<()> {
        let (py, ids) = (ids.py(), Ids::of(ids)?);
        let ranges = ranges_between(&offsets, ids.len())?;
        let mask = loss_mask.map(|mask| mask.as_array().to_vec());
        if let Some(mask) = mask.as_ref().filter(|mask| mask.len() != ids.len()) {
            let (entries, tokens) = (mask.len(), ids.len());
            return Err(PyValueError::new_err(format!(
                "loss_mask has {entries} entries for {tokens} tokens"
            )));
        }
        let tags = tags_of(&sources, source_ids, ranges.len())?;
        self.detached(py, |writer| {
            let (mut tokens, mut pace) = (Vec::new(), Pace::default());
            for (range, tag) in ranges.into_iter().zip(tags) {
                pace.did(DOCUMENT_WORK + range.len() as u64)?;
                ids.get(range.clone(), &mut tokens)?;
                writer.add(&packing::NewDocument {
                    ids: &tokens,
                    loss_mask: mask.as_ref().map(|mask| &mask[range]),
                    spans: &[],
                    source: &sources[tag],
                })?;
            }
            Ok(())
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

/// Implementation of `cwm_core.Shards`.
#[pyclass(module = "cwm_core._native", frozen)]
pub struct Shards {
    shards: packing::Shards,
    sources: Vec<String>,
    /// For each part, the indices of its sources in `sources`.
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
    fn new(py: Python<'_>, path: PathBuf, vocab_size: Option<u64>, fingerprint: Option<u64>) -> PyResult<Self> {
        arrays::load(py)?;
        let shards = detached(py, to_py, || open(&path, vocab_size, fingerprint))?;
        let (sources, places) = shards.union(packing::Part::sources);
        let (labels, _) = shards.union(packing::Part::labels);
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
    fn vocab_size(&self) -> Option<u64> {
        self.shards.vocab_size()
    }

    #[getter]
    fn vocabulary_fingerprint(&self) -> Option<u64> {
        self.shards.fingerprint()
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
        let (tokens, mask, spans) = detached(py, to_py, || read(shard, document))?;
        let named = |span: packing::Span| (shard.labels()[span.label as usize].clone(), span.start, span.end);
        Ok((
            tokens.into_pyarray(py),
            mask.into_pyarray(py),
            shard.sources()[shard.source_index(document)].clone(),
            spans.into_iter().map(named).collect(),
        ))
    }

    /// Returns the number of tokens of every document, and the index of its source in `sources`.
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<(Numbers<'py>, Numbers<'py>)> {
        let read = || {
            self.shards.check_present()?;
            let (mut lengths, mut sources, mut pace) = (Vec::new(), Vec::new(), Pace::default());
            for (shard, places) in self.shards.parts().iter().zip(&self.places) {
                for document in 0..shard.documents() {
                    pace.did(1)?;
                    lengths.push(shard.document_len(document));
                    sources.push(places[shard.source_index(document)] as u32);
                }
            }
            Ok((lengths, sources))
        };
        let (lengths, sources) = detached(py, to_py, read)?;
        Ok((lengths.into_pyarray(py), sources.into_pyarray(py)))
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, to_py, || self.shards.verify())
    }
}

/// Opens data and checks that they have the given vocabulary, if any.
pub fn open(path: &Path, vocab_size: Option<u64>, fingerprint: Option<u64>) -> packing::Result<packing::Shards> {
    let mut shards = packing::Shards::open(path)?;
    let named = |error| packing::Error::Invalid(format!("{}: {error}", path.display()));
    if let Some(size) = vocab_size {
        shards.set_vocab_size(size).map_err(named)?;
    }
    if let Some(fingerprint) = fingerprint {
        shards.check_fingerprint(fingerprint).map_err(named)?;
    }
    Ok(shards)
}

type Content = (Vec<i32>, Vec<bool>, Vec<packing::Span>);

fn read(shard: &packing::Part, document: u64) -> packing::Result<Content> {
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
