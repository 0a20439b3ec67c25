//! Coarser traces: selects the frames that a level shows, and rewrites frames that refer to omitted ones.
//!
//! `docs/concepts/trace-format.md` defines the levels.

use std::num::NonZeroUsize;
use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::scope::{REST, Scope, Scopes, begins_with_rest};
use crate::trace::{Event, FrameRef, Line, Shown, Trace};

/// Level of detail of a trace. The default shows the full trace; options combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Show only CALL and RETURN frames, and the EXCEPTION frame that unwinds an activation.
    pub calls_only: bool,
    /// Show only activations up to this nesting depth. Outermost activations have depth 1.
    pub max_depth: Option<NonZeroUsize>,
    /// Show only the first and last iterations of each execution of a loop.
    pub loop_budget: Option<LoopBudget>,
    /// Show only the variables that changed in LINE frames.
    pub changes_only: bool,
}

/// Number of iterations to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopBudget {
    pub first: usize,
    /// At least one, so that the trace always shows how a loop ended.
    pub last: NonZeroUsize,
}

/// Treatment of a frame.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Shown,
    /// RETURN frame, shown after the EXCEPTION frame at this index.
    ShownAfter(usize),
    /// LINE frame, shown relative to the state before the omitted iterations that precede it.
    ShownAfterCut,
    LeftOut,
    /// First frame of the omitted iterations.
    CutBegins,
}

/// Returns the trace at `level`. The variables of each shown frame resolve to the same state as in `trace`.
///
/// The only exception is a `..` without a referent, as in a malformed prediction, which may gain one.
pub fn coarsen(trace: &Trace, level: &Level) -> Trace {
    let mut fates = vec![Fate::Shown; trace.len()];
    if let Some(budget) = level.loop_budget {
        cut_loops(trace, budget, &mut fates);
    }
    if level.calls_only {
        leave_out_steps(trace, &mut fates);
    }
    if let Some(most) = level.max_depth {
        leave_out_deep(trace, most, &mut fates);
    }
    write(trace, &fates, level.changes_only)
}

