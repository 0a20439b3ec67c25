//! Prepares batches ahead, in a thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use cwm_interrupt::asking;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::loader::{Loader, State};

/// A batch and the loader's state after it; `None` after the last.
pub type Made = Result<Option<(Batch, State)>>;

/// Prepares up to `depth` batches ahead, in order.
pub struct Prefetcher {
    made: Receiver<Made>,
    is_wanted: Arc<AtomicBool>,
}

impl Prefetcher {
    /// Starts at the loader's position. The thread ends after the last batch or an error, or when the prefetcher is
    /// dropped.
    pub fn start(loader: Loader, depth: usize) -> Result<Prefetcher> {
        // One batch more is being prepared, or is waiting for a free slot.
        let (sender, receiver) = sync_channel(depth.saturating_sub(1));
        let builder = thread::Builder::new().name("cwm-loader".into());
        let is_wanted = Arc::new(AtomicBool::new(true));
        let may_continue = is_wanted.clone();
        let spawned =
            builder.spawn(move || asking(move || may_continue.load(Ordering::Relaxed), || run(loader, &sender)));
        match spawned {
            Ok(_) => Ok(Prefetcher {
                made: receiver,
                is_wanted,
            }),
            Err(error) => Err(Error::Invalid(format!("cannot start the loader's thread: {error}"))),
        }
    }

    /// Returns the next batch, or `None` if it is not ready within `patience`. Nothing follows an error or the end.
    pub fn next(&self, patience: Duration) -> Option<Made> {
        match self.made.recv_timeout(patience) {
            Ok(made) => Some(made),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(Error::Invalid("the loader's thread has ended".into()))),
        }
    }
}

/// Stops the thread, even within a batch.
impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.is_wanted.store(false, Ordering::Relaxed);
    }
}

fn run(mut loader: Loader, sender: &SyncSender<Made>) {
    loop {
        let made = loader.next_batch().map(|batch| Some((batch?, loader.state())));
        let is_last = !matches!(made, Ok(Some(_)));
        if sender.send(made).is_err() || is_last {
            return;
        }
    }
}
