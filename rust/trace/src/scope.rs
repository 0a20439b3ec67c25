//! Full states from diffs: CALL pushes a scope, RETURN pops it, and `..` refers to the last full value in the scope.
//!
//! A LINE frame that begins with the pair `"..": ".."` omits unchanged variables, which stay in the scope of its
//! activation. If the activation has a variable named `..`, which the namespace of a module may, the pair is that
//! variable.

use rustc_hash::FxHashMap;

use crate::trace::{Event, FrameRef, Shown, Trace};

/// Variables of a frame in order, with the texts of their values.
pub type State<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Name of the pair that stands for the variables that a frame omits.
pub(crate) const REST: &[u8] = b"..";

/// Variables of an activation in order, by the IDs of their names. A value is `None` if its `..` has no referent.
#[derive(Clone, Default)]
pub(crate) struct Scope<'a> {
    variables: Vec<(u32, Option<&'a [u8]>)>,
    places: FxHashMap<u32, usize>,
}

impl<'a> Scope<'a> {
    pub(crate) fn len(&self) -> usize {
        self.variables.len()
    }

    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = u32> {
        self.variables.iter().map(|&(name, _)| name)
    }

    pub(crate) fn value(&self, name: u32) -> Option<&'a [u8]> {
        self.places.get(&name).and_then(|&place| self.variables[place].1)
    }

    fn set(&mut self, name: u32, value: Option<&'a [u8]>) {
        match self.places.get(&name) {
            Some(&place) => self.variables[place].1 = value,
            None => {
                self.places.insert(name, self.variables.len());
                self.variables.push((name, value));
            }
        }
    }

    /// Applies a frame that shows exactly these variables in this order.
    fn set_values(&mut self, shown: impl Iterator<Item = (u32, Shown<'a>)>) {
        for ((_, value), (_, shown)) in self.variables.iter_mut().zip(shown) {
            *value = text(shown).or(*value);
        }
    }

    /// Applies a frame that omits no variables.
    fn replace(&mut self, shown: impl Iterator<Item = (u32, Shown<'a>)>) {
        let mut next = Scope::default();
        for (name, shown) in shown {
            next.set(name, text(shown).or_else(|| self.value(name)));
        }
        *self = next;
    }

    /// Applies a frame that shows some of these variables, and new ones.
    fn update(&mut self, shown: impl Iterator<Item = (u32, Shown<'a>)>) {
        for (name, shown) in shown {
            self.set(name, text(shown).or_else(|| self.value(name)));
        }
    }

    fn state(&self, trace: &'a Trace) -> Option<State<'a>> {
        self.variables
            .iter()
            .map(|&(name, value)| value.map(|value| (trace.name(name), value)))
            .collect()
    }
}

fn text(shown: Shown<'_>) -> Option<&[u8]> {
    match shown {
        Shown::Text(text) => Some(text),
        Shown::Unchanged => None,
    }
}

/// Returns whether a frame begins with the pair `"..": ".."`. Such a frame omits variables, unless its activation has a
/// variable of that name.
pub(crate) fn begins_with_rest(frame: FrameRef<'_>) -> bool {
    frame.event() == Event::Line && frame.locals().next() == Some((REST, Shown::Unchanged))
}

/// Scopes of the open activations of a trace, updated frame by frame.
#[derive(Default)]
pub(crate) struct Scopes<'a> {
    stack: Vec<Scope<'a>>,
    /// Scope of the last LINE frame outside any activation. Later frames cannot refer to it.
    outside: Scope<'a>,
}

impl<'a> Scopes<'a> {
    /// Returns the scope of the innermost open activation.
    pub(crate) fn top(&self) -> Option<&Scope<'a>> {
        self.stack.last()
    }

    /// Applies the next frame. Returns the resulting scope if the frame shows variables.
    pub(crate) fn step(&mut self, frame: FrameRef<'a>) -> Option<&Scope<'a>> {
        match frame.event() {
            Event::Call => self.stack.push(Scope::default()),
            Event::Line => {}
            Event::Return => {
                self.stack.pop();
                return None;
            }
            Event::Exception => return None,
        }
        let names = frame.shape()?;
        let shown = names.iter().copied().zip(frame.locals().map(|(_, shown)| shown));
        let Some(scope) = self.stack.last_mut() else {
            self.outside = Scope::default();
            self.outside.replace(shown);
            return Some(&self.outside);
        };
        if scope.names().eq(names.iter().copied()) {
            scope.set_values(shown);
        } else if begins_with_rest(frame) && !scope.places.contains_key(&names[0]) {
            scope.update(shown.skip(1));
        } else {
            scope.replace(shown);
        }
        Some(scope)
    }
}

/// Returns the full state at each CALL and LINE frame; `None` for other frames, or if a `..` has no referent.
///
/// Every state lists all variables. If frames omit variables, the states take far more memory than the trace.
pub fn resolve(trace: &Trace) -> Vec<Option<State<'_>>> {
    let mut scopes = Scopes::default();
    let states = trace.frames().map(|frame| scopes.step(frame)?.state(trace));
    states.collect()
}

/// Returns the full state at frame `index`, equal to that of [`resolve`]. Reads only the frames since the activation's
/// CALL frame.
pub fn state_at(trace: &Trace, index: usize) -> Option<State<'_>> {
    let mut scopes = Scopes::default();
    for i in activation_start(trace, index)..index {
        scopes.step(trace.frame(i));
    }
    scopes.step(trace.frame(index))?.state(trace)
}

/// Returns the frame that opens the activation of frame `index`: the matching CALL, or frame 0 if there is none.
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
