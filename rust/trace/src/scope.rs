//! Full states from diffs: CALL pushes a scope, RETURN pops it, `..` is the scope's last full value.
//!
//! A LINE frame that begins with the pair `"..": ".."` leaves out variables that are as before: its activation's scope
//! keeps them. Where a variable is itself named `..`, as a module's namespace allows, the pair is that variable.

use rustc_hash::FxHashMap;

use crate::trace::{Event, FrameRef, Shown, Trace};

/// The variables of a frame in order, with the texts of their values.
pub type State<'a> = Vec<(&'a [u8], &'a [u8])>;

/// The name of the pair that stands for the variables that a frame leaves out.
pub(crate) const REST: &[u8] = b"..";

/// The variables of one activation in order, by the ids of their names; `None` where a `..` has nothing to refer to.
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

    /// Takes in a frame of these very variables in this order.
    fn set_values(&mut self, shown: impl Iterator<Item = (u32, Shown<'a>)>) {
        for ((_, value), (_, shown)) in self.variables.iter_mut().zip(shown) {
            *value = text(shown).or(*value);
        }
    }

    /// Takes in a frame that leaves out nothing.
    fn replace(&mut self, shown: impl Iterator<Item = (u32, Shown<'a>)>) {
        let mut next = Scope::default();
        for (name, shown) in shown {
            next.set(name, text(shown).or_else(|| self.value(name)));
        }
        *self = next;
    }

    /// Takes in a frame of only some of these variables, and of new ones.
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

/// Whether a frame begins with the pair `"..": ".."`: then, in an activation without a variable of that name, it leaves
/// out variables.
pub(crate) fn begins_with_rest(frame: FrameRef<'_>) -> bool {
    frame.event() == Event::Line && frame.locals().next() == Some((REST, Shown::Unchanged))
}

/// The scopes of the open activations of a trace, frame by frame.
#[derive(Default)]
pub(crate) struct Scopes<'a> {
    stack: Vec<Scope<'a>>,
    /// That of the last CALL or LINE frame outside any activation, which later frames cannot refer to.
    outside: Scope<'a>,
}

impl<'a> Scopes<'a> {
    /// The scope of the innermost open activation.
    pub(crate) fn top(&self) -> Option<&Scope<'a>> {
        self.stack.last()
    }

    /// Goes past the next frame. Gives the scope after it where the frame shows variables.
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

/// The full variables at each CALL and LINE frame; `None` elsewhere, or where a `..` has nothing to refer to.
///
/// Every state is written out: where frames leave variables out, the states take far more memory than the trace.
pub fn resolve(trace: &Trace) -> Vec<Option<State<'_>>> {
    let mut scopes = Scopes::default();
    let states = trace.frames().map(|frame| scopes.step(frame)?.state(trace));
    states.collect()
}

/// The full variables at frame `index`, as [`resolve`] gives them. Walks back only to the activation's CALL frame.
pub fn state_at(trace: &Trace, index: usize) -> Option<State<'_>> {
    let mut scopes = Scopes::default();
    for i in activation_start(trace, index)..index {
        scopes.step(trace.frame(i));
    }
    scopes.step(trace.frame(index))?.state(trace)
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
