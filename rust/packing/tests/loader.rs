//! Tests that a loader that stops and resumes on more or fewer ranks yields the same as an uninterrupted one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cwm_packing::{
    Batch, Bucket, Config, Loader, Mixture, NewDocument, Packing, Place, Prefetcher, ShardWriter, Shards, Source,
    State, Totals,
};
use proptest::prelude::*;

/// Every token of every document of every source is different, from 1 on.
fn write(folder: &Path, sources: &[Vec<usize>]) {
    let mut next = 1;
    for (number, lens) in sources.iter().enumerate() {
        let mut writer = ShardWriter::create(&folder.join(number.to_string()), 1 << 20, 100, false).unwrap();
        for &len in lens {
            let ids: Vec<u32> = (next..next + len as u32).collect();
            let ids = &ids;
            writer
                .add(&NewDocument {
                    ids,
                    ..NewDocument::default()
                })
                .unwrap();
            next += len as u32;
        }
        writer.finish().unwrap();
    }
}

fn mixture(folder: &Path, sources: usize, epochs: Option<u64>) -> Arc<Mixture> {
    let source = |number: usize| Source {
        name: number.to_string(),
        shards: Shards::open(&folder.join(number.to_string())).unwrap(),
        share: 1.0 + number as f64,
        epochs,
    };
    Arc::new(Mixture::new((0..sources).map(source).collect(), 7).unwrap())
}

fn config(buckets: Vec<Bucket>, packing: Packing) -> Config {
    Config {
        buckets,
        packing,
        rank: 0,
        world_size: 1,
        seed: 7,
        masks: Vec::new(),
        worker: (0, 1),
    }
}

fn bucket(seq_len: usize, batch_size: usize) -> Vec<Bucket> {
    vec![Bucket {
        lengths: 1..=u32::MAX,
        seq_len,
        batch_size,
    }]
}

/// Returns one bucket, or three with different rows and steps.
fn buckets() -> impl Strategy<Value = Vec<Bucket>> {
    let one = (1usize..40, 1usize..13).prop_map(|(seq_len, batch_size)| bucket(seq_len, batch_size));
    let shape = || (1usize..40, 1usize..13);
    let three = (1u32..20, 1u32..20, [shape(), shape(), shape()]).prop_map(|(first, more, shapes)| {
        let lengths = [1..=first, first + 1..=first + more, first + more + 1..=u32::MAX];
        let bucket = |(lengths, (seq_len, batch_size))| Bucket {
            lengths,
            seq_len,
            batch_size,
        };
        lengths.into_iter().zip(shapes).map(bucket).collect()
    });
    prop_oneof![one, three]
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        Just(Packing::Stream),
        (1u64..20).prop_map(|lookahead| Packing::BestFit { lookahead })
    ]
}

/// Returns tokens, targets, mask, segment lengths, sources, and documents, without rows of padding only.
type Content = (Vec<i32>, Vec<i32>, Vec<bool>, Vec<i32>, Vec<i32>, Vec<i64>);

fn content(parts: &[Batch]) -> Content {
    let mut all = Content::default();
    for part in parts {
        let (mut segment, seq_len) = (0, part.seq_len);
        for row in 0..part.rows {
            let first = segment;
            while (part.cu_seqlens[segment + 1] as usize) < (row + 1) * seq_len {
                segment += 1;
            }
            segment += 1;
            if part.source_ids[first..segment] == [-1] {
                continue;
            }
            let positions = row * seq_len..(row + 1) * seq_len;
            all.0.extend(&part.arrays.tokens[positions.clone()]);
            all.1.extend(&part.arrays.targets[positions.clone()]);
            all.2.extend(&part.arrays.loss_mask[positions]);
            all.3.extend(
                part.cu_seqlens[first..=segment]
                    .windows(2)
                    .map(|pair| pair[1] - pair[0]),
            );
            all.4.extend(&part.source_ids[first..segment]);
            all.5.extend(&part.document_ids[first..segment]);
        }
    }
    all
}

/// Returns the content of the next steps, rank by rank within a step.
fn run(loaders: &mut [Loader], steps: u64) -> Vec<Content> {
    let mut batches = Vec::new();
    for _ in 0..steps {
        let parts: Vec<Option<Batch>> = loaders.iter_mut().map(|loader| loader.next_batch().unwrap()).collect();
        let Some(parts) = parts.into_iter().collect::<Option<Vec<Batch>>>() else {
            break;
        };
        assert!(parts.iter().all(|part| part.rows == parts[0].rows));
        batches.push(content(&parts));
    }
    batches
}

