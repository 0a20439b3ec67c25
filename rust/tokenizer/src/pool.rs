//! Caches that calls take turns with.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::cache::Cache;
use crate::split::Ends;

/// What encoding needs at hand.
#[derive(Debug, Default)]
pub struct Tools {
    pub cache: Cache,
    pub ends: Ends,
    /// For tokens that are only looked at.
    pub tokens: Vec<u32>,
}

/// Caches kept between calls; more calls than this at one time begin with empty ones.
const KEPT: usize = 64;

/// Caches that wait for the next call. Never waits for a lock: in a forked child another thread's would not come back.
#[derive(Debug)]
pub struct Pool {
    waiting: [Mutex<Option<Box<Tools>>>; KEPT],
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            waiting: [const { Mutex::new(None) }; KEPT],
        }
    }
}

/// A clone begins without caches.
impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    /// A cache that nobody uses now, or a new one.
    pub fn take(&self) -> Lent<'_> {
        let waiting = self.waiting.iter().find_map(|slot| slot.try_lock().ok()?.take());
        Lent {
            pool: self,
            tools: Some(waiting.unwrap_or_default()),
        }
    }
}

/// A cache that goes back to its pool.
pub struct Lent<'p> {
    pool: &'p Pool,
    tools: Option<Box<Tools>>,
}

impl Deref for Lent<'_> {
    type Target = Tools;

    fn deref(&self) -> &Tools {
        self.tools.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Tools {
        self.tools.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // it may be half changed
        }
        for slot in &self.pool.waiting {
            if let Ok(mut slot) = slot.try_lock()
                && slot.is_none()
            {
                *slot = self.tools.take();
                return;
            }
        }
    }
}
