//! Python bindings: one file a room, each only converting types, releasing the GIL and mapping errors.

mod packing;
mod recorder;
mod tokenizer;
mod trace;

use pyo3::prelude::*;

/// The compiled half of `cwm_core`.
#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    trace::register(m)?;
    recorder::register(m)?;
    tokenizer::register(m)?;
    packing::register(m)
}