/// Calls `visit` with each frame, its depth, and the mutable value of its activation, which starts as the default.
/// Returns the values of the activations that are still open.
fn for_each_frame<T: Default>(trace: &Trace, mut visit: impl FnMut(FrameRef<'_>, usize, &mut T)) -> Vec<T> {
    let mut outside = T::default();
    let mut stack: Vec<T> = Vec::new();
    for frame in trace.frames() {
        if frame.event() == Event::Call {
            stack.push(T::default());
        }
        let depth = stack.len();
        visit(frame, depth, stack.last_mut().unwrap_or(&mut outside));
        if frame.event() == Event::Return && stack.pop().is_none() {
            outside = T::default();
        }
    }
    stack.push(outside);
    stack
}

fn leave_out_deep(trace: &Trace, most: NonZeroUsize, fates: &mut [Fate]) {
    for_each_frame(trace, |frame, depth, _: &mut ()| {
        if depth > most.get() {
            fates[frame.index()] = Fate::LeftOut;
        }
    });
}

fn leave_out_steps(trace: &Trace, fates: &mut [Fate]) {
    for_each_frame(trace, |frame, _, exception: &mut Option<usize>| {
        let fate = &mut fates[frame.index()];
        match frame.event() {
            Event::Call => {}
            Event::Line => {
                *exception = None;
                *fate = Fate::LeftOut;
            }
            Event::Exception => {
                *exception = Some(frame.index());
                *fate = Fate::LeftOut;
            }
            Event::Return => {
                if let Some(index) = *exception
                    && frame.arg() == Some(b"None")
                    && *fate == Fate::Shown
                {
                    *fate = Fate::ShownAfter(index);
                }
            }
        }
    });
}

/// Properties of a source line that determine loops.
#[derive(Clone, Copy)]
struct Place {
    /// First ID of an equal line.
    line: u32,
    indent: usize,
    is_header: bool,
    is_known: bool,
}

fn places(trace: &Trace) -> Vec<Place> {
    let mut ids: FxHashMap<&Line, u32> = FxHashMap::default();
    let mut places = Vec::with_capacity(trace.lines().len());
    for (id, line) in trace.lines().iter().enumerate() {
        let code = line.text.trim_start_matches([' ', '\t']);
        places.push(Place {
            line: *ids.entry(line).or_insert(id as u32),
            indent: line.text.len() - code.len(),
            is_header: is_loop_header(code),
            is_known: !line.text.is_empty(),
        });
    }
    places
}

/// Returns whether the code begins with `for`, `async for`, or `while`.
fn is_loop_header(code: &str) -> bool {
    let (word, rest) = split_word(code);
    match word {
        "async" => split_word(rest.trim_start_matches([' ', '\t'])).0 == "for",
        _ => matches!(word, "for" | "while"),
    }
}

fn split_word(code: &str) -> (&str, &str) {
    code.split_at(
        code.find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(code.len()),
    )
}

/// Open loops of an activation, outermost first.
#[derive(Default)]
struct Loops {
    open: Vec<Loop>,
    /// Frames at which iterations of the open loops begin. Those of the innermost loop come last.
    visits: Vec<usize>,
}

struct Loop {
    place: Place,
    first_visit: usize,
    /// Whether a line of the body ran since the last visit.
    in_body: bool,
}

impl Loop {
    fn contains(&self, place: Place) -> bool {
        self.place.is_header && place.indent > self.place.indent
    }
}

impl Loops {
    /// Applies a LINE frame.
    fn step(&mut self, index: usize, place: Place, budget: LoopBudget, cuts: &mut Vec<Range<usize>>) {
        while let Some(top) = self.open.last_mut() {
            if top.place.line == place.line {
                top.in_body = false;
                self.visits.push(index);
                return;
            }
            if top.contains(place) {
                top.in_body = true;
                break;
            }
            self.close(budget, cuts);
        }
        // Lines without source are indistinguishable.
        if place.is_known {
            self.open.push(Loop {
                place,
                first_visit: self.visits.len(),
                in_body: false,
            });
            self.visits.push(index);
        }
    }

    /// Closes the innermost loop. The last visit is not an iteration unless a line of the body followed.
    fn close(&mut self, budget: LoopBudget, cuts: &mut Vec<Range<usize>>) {
        let Some(ended) = self.open.pop() else { return };
        let visits = &self.visits[ended.first_visit..];
        let iterations = visits.len() - usize::from(!ended.in_body);
        let (first, last) = (budget.first, budget.last.get());
        if iterations > first.saturating_add(last) {
            cuts.push(visits[first]..visits[iterations - last]);
        }
        self.visits.truncate(ended.first_visit);
    }

    fn close_all(&mut self, budget: LoopBudget, cuts: &mut Vec<Range<usize>>) {
        while !self.open.is_empty() {
            self.close(budget, cuts);
        }
    }
}

fn cut_loops(trace: &Trace, budget: LoopBudget, fates: &mut [Fate]) {
    let places = places(trace);
    let mut cuts = Vec::new();
    let still_open = for_each_frame(trace, |frame, _, loops: &mut Loops| match frame.event() {
        Event::Line => loops.step(frame.index(), places[frame.line_id() as usize], budget, &mut cuts),
        Event::Return => loops.close_all(budget, &mut cuts),
        Event::Call | Event::Exception => {}
    });
    for mut loops in still_open {
        loops.close_all(budget, &mut cuts);
    }
    // A nested cut starts after the cut that contains it, so sorting by start puts outer cuts first.
    cuts.sort_unstable_by_key(|cut| cut.start);
    let mut end = 0;
    for cut in cuts {
        if cut.start >= end {
            fates[cut.clone()].fill(Fate::LeftOut);
            fates[cut.start] = Fate::CutBegins;
            fates[cut.end] = Fate::ShownAfterCut;
            end = cut.end;
        }
    }
}

fn write(trace: &Trace, fates: &[Fate], changes_only: bool) -> Trace {
    let mut writer = Writer::new(trace);
    // Tracking scopes is necessary only if some frames are rewritten.
    let rewrites = changes_only || fates.contains(&Fate::ShownAfterCut);
    let mut scopes = Scopes::default();
    let mut before_cut = None;
    for (frame, &fate) in trace.frames().zip(fates) {
        if fate == Fate::CutBegins {
            before_cut = scopes.top().cloned();
        }
        let known = match (scopes.top(), frame.event()) {
            (Some(before), Event::Line) if changes_only => known_variables(trace, before, frame.shape().unwrap_or(&[])),
            _ => 0,
        };
        if rewrites {
            scopes.step(frame);
        }
        match fate {
            Fate::LeftOut | Fate::CutBegins => {}
            Fate::ShownAfter(exception) => {
                writer.copy(trace.frame(exception));
                writer.copy(frame);
            }
            Fate::ShownAfterCut => match (before_cut.take(), scopes.top()) {
                (Some(before), Some(now)) => writer.line_after_cut(frame, &before, now, changes_only),
                _ => writer.copy(frame),
            },
            Fate::Shown if known > 0 => writer.line(frame, &frame.locals().collect::<Vec<_>>(), known),
            Fate::Shown => writer.copy(frame),
        }
    }
    writer.to
}

/// Returns the number of variables that a LINE frame with these names may omit: all variables of the scope before it if
/// the frame's names begin with them in order, and otherwise none.
fn known_variables(trace: &Trace, before: &Scope<'_>, names: &[u32]) -> usize {
    let has_all = before.len() <= names.len() && before.names().eq(names[..before.len()].iter().copied());
    let is_plain = names.iter().all(|&name| trace.name(name) != REST);
    if has_all && is_plain { before.len() } else { 0 }
}

/// Writes the new trace. `lines` maps line IDs of the old trace to those of the new one.
struct Writer<'a> {
    from: &'a Trace,
    to: Trace,
    lines: FxHashMap<u32, u32>,
    shape: Vec<u32>,
}

