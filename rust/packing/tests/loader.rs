//! A loader that stops and goes on elsewhere, on more or fewer ranks, gives what one that never stopped gives.

use std::path::Path;

use cwm_packing::{Batch, Config, Loader, ShardWriter, Shards, Source, State};
use proptest::prelude::*;

/// Every token of every document of every source is another.
fn write(folder: &Path, sources: &[Vec<usize>]) {
    let mut next = 0;
    for (number, lens) in sources.iter().enumerate() {
        let mut writer = ShardWriter::create(&folder.join(number.to_string()), 1 << 20, 100).unwrap();
        for &len in lens {
            let ids: Vec<u32> = (next..next + len as u32).collect();
            writer.add(&ids, None, "").unwrap();
            next += len as u32;
        }
        writer.finish().unwrap();
    }
}

fn open(folder: &Path, sources: usize, config: &Config) -> Loader {
    let source = |number: usize| Source {
        name: number.to_string(),
        shards: Shards::open(&folder.join(number.to_string())).unwrap(),
        share: 1.0 + number as f64,
    };
    Loader::new((0..sources).map(source).collect(), config.clone()).unwrap()
}

/// Tokens, targets, mask, segment lengths and sources of a global batch.
type Content = (Vec<i32>, Vec<i32>, Vec<bool>, Vec<i32>, Vec<i32>);

/// The content of the next batches, rank after rank within a batch.
fn run(loaders: &mut [Loader], steps: u64) -> Vec<Content> {
    let mut batches = Vec::new();
    for _ in 0..steps {
        let parts: Vec<Option<Batch>> = loaders.iter_mut().map(|loader| loader.next_batch().unwrap()).collect();
        let Some(parts) = parts.into_iter().collect::<Option<Vec<Batch>>>() else {
            break;
        };
        let lens = |part: &Batch| {
            part.cu_seqlens
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .collect::<Vec<_>>()
        };
        batches.push((
            parts.iter().flat_map(|part| part.tokens.clone()).collect(),
            parts.iter().flat_map(|part| part.targets.clone()).collect(),
            parts.iter().flat_map(|part| part.loss_mask.clone()).collect(),
            parts.iter().flat_map(lens).collect(),
            parts.iter().flat_map(|part| part.source_ids.clone()).collect(),
        ));
    }
    batches
}

fn world(folder: &Path, sources: usize, config: &Config, world_size: usize, state: &State) -> Vec<Loader> {
    (0..world_size)
        .map(|rank| {
            let mut loader = open(
                folder,
                sources,
                &Config {
                    rank,
                    world_size,
                    ..config.clone()
                },
            );
            loader.restore(state).unwrap();
            loader
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn resume_and_ranks_change_nothing(
        sources in prop::collection::vec(prop::collection::vec(1usize..60, 1..30), 1..4),
        seq_len in 1usize..40, seed: u64, lookahead in 1usize..20, epochs in prop::option::of(1u64..4),
        stops in prop::collection::vec((0u64..5, prop::sample::select(vec![1usize, 2, 3, 4, 6, 12])), 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sources);
        let config = Config { seq_len, batch_size: 12, rank: 0, world_size: 1, seed, epochs, lookahead };
        let mut whole = open(folder.path(), sources.len(), &config);
        let start = whole.state();
        let expected = run(std::slice::from_mut(&mut whole), 20);

        let mut state = start;
        let mut got = Vec::new();
        for (steps, world_size) in stops {
            let mut ranks = world(folder.path(), sources.len(), &config, world_size, &state);
            got.extend(run(&mut ranks, steps));
            state = ranks[0].state();
            for rank in &ranks {
                prop_assert_eq!(rank.state(), state.clone());
            }
        }
        let mut last = world(folder.path(), sources.len(), &config, 1, &state);
        got.extend(run(&mut last, 20 - got.len() as u64));
        prop_assert_eq!(got, expected);
        prop_assert_eq!(last[0].state(), whole.state());
    }

    #[test]
    fn every_token_once_an_epoch(
        sources in prop::collection::vec(prop::collection::vec(1usize..90, 1..20), 1..4),
        seq_len in 1usize..40, seed: u64, lookahead in 1usize..20, epochs in 1u64..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &sources);
        let config = Config { seq_len, batch_size: 3, rank: 0, world_size: 1, seed, epochs: Some(epochs), lookahead };
        let mut loader = open(folder.path(), sources.len(), &config);
        let mut seen: Vec<i32> = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            for (segment, source) in batch.cu_seqlens.windows(2).zip(&batch.source_ids) {
                if *source >= 0 {
                    seen.extend(&batch.tokens[segment[0] as usize..segment[1] as usize]);
                }
            }
        }
        seen.sort_unstable();
        let total: usize = sources.iter().flatten().sum();
        let expected = (0..total as i32).flat_map(|token| std::iter::repeat_n(token, epochs as usize));
        prop_assert!(seen.iter().copied().eq(expected));
        let stats = loader.stats();
        prop_assert_eq!(stats.tokens, (total * epochs as usize) as u64);
        prop_assert_eq!(stats.documents, sources.iter().flatten().count() as u64 * epochs);
    }

    /// Any state is taken or refused; a loader that took one goes on without a panic.
    #[test]
    fn an_impossible_state_is_refused(
        step in 0u64..100, cursors in prop::collection::vec([0u64..50, 0u64..4, 0u64..500], 1..3),
        lookahead in prop::collection::vec([0u64..3, 0u64..50, 0u64..3], 0..6), epochs in prop::option::of(1u64..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[vec![5, 30, 7, 1], vec![70, 2]]);
        let config = Config { seq_len: 20, batch_size: 2, rank: 0, world_size: 1, seed: 1, epochs, lookahead: 5 };
        let mut loader = open(folder.path(), 2, &config);
        let before = loader.state();
        let state = State { step, cursors, lookahead };
        if loader.restore(&state).is_ok() {
            prop_assert_eq!(loader.state(), state);
        } else {
            prop_assert_eq!(loader.state(), before);
        }
        loader.stats();
        run(std::slice::from_mut(&mut loader), 5);
        loader.stats();
    }
}

#[test]
fn shares_hold_at_every_moment() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &[vec![10; 50], vec![3, 40, 25], vec![1; 70]]);
    let config = Config {
        seq_len: 50,
        batch_size: 4,
        rank: 0,
        world_size: 1,
        seed: 3,
        epochs: None,
        lookahead: 1,
    };
    let mut loader = open(folder.path(), 3, &config);
    for _ in 0..200 {
        loader.next_batch().unwrap();
        let drawn: Vec<f64> = loader.state().cursors.iter().map(|cursor| cursor[2] as f64).collect();
        let total: f64 = drawn.iter().sum();
        for (source, tokens) in drawn.iter().enumerate() {
            let due = total * (1.0 + source as f64) / 6.0;
            assert!((tokens - due).abs() <= 50.0, "source {source}: {tokens} of {due}");
        }
    }
}
