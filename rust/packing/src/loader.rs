//! The loader: one global order of steps and rows, from which every rank takes its slice.

use std::sync::Arc;

use cwm_interrupt::{Pace, check};

use crate::batch::{Batch, Filler, MaskPolicy};
use crate::error::{Error, Result};
use crate::mix::{Mixture, Source};
use crate::permute::mix64;
use crate::plan::{MAX_COUNT, Packing, Place, Planner};
use crate::rows::{Bucket, Rows};
use crate::shards::Shards;

const MAX_LOOKAHEAD: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct Config {
    /// Buckets by length: each takes the documents that are longer than those of the previous one.
    pub buckets: Vec<Bucket>,
    pub packing: Packing,
    pub rank: usize,
    pub world_size: usize,
    pub seed: u64,
    /// Fraction of the spans to exclude from the loss, by label.
    pub masks: Vec<(String, f64)>,
    /// Index of this loader among those that share a rank, and their number. They take the rank's steps in turn.
    pub worker: (u64, u64),
}

impl Config {
    pub fn check(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::Invalid(what));
        let (rank, world_size) = (self.rank, self.world_size);
        if self.buckets.is_empty() {
            return invalid("no buckets".into());
        }
        if world_size == 0 {
            return invalid("world_size must be at least 1".into());
        }
        if rank >= world_size {
            return invalid(format!("rank {rank} must be less than world_size {world_size}"));
        }
        let (worker, workers) = self.worker;
        if worker >= workers {
            return invalid(format!(
                "worker {worker} must be less than the number of workers, {workers}"
            ));
        }
        if let Packing::BestFit { lookahead } = self.packing
            && !(1..=MAX_LOOKAHEAD).contains(&lookahead)
        {
            return invalid(format!("lookahead must be 1 to {MAX_LOOKAHEAD}, not {lookahead}"));
        }
        let mut longest = 0;
        for Bucket {
            lengths,
            seq_len,
            batch_size,
        } in &self.buckets
        {
            if *seq_len == 0 || *batch_size == 0 {
                return invalid("seq_len and batch_size must be at least 1".into());
            }
            if *lengths.start() != longest + 1 || lengths.is_empty() {
                return invalid("the max_length of each bucket must be greater than that of the previous one".into());
            }
            longest = *lengths.end();
            let positions = batch_size.div_ceil(world_size).checked_mul(*seq_len);
            if positions.is_none_or(|positions| positions > i32::MAX as usize) {
                return invalid("a rank's batch must have fewer than 2^31 tokens".into());
            }
            if longest == u32::MAX {
                break;
            }
        }
        if longest != u32::MAX {
            return invalid("the last bucket must have no max_length".into());
        }
        Ok(())
    }
}

/// Totals over all ranks since step 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    pub steps: u64,
    /// Tokens of each source.
    pub tokens: Vec<u64>,
    /// Documents whose last token was returned.
    pub documents: u64,
    /// Positions of all rows, including those without a token.
    pub positions: u64,
}

/// Position of the loader: the same on every rank, and everything that another loader over the same data needs to
/// resume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub totals: Totals,
    /// One place per bucket.
    pub places: Vec<Place>,
}

pub struct Loader {
    mixture: Arc<Mixture>,
    config: Config,
    /// The buckets that have documents, and the sources of these documents. With endless epochs, a planner of an empty
    /// bucket would search forever.
    used: Vec<(usize, Vec<usize>)>,
    /// One for each of `used`.
    planners: Vec<Planner>,
    totals: Totals,
    filler: Filler,
    rows: Rows,
    /// After an error: the position before the failed call.
    interrupted: Option<State>,
}

impl Loader {
    pub fn new(mixture: Arc<Mixture>, config: Config) -> Result<Loader> {
        config.check()?;
        let filler = Filler::new(MaskPolicy::new(&mixture, &config.masks, config.seed)?);
        let used = used_buckets(&mixture, &config.buckets)?;
        let planners = used.iter().map(|used| planner(&mixture, &config, used));
        let planners = planners.collect::<Result<_>>()?;
        let totals = Totals {
            tokens: vec![0; mixture.sources.len()],
            ..Totals::default()
        };
        Ok(Loader {
            mixture,
            config,
            used,
            planners,
            totals,
            filler,
            rows: Rows::default(),
            interrupted: None,
        })
    }

