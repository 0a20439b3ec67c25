//! Pool of caches that calls reuse.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::cache::Cache;
use crate::split::Ends;

/// Buffers of an encoding call.
#[derive(Debug, Default)]
pub struct Tools {
    pub cache: Cache,
    pub ends: Ends,
    /// Scratch buffer for tokens.
    pub tokens: Vec<u32>,
}

/// Number of caches kept between calls. Further concurrent calls start with empty caches.
const KEPT: usize = 64;

/// Idle caches. Never waits for a lock, because in a forked child no thread would release it.
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

/// A clone starts without caches.
impl Clone for Pool {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Pool {
    /// Takes an idle cache, or creates one.
    pub fn take(&self) -> Lent<'_> {
        let waiting = self.waiting.iter().find_map(|slot| slot.try_lock().ok()?.take());
        Lent {
            pool: self,
            tools: Some(waiting.unwrap_or_default()),
        }
    }
}

/// A cache that returns to its pool when dropped.
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
            return; // its state may be inconsistent
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