fn world(mixture: &Arc<Mixture>, config: &Config, world_size: usize, state: &State) -> Vec<Loader> {
    let loader = |rank| {
        let config = Config {
            rank,
            world_size,
            ..config.clone()
        };
        let mut loader = Loader::new(mixture.clone(), config).unwrap();
        loader.restore(state).unwrap();
        loader
    };
    (0..world_size).map(loader).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn resume_and_ranks_change_nothing(
        sources in prop::collection::vec(prop::collection::vec(1usize..60, 1..30), 1..4),
        buckets in buckets(), packing in packing(), epochs in prop::option::of(1u64..4),
        stops in prop::collection::vec((0u64..5, 1usize..14), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sources);
        let mixture = mixture(folder.path(), sources.len(), epochs);
        let config = config(buckets, packing);
        let mut whole = Loader::new(mixture.clone(), config.clone()).unwrap();
        let start = whole.state();
        let expected = run(std::slice::from_mut(&mut whole), 20);

        let mut state = start;
        let mut got = Vec::new();
        for (steps, world_size) in stops {
            let mut ranks = world(&mixture, &config, world_size, &state);
            got.extend(run(&mut ranks, steps));
            state = ranks[0].state();
            for rank in &ranks {
                prop_assert_eq!(rank.state(), state.clone());
            }
        }
        let mut last = world(&mixture, &config, 1, &state);
        got.extend(run(&mut last, 20 - got.len() as u64));
        prop_assert_eq!(got, expected);
        prop_assert_eq!(last[0].state(), whole.state());
    }

    #[test]
    fn every_token_once_an_epoch(
        sources in prop::collection::vec(prop::collection::vec(1usize..90, 1..20), 1..4),
        buckets in buckets(), packing in packing(), epochs in 1u64..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sources);
        let mut loader =
            Loader::new(mixture(folder.path(), sources.len(), Some(epochs)), config(buckets.clone(), packing)).unwrap();
        let lens: Vec<usize> = sources.iter().flatten().copied().collect();
        let mut seen: Vec<i32> = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            let lengths = &buckets[batch.bucket].lengths;
            let segments = batch.cu_seqlens.windows(2).zip(batch.source_ids.iter().zip(&batch.document_ids));
            for (segment, (&source, &document)) in segments.filter(|(_, (source, _))| **source >= 0) {
                let tokens = &batch.arrays.tokens[segment[0] as usize..segment[1] as usize];
                let len = sources[source as usize][document as usize];
                prop_assert!(lengths.contains(&(len as u32)));
                prop_assert!(tokens.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                // Best fit cuts only documents that are longer than a row.
                if packing != Packing::Stream {
                    prop_assert!(tokens.len() == len || len > batch.seq_len);
                }
                seen.extend(tokens);
            }
        }
        seen.sort_unstable();
        let total: usize = lens.iter().sum();
        let expected = (1..=total as i32).flat_map(|token| std::iter::repeat_n(token, epochs as usize));
        prop_assert!(seen.iter().copied().eq(expected));
        let totals = loader.state().totals;
        prop_assert_eq!(totals.tokens.iter().sum::<u64>(), (total * epochs as usize) as u64);
        prop_assert_eq!(totals.documents, lens.len() as u64 * epochs);
    }

    /// A stream leaves space only in the last row of a bucket.
    #[test]
    fn a_stream_fills_its_rows(lens in prop::collection::vec(1usize..60, 1..30), seq_len in 1usize..40) {
        let folder = tempfile::tempdir().unwrap();
        let total: usize = lens.iter().sum();
        write(folder.path(), &[lens]);
        let mixture = mixture(folder.path(), 1, Some(1));
        let mut loader = Loader::new(mixture, config(bucket(seq_len, 1), Packing::Stream)).unwrap();
        let rows = run(std::slice::from_mut(&mut loader), u64::MAX).len();
        prop_assert_eq!(rows, total.div_ceil(seq_len));
    }

    /// Workers that take a rank's steps in turn yield the same as one loader.
    #[test]
    fn workers_take_turns(
        lens in prop::collection::vec(1usize..60, 1..40), buckets in buckets(), packing in packing(), workers in 1u64..5,
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[lens]);
        let mixture = mixture(folder.path(), 1, Some(2));
        let config = config(buckets, packing);
        let mut whole = Loader::new(mixture.clone(), config.clone()).unwrap();
        let expected = run(std::slice::from_mut(&mut whole), u64::MAX);
        let parts: Vec<_> = (0..workers)
            .map(|worker| {
                let config = Config { worker: (worker, workers), ..config.clone() };
                run(&mut [Loader::new(mixture.clone(), config).unwrap()], u64::MAX)
            })
            .collect();
        for (step, batch) in expected.iter().enumerate() {
            prop_assert_eq!(&parts[step % workers as usize][step / workers as usize], batch);
        }
        prop_assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), expected.len());
    }

    /// Any state is accepted or refused, and a loader that accepted one continues without a panic.
    #[test]
    fn an_impossible_state_is_refused(
        counts in [0u64..100, 0u64..100, 0u64..100, 0u64..100, 0u64..100],
        places in prop::collection::vec(
            (prop::collection::vec([0u64..50, 0u64..500], 1..3), 0u64..9, prop::option::of([0u64..3, 0u64..50, 0u64..60])),
            1..3,
        ),
        epochs in prop::option::of(1u64..4), packing in packing(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[vec![5, 30, 7, 1], vec![70, 2]]);
        let mut loader = Loader::new(mixture(folder.path(), 2, epochs), config(bucket(20, 2), packing)).unwrap();
        let before = loader.state();
        let [steps, documents, positions, first, second] = counts;
        let totals = Totals { steps, documents, positions, tokens: vec![first, second] };
        let place = |(cursors, taken, rest)| Place { cursors, taken, rest };
        let state = State { totals, places: places.into_iter().map(place).collect() };
        if loader.restore(&state).is_err() {
            prop_assert_eq!(loader.state(), before);
        }
        run(std::slice::from_mut(&mut loader), 5);
    }
}

