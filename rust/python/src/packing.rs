//! Bindings of `cwm_packing`. Every object sits behind a mutex that is only waited for with the GIL released, so a
//! loader may be advanced in one thread and its state saved in another.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cwm_packing as packing;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArray};
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<ShardWriter>()?;
    m.add_class::<Shards>()?;
    m.add_class::<PackedLoader>()
}

fn to_py(error: packing::Error) -> PyErr {
    match error {
        // PyO3 picks the subclass of OSError from the kind; rewrapping keeps the kind and adds the path.
        packing::Error::Io { path, error } => {
            io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
        }
        error => PyValueError::new_err(error.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> PyResult<MutexGuard<'_, T>> {
    mutex
        .lock()
        .map_err(|_: PoisonError<_>| PyRuntimeError::new_err("an earlier call panicked"))
}

/// Runs `f` on what the mutex holds, without the GIL.
fn detached<T: Send, R: Send>(
    py: Python<'_>,
    mutex: &Mutex<T>,
    f: impl FnOnce(&mut T) -> packing::Result<R> + Send,
) -> PyResult<R> {
    py.detach(|| f(&mut *lock(mutex)?).map_err(to_py))
}

/// The ids of any integer array, each checked to fit u32.
fn ids_of(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<u32>> {
    fn convert<T: Element + Copy + TryInto<u32> + ToString>(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<u32>> {
        let ids: PyReadonlyArray1<'_, T> = array.extract()?;
        let outside = |(at, id): (usize, T)| {
            PyValueError::new_err(format!("token {at} has id {}, outside any vocabulary", id.to_string()))
        };
        let checked = |(at, &id): (usize, &T)| id.try_into().map_err(|_| outside((at, id)));
        ids.as_array().iter().enumerate().map(checked).collect()
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

#[pyclass(module = "cwm_core._native", frozen)]
struct ShardWriter(Mutex<packing::ShardWriter>);

#[pymethods]
impl ShardWriter {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf, vocab_size: u64, shard_tokens: u64) -> PyResult<Self> {
        let writer = py
            .detach(|| packing::ShardWriter::create(&folder, vocab_size, shard_tokens))
            .map_err(to_py)?;
        Ok(ShardWriter(Mutex::new(writer)))
    }

    fn add(
        &self,
        ids: &Bound<'_, PyUntypedArray>,
        loss_mask: Option<PyReadonlyArray1<'_, bool>>,
        source: &str,
    ) -> PyResult<()> {
        let tokens = ids_of(ids)?;
        let mask = loss_mask.map(|mask| mask.as_array().to_vec());
        detached(ids.py(), &self.0, |writer| writer.add(&tokens, mask.as_deref(), source))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, &self.0, packing::ShardWriter::finish)
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, &self.0, |writer| {
            writer.discard();
            Ok(())
        })
    }
}

#[pyclass(module = "cwm_core._native", frozen)]
struct Shards {
    shards: packing::Shards,
    sources: Vec<String>,
    /// For each shard, where its sources are in `sources`.
    places: Vec<Vec<usize>>,
}

/// tokens, loss_mask, source
type Document<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<bool>>, String);

#[pymethods]
impl Shards {
    #[new]
    fn new(py: Python<'_>, folder: PathBuf) -> PyResult<Self> {
        let shards = py.detach(|| packing::Shards::open(&folder)).map_err(to_py)?;
        let (sources, places) = shards.sources();
        Ok(Shards {
            shards,
            sources,
            places,
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

    fn document<'py>(&self, py: Python<'py>, at: u64) -> PyResult<Document<'py>> {
        if at >= self.shards.documents() {
            return Err(PyIndexError::new_err(format!(
                "document {at} of {}",
                self.shards.documents()
            )));
        }
        let (shard, document) = self.shards.locate(at);
        let (tokens, mask) = py
            .detach(|| {
                let mut tokens = vec![0; shard.document_len(document) as usize];
                shard.read(document, 0, &mut tokens)?;
                let mut mask = vec![false; tokens.len()];
                shard
                    .spans(document, 0)
                    .for_each(|(start, end)| mask[start..end].fill(true));
                Ok((tokens, mask))
            })
            .map_err(to_py)?;
        Ok((
            tokens.into_pyarray(py),
            mask.into_pyarray(py),
            shard.source(document).to_owned(),
        ))
    }

    /// Tokens of every document, and the place of its source in `sources`.
    fn lengths<'py>(&self, py: Python<'py>) -> (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u32>>) {
        let (lengths, sources): (Vec<u32>, Vec<u32>) = py.detach(|| {
            let shards = self.shards.shards().iter().zip(&self.places);
            shards
                .flat_map(|(shard, places)| {
                    (0..shard.documents()).map(|at| (shard.document_len(at), places[shard.source_index(at)] as u32))
                })
                .unzip()
        });
        (lengths.into_pyarray(py), sources.into_pyarray(py))
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.shards.verify()).map_err(to_py)
    }
}

#[pyclass(module = "cwm_core._native", frozen)]
struct PackedLoader(Mutex<packing::Loader>);

/// tokens, targets, loss_mask, position_ids, cu_seqlens, max_seqlen, source_ids, padding
type BatchParts<'py> = (
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<bool>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray1<i32>>,
    usize,
    Bound<'py, PyArray1<i32>>,
    usize,
);

