//! Python bindings. Each module only converts types, releases the GIL, and maps errors.

mod arrays;
mod errors;
mod grammar;
mod interrupt;
mod packing;
mod recorder;
mod store;
mod tokenizer;
mod trace;

use pyo3::prelude::*;

/// The native half of `cwm_core`.
#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    errors::register(m)?;
    trace::register(m)?;
    store::register(m)?;
    recorder::register(m)?;
    tokenizer::register(m)?;
    grammar::register(m)?;
    packing::register(m)
}
