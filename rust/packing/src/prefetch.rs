//! Batches made ahead of their use, by a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use cwm_interrupt::asking;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::loader::{Loader, State};

/// A batch, and where the loader stands after it; `None` after the last.
pub type Made = Result<Option<(Batch, State)>>;

/// Makes batches in their order while earlier ones are used, `depth` of them ahead.
pub struct Prefetcher {
    made: Receiver<Made>,
    is_wanted: Arc<AtomicBool>,
}

impl Prefetcher {
    /// Goes on from where `loader` stands. The thread ends with the last batch, an error, or when the prefetcher is
    /// dropped.
    pub fn start(loader: Loader, depth: usize) -> Result<Prefetcher> {
        // One more is always being made, or made and waiting for its place.
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

    /// The next batch; `None` if it was not made within `patience`. There is nothing after an error or the end.
    pub fn next(&self, patience: Duration) -> Option<Made> {
        match self.made.recv_timeout(patience) {
            Ok(made) => Some(made),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(Error::Invalid("the loader's thread has ended".into()))),
        }
    }
}

/// Ends the thread, also in the midst of a batch.
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
