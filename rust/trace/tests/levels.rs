//! Checks that coarser traces of random frames, balanced or not, are well formed and resolve to the same states.

use std::num::NonZeroUsize;

use cwm_trace::{
    Event, FrameRef, Level, Line, LoopBudget, Shown, Trace, coarsen, from_bytes, parse_text, resolve, to_bytes,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

const LINES: [&str; 8] = [
    "for i in a:\n",
    "    while i:\n",
    "\tasync  for j in b:\n",
    "        i += 1\n",
    "    i += 1\n",
    "return i\n",
    "format(i)\n",
    "",
];

/// Frame to build: event, line, variables by number (one is named "..") with their texts, and whether it omits others.
type Spec = (Event, usize, Vec<(u8, Option<u8>)>, bool);

fn spec() -> impl Strategy<Value = Spec> {
    let event = prop_oneof![
        2 => Just(Event::Call), 12 => Just(Event::Line), 2 => Just(Event::Return), 1 => Just(Event::Exception)
    ];
    (
        event,
        0..LINES.len(),
        vec((0u8..5, option::of(0u8..3)), 0..4),
        any::<bool>(),
    )
}

fn levels() -> impl Strategy<Value = Level> {
    let budget = (0usize..3, 1usize..3);
    (any::<bool>(), option::of(1usize..4), option::of(budget), any::<bool>()).prop_map(
        |(calls, depth, budget, changes)| Level {
            calls_only: calls,
            max_depth: depth.and_then(NonZeroUsize::new),
            loop_budget: budget.map(|(first, last)| LoopBudget {
                first,
                last: NonZeroUsize::new(last).unwrap(),
            }),
            changes_only: changes,
        },
    )
}

fn name_of(variable: u8) -> String {
    if variable == 0 {
        "..".into()
    } else {
        format!("v{variable}")
    }
}

/// Builds frames whose variable `at`, or whose value, is the position of the frame.
fn build(specs: &[Spec]) -> Trace {
    let mut trace = Trace::new("context".into());
    let lines = LINES.map(|text| {
        let text = text.to_owned();
        trace.add_line(Line { number: 0, text })
    });
    for (index, (event, line, variables, leaves_out)) in specs.iter().enumerate() {
        if !event.has_locals() {
            let value = if variables.is_empty() {
                "None".into()
            } else {
                index.to_string()
            };
            trace.open_value().extend_from_slice(value.as_bytes());
            trace.push_value_frame(*event, lines[*line]);
            continue;
        }
        let mut shown = vec![("at".to_owned(), Some(index.to_string()))];
        if *leaves_out {
            shown.insert(0, ("..".into(), None));
        }
        for &(variable, text) in variables {
            let name = name_of(variable);
            if shown.iter().all(|(other, _)| *other != name) {
                shown.push((name, text.map(|text| text.to_string())));
            }
        }
        let mut shape = Vec::new();
        for (slot, (name, text)) in shown.iter().enumerate() {
            shape.push(trace.intern_name(name.as_bytes()));
            if let Some(text) = text {
                trace.open_value().extend_from_slice(text.as_bytes());
                trace.keep_change(slot as u32);
            }
        }
        let shape = trace.intern_shape(&shape);
        trace.push_locals_frame(*event, lines[*line], shape);
    }
    trace
}

/// Returns the position in the full trace of each CALL and LINE frame; `None` for other frames.
fn positions(coarse: &Trace) -> Vec<Option<usize>> {
    let position = |frame: FrameRef<'_>| match frame.locals().find(|&(name, _)| name == b"at") {
        Some((_, Shown::Text(text))) => std::str::from_utf8(text).unwrap().parse().ok(),
        _ => None,
    };
    coarse.frames().map(position).collect()
}

/// Returns the depth after each CALL and RETURN frame.
fn depths(trace: &Trace) -> Vec<i32> {
    let step = |event| match event {
        Event::Call => 1,
        Event::Return => -1,
        Event::Line | Event::Exception => 0,
    };
    let depths = trace.frames().scan(0, |depth, frame| {
        *depth += step(frame.event());
        Some(*depth)
    });
    depths.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_is_shown_resolves_as_before(specs in vec(spec(), 0..60), level in levels()) {
        let trace = build(&specs);
        let coarse = coarsen(&trace, &level);
        let states = resolve(&trace);
        let positions = positions(&coarse);
        for ((frame, position), state) in coarse.frames().zip(&positions).zip(resolve(&coarse)) {
            prop_assert_eq!(position.is_some(), frame.event().has_locals());
            let Some(position) = *position else { continue };
            prop_assert_eq!(frame.event(), specs[position].0);
            prop_assert_eq!(&frame.line().text, LINES[specs[position].1]);
            if states[position].is_some() {
                prop_assert_eq!(&state, &states[position]);
            }
        }
        let shown: Vec<usize> = positions.into_iter().flatten().collect();
        prop_assert!(shown.is_sorted());
    }

    #[test]
    fn calls_and_returns_stay_balanced(specs in vec(spec(), 0..60), level in levels()) {
        let trace = build(&specs);
        let (before, after) = (depths(&trace), depths(&coarsen(&trace, &level)));
        if before.iter().all(|&depth| depth >= 0) {
            let most = level.max_depth.map_or(i32::MAX, |most| most.get() as i32);
            prop_assert!(after.iter().all(|depth| (0..=most).contains(depth)));
            let end = before.last().map_or(0, |&depth| depth.min(most));
            prop_assert_eq!(after.last().copied().unwrap_or(0), end);
        }
    }

    #[test]
    fn coarse_traces_come_back_from_every_form(specs in vec(spec(), 0..60), level in levels()) {
        let coarse = coarsen(&build(&specs), &level);
        prop_assert_eq!(&from_bytes(&to_bytes(&coarse).unwrap()).unwrap(), &coarse);
        let text = coarse.to_text();
        let parsed = parse_text(&text);
        prop_assert!(parsed.complete);
        // The text does not contain the outcome. The parser derives it from the frames.
        let mut expected = coarse.clone();
        expected.outcome = coarse.shown_outcome();
        prop_assert_eq!(&parsed.trace, &expected);
    }

    #[test]
    fn once_is_enough(specs in vec(spec(), 0..60), level in levels()) {
        let coarse = coarsen(&build(&specs), &level);
        prop_assert_eq!(&coarsen(&coarse, &level), &coarse);
        prop_assert_eq!(&coarsen(&coarse, &Level::default()), &coarse);
    }
}