impl<'a> Writer<'a> {
    fn new(from: &'a Trace) -> Writer<'a> {
        let mut to = Trace::new(from.context.clone());
        to.outcome = from.outcome.clone();
        to.truncated = from.truncated.clone();
        Writer {
            from,
            to,
            lines: FxHashMap::default(),
            shape: Vec::new(),
        }
    }

    /// Writes a frame unchanged.
    fn copy(&mut self, frame: FrameRef<'a>) {
        match frame.arg() {
            None => self.push_locals(frame, frame.locals()),
            Some(value) => {
                let line = self.line_id(frame);
                self.to.open_value().extend_from_slice(value);
                self.to.push_value_frame(frame.event(), line);
            }
        }
    }

    /// Writes a LINE frame as the difference between two states of its activation's scope.
    fn line_after_cut(&mut self, frame: FrameRef<'a>, before: &Scope<'a>, now: &Scope<'a>, changes_only: bool) {
        let names: Vec<u32> = now.names().collect();
        let known = match changes_only || begins_with_rest(frame) {
            true => known_variables(self.from, before, &names),
            false => 0,
        };
        let shown = |name| match now.value(name) {
            Some(text) if before.value(name) != Some(text) => Shown::Text(text),
            _ => Shown::Unchanged,
        };
        let variables: Vec<_> = names.iter().map(|&name| (self.from.name(name), shown(name))).collect();
        self.line(frame, &variables, known);
    }

    /// Writes a LINE frame with these variables. Unchanged variables among the first `known` are omitted.
    fn line(&mut self, frame: FrameRef<'a>, variables: &[(&[u8], Shown<'_>)], known: usize) {
        let (old, new) = variables.split_at(known);
        let changed = old.iter().filter(|(_, shown)| *shown != Shown::Unchanged);
        if changed.clone().count() == known {
            self.push_locals(frame, variables.iter().copied());
        } else {
            let rest = std::iter::once(&(REST, Shown::Unchanged));
            self.push_locals(frame, rest.chain(changed).chain(new).copied());
        }
    }

    fn push_locals<'b>(&mut self, frame: FrameRef<'_>, variables: impl Iterator<Item = (&'b [u8], Shown<'b>)>) {
        self.shape.clear();
        for (name, shown) in variables {
            if let Shown::Text(text) = shown {
                self.to.open_value().extend_from_slice(text);
                self.to.keep_change(self.shape.len() as u32);
            }
            self.shape.push(self.to.intern_name(name));
        }
        let shape = self.to.intern_shape(&self.shape);
        let line = self.line_id(frame);
        self.to.push_locals_frame(frame.event(), line, shape);
    }

    fn line_id(&mut self, frame: FrameRef<'_>) -> u32 {
        let to = &mut self.to;
        *self
            .lines
            .entry(frame.line_id())
            .or_insert_with(|| to.add_line(frame.line().clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::is_loop_header;

    #[test]
    fn loop_headers_begin_with_whole_words() {
        for code in [
            "for i in a:\n",
            "for(i)in a:\n",
            "while x:\n",
            "while(x):\n",
            "async for i in a:\n",
            "async\t for i in a:",
        ] {
            assert!(is_loop_header(code), "{code}");
        }
        for code in [
            "",
            "format = 1\n",
            "for_all()\n",
            "whileé = 1",
            "while1 = 2\n",
            "async with a:\n",
            "asyncfor = 1\n",
            "x for\n",
        ] {
            assert!(!is_loop_header(code), "{code}");
        }
    }
}
