//! Lets a caller stop long loops of other crates, for example when the user presses Ctrl-C.
//!
//! The caller wraps its work in [`asking`]. Long loops call [`check`], or count their work with [`Pace`], and return the
//! error. Without [`asking`], `check` always succeeds. The question belongs to the thread; [`on_threads`] hands the
//! answer on to the threads that it starts.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Time between two questions.
const INTERVAL: Duration = Duration::from_millis(50);
/// Units of work between two looks at the clock. A unit takes nanoseconds.
const UNITS: u64 = 1 << 16;

thread_local! {
    static QUESTION: RefCell<Option<Rc<Question>>> = const { RefCell::new(None) };
}

struct Question {
    may_continue: Box<dyn Fn() -> bool>,
    asked: Cell<Instant>,
    is_refused: Cell<bool>,
}

/// The caller asked the work to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Runs `work`, during which [`check`] fails once `may_continue` has returned false.
pub fn asking<R>(may_continue: impl Fn() -> bool + 'static, work: impl FnOnce() -> R) -> R {
    let question = Rc::new(Question {
        may_continue: Box::new(may_continue),
        asked: Cell::new(Instant::now()),
        is_refused: Cell::new(false),
    });
    let _outer = Outer(QUESTION.replace(Some(question)));
    work()
}

/// Puts the question of an enclosing [`asking`] back, also after a panic.
struct Outer(Option<Rc<Question>>);

impl Drop for Outer {
    fn drop(&mut self) {
        QUESTION.set(self.0.take());
    }
}

/// Asks whether the work may continue, at most every 50 ms. After a refusal it always fails.
pub fn check() -> Result<(), Interrupted> {
    // Cloned, because the answer may run code that asks questions of its own.
    let Some(question) = QUESTION.with_borrow(Clone::clone) else {
        return Ok(());
    };
    if !question.is_refused.get() && question.asked.get().elapsed() >= INTERVAL {
        question.is_refused.set(!(question.may_continue)());
        question.asked.set(Instant::now());
    }
    if question.is_refused.get() {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

/// Counts work and calls [`check`] now and then, for loops whose rounds are shorter than a look at the clock.
#[derive(Clone, Debug, Default)]
pub struct Pace(u64);

impl Pace {
    /// Adds `units` of work, each of which takes nanoseconds.
    #[inline]
    pub fn did(&mut self, units: u64) -> Result<(), Interrupted> {
        self.0 += units;
        if self.0 < UNITS {
            return Ok(());
        }
        self.0 = 0;
        check()
    }
}

/// Runs `work` for each of `items` at once, the first on this thread, and returns what it returns, in order. While the
/// others work, this thread asks, and when it is refused their checks fail too.
pub fn on_threads<T: Send, R: Send>(items: impl IntoIterator<Item = T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let mut items = items.into_iter();
    let Some(mine) = items.next() else {
        return Vec::new();
    };
    let (work, is_refused, caller) = (&work, Arc::new(AtomicBool::new(false)), thread::current());
    let (left, caller) = (&AtomicUsize::new(0), &caller);
    thread::scope(|scope| {
        let others: Vec<_> = items
            .map(|item| {
                left.fetch_add(1, Ordering::AcqRel);
                let is_refused = is_refused.clone();
                scope.spawn(move || {
                    let _done = Done { left, caller };
                    asking(move || !is_refused.load(Ordering::Relaxed), || work(item))
                })
            })
            .collect();
        let mut results = vec![work(mine)];
        while left.load(Ordering::Acquire) > 0 {
            if check().is_err() {
                is_refused.store(true, Ordering::Relaxed);
            }
            thread::park_timeout(INTERVAL);
        }
        results.extend(
            others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))),
        );
        results
    })
}

/// Tells the caller that a thread is done, also after a panic.
struct Done<'a> {
    left: &'a AtomicUsize,
    caller: &'a Thread,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.left.fetch_sub(1, Ordering::AcqRel);
        self.caller.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loops until it is stopped.
    fn endless() -> Interrupted {
        let mut pace = Pace::default();
        loop {
            if let Err(stopped) = pace.did(UNITS / 2) {
                return stopped;
            }
        }
    }

    #[test]
    fn stops_when_refused() {
        let questions = Rc::new(Cell::new(0));
        let count = questions.clone();
        let may_continue = move || {
            count.set(count.get() + 1);
            count.get() < 3
        };
        let stopped = asking(may_continue, || (endless(), endless()));
        assert_eq!((stopped, questions.get()), ((Interrupted, Interrupted), 3));
    }

    #[test]
    fn the_outer_question_returns() {
        let may_continue = || asking(|| false, endless) != Interrupted;
        assert_eq!(asking(may_continue, endless), Interrupted);
        thread::sleep(INTERVAL);
        assert_eq!(check(), Ok(()));
    }

    #[test]
    fn stops_other_threads() {
        for busy in 0..3 {
            let work = |item| if item == busy { Some(endless()) } else { None };
            let stopped = asking(|| false, || on_threads(0..3, work));
            let expected: Vec<_> = (0..3).map(|item| (item == busy).then_some(Interrupted)).collect();
            assert_eq!(stopped, expected);
        }
        assert_eq!(on_threads(0..4, |item| item * item), [0, 1, 4, 9]);
    }
}
