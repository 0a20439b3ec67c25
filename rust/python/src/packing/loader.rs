//! The loader: zero-copy batches, prepared ahead by a thread, safe across threads and forks.

use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use cwm_packing as packing;
use numpy::ndarray::ArrayView2;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2};
use packing::{Config, Loader, Made, Mixture, Place, Prefetcher, State, Totals};
use pyo3::prelude::*;

use super::shards::open;
use super::to_py;
use crate::arrays;
use crate::interrupt::{detached, interruptible};

/// Time to wait for a batch before checking for Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(50);
const POLL: Duration = Duration::from_millis(1);

/// Memory of a batch's arrays. Returns to its loader when the last array is garbage collected.
#[pyclass(module = "cwm_core._native", frozen)]
pub struct BatchMemory(packing::Batch);

/// tokens, targets, loss_mask, position_ids, cu_seqlens, max_seqlen, source_ids, document_ids, padding, bucket
type BatchParts<'py> = (
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<bool>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray1<i32>>,
    usize,
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i64>>,
    usize,
    usize,
);

/// (steps, documents, positions), tokens by source, and for each bucket (cursors, rows taken, rest)
type StateParts = ((u64, u64, u64), Vec<u64>, Vec<(Vec<[u64; 2]>, u64, Option<[u64; 3]>)>);

/// name, folder, share, epochs
type SourceParts = (String, PathBuf, f64, Option<u64>);
/// name, share, epochs, and checksum and documents of each file
type SourceDescription = (String, f64, Option<u64>, Vec<(u32, u64)>);
/// longest document, tokens in a row, rows in a step
type BucketParts = (u32, usize, usize);

/// Current producer of batches.
enum Maker {
    /// No batch was requested since the beginning, an error, or the end.
    Idle,
    Loader(Box<Loader>),
    Ahead(Prefetcher),
}

/// A sequence of batches in one process. Another starts when the loader is moved, or in a fork.
struct Course {
    process: u32,
    /// Held without the GIL while waiting for a batch, until `state` is updated, so that batches and states stay in
    /// order whichever threads take them.
    maker: Mutex<Maker>,
    /// State after the last batch returned. Held only with the GIL, so that a fork never finds it locked by a thread
    /// that it does not have.
    state: Mutex<State>,
}

/// Implementation of `cwm_core.PackedLoader`.
#[pyclass(module = "cwm_core._native", frozen)]
pub struct PackedLoader {
    mixture: Arc<Mixture>,
    config: Config,
    /// Batches to prepare ahead.
    prefetch: usize,
    /// Held only with the GIL.
    course: Mutex<Arc<Course>>,
}

/// Locks a mutex, also after a panic: its value is only ever replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PackedLoader {
    /// Returns the course of this process. After a fork, leaks the parent's course: its thread and locks do not exist
    /// here.
    fn course(&self) -> Arc<Course> {
        let mut course = lock(&self.course);
        if course.process != process::id() {
            let state = lock(&course.state).clone();
            let old = std::mem::replace(&mut *course, Arc::new(Course::new(state, Maker::Idle)));
            std::mem::forget(old);
        }
        course.clone()
    }

    fn loader_at(&self, state: &State) -> packing::Result<Loader> {
        let mut loader = Loader::new(self.mixture.clone(), self.config.clone())?;
        loader.restore(state)?;
        Ok(loader)
    }

    /// Waits without the GIL for the maker and passes it to `f`. Returns `None` if it does not become free in time.
    fn with_maker<R: Send>(
        &self,
        py: Python<'_>,
        course: &Course,
        f: impl FnOnce(&mut Maker) -> PyResult<R> + Send,
    ) -> PyResult<Option<R>> {
        py.detach(|| {
            for _ in 0..PATIENCE.as_millis() / POLL.as_millis() {
                let maker = match course.maker.try_lock() {
                    Ok(maker) => maker,
                    Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                    Err(TryLockError::WouldBlock) => {
                        thread::sleep(POLL);
                        continue;
                    }
                };
                let mut maker = maker;
                return f(&mut maker).map(Some);
            }
            Ok(None)
        })
    }

    /// Returns the next batch of a course and records the state after it, or `None` if no batch is ready in time.
    fn make(&self, course: &Course, maker: &mut Maker) -> Option<packing::Result<Option<packing::Batch>>> {
        let made = match self.start(course, maker) {
            Ok(Maker::Ahead(prefetcher)) => prefetcher.next(PATIENCE)?,
            Ok(Maker::Loader(loader)) => next_of(loader),
            Ok(Maker::Idle) => return None,
            Err(error) => Err(error),
        };
        Some(match made {
            Ok(Some((batch, state))) => {
                Python::attach(|_| *lock(&course.state) = state);
                Ok(Some(batch))
            }
            Ok(None) => {
                *maker = Maker::Idle;
                Ok(None)
            }
            Err(error) => {
                *maker = Maker::Idle;
                Err(error)
            }
        })
    }

    fn start<'m>(&self, course: &Course, maker: &'m mut Maker) -> packing::Result<&'m mut Maker> {
        if let Maker::Idle = maker {
            let state = Python::attach(|_| lock(&course.state).clone());
            *maker = Maker::Loader(Box::new(self.loader_at(&state)?));
        }
        if self.prefetch > 0
            && let Maker::Loader(_) = maker
            && let Maker::Loader(loader) = std::mem::replace(maker, Maker::Idle)
        {
            *maker = Maker::Ahead(Prefetcher::start(*loader, self.prefetch)?);
        }
        Ok(maker)
    }
}

