//! Caches that calls take turns with.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::cache::Cache;

/// Caches kept between calls; more calls than this at one time begin with empty ones.
const KEPT: usize = 64;

/// Caches that wait for the next call. Never waits for a lock: in a forked child another thread's would not come back.
#[derive(Debug)]
pub struct Pool {
    waiting: [Mutex<Option<Box<Cache>>>; KEPT],
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
    /// The cache used last that nobody uses now, or a new one.
    pub fn take(&self) -> Lent<'_> {
        let waiting = self.waiting.iter().find_map(|slot| slot.try_lock().ok()?.take());
        Lent {
            pool: self,
            cache: Some(waiting.unwrap_or_default()),
        }
    }
}

/// A cache that goes back to its pool.
pub struct Lent<'p> {
    pool: &'p Pool,
    cache: Option<Box<Cache>>,
}

impl Deref for Lent<'_> {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        self.cache.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Cache {
        self.cache.as_mut().expect("there until it is dropped")
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
                *slot = self.cache.take();
                return;
            }
        }
    }
}