    /// Returns this rank's rows of the next step, or `None` after the last. After an error, the loader does not move.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        self.or_go_back(Loader::make_batch)
    }

    /// Skips the next step without reading its tokens. Returns `false` if there is none.
    pub fn skip(&mut self) -> Result<bool> {
        self.or_go_back(|loader| Ok(loader.plan()?.is_some()))
    }

    fn or_go_back<T>(&mut self, f: impl FnOnce(&mut Loader) -> Result<T>) -> Result<T> {
        if let Some(state) = self.interrupted.take()
            && let Err(error) = self.restore(&state)
        {
            self.interrupted = Some(state);
            return Err(error);
        }
        let before = self.state();
        let result = f(self);
        if result.is_err() {
            self.interrupted = Some(before);
        }
        result
    }

    fn make_batch(&mut self) -> Result<Option<Batch>> {
        let (worker, workers) = self.config.worker;
        while self.totals.steps % workers != worker {
            if self.plan()?.is_none() {
                return Ok(None);
            }
        }
        let Some(bucket) = self.plan()? else {
            return Ok(None);
        };
        let Bucket {
            batch_size, seq_len, ..
        } = self.config.buckets[bucket];
        let Config { rank, world_size, .. } = self.config;
        // Slices of a step differ by at most one row. All are padded to the size of the largest.
        let slice = batch_size * rank / world_size..batch_size * (rank + 1) / world_size;
        let rows = slice_of(&self.rows, slice);
        let count = batch_size.div_ceil(world_size);
        self.filler.fill(&self.mixture, &rows, count, seq_len, bucket).map(Some)
    }

    /// Plans all rows of the next step and returns their bucket. Every rank plans the rows of all ranks, so that the
    /// order does not depend on the number of ranks.
    fn plan(&mut self) -> Result<Option<usize>> {
        check()?;
        // A stream reads lengths of documents at every step, in any shard. A window read them when it was planned.
        if self.config.packing == Packing::Stream {
            self.mixture.check_present()?;
        }
        let Some(next) = self.next_planner()? else {
            return Ok(None);
        };
        let (bucket, planner) = (self.used[next].0, &mut self.planners[next]);
        let Bucket {
            batch_size, seq_len, ..
        } = self.config.buckets[bucket];
        self.rows.clear();
        for _ in 0..batch_size {
            planner.next_row(&self.mixture, &mut self.rows)?;
        }
        self.totals.steps += 1;
        self.totals.positions += (batch_size * seq_len) as u64;
        for piece in &self.rows.pieces {
            self.totals.tokens[piece.source as usize] += u64::from(piece.len);
            self.totals.documents += u64::from(piece.is_last);
        }
        Ok(Some(bucket))
    }

    /// Returns the planner that is furthest behind in the common order of documents, so that all advance together.
    fn next_planner(&mut self) -> Result<Option<usize>> {
        let mut next: Option<(usize, f64)> = None;
        for (at, planner) in self.planners.iter_mut().enumerate() {
            if planner.is_ready(&self.mixture)? {
                let progress = planner.progress();
                if next.is_none_or(|(_, least)| progress < least) {
                    next = Some((at, progress));
                }
            }
        }
        Ok(next.map(|(at, _)| at))
    }

    pub fn state(&self) -> State {
        self.interrupted.clone().unwrap_or_else(|| State {
            totals: self.totals.clone(),
            places: self.planners.iter().map(Planner::place).collect(),
        })
    }

    /// Moves to the position of a state, at a cost that does not depend on the distance. Fails on an invalid state,
    /// without moving.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        self.check_state(state)?;
        self.mixture.check_present()?;
        let mut planners = Vec::new();
        for (used, place) in self.used.iter().zip(&state.places) {
            let mut planner = planner(&self.mixture, &self.config, used)?;
            planner.go_to(&self.mixture, place)?;
            planners.push(planner);
        }
        (self.planners, self.totals, self.interrupted) = (planners, state.totals.clone(), None);
        Ok(())
    }

    fn check_state(&self, state: &State) -> Result<()> {
        let (places, buckets) = (state.places.len(), self.planners.len());
        let (tokens, sources) = (state.totals.tokens.len(), self.mixture.sources.len());
        if places != buckets || tokens != sources {
            return Err(Error::Invalid(format!(
                "loader state: {places} places for {buckets} buckets, {tokens} token counts for {sources} sources"
            )));
        }
        let Totals {
            steps,
            documents,
            positions,
            ..
        } = state.totals;
        let mut counts = state.totals.tokens.iter().chain([&steps, &documents, &positions]);
        match counts.find(|&&count| count > MAX_COUNT) {
            Some(count) => Err(Error::Invalid(format!("loader state: count {count} is too large"))),
            None => Ok(()),
        }
    }
}

/// Returns the buckets that have documents, each with the sources of these documents.
fn used_buckets(mixture: &Mixture, buckets: &[Bucket]) -> Result<Vec<(usize, Vec<usize>)>> {
    let mut used = Vec::new();
    for (number, bucket) in buckets.iter().enumerate() {
        let mut sources = Vec::new();
        for (source, Source { shards, .. }) in mixture.sources.iter().enumerate() {
            if has_documents(shards, bucket)? {
                sources.push(source);
            }
        }
        if !sources.is_empty() {
            used.push((number, sources));
        }
    }
    Ok(used)
}

fn has_documents(shards: &Shards, bucket: &Bucket) -> Result<bool> {
    if bucket.lengths == (1..=u32::MAX) {
        return Ok(true); // every length fits, so there is no need to read them
    }
    shards.check_present()?;
    let mut pace = Pace::default();
    for length in shards.lengths() {
        if bucket.lengths.contains(&length) {
            return Ok(true);
        }
        pace.did(1)?;
    }
    Ok(false)
}

fn planner(mixture: &Mixture, config: &Config, (bucket, sources): &(usize, Vec<usize>)) -> Result<Planner> {
    let seed = mix64(mix64(config.seed) ^ *bucket as u64);
    let bucket = config.buckets[*bucket].clone();
    Planner::new(mixture, bucket, sources.clone(), config.packing, seed)
}

fn slice_of(rows: &Rows, slice: std::ops::Range<usize>) -> Rows {
    let first = if slice.start == 0 {
        0
    } else {
        rows.ends[slice.start - 1]
    };
    let ends: Vec<usize> = rows.ends[slice].iter().map(|end| end - first).collect();
    let pieces = rows.pieces[first..first + ends.last().copied().unwrap_or(0)].to_vec();
    Rows { pieces, ends }
}
