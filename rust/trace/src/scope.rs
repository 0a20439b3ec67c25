//! Full states from diffs: CALL pushes a scope, RETURN pops it, `..` is the scope's last full value.

use rustc_hash::FxHashMap;

use crate::trace::{Event, Shown, Trace};

/// The variables of a frame in order, with the texts of their values.
pub type State<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A scope's variables; `None` where a `..` has nothing to refer to.
type Scope<'a> = Vec<(&'a [u8], Option<&'a [u8]>)>;

/// The full variables at each CALL and LINE frame; `None` elsewhere, or where a `..` has nothing to refer to.
pub fn resolve(trace: &Trace) -> Vec<Option<State<'_>>> {
    let mut stack: Vec<Scope<'_>> = Vec::new();
    (0..trace.len()).map(|index| step(trace, index, &mut stack)).collect()
}

/// The full variables at frame `index`, as [`resolve`] gives them. Walks back only to the activation's CALL frame.
pub fn state_at(trace: &Trace, index: usize) -> Option<State<'_>> {
    let mut stack = Vec::new();
    let mut last = None;
    for i in activation_start(trace, index)..=index {
        last = step(trace, i, &mut stack);
    }
    last
}

/// The nearest frame before `index` (or itself) that opens its activation: the matching CALL, else frame 0.
fn activation_start(trace: &Trace, index: usize) -> usize {
    let mut depth = 0;
    for i in (0..=index).rev() {
        match trace.frame(i).event() {
            Event::Call if depth == 0 => return i,
            Event::Call => depth -= 1,
            Event::Return if i < index => depth += 1,
            _ => {}
        }
    }
    0
}

fn step<'a>(trace: &'a Trace, index: usize, stack: &mut Vec<Scope<'a>>) -> Option<State<'a>> {
    let frame = trace.frame(index);
    match frame.event() {
        Event::Call => stack.push(Vec::new()),
        Event::Line => {}
        Event::Return => {
            stack.pop();
            return None;
        }
        Event::Exception => return None,
    }
    let base: FxHashMap<&[u8], Option<&[u8]>> = stack.last().into_iter().flatten().copied().collect();
    let full: Scope<'_> = frame
        .locals()
        .map(|(name, shown)| match shown {
            Shown::Text(text) => (name, Some(text)),
            Shown::Unchanged => (name, base.get(name).copied().flatten()),
        })
        .collect();
    let state = full.iter().map(|&(name, value)| value.map(|v| (name, v))).collect();
    if let Some(top) = stack.last_mut() {
        *top = full;
    }
    state
}