fn next_of(loader: &mut Loader) -> Made {
    loader.next_batch().map(|batch| Some((batch?, loader.state())))
}

impl Course {
    fn new(state: State, maker: Maker) -> Course {
        Course {
            process: process::id(),
            maker: Mutex::new(maker),
            state: Mutex::new(state),
        }
    }
}

impl Drop for PackedLoader {
    fn drop(&mut self) {
        let course = lock(&self.course);
        if course.process != process::id() {
            std::mem::forget(course.clone());
        }
    }
}

#[pymethods]
impl PackedLoader {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        sources: Vec<SourceParts>,
        vocab_size: Option<u64>,
        fingerprint: Option<u64>,
        buckets: Vec<BucketParts>,
        lookahead: Option<u64>,
        masks: Vec<(String, f64)>,
        rank: usize,
        world_size: usize,
        seed: u64,
        worker: (u64, u64),
        prefetch: usize,
    ) -> PyResult<Self> {
        arrays::load(py)?;
        let build = || {
            let config = Config {
                buckets: buckets_of(buckets),
                packing: match lookahead {
                    Some(lookahead) => packing::Packing::BestFit { lookahead },
                    None => packing::Packing::Stream,
                },
                rank,
                world_size,
                seed,
                masks,
                worker,
            };
            config.check()?;
            let source = |(name, folder, share, epochs): SourceParts| {
                Ok(packing::Source {
                    name,
                    shards: open(&folder, vocab_size, fingerprint)?,
                    share,
                    epochs,
                })
            };
            let sources = sources.into_iter().map(source).collect::<packing::Result<_>>()?;
            let mixture = Arc::new(Mixture::new(sources, seed)?);
            let loader = Loader::new(mixture.clone(), config.clone())?;
            let course = Course::new(loader.state(), Maker::Loader(Box::new(loader)));
            Ok(PackedLoader {
                mixture,
                config,
                prefetch,
                course: Mutex::new(Arc::new(course)),
            })
        };
        detached(py, to_py, build)
    }

    fn next_batch<'py>(&self, py: Python<'py>) -> PyResult<Option<BatchParts<'py>>> {
        let course = self.course();
        loop {
            let make = |maker: &mut Maker| interruptible(to_py, || self.make(&course, maker).transpose());
            match self.with_maker(py, &course, make)?.flatten() {
                Some(batch) => return batch.map(|batch| arrays_of(py, batch)).transpose(),
                None => py.check_signals()?,
            }
        }
    }

    /// Skips up to `steps` steps without reading tokens and returns how many. After an error, the loader does not move.
    fn skip(&self, py: Python<'_>, steps: u64) -> PyResult<u64> {
        let course = self.course();
        let skip = |maker: &mut Maker| {
            let state = Python::attach(|_| lock(&course.state).clone());
            let mut loader = match std::mem::replace(maker, Maker::Idle) {
                Maker::Loader(loader) => loader,
                _ => Box::new(self.loader_at(&state)?),
            };
            let mut skipped = 0;
            while skipped < steps && loader.skip()? {
                skipped += 1;
            }
            let state = loader.state();
            Python::attach(|_| *lock(&course.state) = state);
            *maker = Maker::Loader(loader);
            Ok(skipped)
        };
        loop {
            match self.with_maker(py, &course, |maker| interruptible(to_py, || skip(maker)))? {
                Some(skipped) => return Ok(skipped),
                None => py.check_signals()?,
            }
        }
    }

    /// See [`Mixture::fingerprint`].
    fn fingerprint(&self) -> u64 {
        self.mixture.fingerprint()
    }

    #[getter]
    fn vocabulary_fingerprint(&self) -> Option<u64> {
        self.mixture.vocabulary_fingerprint()
    }

    /// Returns for each source its name, share, and epochs, and for each of its files in order a checksum and the
    /// number of documents. [`Mixture::fingerprint`] depends on these alone.
    fn description(&self) -> Vec<SourceDescription> {
        let sources = self.mixture.sources.iter();
        let describe = |source: &packing::Source| {
            let parts = source.shards.parts().iter();
            let parts = parts.map(|part| (part.checksum(), part.documents())).collect();
            (source.name.clone(), source.share, source.epochs, parts)
        };
        sources.map(describe).collect()
    }

    #[getter]
    fn vocab_size(&self) -> Option<u64> {
        self.mixture.vocab_size()
    }

    fn state(&self) -> StateParts {
        let course = self.course();
        let State { totals, places } = lock(&course.state).clone();
        let parts = |place: Place| (place.cursors, place.taken, place.rest);
        (
            (totals.steps, totals.documents, totals.positions),
            totals.tokens,
            places.into_iter().map(parts).collect(),
        )
    }

    fn restore(&self, py: Python<'_>, state: StateParts) -> PyResult<()> {
        let ((steps, documents, positions), tokens, places) = state;
        let totals = Totals {
            steps,
            tokens,
            documents,
            positions,
        };
        let place = |(cursors, taken, rest)| Place { cursors, taken, rest };
        let places = places.into_iter().map(place).collect();
        let state = State { totals, places };
        let loader = detached(py, to_py, || self.loader_at(&state))?;
        let course = Arc::new(Course::new(state, Maker::Loader(Box::new(loader))));
        let old = std::mem::replace(&mut *lock(&self.course), course);
        if old.process != process::id() {
            std::mem::forget(old);
        }
        Ok(())
    }
}

