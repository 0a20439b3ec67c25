//! Lets a caller stop long loops in other crates, for example when the user presses Ctrl-C.
//!
//! The caller wraps its work in [`asking`]. Long loops call [`check`], or count their work with [`Pace`], and return
//! the error. Without [`asking`], `check` always succeeds. `asking` applies to the current thread; [`on_threads`]
//! passes the answer to the threads that it starts.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Time between two calls of `may_continue`.
const INTERVAL: Duration = Duration::from_millis(50);
/// Units of work between two readings of the clock. A unit takes nanoseconds.
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

/// Runs `work`. Within it, [`check`] fails once `may_continue` has returned false.
pub fn asking<R>(may_continue: impl Fn() -> bool + 'static, work: impl FnOnce() -> R) -> R {
    let question = Rc::new(Question {
        may_continue: Box::new(may_continue),
        asked: Cell::new(Instant::now()),
        is_refused: Cell::new(false),
    });
    let _outer = Outer(QUESTION.replace(Some(question)));
    work()
}

/// Restores the question of an enclosing [`asking`], also after a panic.
struct Outer(Option<Rc<Question>>);

impl Drop for Outer {
    fn drop(&mut self) {
        QUESTION.set(self.0.take());
    }
}

/// Asks whether the work may continue, at most every 50 ms. Once refused, it always fails.
pub fn check() -> Result<(), Interrupted> {
    // Cloned because `may_continue` may run code that calls `asking`.
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

/// Counts work and calls [`check`] now and then, for loops whose iterations take less time than reading the clock.
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

/// Runs `work` for each item in parallel, the first on this thread, and returns the results in order. While the other
/// threads work, this thread asks whether to continue. Once refused, their checks fail too.
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

/// Notifies the caller that a thread is done, also after a panic.
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