/// step, cursors, look-ahead
type State = (u64, Vec<[u64; 3]>, Vec<[u64; 3]>);

#[pymethods]
impl PackedLoader {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        sources: Vec<(String, PathBuf, f64)>,
        seq_len: usize,
        batch_size: usize,
        rank: usize,
        world_size: usize,
        seed: u64,
        epochs: Option<u64>,
        lookahead: usize,
    ) -> PyResult<Self> {
        let config = packing::Config {
            seq_len,
            batch_size,
            rank,
            world_size,
            seed,
            epochs,
            lookahead,
        };
        let open = |(name, folder, share): (String, PathBuf, f64)| {
            Ok(packing::Source {
                name,
                shards: packing::Shards::open(&folder)?,
                share,
            })
        };
        let build = || packing::Loader::new(sources.into_iter().map(open).collect::<packing::Result<_>>()?, config);
        Ok(PackedLoader(Mutex::new(py.detach(build).map_err(to_py)?)))
    }

    /// The arrays own the memory that the loader filled.
    fn next_batch<'py>(&self, py: Python<'py>) -> PyResult<Option<BatchParts<'py>>> {
        let Some(batch) = detached(py, &self.0, packing::Loader::next_batch)? else {
            return Ok(None);
        };
        let shape = [batch.rows, batch.tokens.len() / batch.rows];
        Ok(Some((
            batch.tokens.into_pyarray(py).reshape(shape)?,
            batch.targets.into_pyarray(py).reshape(shape)?,
            batch.loss_mask.into_pyarray(py).reshape(shape)?,
            batch.position_ids.into_pyarray(py).reshape(shape)?,
            batch.cu_seqlens.into_pyarray(py),
            batch.max_seqlen,
            batch.source_ids.into_pyarray(py),
            batch.padding,
        )))
    }

    /// Changes when any byte of the data, a name or a share does.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, &self.0, |loader| Ok(loader.mixture().fingerprint()))
    }

    #[getter]
    fn vocab_size(&self, py: Python<'_>) -> PyResult<u64> {
        detached(py, &self.0, |loader| {
            Ok(loader.mixture().sources[0].shards.vocab_size())
        })
    }

    fn state(&self, py: Python<'_>) -> PyResult<State> {
        let state = detached(py, &self.0, |loader| Ok(loader.state()))?;
        Ok((state.step, state.cursors, state.lookahead))
    }

    fn restore(&self, py: Python<'_>, step: u64, cursors: Vec<[u64; 3]>, lookahead: Vec<[u64; 3]>) -> PyResult<()> {
        detached(py, &self.0, |loader| {
            loader.restore(&packing::State {
                step,
                cursors,
                lookahead,
            })
        })
    }

    /// steps, tokens, documents, efficiency, tokens a source
    fn stats(&self, py: Python<'_>) -> PyResult<(u64, u64, u64, f64, Vec<u64>)> {
        let stats = detached(py, &self.0, |loader| Ok(loader.stats()))?;
        Ok((
            stats.steps,
            stats.tokens,
            stats.documents,
            stats.efficiency,
            stats.source_tokens,
        ))
    }
}