#[test]
fn shares_hold() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[vec![10; 50], vec![3, 40, 25], vec![1; 70]]);
    for packing in [Packing::Stream, Packing::BestFit { lookahead: 1 }] {
        let mut loader = Loader::new(mixture(folder.path(), 3, None), config(bucket(50, 4), packing)).unwrap();
        for _ in 0..200 {
            loader.next_batch().unwrap();
            let tokens = loader.state().totals.tokens;
            let total: u64 = tokens.iter().sum();
            for (source, &tokens) in tokens.iter().enumerate() {
                let due = total as f64 * (1.0 + source as f64) / 6.0;
                // One document more or less, and another rest of the last document.
                assert!(
                    (tokens as f64 - due).abs() <= 90.0,
                    "source {source}: {tokens} of {due}"
                );
            }
        }
    }
}

#[test]
fn a_prefetcher_gives_the_same_batches_and_states() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[(1..80).collect()]);
    let mixture = mixture(folder.path(), 1, Some(2));
    let config = config(bucket(64, 3), Packing::BestFit { lookahead: 16 });
    let mut loader = Loader::new(mixture.clone(), config.clone()).unwrap();
    for depth in 1..4 {
        loader
            .restore(&Loader::new(mixture.clone(), config.clone()).unwrap().state())
            .unwrap();
        let ahead = Prefetcher::start(Loader::new(mixture.clone(), config.clone()).unwrap(), depth).unwrap();
        loop {
            let expected = loader.next_batch().unwrap();
            let made = ahead.next(Duration::from_secs(60)).unwrap().unwrap();
            let (Some(expected), Some((batch, state))) = (&expected, &made) else {
                assert!(expected.is_none() && made.is_none());
                break;
            };
            assert_eq!(
                content(std::slice::from_ref(batch)),
                content(std::slice::from_ref(expected))
            );
            assert_eq!(*state, loader.state());
        }
    }
}

#[test]
fn after_an_error_the_loader_goes_on_where_it_stood() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[vec![3000]]);
    let mut loader = Loader::new(
        mixture(folder.path(), 1, Some(1)),
        config(bucket(500, 1), Packing::Stream),
    )
    .unwrap();
    let path = folder.path().join("0/00000.cwmtok");
    let intact = std::fs::read(&path).unwrap();
    let first = loader.next_batch().unwrap().unwrap().arrays.tokens[499];
    let before = loader.state();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    for _ in 0..2 {
        assert!(loader.next_batch().err().unwrap().to_string().contains("truncated"));
        assert_eq!(loader.state(), before);
    }
    std::fs::write(&path, intact).unwrap();
    assert_eq!(loader.next_batch().unwrap().unwrap().arrays.tokens[0], first + 1);
}
