//! Bindings of `cwm_packing`.

mod loader;
mod shards;

use std::ffi::OsString;
use std::io;

use crate::errors;
use cwm_packing as packing;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<shards::ShardWriter>()?;
    m.add_class::<shards::Shards>()?;
    m.add_class::<loader::BatchMemory>()?;
    m.add_class::<loader::PackedLoader>()
}

fn to_py(error: packing::Error) -> PyErr {
    match error {
        packing::Error::Io { path, error } => match error.raw_os_error() {
            // Python picks the subclass of OSError by the number.
            Some(number) => PyOSError::new_err((number, strerror(&error), OsString::from(path))),
            None => io::Error::new(error.kind(), format!("{}: {error}", path.display())).into(),
        },
        packing::Error::Damaged { .. } => errors::damaged(error.to_string()),
        error @ (packing::Error::Invalid(_) | packing::Error::Interrupted(_)) => {
            PyValueError::new_err(error.to_string())
        }
    }
}

/// Returns the operating system's message of an error, without the number that Rust adds.
fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}