fn buckets_of(buckets: Vec<BucketParts>) -> Vec<packing::Bucket> {
    let mut longest = 0u32;
    let bucket = |(max_length, seq_len, batch_size): BucketParts| {
        let first = longest.saturating_add(1);
        longest = max_length;
        packing::Bucket {
            lengths: first..=max_length,
            seq_len,
            batch_size,
        }
    };
    buckets.into_iter().map(bucket).collect()
}

fn arrays_of(py: Python<'_>, mut batch: packing::Batch) -> PyResult<BatchParts<'_>> {
    let (max_seqlen, padding, bucket) = (batch.max_seqlen, batch.padding, batch.bucket);
    let cu_seqlens = std::mem::take(&mut batch.cu_seqlens).into_pyarray(py);
    let source_ids = std::mem::take(&mut batch.source_ids).into_pyarray(py);
    let document_ids = std::mem::take(&mut batch.document_ids).into_pyarray(py);
    let memory = Bound::new(py, BatchMemory(batch))?;
    let large = &memory.get().0.arrays;
    Ok((
        array(&memory, &large.tokens)?,
        array(&memory, &large.targets)?,
        array(&memory, &large.loss_mask)?,
        array(&memory, &large.position_ids)?,
        cu_seqlens,
        max_seqlen,
        source_ids,
        document_ids,
        padding,
        bucket,
    ))
}

/// Creates an array over part of the batch's memory, which it keeps alive.
fn array<'py, T: Element>(memory: &Bound<'py, BatchMemory>, data: &[T]) -> PyResult<Bound<'py, PyArray2<T>>> {
    let shape = (memory.get().0.rows, memory.get().0.seq_len);
    let view = ArrayView2::from_shape(shape, data)
        .map_err(|error| pyo3::exceptions::PyRuntimeError::new_err(error.to_string()))?;
    // SAFETY: the data is in `memory`, which the array keeps alive and nothing else accesses: the loader gets it back
    // when the last array is gone, and overwrites it without reading.
    Ok(unsafe { PyArray2::borrow_from_array(&view, memory.clone().into_any()) })
}
